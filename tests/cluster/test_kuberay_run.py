"""A run's whole life on Kubernetes: queued, admitted, hurt in every way, moved, and complete.

The API server and the operators are the tests' own; the launcher, Ray, the driver, its workers and
their checkpoints are the real ones. What ``status`` says is held to what is so, at every stage.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from api_server import ApiServer, api_server
from helpers import MICRO, prepare, run_workers
from kuberay_player import KubeRayPlayer, playing
from launcher_shell import drivers, launch
from ray_job_manifests import queues
from recovery_helpers import assert_equal_runs

from launcher.report import look
from launcher.target import Target
from rotescale.launch_spec import LaunchSpec
from rotescale.records import read_records
from rotescale.run_dir import RunDir
from rotescale.spec import ExperimentSpec
from rotescale.spec_file import load_spec

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

NAMESPACE = "research"
OVERRIDES = (
    *("evaluation.base=false", "evaluation.generation_facts=0", "checkpoints.every_steps=3"),
    *("phases.memorize.epochs=10", "phases.generalize.epochs=20"),
)
SET = [part for override in OVERRIDES for part in ("--set", override)]
WAIT_SECONDS = 400


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that pods may mount: none of the container's own, such as /tmp."""
    folder = Path(tempfile.mkdtemp(prefix="rotescale-", dir="/var/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


class Laptop:
    """The launcher's command line, with a Kubernetes cluster behind it."""

    def __init__(self, server: ApiServer, player: KubeRayPlayer, shared: Path) -> None:
        self.server, self.player, self.shared = server, player, shared
        self.slow = shared / "slow"
        """While this file is there, a step takes a moment."""
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

    def profile(self, place: str) -> str:
        """A launch spec of that place, of two workers, with its runs in the shared folder."""
        fields: dict[str, Any] = {
            **{"name": place, "place": place, "num_workers": 2, "cpus_per_worker": 1},
            "storage": str(self.shared / "runs"),
            "model_cache": str(self.shared / "models"),
        }
        if place == "kuberay":
            fault = {"point": "step", "action": "delay", "while": str(self.slow)}
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
        path = self.shared / f"{place}.yaml"
        path.write_text(yaml.safe_dump(fields))
        return str(path)

    def submit(self) -> str:
        """Submit to Kubernetes; the RayJob's name."""
        self.slow.touch()
        assert "micro started" in self("submit", str(MICRO), *SET, "--on", self.profile("kuberay"))
        assert json.loads(self("status", "micro", "--json"))["name"] == self.target.name
        return self.target.name

    def status(self) -> dict[str, Any]:
        """As ``rotescale-launch status --json`` says it, without the start of a process."""
        return look(self.target.name, "", self.target.launcher(), self.run_dir).as_dict()

    def wait(self, what: str, condition: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        """The status that first fulfils the condition."""
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            found = self.status()
            if condition(found):
                return found
            assert time.monotonic() < deadline, f"it did not happen: {what}; {found}"
            time.sleep(0.2)

    def kill_driver(self) -> None:
        """As the system does where memory is short."""
        (driver,) = drivers(str(self.player.folder))
        os.kill(driver, signal.SIGKILL)


@pytest.fixture
def laptop(shared: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Laptop]:
    with api_server() as server:
        monkeypatch.setenv("KUBECONFIG", str(shared / "kubeconfig"))
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


def stage(status: dict[str, Any]) -> str:
    return str((status["progress"] or {}).get("stage"))


def has_checkpoint(status: dict[str, Any]) -> bool:
    return bool((status["progress"] or {}).get("checkpoint"))


def undisturbed(folder: Path, cache: Path) -> RunDir:
    """The same experiment on two workers of which nothing has ever gone wrong."""
    spec = load_spec(ExperimentSpec, MICRO, OVERRIDES)
    run_dir = prepare(spec, folder, cache=cache, num_workers=2)
    assert run_workers(run_dir, world_size=2) == [0, 0]
    return run_dir


def test_hurt_in_every_way_and_complete(laptop: Laptop, tmp_path: Path, model_cache: Path) -> None:
    name = laptop.submit()
    assert "is running already" in laptop(
        "submit", str(MICRO), *SET, "--on", laptop.profile("kuberay")
    )

    waiting = laptop.wait("it is queued", lambda s: "waits for quota" in s["reason"])
    assert (waiting["state"], waiting["progress"]) == ("pending", None)
    assert waiting["layers"]["queue"] == "research: waits"
    assert laptop.player.pods(name) == []

    laptop.player.kueue.admit(name)
    running = laptop.wait("a checkpoint of phase 1", has_checkpoint)
    assert (running["state"], stage(running)) == ("running", "memorize")
    assert running["layers"]["queue"] == "research: admitted"
    assert running["layers"]["pods"] == "head: 1 Running; worker: 2 Running"
    assert running["layers"]["RayJob"] == f"{name}: Running"

    # A worker's pod goes with its processes: recovered inside the job.
    laptop.player.delete_pod(laptop.player.pods(name, kind="worker")[0])
    laptop.wait("a second attempt", lambda s: s["progress"]["attempt"] == 2)
    again = laptop.wait("it trains again", lambda s: s["progress"]["attempt"] == 2)
    assert again["state"] == "running"
    assert laptop.run_dir.launch_numbers() == [1], "the driver was not started again"

    # The driver is killed in phase 2: the RayJob is tried again, on another cluster.
    laptop.wait("phase 2", lambda s: stage(s) == "generalize" and s["progress"]["done"] >= 4)
    laptop.kill_driver()
    retrying = laptop.wait(
        "another try", lambda s: "1 of 3 attempts failed" in s["layers"]["RayJob"]
    )
    assert retrying["state"] in ("pending", "running")
    (ending,) = retrying["restarts"]
    assert (ending["kind"], ending["exit_code"]) == ("infrastructure", -signal.SIGKILL)
    resumed = laptop.wait("phase 2 again", lambda s: s["progress"]["attempt"] == 3)
    assert "generalize" in resumed["progress"]["checkpoint"]

    laptop.slow.unlink()
    done = laptop.wait("the end", lambda s: s["state"] == "finished")
    assert done["outcome"] == "finished in attempt 3"
    laptop.wait("its pods are gone", lambda s: "pods" not in s["layers"])
    # What was printed is still there: it lies in the run's folder.
    assert "results:" in laptop("logs", "micro", "--lines", "500")
    assert_equal_runs(laptop.run_dir, undisturbed(tmp_path, model_cache))
    steps = [(row.phase, row.step) for row in read_records(laptop.run_dir).steps]
    assert len(steps) == len(set(steps))


def test_preempted_by_the_queue_and_finished_here(
    laptop: Laptop, tmp_path: Path, model_cache: Path
) -> None:
    name = laptop.submit()
    laptop.wait("it is queued", lambda s: "waits for quota" in s["reason"])
    laptop.player.kueue.admit(name)
    laptop.wait("a checkpoint", has_checkpoint)
    laptop.player.kueue.preempt(name)
    out = laptop.wait("it is out", lambda s: s["layers"]["RayJob"].endswith("Suspended"))
    assert out["state"] == "pending"
    assert "taken out of the queue's quota" in out["reason"] or "waits for quota" in out["reason"]
    laptop.player.kueue.admit(name)
    laptop.wait("it trains again", lambda s: s["progress"]["attempt"] >= 2)
    back = laptop.wait("it says so", lambda s: s["state"] == "running")
    assert back["layers"]["queue"] == "research: admitted"

    # Begun on Kubernetes, finished on this machine.
    local = laptop.profile("local")
    laptop("resume", "micro", "--on", local, code=2)
    assert "stopped" in laptop("cancel", "micro", "--grace", "60")
    gone = laptop.status()
    assert gone["layers"] == {"RayJob": "none"}
    laptop.slow.unlink()
    assert "micro started" in laptop("resume", "micro", "--on", local)
    laptop.wait("the end", lambda s: s["state"] == "finished")
    assert_equal_runs(laptop.run_dir, undisturbed(tmp_path, model_cache))
