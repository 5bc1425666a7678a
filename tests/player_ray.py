"""Ray as the player's pods run it: real processes on loopback, or none at all."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import urllib3

MARK = "KUBERAY_PLAYER_POD"
"""The variable by which every process of a pod is known."""
_RAY = (sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats")
_STARTS = 3
_START_SECONDS = 120.0
_OBJECT_STORE_BYTES = 80_000_000
_ALONE = (
    *("unshare", "--mount", "--propagation", "private", "sh", "-c"),
    'empty=$1; shift; while [ "$1" != -- ]; do mount --bind "$empty" "/proc/$1"; shift; done; '
    'shift; exec "$@"',
    "sh",
)
"""As a pod sees no process of another: needs root. Then an empty folder, processes, ``--``."""
_NOT_INHERITED = (
    *("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"),
)


class StartError(Exception):
    """Ray did not start, several times."""


@dataclass(frozen=True)
class PodOrder:
    """What a pod is to run."""

    uid: str
    is_head: bool
    cluster: str
    """Which pods belong together."""
    num_cpus: int
    num_gpus: int
    environment: Mapping[str, str]
    token: str | None
    output: Path


@dataclass(frozen=True)
class JobInfo:
    """What Ray says of a job."""

    status: str
    message: str
    start_ms: int | None
    end_ms: int | None

    @property
    def is_over(self) -> bool:
        return self.status in ("SUCCEEDED", "FAILED", "STOPPED")


class Ray(Protocol):
    """What runs in the pods."""

    def start(self, order: PodOrder) -> str:
        """Return the pod's address when its Ray is up; raises StartError."""

    def ended(self, uid: str) -> int | None:
        """The exit code of a pod whose Ray has ended by itself; None while it runs."""

    def kill(self, uid: str) -> None:
        """End every process of the pod at once."""

    def execute(self, uid: str, command: Sequence[str], *, seconds: float) -> int | None:
        """Run a command in the pod, and wait; its exit code, or None where time was up."""

    def submit(self, head: str, job_id: str, entrypoint: str, runtime_env: Any) -> bool:
        """Hand a job to the cluster of that head; False where it does not take it now."""

    def job(self, head: str, job_id: str) -> JobInfo | None:
        """None where the cluster does not answer, or knows no such job."""

    def stop_job(self, head: str, job_id: str) -> None:
        """Ask for the job's end; nothing where there is no answer."""

    def driver_log(self, head: str, job_id: str) -> Path | None:
        """Where the job's output is written."""

    def dashboard(self, head: str) -> str | None:
        """The address of the cluster's jobs API."""

    def close(self) -> None:
        """End everything, and remove what it has written."""


@dataclass
class _Node:
    order: PodOrder
    address: str
    process: subprocess.Popen[bytes]
    port: int
    dashboard_port: int
    folder: Path | None
    written: int
    """How long the output was before."""

    @property
    def headers(self) -> dict[str, str]:
        token = self.order.token
        return {} if token is None else {"Authorization": f"Bearer {token}"}


