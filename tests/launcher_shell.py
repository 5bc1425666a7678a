"""The launcher's command line as a person types it, and the drivers that it starts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path


def launch(*arguments: str, environment: Mapping[str, str], code: int = 0) -> str:
    """What ``rotescale-launch`` prints, in a process that must end with ``code``."""
    done = subprocess.run(
        [sys.executable, "-m", "launcher.cli", *arguments],
        env=dict(environment),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def drivers(mark: str) -> list[int]:
    """Processes of ``rotescale run`` with ``mark`` in an argument."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(FileNotFoundError, ProcessLookupError):
            words = path.read_bytes().decode().split("\0")
            if "rotescale.cli" in words and any(mark in word for word in words):
                found.append(int(path.parent.name))
    return found
