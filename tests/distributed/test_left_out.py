"""A node with two faults gets no worker: neither at the start nor at a restart by Ray Train."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import QUICK, micro_spec, prepare, steps, wait_until
from recovery_helpers import events

from rotescale import driver, ray_session
from rotescale.faults import VARIABLE
from rotescale.launch_spec import LaunchSpec, Preflight, StageLimits
from rotescale.nodes import HOST_VARIABLE, Node, left_out, read_faults, record_fault
from rotescale.run_dir import Outcome, RunDir

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

LIMIT = 400.0
LONG = (*QUICK, "phases.0.epochs=100", "checkpoints.every_steps=25")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Three Ray nodes with room for one worker each, which are called head, a and b."""
    import ray
    from ray.cluster_utils import Cluster

    def node(name: str) -> dict[str, Any]:
        return {"num_cpus": 1, "env_vars": {HOST_VARIABLE: name}}

    with pytest.MonkeyPatch.context() as patch:
        for name, value in ray_session.ENVIRONMENT.items():
            patch.setenv(name, value)
        head = {**node("head"), "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        for name in ("a", "b"):
            cluster.add_node(**node(name))
        ray.init(address=cluster.address, log_to_driver=False)
        try:
            yield
        finally:
            ray.shutdown()
            cluster.shutdown()


def fail_twice(run_dir: RunDir, node: str, *, first: int = 101) -> None:
    for attempt in (first, first + 1):
        record_fault(
            run_dir, Node(node), attempt=attempt, reason="hang", message="still", num_nodes=3
        )


def workers(run_dir: RunDir, attempt: int) -> set[str]:
    """The nodes on which the attempt has workers."""
    [found] = [event for event in events(run_dir, "attempt") if event.attempt == attempt]
    return set(found.details["nodes"])


def trains(run_dir: RunDir, attempt: int) -> bool:
    return any(step.attempt == attempt for step in steps(run_dir))


def test_a_node_with_two_faults_gets_no_worker(
    cluster: None, tmp_path: Path, model_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = prepare(micro_spec(*LONG), tmp_path, cache=model_cache)
    fail_twice(run_dir, "a")
    slow = tmp_path / "slow"
    slow.touch()
    fault = {"point": "step", "action": "delay", "while": str(slow)}
    monkeypatch.setenv(VARIABLE, json.dumps(fault))
    launch = LaunchSpec(num_workers=(1, 3), cpus_per_worker=1, max_failures=1)
    training = threading.Thread(target=driver.train, args=(run_dir, launch))
    training.start()
    wait_until(lambda: trains(run_dir, 1), timeout_seconds=LIMIT)
    assert workers(run_dir, 1) == {"head", "b"}
    # The second node falls out while the driver is at work, which replaces its workers.
    fail_twice(run_dir, "b", first=103)
    os.kill(events(run_dir, "worker")[0].details["pid"], signal.SIGKILL)
    wait_until(lambda: trains(run_dir, 2), timeout_seconds=LIMIT)
    slow.unlink()
    training.join(400)
    assert not training.is_alive()
    outcome = Outcome.read(run_dir)
    assert outcome is not None
    assert outcome.status == "finished", outcome.message
    assert workers(run_dir, 2) == {"head"}
    assert run_dir.attempt_numbers() == [1, 2]
    told = [
        (e.attempt, e.details["node"], e.details["used"]) for e in events(run_dir, "node-excluded")
    ]
    assert told == [(1, "a", False), (2, "a", False), (2, "b", False)]


def test_a_floor_that_no_node_reaches_is_held_against_none(
    cluster: None, tmp_path: Path, model_cache: Path
) -> None:
    spec, floors = micro_spec(*QUICK), Preflight(matmul_tflops=1e6)
    run_dir = prepare(spec, tmp_path, cache=model_cache, num_workers=2, preflight=floors)
    launch = LaunchSpec(num_workers=(2, 2), cpus_per_worker=1, max_failures=1, preflight=floors)
    with pytest.raises(driver.InterruptedRunError) as caught:
        driver.train(run_dir, launch)
    print(caught.value)
    assert "below preflight.matmul_tflops 1e+06" in str(caught.value)
    assert run_dir.attempt_numbers() == [1, 2]
    assert len(read_faults(run_dir)) == 4
    assert left_out(read_faults(run_dir)) == {}


def test_a_run_ends_where_the_other_nodes_are_too_few(
    cluster: None, tmp_path: Path, model_cache: Path
) -> None:
    run_dir = prepare(micro_spec(*QUICK), tmp_path, cache=model_cache)
    fail_twice(run_dir, "a")
    launch = LaunchSpec(
        num_workers=(3, 3), cpus_per_worker=1, limits=StageLimits(start_seconds=5.0)
    )
    with pytest.raises(driver.InterruptedRunError, match="node a gets no more workers") as caught:
        driver.train(run_dir, launch)
    print(caught.value)
    assert "room for 2 of the 3" in str(caught.value)
    assert run_dir.attempt_numbers() == []
