"""What a cluster that answers badly, or in part, says of a run: never a wrong state."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from api_faults import FOR_EVER, Fault
from api_server import ApiServer, api_server
from kuberay_helpers import FULL, experiment

from launcher.job import PlaceUnavailableError
from launcher.kuberay.cluster import KubernetesCluster
from launcher.kuberay.launcher import KubeRayLauncher
from launcher.kuberay.names import job_name
from rotescale.launch_spec import LaunchSpec
from rotescale.spec_file import parse_spec

NAMESPACE = "research"
EXPERIMENT = experiment()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    with api_server() as found:
        found.namespace(NAMESPACE)
        monkeypatch.setenv("KUBECONFIG", str(found.kubeconfig(tmp_path / "kubeconfig")))
        yield found


def launcher(*, patience_seconds: float = 20.0, **changes: Any) -> KubeRayLauncher:
    fields = copy.deepcopy(FULL)
    fields["kuberay"] |= {"context": None, **changes}
    launch = parse_spec(LaunchSpec, fields, where="place.yaml")
    cluster = KubernetesCluster(
        None, NAMESPACE, patience_seconds=patience_seconds, sleep=lambda _: time.sleep(0.02)
    )
    name = job_name(EXPERIMENT.name, storage=launch.storage)
    return KubeRayLauncher(launch, name, cluster=cluster)


def running(server: ApiServer, **changes: Any) -> None:
    """A run whose pods are up, a warning, and no word of Kueue."""
    assert launcher(**changes).submit(EXPERIMENT, retry=False)
    (job,) = server.list("rayjobs", namespace=NAMESPACE)
    name = job["metadata"]["name"]
    status = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING", "jobId": "x"}
    server.set_status("rayjobs", name, status, namespace=NAMESPACE)
    labels = {"rotescale/run": name, "ray.io/node-type": "head"}
    server.create(
        {
            **{"apiVersion": "v1", "kind": "Pod"},
            "metadata": {"name": "head", "namespace": NAMESPACE, "labels": labels},
            "spec": {"containers": [{"name": "ray-head", "image": "x"}]},
        },
        status={"phase": "Running"},
    )
    server.create(
        {
            **{"apiVersion": "v1", "kind": "Event", "type": "Warning", "reason": "Slow"},
            "metadata": {"name": "slow", "namespace": NAMESPACE},
            **{"message": "pull", "lastTimestamp": "2026-11-27T10:00:00Z"},
            "involvedObject": {"kind": "Pod", "name": "head", "namespace": NAMESPACE},
        }
    )


@pytest.mark.parametrize("path", ["/rayjobs", "/pods", "/workloads", "/events"])
@pytest.mark.parametrize(
    "fault",
    [
        {"status": 429, "retry_after": 1, "times": 2},
        {"status": 429, "times": 3},
        {"status": 500, "times": 2},
        {"status": 503},
        {"status": 504, "times": 2},
        {"cut_after": 5},
        {"lost": True},
        {"delay_seconds": 0.5},
    ],
    ids=str,
)
def test_an_outage_that_passes_changes_no_word(
    server: ApiServer, path: str, fault: dict[str, Any]
) -> None:
    running(server)
    undisturbed = launcher().look()
    assert undisturbed.state == "running"
    added = server.faults.add(Fault("GET", path, **fault))
    assert launcher().look() == undisturbed
    assert added.hits


@pytest.mark.parametrize(
    "fault", [{"status": 429}, {"status": 504}, {"delay_seconds": 3.0}], ids=str
)
def test_no_word_of_the_job_is_no_state(server: ApiServer, fault: dict[str, Any]) -> None:
    running(server)
    server.faults.add(Fault("GET", "/rayjobs", times=FOR_EVER, **fault))
    with pytest.raises(PlaceUnavailableError, match="does not answer"):
        launcher(patience_seconds=0.1).look()


@pytest.mark.parametrize("what", ["pods", "workloads", "events"])
def test_what_may_not_be_read_is_said_beside_the_rest(server: ApiServer, what: str) -> None:
    running(server)
    whole = dict(launcher().look().layers)
    assert {"pods", "queue", "warning"} < set(whole)
    server.denied.add(f"list {what}")
    told = launcher().look()
    assert told.state == "running"
    layers = dict(told.layers)
    assert layers[what].startswith(f"this account may not read {what}; rotescale-launch doctor")
    hidden = {"pods": {"pods", "warning"}, "workloads": {"queue"}, "events": {"warning"}}[what]
    rest = {key: words for key, words in whole.items() if key not in hidden}
    assert {key: layers[key] for key in rest} == rest
    assert not (hidden - {what}) & set(layers)


@pytest.mark.parametrize("what", ["pods", "workloads", "events"])
def test_what_does_not_answer_is_said_beside_the_rest(server: ApiServer, what: str) -> None:
    running(server)
    server.faults.add(Fault("GET", f"/{what}", status=504, times=FOR_EVER))
    told = launcher(patience_seconds=0.1).look()
    assert told.state == "running"
    assert "does not answer" in dict(told.layers)[what]


def test_what_waits_in_a_queue_that_may_not_be_read(server: ApiServer) -> None:
    launcher().submit(EXPERIMENT, retry=False)
    server.denied.add("list workloads")
    told = launcher().look()
    assert (told.state, told.reason) == ("pending", "suspended, as what waits in queue research is")
    assert "queue" not in dict(told.layers)


def test_a_place_without_a_queue_is_not_asked_for_one(server: ApiServer) -> None:
    running(server, queue=None, priority=None, topology=None)
    assert launcher().look().state == "running"
    assert server.asked("GET", "/workloads") == []
    assert server.asked("GET", "/events")