class LocalRay:
    """A node of Ray per pod, each at a loopback address of its own."""

    def __init__(self) -> None:
        self._nodes: dict[str, _Node] = {}
        self._killed: set[str] = set()
        self._closed = False
        self._lock = threading.Lock()
        self._number = 1
        # Several players may be at work on a machine.
        self._network = f"127.{64 + os.getpid() % 128}.{int.from_bytes(os.urandom(1)) or 1}"
        self._http = urllib3.PoolManager(maxsize=16, retries=False, timeout=20)

    def start(self, order: PodOrder) -> str:
        with self._lock:
            self._number += 1
            address = f"{self._network}.{self._number % 250 + 2}"
        for _ in range(_STARTS):
            node = self._launch(order, address)
            if self._is_up(node):
                return address
            self._end(order.uid)
        raise StartError(order.output.read_text(errors="replace")[-2000:])

    def _launch(self, order: PodOrder, address: str) -> _Node:
        shared = (
            f"--node-ip-address={address}",
            f"--num-cpus={order.num_cpus}",
            f"--num-gpus={order.num_gpus}",
            f"--object-store-memory={_OBJECT_STORE_BYTES}",
            "--dashboard-agent-listen-port=0",
        )
        folder = None
        role: tuple[str, ...]
        port, dashboard_port = _free_port(address), _free_port(address)
        if order.is_head:
            # Sockets lie below it, and their paths must be short.
            folder = Path(tempfile.mkdtemp(prefix="kp-", dir="/tmp"))
            role = (
                *("--head", f"--port={port}", f"--temp-dir={folder}"),
                *(f"--dashboard-host={address}", f"--dashboard-port={dashboard_port}"),
                f"--ray-client-server-port={_free_port(address)}",
            )
        else:
            head = self._head_of(order.cluster)
            if head is None:
                raise StartError("the head is gone")
            role = (f"--address={head.address}:{head.port}",)
        with self._lock, order.output.open("ab") as output:
            if self._closed or order.uid in self._killed:
                shutil.rmtree(folder or "", ignore_errors=True)
                raise StartError("the pod was deleted while it started")
            written = output.tell()
            process = subprocess.Popen(
                [*_RAY, *role, *shared],
                env=_environment(order),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            node = _Node(order, address, process, port, dashboard_port, folder, written)
            self._nodes[order.uid] = node
        return node

    def _is_up(self, node: _Node) -> bool:
        before = time.monotonic()
        while node.process.poll() is None and time.monotonic() - before < _START_SECONDS:
            if b"will now block" in node.order.output.read_bytes()[node.written :]:
                return not node.order.is_head or self._answers(node)
            time.sleep(0.1)
        return False

    def _answers(self, node: _Node) -> bool:
        """Whether the jobs API of a head that has started comes up, too."""
        before = time.monotonic()
        while time.monotonic() - before < _START_SECONDS and node.process.poll() is None:
            with suppress(urllib3.exceptions.HTTPError):
                url = f"http://{node.address}:{node.dashboard_port}/api/version"
                if self._http.request("GET", url, headers=node.headers).status == 200:
                    return True
            time.sleep(0.1)
        return False

    def _head_of(self, cluster: str) -> _Node | None:
        with self._lock:
            heads = [
                node
                for node in self._nodes.values()
                if node.order.is_head and node.order.cluster == cluster
            ]
        return heads[-1] if heads else None

    def ended(self, uid: str) -> int | None:
        with self._lock:
            node = self._nodes.get(uid)
        return None if node is None else node.process.poll()

    def kill(self, uid: str) -> None:
        with self._lock:
            self._killed.add(uid)
        self._end(uid)

    def _end(self, uid: str) -> None:
        with self._lock:
            node = self._nodes.pop(uid, None)
        # Until nobody is left: what is being started may start more.
        session = None if node is None else node.process.pid
        while pids := marked(uid, session=session):
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        if node is not None:
            node.process.wait()
            if node.folder is not None:
                shutil.rmtree(node.folder, ignore_errors=True)

    def execute(self, uid: str, command: Sequence[str], *, seconds: float) -> int | None:
        with self._lock:
            node = self._nodes.get(uid)
        if node is None:
            return None
        own = marked(uid, session=node.process.pid)
        others = [pid for pid in _raylets() if pid not in own]
        with (
            tempfile.TemporaryDirectory(prefix="kp-") as empty,
            node.order.output.open("ab") as out,
        ):
            alone = [*_ALONE, empty, *map(str, others), "--"] if others else []
            process = subprocess.Popen(
                [*alone, *command],
                env=_environment(node.order),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                return process.wait(timeout=seconds)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                return None

    def submit(self, head: str, job_id: str, entrypoint: str, runtime_env: Any) -> bool:
        # As JobSubmissionClient asks, which would take its address from this process's variables.
        if self.job(head, job_id) is not None:
            return True
        asked = {
            "entrypoint": entrypoint,
            "submission_id": job_id,
            "runtime_env": runtime_env or {},
            "metadata": {},
        }
        # Just after the start there may be no agent yet.
        return self._ask(head, "POST", "", asked) is not None

    def _ask(self, head: str, method: str, path: str, body: Any = None) -> Any:
        with self._lock:
            node = self._nodes.get(head)
        if node is None:
            return None
        url = f"http://{node.address}:{node.dashboard_port}/api/jobs/{path}"
        with suppress(urllib3.exceptions.HTTPError, ValueError):
            answer = self._http.request(method, url, headers=node.headers, json=body)
            if answer.status == 200:
                return answer.json()
        return None

    def job(self, head: str, job_id: str) -> JobInfo | None:
        found = self._ask(head, "GET", job_id)
        if found is None:
            return None
        return JobInfo(
            found["status"], found.get("message") or "", found["start_time"], found["end_time"]
        )

    def stop_job(self, head: str, job_id: str) -> None:
        self._ask(head, "POST", f"{job_id}/stop")

    def driver_log(self, head: str, job_id: str) -> Path | None:
        with self._lock:
            node = self._nodes.get(head)
        if node is None or node.folder is None:
            return None
        return node.folder / "session_latest" / "logs" / f"job-driver-{job_id}.log"

    def dashboard(self, head: str) -> str | None:
        with self._lock:
            node = self._nodes.get(head)
        return None if node is None else f"http://{node.address}:{node.dashboard_port}"

    def close(self) -> None:
        with self._lock:
            self._closed = True
            uids = list(self._nodes)
        for uid in uids:
            self._end(uid)


@dataclass
class PretendedRay:
    """No processes: pods are up at once, and a job runs until the test says how it ends."""

    folder: Path
    jobs: dict[str, JobInfo] = field(default_factory=dict)
    heads: dict[str, str] = field(default_factory=dict)
    """The head pod's uid of each job."""
    up: set[str] = field(default_factory=set)
    codes: dict[str, int] = field(default_factory=dict)
    """Exit codes of pods that have ended by themselves."""
    executed: list[tuple[str, ...]] = field(default_factory=list)
    """Commands that were run in pods."""
    hooks_end: threading.Event = field(default_factory=threading.Event)
    """Until it is set, such commands go on."""

    def start(self, order: PodOrder) -> str:
        self.up.add(order.uid)
        order.output.write_text("Ray runtime started.\n")
        return f"10.0.0.{len(self.up) % 250 + 1}"

    def ended(self, uid: str) -> int | None:
        return self.codes.get(uid)

    def kill(self, uid: str) -> None:
        self.up.discard(uid)

    def execute(self, uid: str, command: Sequence[str], *, seconds: float) -> int | None:
        self.executed.append(tuple(command))
        return 0 if self.hooks_end.wait(timeout=seconds) else None

    def submit(self, head: str, job_id: str, entrypoint: str, runtime_env: Any) -> bool:
        self.heads[job_id] = head
        self.jobs[job_id] = JobInfo("RUNNING", "Job is currently running.", _now_ms(), None)
        self.write(job_id, f"Running entrypoint for job {job_id}: {entrypoint}")
        return True

    def finish(self, job_id: str, status: str, message: str = "") -> None:
        """End a job: SUCCEEDED, FAILED or STOPPED."""
        started = self.jobs[job_id].start_ms
        self.jobs[job_id] = JobInfo(status, message, started, _now_ms())

    def write(self, job_id: str, line: str) -> None:
        """Add a line to the job's output."""
        with (self.folder / f"job-driver-{job_id}.log").open("a") as file:
            file.write(f"{line}\n")

    def job(self, head: str, job_id: str) -> JobInfo | None:
        return self.jobs.get(job_id) if head in self.up else None

    def stop_job(self, head: str, job_id: str) -> None:
        if job_id in self.jobs:
            self.finish(job_id, "STOPPED", "Job was intentionally stopped.")

    def driver_log(self, head: str, job_id: str) -> Path | None:
        return self.folder / f"job-driver-{job_id}.log"

    def dashboard(self, head: str) -> str | None:
        return None

    def close(self) -> None:
        self.up.clear()


def marked(uid: str, *, session: int | None = None) -> list[int]:
    """The processes that were started for a pod, by whatever way, and those of a session.

    Ray's own rename themselves, which may wipe out the mark; the jobs' leave the session.
    """
    mark = f"{MARK}={uid}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                state, _, _, its_session = (
                    (folder / "stat").read_text().rpartition(")")[2].split(maxsplit=4)[:4]
                )
                is_marked = mark in (folder / "environ").read_bytes().split(b"\0")
                if state not in "ZX" and (is_marked or its_session == str(session)):
                    found.append(int(folder.name))
    return found


def why_pods_see_each_other() -> str | None:
    """Why commands in pods would see other pods' processes; None where they do not."""
    done = subprocess.run([*_ALONE, "/", "--", "true"], capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else done.stderr.strip()


def _raylets() -> list[int]:
    """Every node of Ray on this machine."""
    found = []
    for folder in Path("/proc").iterdir():
        with suppress(OSError):
            if folder.name.isdigit() and (folder / "cmdline").read_bytes().split(b"\0")[0].endswith(
                b"/raylet"
            ):
                found.append(int(folder.name))
    return found


def _environment(order: PodOrder) -> dict[str, str]:
    found = {key: value for key, value in os.environ.items() if key not in _NOT_INHERITED}
    programs = str(Path(sys.executable).parent)
    found["PATH"] = f"{programs}:{found.get('PATH', '')}"
    found |= order.environment
    found[MARK] = order.uid
    found["RAY_AUTH_MODE"] = "disabled" if order.token is None else "token"
    if order.token is not None:
        found["RAY_AUTH_TOKEN"] = order.token
    return found


def _free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def _now_ms() -> int:
    return int(time.time() * 1000)
