"""Storage that fails, dawdles, or is written by processes that should be dead: nothing is lost."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers import (
    Worker,
    join_workers,
    micro_spec,
    prepare,
    run_workers,
    start_workers,
    steps,
    wait_until,
)
from recovery_helpers import SAVING, assert_equal_runs, events, made_of

from rotescale.checkpoint.attempts import newest, open_checkpoint, read_attempt, visible
from rotescale.checkpoint.manifest import is_published
from rotescale.checkpoint.slices import CheckpointReader
from rotescale.faults import VARIABLE
from rotescale.run_dir import CheckpointName, Outcome, RunDir


def used_bytes(folder: Path) -> int:
    """What lies on the file system of ``folder``."""
    system = os.statvfs(folder)
    return (system.f_blocks - system.f_bfree) * system.f_frsize


@contextmanager
def small_disk(folder: Path) -> Iterator[Callable[[int], None]]:
    """A file system of its own at ``folder``; call what is yielded to change its size in bytes."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "rotescale-test", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"NOT RUN: a small disk needs root and mount: {mounted.stderr.strip()}")

    def resize(num_bytes: int) -> None:
        options = f"remount,size={num_bytes}"
        subprocess.run(["mount", "-o", options, str(folder)], check=True)

    try:
        yield resize
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.privileged
@pytest.mark.parametrize(
    "checkpoints_that_fit",
    [pytest.param(0.5, marks=pytest.mark.slow), 1.5, pytest.param(2.6, marks=pytest.mark.slow)],
)
def test_a_full_disk_loses_no_complete_checkpoint(
    checkpoints_that_fit: float, tmp_path: Path, model_cache: Path, undisturbed: RunDir
) -> None:
    """At the first save, during the second, and at the first of the second phase."""
    with small_disk(tmp_path / "disk") as resize:
        spec = micro_spec(*SAVING)
        run_dir = prepare(spec, tmp_path / "disk", cache=model_cache, num_workers=2)
        latest = newest(undisturbed, 1)
        assert latest is not None
        one = 3 * sum(file.num_bytes for file in latest.manifest.files)
        resize(used_bytes(run_dir.root) + int(checkpoints_that_fit * one))
        # A rank whose file does not fit raises, and its peers are ended.
        assert run_workers(run_dir, world_size=2) != [0, 0]
        outcome = Outcome.read(run_dir)
        assert outcome is not None
        assert outcome.error == "StorageError"
        assert str(run_dir.root) in outcome.message
        assert "free space or choose another storage folder" in outcome.message
        whole = [name for name in visible(run_dir, 1) if is_published(run_dir.checkpoint(name))]
        assert len(whole) >= int(checkpoints_that_fit)
        for name in whole:
            found = open_checkpoint(run_dir, name)
            with CheckpointReader(found.directory, found.manifest) as reader:
                reader.verify()
        resize(64 << 20)
        Outcome.clear(run_dir)
        assert run_workers(run_dir, world_size=2) == [0, 0]
        resumed = read_attempt(run_dir, 2).resumes
        assert (None if resumed is None else run_dir.manifest_name(resumed)) == (
            whole[-1] if whole else None
        )
        assert_equal_runs(run_dir, undisturbed)


@contextmanager
def blocked(path: Path) -> Iterator[Callable[[], bool]]:
    """Until the end, whoever opens the file ``path`` to write it waits in the kernel for us.

    What is yielded says whether somebody waits. It is a lease, which Linux grants to the only one
    who has a file open, and breaks for another after 45 seconds at the latest.
    """
    path.parent.mkdir(parents=True)
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR)
    # The signal that tells of the waiting one, which by default ends this process.
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        yield lambda: fcntl.fcntl(descriptor, fcntl.F_GETLEASE) != fcntl.F_WRLCK
    finally:
        os.close(descriptor)
        signal.signal(signal.SIGIO, before)


# Long enough that records of it are on storage before the phase ends.
LONG = ("phases.0.epochs=50", "phases.0.evaluate_epochs=[]", "checkpoints.every_steps=20")
SLOW_STEPS = {VARIABLE: json.dumps({"point": "step", "phase": "memorize", "action": "delay"})}


@pytest.fixture(scope="module")
def long_run(start: Callable[..., RunDir]) -> RunDir:
    run_dir = start(*LONG)
    assert run_workers(run_dir, world_size=2) == [0, 0]
    return run_dir


@pytest.mark.slow
@pytest.mark.parametrize("while_saving", ["wait", "skip"])
def test_a_save_that_comes_while_one_rank_still_writes(
    while_saving: str, start: Callable[..., RunDir], long_run: RunDir
) -> None:
    run_dir = start(*LONG, f"checkpoints.while_saving={while_saving}")
    name = CheckpointName(1, 0, "memorize", 40, "full")
    temporary = run_dir.checkpoint(name) / ".rank-00001-of-00002.safetensors.tmp"
    with blocked(temporary) as somebody_waits:
        environment = SLOW_STEPS if while_saving == "skip" else {}
        workers = start_workers(run_dir, world_size=2, environment=environment)
        wait_until(somebody_waits)
        if while_saving == "skip":
            # Steps go on, and tell of it within seconds.
            wait_until(lambda: bool(events(run_dir, "skipped")), timeout_seconds=40)
        else:
            time.sleep(2.0)
        assert not is_published(run_dir.checkpoint(name))
    assert join_workers(run_dir, workers) == [0, 0]
    assert_equal_runs(run_dir, long_run)
    saved = [event.details["step"] for event in events(run_dir, "checkpoint")]
    assert 40 in saved
    skipped = events(run_dir, "skipped")
    assert bool(skipped) == (while_saving == "skip")
    assert len(saved) + len(skipped) == len(events(long_run, "checkpoint"))


