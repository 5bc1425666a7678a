"""A command that runs another ends it when it is ended itself."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from rotescale import stopping
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
SAVING = """
import pathlib, sys, time
pathlib.Path(sys.argv[1]).touch()
try:
    time.sleep(60)
except KeyboardInterrupt:
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        pathlib.Path(sys.argv[2]).write_text("without a checkpoint")
        sys.exit(130)
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


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.mark.parametrize("number", SIGNALS)
def test_each_signal_lets_the_command_end_by_itself(
    tmp_path: Path, number: int, request: pytest.FixtureRequest
) -> None:
    # Ignored where the tests run under nohup.
    hangup = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    request.addfinalizer(lambda: signal.signal(signal.SIGHUP, hangup))
    started, ended = tmp_path / "started", tmp_path / "ended"
    signal_when_there(started, number)
    before = [signal.getsignal(one) for one in SIGNALS]
    with pytest.raises(KeyboardInterrupt):
        run_stoppable([sys.executable, "-c", TIDY, str(started), str(ended)])
    assert ended.read_text() == "tidied up"
    assert [signal.getsignal(one) for one in SIGNALS] == before


@pytest.mark.parametrize(("num_signals", "grace_seconds"), [(1, 0.3), (3, 60.0)])
def test_a_command_that_will_not_end_is_killed_by_time_or_by_a_third_signal(
    tmp_path: Path, num_signals: int, grace_seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "GRACE_SECONDS", grace_seconds)
    started, ended = tmp_path / "started", tmp_path / "ended"
    signal_when_there(started, *[signal.SIGTERM] * num_signals)
    with pytest.raises(KeyboardInterrupt):
        run_stoppable([sys.executable, "-c", DEAF, str(started), str(ended)])
    assert not ended.exists()


def test_a_command_that_saves_is_asked_again_when_this_process_is(tmp_path: Path) -> None:
    started, ended = tmp_path / "started", tmp_path / "ended"
    signal_when_there(started, signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run_stoppable([sys.executable, "-c", SAVING, str(started), str(ended)], save_seconds=60)
    assert ended.read_text() == "without a checkpoint"
