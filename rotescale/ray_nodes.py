"""Which nodes of a Ray cluster get no worker: those of the run's ledger, by the ids they have now.

Ray Train's controller asks at each start of a set of workers, so a node that fails for the second
time is left out of the next set, under the same driver.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rotescale.errors import NodeError
from rotescale.launch_spec import LaunchSpec
from rotescale.nodes import NAME_VARIABLE, RAY_VARIABLE, left_out, node_name, read_faults
from rotescale.run_dir import RunDir

NODE_ID_LABEL = "ray.io/node-id"
"""The label that Ray gives to every node."""
_LOOK_SECONDS = 1.0
"""How often the ledger is read at most."""
_ANSWER_SECONDS = 30.0
"""How long nodes may take to say what they are called."""


def name_worker() -> None:
    """In a worker of Ray: tell what it starts on which node it is."""
    import ray

    os.environ[NAME_VARIABLE] = name_here()
    os.environ[RAY_VARIABLE] = ray.get_runtime_context().get_node_id()


def name_here() -> str:
    """In any process of Ray: what its node is called."""
    import ray.util

    return node_name(ray.util.get_node_ip_address())


def ask_names(ids: Iterable[str]) -> dict[str, str]:
    """What the nodes of these ids are called; those that do not answer in time are not there."""
    import ray

    ask = ray.remote(num_cpus=0, max_retries=0)(name_here)
    asked = {ask.options(label_selector={NODE_ID_LABEL: one}).remote(): one for one in ids}
    if not asked:
        return {}
    answered, late = ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_SECONDS)
    for reference in late:
        ray.cancel(reference, force=True)
    names = {}
    for reference in answered:
        try:
            names[asked[reference]] = ray.get(reference)
        except ray.exceptions.RayError:
            # It was lost meanwhile.
            continue
    return names


def alive_nodes() -> list[Mapping[str, Any]]:
    """What Ray says of each node that is alive: its ``NodeID``, its ``Resources``."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


class LeftOut:
    """The nodes that get no worker, by Ray's ids of the moment; ``look`` asks again."""

    def __init__(
        self,
        run_dir: RunDir,
        launch: LaunchSpec,
        *,
        nodes: Callable[[], Sequence[Mapping[str, Any]]] = alive_nodes,
        names: Callable[[Iterable[str]], Mapping[str, str]] = ask_names,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run_dir = run_dir
        self._launch = launch
        self._nodes = nodes
        self._ask = names
        self._clock = clock
        self._looked_at: float | None = None
        self._too_few_since: float | None = None
        self._names: dict[str, str] = {}
        self._others: list[Mapping[str, Any]] = []
        self.names: frozenset[str] = frozenset()
        """What they are called, whether they are there or not."""
        self.ids: frozenset[str] = frozenset()
        """Of those that are there."""
        self.room = 0
        """For how many workers they have resources."""

    def look(self) -> bool:
        """Read the ledger and the cluster, at most once a second; whether ``ids`` has changed."""
        now = self._clock()
        if self._looked_at is not None and now - self._looked_at < _LOOK_SECONDS:
            return False
        self._looked_at = now
        before = self.ids
        try:
            self.names = frozenset(left_out(read_faults(self._run_dir)))
            self._find()
        except Exception as error:  # noqa: BLE001 (an error here would end the run)
            # Storage that fails for a moment is asked again; until then what is known holds.
            logging.getLogger(__name__).warning("which nodes to leave out: %s", error)
        return self.ids != before

    def _find(self) -> None:
        if not self.names:
            self.ids, self.room = frozenset(), 0
            return
        nodes = self._nodes()
        unknown = [node["NodeID"] for node in nodes if node["NodeID"] not in self._names]
        self._names.update(self._ask(unknown))
        found = [node for node in nodes if self._names.get(node["NodeID"]) in self.names]
        self.ids = frozenset(node["NodeID"] for node in found)
        self.room = sum(map(self._room_on, found))
        self._others = [node for node in nodes if node["NodeID"] not in self.ids]

    def _room_on(self, node: Mapping[str, Any]) -> int:
        """For how many workers a node has resources, whoever uses them now."""
        has, launch = node["Resources"], self._launch
        room = has.get("CPU", 0.0) // launch.worker_cores
        if launch.gpus_per_worker:
            room = min(room, has.get("GPU", 0.0) // launch.gpus_per_worker)
        return int(room)

    @property
    def selector(self) -> dict[str, str] | None:
        """The labels that a worker's node must have; None: any node will do."""
        return {NODE_ID_LABEL: f"!in({','.join(sorted(self.ids))})"} if self.ids else None

    def require_enough(self) -> None:
        """NodeError where the other nodes have been too few for long: ``limits.start_seconds``."""
        limit, least = self._launch.limits.start_seconds, self._launch.num_workers[0]
        room = sum(map(self._room_on, self._others)) if self.ids else least
        if room >= least:
            self._too_few_since = None
            return
        now = self._clock()
        if self._too_few_since is None:
            self._too_few_since = now
        if now - self._too_few_since >= limit:
            raise NodeError(
                f"node {', '.join(sorted(self.names))} gets no more workers of this run, and for "
                f"{limit:g} s (limits.start_seconds) the others have had room for {room} of the "
                f"{least} that it needs; add or replace nodes, lower num_workers, or delete the "
                f"node's files in {self._run_dir.node_faults} to use it again"
            )


def scaling_policy(scaling_config: Any, run_dir: RunDir, launch: LaunchSpec) -> Any:
    """Ray Train's own policy of how many workers there are, without the nodes that are left out.

    Ray has a hook that says where a set of workers may be placed. But its elastic policy counts
    what it could place on every node, and would ask for more workers than fit on the others.
    """
    from ray.train.v2._internal.execution.scaling_policy import (
        ElasticScalingPolicy,
        FixedScalingPolicy,
    )

    is_elastic = scaling_config.elasticity_enabled
    base = ElasticScalingPolicy if is_elastic else FixedScalingPolicy

    class LeavesNodesOut(base):  # type: ignore[misc,valid-type]
        def __init__(self) -> None:
            super().__init__(scaling_config)
            self._left_out = LeftOut(run_dir, launch)

        def on_controller_start_worker_group(self, **_: Any) -> dict[str, str] | None:
            self._left_out.look()
            return self._left_out.selector

        def make_decision_for_non_running_worker_group(self) -> Any:
            if self._left_out.look() and is_elastic:
                # Reserve anew, and do not decide by what was reserved before.
                self._send_resource_request()
                self._latest_reserved_resources_query_time = float("-inf")
            self._left_out.require_enough()
            return super().make_decision_for_non_running_worker_group()

        def _get_num_workers_for_resource_request(self) -> int:
            wanted: int = super()._get_num_workers_for_resource_request()
            # What is reserved may lie on the nodes that are left out.
            return wanted + self._left_out.room if is_elastic else wanted

        def _count_possible_workers(self, reserved_resources: Mapping[str, Any]) -> int:
            self._left_out.look()
            usable = {
                node: some
                for node, some in reserved_resources.items()
                if node not in self._left_out.ids
            }
            count: int = super()._count_possible_workers(usable)
            return count

    return LeavesNodesOut()
