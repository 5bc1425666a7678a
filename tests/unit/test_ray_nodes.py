"""Nodes of the ledger are found under the ids that Ray has for them now, and are left out."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from rotescale.errors import NodeError
from rotescale.launch_spec import LaunchSpec, StageLimits
from rotescale.nodes import Node, record_fault
from rotescale.ray_nodes import LeftOut
from rotescale.run_dir import RunDir


class Cluster:
    """Nodes as Ray lists them, what each is called, and a clock."""

    def __init__(self, **named: str) -> None:
        self.named = named
        self.resources = {"CPU": 8.0, "GPU": 2.0}
        self.asked: list[str] = []
        self.now = 0.0

    def nodes(self) -> list[dict[str, Any]]:
        return [{"NodeID": one, "Resources": self.resources} for one in self.named]

    def names(self, ids: Iterable[str]) -> dict[str, str]:
        self.asked += ids
        return {one: self.named[one] for one in ids if self.named[one] != "silent"}


def look_at(cluster: Cluster, run_dir: RunDir, **fields: Any) -> LeftOut:
    launch = LaunchSpec(cpus_per_worker=2, **fields)
    return LeftOut(
        run_dir,
        launch,
        nodes=cluster.nodes,
        names=cluster.names,
        clock=lambda: cluster.now,
    )


def fail(run_dir: RunDir, node: str, *attempts: int) -> None:
    for attempt in attempts:
        record_fault(run_dir, Node(node), attempt=attempt, reason="hang", message="", num_nodes=4)


def test_nobody_is_asked_while_every_node_is_trusted(tmp_path: Path) -> None:
    run_dir, cluster = RunDir(tmp_path), Cluster(id1="a", id2="b")
    fail(run_dir, "a", 1)
    found = look_at(cluster, run_dir)
    assert not found.look()
    assert (found.ids, found.selector, found.room) == (frozenset(), None, 0)
    assert cluster.asked == []
    found.require_enough()


def test_a_node_is_found_again_under_its_new_id(tmp_path: Path) -> None:
    run_dir, cluster = RunDir(tmp_path), Cluster(id1="a", id2="b", id3="c", id4="silent")
    fail(run_dir, "b", 1, 2)
    found = look_at(cluster, run_dir)
    assert found.look()
    assert found.ids == {"id2"}
    assert found.selector == {"ray.io/node-id": "!in(id2)"}
    assert found.room == 4
    # Once a second at most.
    fail(run_dir, "c", 1, 2)
    assert not found.look()
    cluster.now += 1
    assert found.look()
    assert found.selector == {"ray.io/node-id": "!in(id2,id3)"}
    del cluster.named["id2"]
    cluster.named["id9"] = "b"
    cluster.now += 1
    assert found.look()
    assert found.ids == {"id3", "id9"}
    # Each once, but for the one that has not answered.
    assert cluster.asked == ["id1", "id2", "id3", "id4", "id4", "id4", "id9"]


def test_ray_takes_the_selector(tmp_path: Path) -> None:
    from ray._private.label_utils import validate_label_selector

    ids = {f"{number:056x}": "b" for number in range(3)}
    run_dir, cluster = RunDir(tmp_path), Cluster(**ids)
    fail(run_dir, "b", 1, 2)
    found = look_at(cluster, run_dir)
    found.look()
    assert validate_label_selector(found.selector) is None
    assert found.selector is not None
    assert re.fullmatch(r"!in\([0-9a-f]{56}(,[0-9a-f]{56}){2}\)", *found.selector.values())


@pytest.mark.parametrize(
    ("gpus", "resources", "room"),
    [
        (0, {"CPU": 8.0}, 4),
        (1, {"CPU": 8.0, "GPU": 2.0}, 2),
        (1, {"CPU": 8.0}, 0),
        (1, {"CPU": 3.0, "GPU": 8.0}, 1),
        (0, {}, 0),
    ],
)
def test_room_is_counted_in_workers(
    gpus: int, resources: dict[str, float], room: int, tmp_path: Path
) -> None:
    run_dir, cluster = RunDir(tmp_path), Cluster(id1="a")
    cluster.resources = resources
    fail(run_dir, "a", 1, 2)
    found = look_at(cluster, run_dir, gpus_per_worker=gpus)
    found.look()
    assert found.room == room


def test_a_run_waits_for_other_nodes_but_not_for_ever(tmp_path: Path) -> None:
    run_dir, cluster = RunDir(tmp_path), Cluster(id1="a", id2="b")
    fail(run_dir, "b", 1, 2)
    limits = StageLimits(start_seconds=100.0)
    found = look_at(cluster, run_dir, num_workers=(6, 8), limits=limits)

    def later(seconds: float) -> None:
        cluster.now += seconds
        found.look()
        found.require_enough()

    later(0)
    later(99)
    cluster.named["id3"] = "c"
    later(1)
    del cluster.named["id3"]
    later(1)
    later(99)
    with pytest.raises(NodeError, match=r"node b gets no more .* for 100 s .* room for 4 of the 6"):
        later(1)


def test_storage_that_fails_for_a_moment_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, cluster = RunDir(tmp_path), Cluster(id1="a", id2="b")
    fail(run_dir, "b", 1, 2)
    found = look_at(cluster, run_dir)
    found.look()
    cluster.now += 1

    def fails(_: RunDir) -> None:
        raise OSError("gone")

    monkeypatch.setattr("rotescale.ray_nodes.read_faults", fails)
    assert not found.look()
    assert found.ids == {"id2"}
