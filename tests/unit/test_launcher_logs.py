"""What workers have printed is found by rank and attempt, on a disk and in a bucket."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from launcher import cli
from launcher.target import Target
from launcher.worker_logs import follow_worker
from rotescale.launch_spec import LaunchSpec
from rotescale.run_dir import RunDir
from rotescale.storage import StoragePath, make_folder, write_atomic

Logs = Callable[..., tuple[int, str]]


@pytest.fixture
def logs(
    folder: StoragePath, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Logs:
    """``rotescale-launch logs`` of a run of two ranks and two attempts, in this process."""
    run_dir = RunDir(folder / "run")
    make_folder(run_dir.logs_dir)
    for attempt, rank in ((1, 0), (1, 1), (2, 1)):
        name = run_dir.worker_log(attempt=attempt, rank=rank).name
        text = f"attempt {attempt}, rank {rank}\nlast \N{BLACK STAR}\n"
        write_atomic(run_dir.logs_dir / name, text.encode())
    write_atomic(run_dir.logs_dir / "driver-0001.log", b"of the driver\n")
    write_atomic(run_dir.spec_json, b"{}")

    def logs(*arguments: str) -> tuple[int, str]:
        command = ["rotescale-launch", "logs", str(run_dir.root), *arguments]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        printed = capsys.readouterr()
        return int(stopped.value.code or 0), printed.out + printed.err

    return logs


def test_a_ranks_log_is_of_its_newest_attempt_or_of_the_one_that_is_asked_for(logs: Logs) -> None:
    assert logs("--rank", "1") == (0, "attempt 2, rank 1\nlast \N{BLACK STAR}\n")
    assert logs("--rank", "1", "--attempt", "1")[1].startswith("attempt 1, rank 1\n")
    assert logs("--rank", "0")[1].startswith("attempt 1, rank 0\n"), "its newest"
    assert logs("--rank", "1", "--lines", "1") == (0, "last \N{BLACK STAR}\n")
    assert logs()[1] == "of the driver\n"


def test_a_rank_without_a_log_is_told_which_there_are(logs: Logs) -> None:
    for arguments, words in (
        (("--rank", "7"), "no log of rank 7 in attempt any"),
        (("--rank", "0", "--attempt", "2"), "no log of rank 0 in attempt 2"),
    ):
        code, said = logs(*arguments)
        assert code == 2
        assert words in said
        assert "(attempt/rank) 1/0, 1/1, 2/1. " in said


def test_each_start_of_the_driver_is_told_from_the_one_before(
    logs: Logs, folder: StoragePath
) -> None:
    run_dir = RunDir(folder / "run")
    for number in (10, 2):
        name = run_dir.numbered_driver_log(number).name
        write_atomic(run_dir.logs_dir / name, f"start {number}\n".encode())
    assert logs()[1].splitlines() == [
        "of the driver",
        *("--- another start: driver-0002.log", "start 2"),
        *("--- another start: driver-0010.log", "start 10"),
    ]
    assert logs("--lines", "1")[1] == "start 10\n"


def test_a_rank_of_a_run_that_has_ended_is_followed_to_its_end(logs: Logs) -> None:
    assert logs("--rank", "1", "--follow") == (0, "attempt 2, rank 1\nlast \N{BLACK STAR}\n")
    earlier = logs("--rank", "1", "--attempt", "1", "--follow")
    assert earlier == (0, "attempt 1, rank 1\nlast \N{BLACK STAR}\n")
    code, said = logs("--rank", "7", "--follow")
    assert (code, "no log of rank 7 in attempt any" in said) == (2, True)


def test_an_attempt_is_of_a_rank(logs: Logs) -> None:
    code, said = logs("--attempt", "1")
    assert code == 2
    assert "--attempt 1: whose? It is of a worker's log; add --rank" in said


@pytest.mark.parametrize(
    ("attempt", "expected"),
    [(None, ["one", "two", "--- attempt 2", "three"]), (1, ["one", "two"])],
)
def test_a_rank_is_followed_from_attempt_to_attempt(
    folder: StoragePath, attempt: int | None, expected: list[str]
) -> None:
    target = Target("run", LaunchSpec(storage=str(folder)))
    run_dir = target.run_dir
    make_folder(run_dir.logs_dir)
    write_atomic(run_dir.spec_json, b"{}")

    def log(attempt: int, text: bytes) -> None:
        name = run_dir.worker_log(attempt=attempt, rank=3).name
        write_atomic(run_dir.logs_dir / name, text)

    what_happens = iter(
        [(1, b"one\ntw"), (1, b"one\ntwo\n"), (2, b"three")],
    )
    # The rank has printed nothing yet when it is first looked for.
    alive = iter([True, True, True, False])
    lines = follow_worker(
        target,
        rank=3,
        attempt=attempt,
        is_alive=lambda _: next(alive),
        sleep=lambda _: log(*next(what_happens)),
    )
    assert list(lines) == expected
