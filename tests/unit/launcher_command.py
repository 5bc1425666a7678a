"""The launcher's command line, in the test's own process."""

from __future__ import annotations

import sys

import pytest

from launcher import cli


def launcher_command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of ``rotescale-launch`` with these arguments."""
    monkeypatch.setattr(sys, "argv", ["rotescale-launch", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)
