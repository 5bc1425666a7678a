"""The launcher's command line, in the test's own process."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from launcher import cli

Command = Callable[..., tuple[int, str]]
"""Arguments -> the exit code, and all that was printed."""


def command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """``rotescale-launch`` as a person sees it."""

    def run(*arguments: str) -> tuple[int, str]:
        code = launcher_command(monkeypatch, *arguments)
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


def launcher_command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of ``rotescale-launch`` with these arguments."""
    monkeypatch.setattr(sys, "argv", ["rotescale-launch", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)
