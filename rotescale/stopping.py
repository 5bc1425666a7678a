"""Commands that run others, and end them when they are ended themselves."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

GRACE_SECONDS = 30.0
"""What a command that is asked to end is given for that."""


@contextmanager
def stoppable() -> Iterator[None]:
    """Both signals that end a command are the same KeyboardInterrupt, also in the background.

    A shell has background commands ignore SIGINT, which what they run would inherit.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    wanted = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, signal.default_int_handler) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_stoppable(command: Sequence[str], *, grace_seconds: float = GRACE_SECONDS) -> int:
    """The exit code of a command that is asked to end, once, when this process is.

    Then KeyboardInterrupt is raised, when it has ended: by itself in that time, or killed, as a
    second signal kills it too.
    """
    # A group of its own: from a terminal, Ctrl-C would reach it twice.
    with stoppable(), subprocess.Popen(command, process_group=0) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=grace_seconds)
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                process.kill()
                process.wait()
            raise