def is_stopped(worker: Worker) -> bool:
    """Whether the process stands still, by SIGSTOP."""
    text = Path(f"/proc/{worker.pid}/stat").read_text()
    return text.rpartition(")")[2].split()[0] == "T"


def stop_at(run_dir: RunDir, marker: Path, **where: object) -> list[Worker]:
    """Start two workers, and stop both for now when rank 0 comes to the point ``where``."""
    fault = {**where, "rank": 0, "marker": str(marker), "action": "stop"}
    workers = start_workers(run_dir, world_size=2, environment={VARIABLE: json.dumps(fault)})
    wait_until(lambda: marker.exists() and is_stopped(workers[0]))
    send(workers[1:], signal.SIGSTOP)
    wait_until(lambda: is_stopped(workers[1]))
    return workers


def send(workers: list[Worker], number: signal.Signals) -> None:
    for worker in workers:
        assert worker.pid is not None
        os.kill(worker.pid, number)


@pytest.mark.parametrize("then", ["goes on", pytest.param("is killed", marks=pytest.mark.slow)])
def test_a_zombie_publishes_while_its_successor_is_at_work(
    then: str, start: Callable[..., RunDir], undisturbed: RunDir, tmp_path: Path
) -> None:
    run_dir = start()
    late = CheckpointName(1, 0, "memorize", 4, "full")
    save = {"phase": "memorize", "step": 4}
    zombies = stop_at(run_dir, tmp_path / "first", point="save", attempt=1, **save)
    assert not is_published(run_dir.checkpoint(late))
    # Its successor stands before its own first save while the zombie publishes and goes on.
    workers = stop_at(run_dir, tmp_path / "second", point="copy", attempt=2, **save)
    send(zombies, signal.SIGCONT)
    assert join_workers(run_dir, zombies) == [0, 0]
    assert is_published(run_dir.checkpoint(late))
    assert [name.step for name in visible(run_dir, 2)] == [3]
    assert [event.attempt for event in events(run_dir, "superseded")] == [1]
    assert Outcome.read(run_dir) is None
    if then == "goes on":
        send(workers, signal.SIGCONT)
        assert join_workers(run_dir, workers) == [0, 0]
    else:
        send(workers, signal.SIGKILL)
        assert join_workers(run_dir, workers) == [-9, -9]
        assert run_workers(run_dir, world_size=2) == [0, 0]
        resumed = read_attempt(run_dir, 3).resumes
        assert resumed is not None
        assert run_dir.manifest_name(resumed) == CheckpointName(1, 0, "memorize", 3, "full")
    assert not is_published(run_dir.checkpoint(late))
    assert_equal_runs(run_dir, undisturbed)
    last = run_dir.attempt_numbers()[-1]
    assert {row.attempt for row in steps(run_dir)} == {1, last}
    assert all(f"attempt-{last:04d}" in made_of(run_dir, phase) for phase in ("memorize",))


@pytest.mark.parametrize(
    "point",
    [
        pytest.param("step", marks=pytest.mark.slow),
        "export",
        pytest.param("evaluation", marks=pytest.mark.slow),
    ],
)
def test_a_zombie_that_wakes_after_the_run_has_ended_changes_nothing(
    point: str, start: Callable[..., RunDir], undisturbed: RunDir, tmp_path: Path
) -> None:
    run_dir = start()
    where = {"step": 5} if point == "step" else {}
    if point == "evaluation":
        where["epoch"] = None
    zombies = stop_at(
        run_dir, tmp_path / "first", point=point, phase="memorize", attempt=1, **where
    )
    assert run_workers(run_dir, world_size=2) == [0, 0]
    before = contents(run_dir)
    send(zombies, signal.SIGCONT)
    codes = join_workers(run_dir, zombies)
    assert contents(run_dir) == before, codes
    assert_equal_runs(run_dir, undisturbed)
    outcome = Outcome.read(run_dir)
    assert outcome is not None
    assert (outcome.status, outcome.attempt) == ("finished", 2)


def contents(run_dir: RunDir) -> dict[str, bytes]:
    """Every file that attempts share, and what the run's last attempt has left."""
    folders = ("models", "evaluations", "attempts", "checkpoints/attempt-0002")
    files = [path for name in folders for path in (run_dir.root / name).rglob("*")]
    return {
        str(path.relative_to(run_dir.root)): path.read_bytes()
        for path in [*files, run_dir.outcome_json]
        if path.is_file()
    }
