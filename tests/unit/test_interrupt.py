"""Ctrl-C of a run: its workers save first, unless there is nothing to save or somebody insists."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rotescale.interrupt import save_before_interrupt, sigint_left_as_it_was
from rotescale.run_dir import Outcome, RunDir


class Interrupted:
    """A driver's handler of SIGINT, and how often it came to what ends the workers."""

    def __init__(self, run_dir: RunDir) -> None:
        self.run_dir = run_dir
        self.num_ends = 0
        self.requests_at_end: list[bool] = []

    def end(self, *_: object) -> None:
        self.num_ends += 1
        self.requests_at_end.append(self.run_dir.save_request.exists())

    def asked(self) -> bool:
        """Wait for the request that workers would find."""
        deadline = time.monotonic() + 30
        while not self.run_dir.save_request.exists():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True


@pytest.fixture
def interrupted(tmp_path: Path) -> Iterator[Interrupted]:
    made = Interrupted(RunDir(tmp_path / "run"))
    made.run_dir.root.mkdir()
    before = signal.signal(signal.SIGINT, made.end)
    yield made
    signal.signal(signal.SIGINT, before)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    # A handler runs between two instructions of this thread.
    time.sleep(0.01)


def test_workers_save_before_they_are_ended(interrupted: Interrupted) -> None:
    save_before_interrupt(interrupted.run_dir, limit_seconds=60, has_begun=lambda: True)
    seen: list[tuple[bool, int]] = []

    def answer() -> None:
        seen.append((interrupted.asked(), interrupted.num_ends))
        interrupted.run_dir.save_request.unlink()

    worker = threading.Thread(target=answer)
    worker.start()
    interrupt()
    worker.join()
    assert seen == [(True, 0)]
    assert interrupted.requests_at_end == [False]
    # What was there before counts the next ones.
    interrupt()
    assert interrupted.num_ends == 2


def test_who_asks_again_does_not_wait_and_leaves_no_request(interrupted: Interrupted) -> None:
    save_before_interrupt(interrupted.run_dir, limit_seconds=600, has_begun=lambda: True)

    def insist() -> None:
        interrupted.asked()
        os.kill(os.getpid(), signal.SIGINT)

    impatient = threading.Thread(target=insist)
    impatient.start()
    interrupt()
    impatient.join()
    assert interrupted.requests_at_end == [False]


def test_a_run_without_workers_is_not_asked(
    interrupted: Interrupted, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[RunDir] = []
    monkeypatch.setattr(
        "rotescale.interrupt.request_save", lambda run_dir, *_, **__: asked.append(run_dir)
    )
    save_before_interrupt(interrupted.run_dir, limit_seconds=600, has_begun=lambda: False)
    interrupt()
    assert (asked, interrupted.num_ends) == ([], 1)


def test_a_run_that_has_ended_is_not_awaited(interrupted: Interrupted) -> None:
    save_before_interrupt(interrupted.run_dir, limit_seconds=600, has_begun=lambda: True)
    assert Outcome(status="finished", attempt=0).write(interrupted.run_dir)
    # Or the test would last those ten minutes.
    interrupt()
    assert interrupted.requests_at_end == [False]


def test_a_save_that_takes_too_long_or_fails_is_told_and_ends_the_run(
    interrupted: Interrupted, caplog: pytest.LogCaptureFixture
) -> None:
    save_before_interrupt(interrupted.run_dir, limit_seconds=0.3, has_begun=lambda: True)
    interrupt()
    assert interrupted.requests_at_end == [False]
    assert "no checkpoint in 0 s: the steps since the last one are lost" in caplog.text

    def unreadable() -> bool:
        raise PermissionError("the folder is gone")

    signal.signal(signal.SIGINT, interrupted.end)
    save_before_interrupt(interrupted.run_dir, limit_seconds=60, has_begun=unreadable)
    interrupt()
    assert interrupted.num_ends == 2
    assert "no checkpoint, the steps since the last one are lost: the folder is gone" in caplog.text


def test_the_handler_goes_with_the_workers(interrupted: Interrupted) -> None:
    with sigint_left_as_it_was():
        save_before_interrupt(interrupted.run_dir, limit_seconds=60, has_begun=lambda: True)
        assert signal.getsignal(signal.SIGINT) != interrupted.end
    assert signal.getsignal(signal.SIGINT) == interrupted.end
