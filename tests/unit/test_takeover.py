"""Of several that keep one run going, the newest has it, and the others leave it."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from supervising import BUDGETS, supervise

from launcher import history
from launcher.history import Ending, EndKind
from rotescale.launch_spec import Restarts
from rotescale.run_dir import Outcome, RunDir


def begun(run_dir: RunDir, *, owner: str) -> int | None:
    """Number of a start of that owner; None where it gets none."""
    start = history.begin(run_dir, place="local", launch="laptop", owner=owner)
    return None if start is None else start.number


def ended(run_dir: RunDir, number: int, kind: EndKind) -> None:
    ending = Ending(number=number, time="", kind=kind, reason="why", exit_code=4, checkpoint=None)
    history.end(run_dir, ending)


def test_who_lost_a_run_does_not_take_it_back(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path / "run")
    assert begun(run_dir, owner="a") == 1
    assert begun(run_dir, owner="a") == 2, "nobody else has begun"
    assert history.successor(run_dir, 2) is None
    assert begun(run_dir, owner="b") == 3
    assert begun(run_dir, owner="a") is None
    # However that one has ended: it may be started again, and who cancels it there wants no other.
    ended(run_dir, 3, "cancelled")
    assert begun(run_dir, owner="a") is None
    assert begun(run_dir, owner="b") == 4
    assert begun(run_dir, owner="c") == 5, "a person has asked for it"
    last = history.newest(run_dir)
    assert last is not None
    assert (last[0].number, last[0].owner, last[1]) == (5, "c", None)


def test_a_start_that_was_refused_has_taken_nothing(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path / "run")
    assert begun(run_dir, owner="a") == 1
    assert begun(run_dir, owner="b") == 2
    ended(run_dir, 2, "user")
    assert history.successor(run_dir, 1) is None
    assert begun(run_dir, owner="a") == 3


def test_many_that_begin_at_once_have_a_number_each_and_one_the_run(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path / "run")
    owners = [str(number) for number in range(6)]
    with ThreadPoolExecutor(len(owners)) as threads:
        first = list(threads.map(lambda owner: begun(run_dir, owner=owner), owners))
        again = list(threads.map(lambda owner: begun(run_dir, owner=owner), owners))
    assert sorted(first) == [1, 2, 3, 4, 5, 6]  # type: ignore[type-var]
    assert [number for number in again if number] == [7]
    assert again[first.index(6)] == 7, "the last to begin"


def test_notes_of_before_owners_were_kept_are_read(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path / "run")
    run_dir.launches_dir.mkdir(parents=True)  # type: ignore[union-attr]
    old = {"number": 1, "time": "", "place": "ray", "host": "far"}
    run_dir.launch_start(1).write_bytes(json.dumps(old).encode())
    assert begun(run_dir, owner="a") == 2
    assert history.starts(run_dir)[0].where == "ray on far"


TAKEN = "while ! test -e {launches}/0002.json; do sleep 0.01; done; exit 4"


@pytest.mark.parametrize(("budgets", "code"), [(BUDGETS, 4), (None, 0)])
def test_a_run_that_was_taken_over_is_left(
    tmp_path: Path, budgets: Restarts | None, code: int
) -> None:
    """Whoever starts it again where the budget is not ours, KubeRay, must not: so the 0."""
    run_dir = RunDir(tmp_path / "run")
    taken = threading.Timer(0.3, lambda: begun(run_dir, owner="another"))
    taken.start()
    found, said = supervise(run_dir, TAKEN.format(launches=run_dir.launches_dir), budgets)
    taken.join()
    assert found == code
    assert "not started again: start 2, at laptop (local) on " in said
    assert [one.kind for one in history.endings(run_dir)] == ["superseded"]
    assert run_dir.launch_numbers() == [1, 2]


def test_a_run_that_was_taken_over_while_it_waited_is_left(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path / "run")
    code, said = supervise(run_dir, "exit 4", sleep=lambda _: begun(run_dir, owner="another"))
    assert code == 4
    assert said.splitlines()[-1] == "not started: a later start has the run"
    assert [one.kind for one in history.endings(run_dir)] == ["infrastructure"]
    assert run_dir.launch_numbers() == [1, 2]


def test_a_try_of_a_job_that_has_lost_the_run_leaves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As KubeRay tries a RayJob again on a new cluster: another process, of the same submission."""
    run_dir = RunDir(tmp_path / "run")
    monkeypatch.setenv(history.OWNER_VARIABLE, "one-ray-job")
    for _ in range(2):
        assert supervise(run_dir, "exit 4", None)[0] == 4
    begun(run_dir, owner="another")
    assert supervise(run_dir, "exit 4", None) == (0, "not started: a later start has the run")
    monkeypatch.setenv(history.OWNER_VARIABLE, "the-next-ray-job")
    assert supervise(run_dir, "exit 0", None)[0] == 0
    assert [one.number for one in history.starts(run_dir)] == [1, 2, 3, 4]
    assert [one.kind for one in history.endings(run_dir)][-1] == "finished"


