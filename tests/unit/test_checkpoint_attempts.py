"""Each start gets its own number, and sees only the history that it goes on from."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from checkpoint_helpers import save_at

from rotescale.checkpoint.attempts import (
    Attempt,
    lineage,
    newest,
    read_attempt,
    start_attempt,
    visible,
)
from rotescale.checkpoint.manifest import DamagedManifestError
from rotescale.checkpoint.store import CheckpointStore
from rotescale.errors import CheckpointError
from rotescale.run_dir import RunDir


def start(run_dir: RunDir) -> Attempt:
    return start_attempt(run_dir, world_size=1, host="here")


def newest_step(run_dir: RunDir, number: int) -> int | None:
    found = newest(run_dir, number)
    return None if found is None else found.manifest.step


def test_the_first_attempt_starts_from_nothing(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    assert run_dir.newest_attempt() is None
    first = start_attempt(
        run_dir, world_size=3, host="a", now=lambda: datetime(2026, 1, 2, tzinfo=UTC)
    )
    assert first == Attempt(
        number=1, resumes=None, started="2026-01-02T00:00:00+00:00", world_size=3, host="a"
    )
    assert read_attempt(run_dir, 1) == first
    assert lineage(run_dir, 1) == [first]
    assert newest(run_dir, 1) is None


def test_a_restart_names_the_newest_checkpoint(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    start(run_dir)
    save_at(run_dir, attempt=1, step=50)
    save_at(run_dir, attempt=1, step=100)
    second = start(run_dir)
    assert second.resumes == "checkpoints/attempt-0001/01-memorize-step-000100-full/manifest.json"
    assert not run_dir.is_newest(1)
    assert run_dir.is_newest(2)
    assert newest_step(run_dir, 2) == 100


def test_what_a_zombie_publishes_later_is_invisible(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    start(run_dir)
    save_at(run_dir, attempt=1, step=50)
    start(run_dir)
    save_at(run_dir, attempt=1, step=150)
    assert newest_step(run_dir, 2) == 50
    save_at(run_dir, attempt=2, step=100)
    assert newest_step(run_dir, 2) == 100
    third = start(run_dir)
    assert third.resumes is not None
    assert third.resumes.startswith("checkpoints/attempt-0002/01-memorize-step-000100")
    save_at(run_dir, attempt=2, step=150)
    save_at(run_dir, attempt=1, step=200)
    assert newest_step(run_dir, 3) == 100
    assert [name.step for name in visible(run_dir, 3)] == [50, 100]


def test_a_zombie_of_an_attempt_that_started_from_nothing(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    start(run_dir)
    start(run_dir)
    save_at(run_dir, attempt=1, step=50)
    assert newest(run_dir, 2) is None
    assert start(run_dir).resumes is None


def test_an_attempt_that_published_nothing_drops_out_of_the_lineage(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    start(run_dir)
    save_at(run_dir, attempt=1, step=50)
    start(run_dir)
    start(run_dir)
    assert [attempt.number for attempt in lineage(run_dir, 3)] == [1, 3]
    save_at(run_dir, attempt=2, step=100)
    assert newest_step(run_dir, 3) == 50


def test_a_damaged_manifest_is_named_so_that_the_attempt_can_set_it_aside(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    start(run_dir)
    save_at(run_dir, attempt=1, step=50)
    manifest = run_dir.manifest(save_at(run_dir, attempt=1, step=100))
    manifest.write_bytes(manifest.read_bytes().replace(b'"cursor":4', b'"cursor":5'))
    second = start(run_dir)
    assert second.resumes == manifest.relative_to(tmp_path).as_posix()
    with pytest.raises(DamagedManifestError, match="not those of its digest"):
        newest(run_dir, 2)
    assert CheckpointStore(run_dir, 2).set_aside(manifest.parent)
    assert newest_step(run_dir, 2) == 50
    third = start(run_dir)
    assert third.resumes == "checkpoints/attempt-0001/01-memorize-step-000050-full/manifest.json"
    assert [attempt.number for attempt in lineage(run_dir, 3)] == [1, 3]


def test_a_choice_that_is_outdated_when_the_attempt_exists_is_made_again(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    start(run_dir)
    save_at(run_dir, attempt=1, step=50)
    fired = []

    def publish_and_prune() -> datetime:
        # Called between the choice and the creation of the attempt's file.
        if not fired:
            save_at(run_dir, attempt=1, step=100)
            fired.extend(CheckpointStore(run_dir, 1).prune(1))
        return datetime(2026, 1, 2, tzinfo=UTC)

    started = start_attempt(run_dir, world_size=1, now=publish_and_prune)
    assert [name.step for name in fired] == [50]
    assert started.number == 3
    assert [attempt.number for attempt in lineage(run_dir, 3)] == [1, 3]
    assert newest_step(run_dir, 3) == 100


_STARTER = """
import sys
from pathlib import Path
from rotescale.checkpoint.attempts import start_attempt
from rotescale.run_dir import RunDir
print("ready", flush=True)
sys.stdin.readline()
for _ in range(5):
    print(start_attempt(RunDir(Path(sys.argv[1])), world_size=1, host=sys.argv[2]).number)
"""


def test_eight_processes_that_start_at_once_get_numbers_of_their_own(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    start(run_dir)
    save_at(run_dir, attempt=1, step=50)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _STARTER, str(tmp_path), f"host-{index}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(8)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    owners: dict[int, str] = {}
    for index, process in enumerate(processes):
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        for number in map(int, output.split()):
            assert number not in owners
            owners[number] = f"host-{index}"
    assert sorted(owners) == run_dir.attempt_numbers()[1:] == list(range(2, 42))
    for number, host in owners.items():
        attempt = read_attempt(run_dir, number)
        assert attempt.host == host
        assert attempt.resumes is not None
        assert [a.number for a in lineage(run_dir, number)] == [1, number]


def test_damaged_attempts_are_named(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    start(run_dir)
    save_at(run_dir, attempt=1, step=50)
    second = start(run_dir)
    run_dir.attempt(1).unlink()
    with pytest.raises(CheckpointError, match=r"0001\.json: missing"):
        lineage(run_dir, 2)
    run_dir.attempt(1).write_text("{")
    with pytest.raises(CheckpointError, match=r"0001\.json: damaged"):
        lineage(run_dir, 2)
    assert second.resumes is not None
    looped = second.model_copy(update={"resumes": second.resumes.replace("0001/", "0002/")})
    run_dir.attempt(2).write_text(looped.model_dump_json())
    with pytest.raises(CheckpointError, match="which is not earlier"):
        lineage(run_dir, 2)
    run_dir.attempt(2).write_text(
        second.model_copy(update={"resumes": "elsewhere"}).model_dump_json()
    )
    with pytest.raises(CheckpointError, match="no path of a manifest"):
        lineage(run_dir, 2)
