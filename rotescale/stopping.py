"""Commands that run others, and end them when they are ended themselves."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

GRACE_SECONDS = 30.0
"""What a command that is asked to end is given for that, beside what it saves first."""


@contextmanager
def stoppable() -> Iterator[None]:
    """The signals that end a command are the same KeyboardInterrupt, also in the background.

    A shell has background commands ignore SIGINT, which what they run would inherit. A terminal
    that is closed sends SIGHUP, which nohup has ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    wanted = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        wanted.append(signal.SIGHUP)
    before = {number: signal.signal(number, signal.default_int_handler) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_stoppable(command: Sequence[str], *, save_seconds: float = 0.0) -> int:
    """The exit code of a command that is asked to end, once, when this process is.

    Then KeyboardInterrupt is raised, when it has ended (``end``).
    """
    # A group of its own: from a terminal, Ctrl-C would reach it twice.
    with stoppable(), subprocess.Popen(command, process_group=0) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            end([process], save_seconds=save_seconds)
            raise


def end(processes: Collection[subprocess.Popen[bytes]], *, save_seconds: float = 0.0) -> None:
    """Ask processes to end, by SIGINT, and wait until they have.

    They may take ``save_seconds`` for a checkpoint and GRACE_SECONDS to end. After that, or when
    this process is asked meanwhile, they are asked again, and then end without a checkpoint; after
    GRACE_SECONDS more, or at a third time, they are killed.
    """
    for seconds in (save_seconds, 0.0):
        deadline = time.monotonic() + seconds + GRACE_SECONDS
        try:
            for process in processes:
                if process.poll() is None:
                    process.send_signal(signal.SIGINT)
            for process in processes:
                process.wait(timeout=max(0.0, deadline - time.monotonic()))
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            continue
        return
    for process in processes:
        process.kill()
        process.wait()
