"""Ctrl-C of a run: its workers save a checkpoint before they are ended."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from rotescale.errors import RotescaleError
from rotescale.notices import request_save
from rotescale.run_dir import Outcome, RunDir

log = logging.getLogger(__name__)


class _NoMoreWaitingError(Exception):
    """Whoever asked to end has asked again, or the run has ended by itself."""


def save_before_interrupt(
    run_dir: RunDir, *, limit_seconds: float, has_begun: Callable[[], bool]
) -> None:
    """From now on, have the workers save at the first SIGINT, before what was done about it so far.

    That is done at once where ``has_begun`` says that there are no workers yet, when a second
    SIGINT comes, and after ``limit_seconds``. A save that failed is told, and ends no less.
    """
    previous_handler = signal.getsignal(signal.SIGINT)
    num_signals, is_saving = 0, False

    def wait(seconds: float) -> None:
        time.sleep(seconds)
        if num_signals > 1 or Outcome.read(run_dir) is not None:
            raise _NoMoreWaitingError

    def save() -> None:
        if not has_begun():
            return
        log.warning(
            "Ctrl-C: saving a checkpoint first, for %.0f s at most; once more ends the run "
            "without one",
            limit_seconds,
        )
        reason = "the run is interrupted"
        if not request_save(run_dir, reason, limit_seconds=limit_seconds, sleep=wait):
            log.warning(
                "no checkpoint in %.0f s: the steps since the last one are lost; "
                "resize_save_seconds in the launch spec gives more time",
                limit_seconds,
            )

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal num_signals, is_saving
        num_signals += 1
        if is_saving:
            return  # The call that waits sees it.
        if num_signals == 1:
            is_saving = True
            try:
                save()
            except _NoMoreWaitingError:
                pass
            except (RotescaleError, OSError) as error:
                log.warning("no checkpoint, the steps since the last one are lost: %s", error)
            finally:
                is_saving = False
        if callable(previous_handler):
            previous_handler(number, frame)

    signal.signal(signal.SIGINT, handle)


@contextmanager
def sigint_left_as_it_was() -> Iterator[None]:
    """Whatever handles SIGINT inside, afterwards it is what handled it before."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
