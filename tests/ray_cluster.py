"""A real Ray cluster on loopback, started as its users start one: ``ray start``, with a token."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import requests
from helpers import free_port

START_SECONDS = 90
_TRIES = 3


@dataclass(frozen=True)
class RayCluster:
    """A head node, which also works."""

    jobs_url: str
    token: str
    process: subprocess.Popen[bytes]
    environment: Mapping[str, str]
    folder: Path
    """Of its files; it stands in the command line of every process of the cluster."""

    def stop(self) -> None:
        """End all that was started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        # Jobs are groups of their own, which work in the cluster's folder and would outlive it.
        for pid in {*self.processes(str(self.folder)), *_working_below(self.folder)}:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def processes(self, mark: str) -> list[int]:
        """Those of the cluster's with ``mark`` in their command line."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(FileNotFoundError, ProcessLookupError):
                line = path.read_bytes().decode(errors="replace")
                if str(self.folder) in line and mark in line:
                    found.append(int(path.parent.name))
        return found

    def answers(self) -> bool:
        """Whether the dashboard does, and its jobs API with it."""
        headers = {"Authorization": f"Bearer {self.token}"}
        try:
            answer = requests.get(f"{self.jobs_url}/api/jobs/", headers=headers, timeout=5)
        except requests.RequestException:
            return False
        return answer.ok

    def restart_dashboard(self, *, pause_seconds: float) -> subprocess.Popen[bytes]:
        """Kill it, and start it again as it was; only where nobody watches over it (``block``)."""
        [pid] = self.processes("dashboard/dashboard.py")
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode().rstrip("\0").split("\0")
        os.kill(pid, signal.SIGKILL)
        time.sleep(pause_seconds)
        with (self.folder / "output").open("ab") as output:
            return subprocess.Popen(
                command,
                env=dict(self.environment),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


def _working_below(folder: Path) -> Iterator[int]:
    for path in Path("/proc").glob("[0-9]*/cwd"):
        with suppress(OSError):
            if path.readlink().is_relative_to(folder):
                yield int(path.parent.name)


@contextmanager
def ray_cluster(
    folder: Path, *, num_cpus: int, block: bool = True, **environment: str
) -> Iterator[RayCluster]:
    """A cluster for the time being, with its files in ``folder``, whose path must be short.

    With ``block`` it ends when one of its processes does, as in a pod.
    """
    cluster = _start(folder, num_cpus=num_cpus, block=block, environment=environment)
    try:
        yield cluster
    finally:
        cluster.stop()


def _start(
    folder: Path, *, num_cpus: int, block: bool, environment: Mapping[str, str]
) -> RayCluster:
    """On a slow machine a raylet may miss its limit; then all is begun anew."""
    for number in range(1, _TRIES + 1):
        cluster = _start_once(
            folder / str(number), num_cpus=num_cpus, block=block, environment=environment
        )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and not (block and cluster.process.poll() is not None):
            if cluster.answers():
                return cluster
            time.sleep(0.5)
        cluster.stop()
    raise AssertionError((folder / str(_TRIES) / "output").read_text())


def _start_once(
    folder: Path, *, num_cpus: int, block: bool, environment: Mapping[str, str]
) -> RayCluster:
    folder.mkdir(parents=True)
    token, port = secrets.token_hex(16), free_port()
    bin_folder = str(Path(sys.executable).parent)
    variables = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "ROTESCALE_"))},
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "PATH": f"{bin_folder}:{os.environ['PATH']}",
        **environment,
    }
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            [
                *(f"{bin_folder}/ray", "start", "--head", f"--num-cpus={num_cpus}"),
                *(["--block"] if block else []),
                *(f"--port={free_port()}", "--node-ip-address=127.0.0.1"),
                *("--dashboard-host=127.0.0.1", f"--dashboard-port={port}"),
                *(f"--temp-dir={folder}", f"--dashboard-agent-listen-port={free_port()}"),
                *("--object-store-memory=200000000", "--disable-usage-stats"),
            ],
            env=variables,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return RayCluster(f"http://127.0.0.1:{port}", token, process, variables, folder)
