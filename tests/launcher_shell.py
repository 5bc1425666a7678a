"""The launcher's command line as a person types it, and the drivers that it starts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

_HIDE = 'mount -t tmpfs none "$1" && shift && exec "$@"'


def launch(
    *arguments: str, environment: Mapping[str, str], code: int = 0, hidden: Path | None = None
) -> str:
    """What ``rotescale-launch`` prints, in a process that must end with ``code``.

    ``hidden`` is a folder that looks empty to that process, as one of another machine's would not
    be there at all.
    """
    command = [sys.executable, "-m", "launcher.cli", *arguments]
    if hidden is not None:
        command = ["unshare", "--mount", "sh", "-c", _HIDE, "sh", str(hidden), *command]
    done = subprocess.run(
        command,
        env=dict(environment),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def why_nothing_is_hidden() -> str | None:
    """Why ``hidden`` cannot be had on this machine; None where it can."""
    if os.geteuid() != 0:
        return "hiding a folder from one process needs root"
    probe = ["unshare", "--mount", "sh", "-c", _HIDE, "sh", "/mnt", "true"]
    try:
        done = subprocess.run(probe, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "the command `unshare` is missing (on Debian: apt-get install util-linux)"
    return None if done.returncode == 0 else done.stderr.strip()


def drivers(mark: str) -> list[int]:
    """Processes of ``rotescale run`` with ``mark`` in an argument."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(FileNotFoundError, ProcessLookupError):
            words = path.read_bytes().decode().split("\0")
            if "rotescale.cli" in words and any(mark in word for word in words):
                found.append(int(path.parent.name))
    return found