FAILED = Outcome(status="failed", attempt=0, error="DataError", message="row 3")


@pytest.mark.parametrize(
    ("ends", "code", "words"),
    [
        ("exit 2", 2, "error: mother.csv: missing"),
        ("exit 3", 3, "error: mother.csv: missing"),
        # Killed after a worker has written the outcome, which decides the run.
        (f"echo '{FAILED.model_dump_json()}' > outcome.json; kill -9 $$", 137, "DataError: row 3"),
    ],
)
def test_a_user_error_is_told_again_by_each_try_of_a_job_and_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str, code: int, words: str
) -> None:
    run_dir = RunDir(tmp_path / "run")
    script = f"cd {run_dir.root}; echo x >> tries; echo error: mother.csv: missing; {ends}"
    monkeypatch.setenv(history.OWNER_VARIABLE, "one-ray-job")
    assert supervise(run_dir, script, None) == (code, "")
    for _ in range(2):
        again, said = supervise(run_dir, script, None)
        assert again == code
        assert said.startswith("not started again: start 1 of this submission met a user error;")
        assert said.endswith(words)
    assert (tmp_path / "run" / "tries").read_text() == "x\n"
    assert run_dir.launch_numbers() == [1]

    # Asked for by a person, it is tried again.
    monkeypatch.setenv(history.OWNER_VARIABLE, "the-next-ray-job")
    Outcome.clear(run_dir)
    assert supervise(run_dir, "exit 0", None) == (0, "")
    assert [one.kind for one in history.endings(run_dir)] == ["user", "finished"]


def test_what_was_no_user_error_is_tried_again_by_the_same_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = RunDir(tmp_path / "run")
    monkeypatch.setenv(history.OWNER_VARIABLE, "one-ray-job")
    for script in ("exit 4", "kill -9 $$", "exit 130", "exit 1"):
        supervise(run_dir, script, None)
    # A try whose supervisor was killed has noted no end.
    assert begun(run_dir, owner="one-ray-job") == 5
    assert supervise(run_dir, "exit 0", None) == (0, "")
    assert [one.kind for one in history.endings(run_dir)] == [
        *("infrastructure", "infrastructure", "cancelled", "infrastructure", "finished")
    ]


def test_a_try_that_nobody_has_named_is_one_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a manifest that kubectl has applied."""
    run_dir = RunDir(tmp_path / "run")
    monkeypatch.delenv(history.OWNER_VARIABLE, raising=False)
    for _ in range(2):
        assert supervise(run_dir, "exit 2", None) == (2, "")
    assert run_dir.launch_numbers() == [1, 2]


def test_a_job_with_a_user_error_leaves_a_run_that_another_has_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = RunDir(tmp_path / "run")
    monkeypatch.setenv(history.OWNER_VARIABLE, "one-ray-job")
    assert supervise(run_dir, "exit 2", None)[0] == 2
    assert begun(run_dir, owner="another") == 2
    assert supervise(run_dir, "exit 2", None) == (0, "not started: a later start has the run")
    ended(run_dir, 2, "user")
    assert supervise(run_dir, "exit 0", None)[0] == 2, "that one was refused as well"
    assert run_dir.launch_numbers() == [1, 2]
