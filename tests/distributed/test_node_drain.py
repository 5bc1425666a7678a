"""What a pod runs before it is stopped, on a real Ray cluster of two nodes."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from rotescale.node_drain import Raylet, leave, outlive, raylets


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without work, and one node; both on this machine."""
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    found.add_node(num_cpus=1)
    found.wait_for_nodes()
    yield found
    found.shutdown()


def raylet_of(node: Any) -> Raylet:
    return next(one for one in raylets() if one.node_id == node.node_id)


def test_a_machine_with_several_nodes_is_left_alone(cluster: Any) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rotescale.node_drain", "leave", "--seconds", "1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "this is for a pod, which has one" in done.stderr
    assert all(raylet_of(node).is_alive() for node in (cluster.head_node, *cluster.worker_nodes))


def test_a_worker_leaves_and_then_the_head_may_go(cluster: Any) -> None:
    """Runs last: the worker does not come back."""
    head, worker = (raylet_of(node) for node in (cluster.head_node, *cluster.worker_nodes))
    assert head.gcs_address == worker.gcs_address == cluster.address
    assert not outlive(head, seconds=2), "the worker is there still"
    answers: list[bool] = []
    waiting = threading.Thread(target=lambda: answers.append(outlive(head, seconds=120)))
    waiting.start()
    time.sleep(1)
    assert leave(worker, seconds=60), "a node without work goes at once"
    assert not worker.is_alive()
    waiting.join(timeout=120)
    assert answers == [True]
    assert head.is_alive()
