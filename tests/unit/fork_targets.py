"""What the tests of the fork server have it call: kept apart, and light to import."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from rotescale.fork_server.server import Channel


def note(arguments: dict[str, Any], channel: Channel) -> None:
    """Write down what there is to see of this process."""
    found = [os.environ["WORD"], str(Path.cwd()), str(os.getppid()), str(os.getpid())]
    Path(arguments["file"]).write_text("\n".join(found))
    print("printed where the caller prints")


def fail(arguments: dict[str, Any], channel: Channel) -> None:
    raise ValueError(arguments["message"])


def leave(arguments: dict[str, Any], channel: Channel) -> None:
    sys.exit(arguments["code"])


def die(arguments: dict[str, Any], channel: Channel) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for_word(arguments: dict[str, Any], channel: Channel) -> None:
    """Until the caller has sent the word that is waited for."""
    while channel.latest() != arguments["word"]:
        time.sleep(0.01)


def wait_for_ever(arguments: dict[str, Any], channel: Channel) -> None:
    Path(arguments["file"]).write_text(str(os.getpid()))
    time.sleep(1e6)


def nap(arguments: dict[str, Any], channel: Channel) -> None:
    """Read nothing of what the caller says."""
    time.sleep(arguments["seconds"])


def nap_and_fail(arguments: dict[str, Any], channel: Channel) -> None:
    nap(arguments, channel)
    raise ValueError("tired")


def list_descriptors(arguments: dict[str, Any], channel: Channel) -> None:
    """Write down what this process has open beyond its standard streams."""
    links = []
    for entry in Path("/proc/self/fd").iterdir():
        if int(entry.name) > 2:
            try:
                links.append(str(entry.readlink()))
            except FileNotFoundError:
                continue
    Path(arguments["file"]).write_text("\n".join(links))
