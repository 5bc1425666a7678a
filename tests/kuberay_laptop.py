"""A laptop with a Kubernetes cluster behind it: tests' API server and operators, on real Ray."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from api_server import ApiServer, api_server
from helpers import MICRO
from kuberay_player import KubeRayPlayer, playing
from launcher_shell import drivers, launch
from ray_job_manifests import queues

from launcher.report import look
from launcher.target import Target
from rotescale.launch_spec import LaunchSpec
from rotescale.run_dir import RunDir
from rotescale.spec_file import load_spec

NAMESPACE = "research"
OVERRIDES = (
    *("evaluation.base=false", "evaluation.generation_facts=0", "checkpoints.every_steps=3"),
    *("phases.memorize.epochs=10", "phases.generalize.epochs=20"),
)
SET = [part for override in OVERRIDES for part in ("--set", override)]
WAIT_SECONDS = 400
ALL_LINES = "100000"
_SEPARATOR = "--- another "


@dataclass(frozen=True)
class Following:
    """``rotescale-launch logs --follow`` in a process of its own."""

    process: subprocess.Popen[bytes]
    output: Path

    def lines(self) -> list[str]:
        """All that it has printed so far."""
        return self.output.read_text().splitlines()


def parts(lines: Sequence[str]) -> list[list[str]]:
    """The lines between the separators that stand between two starts of the driver."""
    found: list[list[str]] = [[]]
    for line in lines:
        if line.startswith(_SEPARATOR):
            found.append([])
        else:
            found[-1].append(line)
    return found


def kept(run_dir: RunDir, number: int) -> list[str]:
    """What the driver has printed in its n-th start, as the run's folder has it."""
    log = run_dir.numbered_driver_log(number)
    return log.read_text().splitlines() if log.exists() else []


def count_in_order(lines: Sequence[str], run_dir: RunDir, number: int) -> int:
    """How many of the first lines of the driver's n-th start these are, each once and in order.

    Lines that are not the driver's, such as Ray's and the supervisor's, may stand between them.
    """
    whole = kept(run_dir, number)
    known = set(whole)
    mine = [line for line in lines if line in known]
    assert mine == whole[: len(mine)], (mine, whole)
    return len(mine)


class Laptop:
    """The launcher's command line, with a Kubernetes cluster behind it."""

    def __init__(self, server: ApiServer, player: KubeRayPlayer, shared: Path) -> None:
        self.server, self.player, self.shared = server, player, shared
        self.slow = shared / "slow"
        """While this file is there, a step takes ``slow_seconds``."""
        self.slow_seconds = 0.2
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
            "KUBECONFIG": str(server.kubeconfig(shared / "kubeconfig", namespace=NAMESPACE)),
            "ROTESCALE_STATE": str(shared / "state"),
            "OMP_NUM_THREADS": "1",
        }
        self.run_dir = RunDir(shared / "runs" / "micro")
        self.target = Target("micro", load_spec(LaunchSpec, Path(self.profile("kuberay"))))

    def __call__(self, *arguments: str, code: int = 0) -> str:
        return launch(*arguments, environment=self.environment, code=code)

    def profile(self, place: str, *, storage: str = "runs", **more: Any) -> str:
        """A launch spec of that place, of two workers, with its runs in a shared folder."""
        fields: dict[str, Any] = {
            **{"name": place, "place": place, "num_workers": 2, "cpus_per_worker": 1},
            "storage": str(self.shared / storage),
            "model_cache": str(self.shared / "models"),
            **more,
        }
        if place == "kuberay":
            fault = {
                **{"point": "step", "action": "delay", "while": str(self.slow)},
                "seconds": self.slow_seconds,
            }
            fields["kuberay"] = {
                **{"namespace": NAMESPACE, "image": "rotescale:0.1.0", "queue": "research"},
                "head": {"cpus": 1, "memory": "2Gi"},
                "workers": {
                    **{"per_node": 1, "cpus": 1, "memory": "2Gi", "shared_memory": "1Gi"},
                },
                "volumes": [{"claim": "shared", "path": str(self.shared)}],
                "environment": {"ROTESCALE_FAULT": json.dumps(fault), "OMP_NUM_THREADS": "1"},
                **{"retries": 2, "grace_seconds": 60, "ttl_seconds": 0},
            }
        path = self.shared / f"{place}-{storage}.yaml"
        path.write_text(yaml.safe_dump(fields))
        return str(path)

    def submit(self, *more: str) -> str:
        """Submit to Kubernetes, with more arguments; the RayJob's name."""
        self.slow.touch()
        command = ("submit", str(MICRO), *SET, *more, "--on", self.profile("kuberay"))
        assert "micro started" in self(*command)
        assert json.loads(self("status", "micro", "--json"))["name"] == self.target.name
        return self.target.name

    def status(self, target: Target | None = None) -> dict[str, Any]:
        """As ``rotescale-launch status --json`` says it, without the start of a process."""
        one = target or self.target
        return look(one, one.launcher()).as_dict()

    def wait(
        self,
        what: str,
        condition: Callable[[dict[str, Any]], Any],
        *,
        target: Target | None = None,
    ) -> dict[str, Any]:
        """The status that first fulfils the condition; by default of the run on Kubernetes."""
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            found = self.status(target)
            if condition(found):
                return found
            assert time.monotonic() < deadline, f"it did not happen: {what}; {found}"
            time.sleep(0.2)

    @contextmanager
    def following(self) -> Iterator[Following]:
        """Follow the run's lines meanwhile."""
        output = self.shared / "followed"
        with output.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "launcher.cli", "logs", "micro", "--follow"],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        try:
            yield Following(process, output)
        finally:
            process.kill()
            process.wait()

    def logs(self) -> list[str]:
        """All lines that ``rotescale-launch logs`` prints."""
        return self("logs", "micro", "--lines", ALL_LINES).splitlines()

    def kill_driver(self) -> None:
        """As the system does where memory is short."""
        (driver,) = drivers(str(self.player.folder))
        os.kill(driver, signal.SIGKILL)


@contextmanager
def laptop_with_cluster(shared: Path) -> Iterator[Laptop]:
    """A cluster with a queue, a claim and an account for runs, and nothing in it."""
    with api_server() as server:
        server.namespace(NAMESPACE)
        server.create(
            {
                **{"apiVersion": "v1", "kind": "PersistentVolumeClaim"},
                "metadata": {"name": "shared", "namespace": NAMESPACE},
                "spec": {"accessModes": ["ReadWriteMany"]},
            },
            status={"phase": "Bound"},
        )
        server.create(
            {
                **{"apiVersion": "v1", "kind": "ServiceAccount"},
                "metadata": {"name": "rotescale-run", "namespace": NAMESPACE},
            }
        )
        for one in queues("research", namespace=NAMESPACE):
            server.create(one)
        with playing(server, shared / "player") as player:
            yield Laptop(server, player, shared)
