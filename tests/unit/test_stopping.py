"""A command that runs another ends it when it is ended itself."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from rotescale.stopping import run_stoppable

TIDY = """
import pathlib, sys, time
pathlib.Path(sys.argv[1]).touch()
try:
    time.sleep(60)
except KeyboardInterrupt:
    pathlib.Path(sys.argv[2]).write_text("tidied up")
    sys.exit(130)
"""
DEAF = """
import pathlib, signal, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
pathlib.Path(sys.argv[1]).touch()
time.sleep(60)
pathlib.Path(sys.argv[2]).touch()
"""


def signal_when_there(path: Path, *numbers: int) -> None:
    """Send this process the signals, one a second, from when the file is there."""

    def send() -> None:
        while not path.exists():
            time.sleep(0.02)
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(1)

    threading.Thread(target=send, daemon=True).start()


def test_the_exit_code_is_the_commands() -> None:
    assert run_stoppable([sys.executable, "-c", "raise SystemExit(7)"]) == 7


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_either_signal_lets_the_command_end_by_itself(tmp_path: Path, number: int) -> None:
    started, ended = tmp_path / "started", tmp_path / "ended"
    signal_when_there(started, number)
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt):
        run_stoppable([sys.executable, "-c", TIDY, str(started), str(ended)])
    assert ended.read_text() == "tidied up"
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_command_that_will_not_end_is_killed_by_time_or_by_a_second_signal(
    tmp_path: Path,
) -> None:
    for name, signals, grace_seconds in (("time", 1, 0.5), ("signal", 2, 60.0)):
        started, ended = tmp_path / name, tmp_path / f"{name}-ended"
        signal_when_there(started, *[signal.SIGTERM] * signals)
        command = [sys.executable, "-c", DEAF, str(started), str(ended)]
        with pytest.raises(KeyboardInterrupt):
            run_stoppable(command, grace_seconds=grace_seconds)
        assert not ended.exists()
