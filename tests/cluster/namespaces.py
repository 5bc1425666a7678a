"""Hosts for tests: network namespaces with an address each, joined by a bridge in a namespace."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

DEVICE = "eth0"
"""The network device inside each host, the same everywhere."""
# With a process id, so that two test runs on one machine do not meet.
_PREFIX = f"rotescale-{os.getpid()}"
_SWITCH = f"{_PREFIX}-switch"


def why_not() -> str | None:
    """Why this machine cannot make network namespaces; None where it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "the command `ip` is missing (on Debian: apt-get install iproute2)"
    name = f"{_PREFIX}-probe"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode:
        return f"ip netns add: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", name], check=True)
    return None


class Host:
    """A network namespace: a host as far as addresses and connections are concerned."""

    def __init__(self, name: str, number: int) -> None:
        self.name = f"{_PREFIX}-{name}"
        self.address = f"10.77.0.{number}"
        self._port = f"port{number}"
        _ip("netns", "add", self.name)
        _ip("-n", self.name, "link", "set", "lo", "up")
        _ip(
            *("-n", self.name, "link", "add", DEVICE, "type", "veth"),
            *("peer", "name", self._port, "netns", _SWITCH),
        )
        _ip("-n", _SWITCH, "link", "set", self._port, "master", "bridge", "up")
        _ip("-n", self.name, "address", "add", f"{self.address}/24", "dev", DEVICE)
        _ip("-n", self.name, "link", "set", DEVICE, "up")

    def cut(self) -> None:
        """Take the cable out: packets are lost, connections stay open on both ends."""
        _ip("-n", _SWITCH, "link", "set", self._port, "down")

    def connect(self) -> None:
        """Put the cable back."""
        _ip("-n", _SWITCH, "link", "set", self._port, "up")

    def start(
        self, command: Sequence[str], *, log: Path, environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        """Start a program on this host."""
        with log.open("ab") as file:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.name, *command],
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def kill_all(self) -> None:
        """End every process on this host, all of which it has started."""
        deadline = time.monotonic() + 30
        while pids := self._pids():
            assert time.monotonic() < deadline, f"{self.name}: {pids} do not end"
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.2)

    def delete(self) -> None:
        """End what runs here and take the namespace away."""
        self.kill_all()
        _ip("netns", "delete", self.name)

    def _pids(self) -> list[int]:
        listed = subprocess.run(
            ["ip", "netns", "pids", self.name], capture_output=True, text=True, check=True
        )
        return [pid for pid in map(int, listed.stdout.split()) if not _is_zombie(pid)]


@contextmanager
def hosts(*names: str) -> Iterator[list[Host]]:
    """Hosts of those names that reach each other and nothing else."""
    made: list[Host] = []
    _ip("netns", "add", _SWITCH)
    try:
        _ip("-n", _SWITCH, "link", "add", "bridge", "type", "bridge")
        _ip("-n", _SWITCH, "link", "set", "bridge", "up")
        for number, name in enumerate(names, start=1):
            made.append(Host(name, number))
        yield made
    finally:
        for host in made:
            host.delete()
        _ip("netns", "delete", _SWITCH)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr.strip()}"


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True
