"""Whether the nodes of a cluster, empty, have room for the pods of a run. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]
Amounts = Mapping[str, float]
"""By resource, such as ``cpu`` and ``nvidia.com/gpu``: in units or bytes."""

SUBMITTER_REQUESTS: Amounts = {"cpu": 0.5, "memory": 200.0 * 2**20}
"""What the container asks for that KubeRay adds to the head's pod."""
_GIB = 2.0**30
_SUFFIXES = {"m": 1e-3, "": 1.0}
_SUFFIXES |= {name: 1000.0**power for power, name in enumerate("kMGTP", start=1)}
_SUFFIXES |= {f"{name}i": 1024.0**power for power, name in enumerate("KMGTP", start=1)}
_QUANTITY = re.compile(rf"([0-9]+(?:\.[0-9]+)?)({'|'.join(_SUFFIXES)})")
_KEEPS_AWAY = ("NoSchedule", "NoExecute")


@dataclass(frozen=True, slots=True)
class Pod:
    """Where a pod may go, and what it asks for there."""

    requests: Amounts
    selector: Mapping[str, str]
    tolerations: Sequence[Object]

    @classmethod
    def of(cls, template: Object, *, added: Amounts | None = None) -> Pod:
        """Of a template, all containers together; ``added`` is what the operator puts to it."""
        spec, total = template["spec"], dict(added or {})
        for container in spec["containers"]:
            for name, quantity in container["resources"]["requests"].items():
                total[name] = total.get(name, 0.0) + amount(quantity)
        return cls(total, spec.get("nodeSelector", {}), spec.get("tolerations", ()))

    @property
    def words(self) -> str:
        """What it asks for, such as ``96 cores, 1500Gi, 8 nvidia.com/gpu``."""
        return ", ".join(_words(name, value) for name, value in self.requests.items())

    def labelled(self, nodes: Sequence[Object]) -> list[Object]:
        """The nodes with the labels that it wants."""
        wanted = self.selector.items()
        return [node for node in nodes if wanted <= node["metadata"].get("labels", {}).items()]

    def on(self, node: Object, *, beside: Amounts | None = None) -> int:
        """How many of it the node holds, beside what asks for ``beside``."""
        if node["spec"].get("unschedulable") or any(self._taints(node)):
            return 0
        taken, free = beside or {}, _allocatable(node)
        return min(
            max(0, int((free.get(name, 0.0) - taken.get(name, 0.0)) // least))
            for name, least in self.requests.items()
            if least
        )

    def room(self, nodes: Sequence[Object]) -> int:
        """How many of it the nodes hold together."""
        return sum(self.on(node) for node in self.labelled(nodes))

    def obstacles(self, nodes: Sequence[Object]) -> Iterator[str]:
        """Why none of the nodes, which have its labels, may hold it, as far as one reason tells."""
        for name, least in self.requests.items():
            most = max((_allocatable(node).get(name, 0.0) for node in nodes), default=0.0)
            if nodes and most < least:
                yield f"none has {_words(name, least)}, the most is {_words(name, most)}"
        taints = [set(self._taints(node)) for node in nodes]
        if taints and all(taints):
            yield f"all have a taint that it does not tolerate ({', '.join(sorted(taints[0]))})"

    def _taints(self, node: Object) -> Iterator[str]:
        """The keys of the node's taints that keep it away."""
        for taint in node["spec"].get("taints", ()):
            if taint["effect"] in _KEEPS_AWAY and not any(
                _tolerates(one, taint) for one in self.tolerations
            ):
                yield taint["key"]


def room_beside(head: Pod, workers: Pod, nodes: Sequence[Object]) -> int:
    """How many pods of workers the nodes hold, with the head where it costs them least.

    As many as without the head where no node holds that.
    """
    alone = workers.room(nodes)
    mine = workers.labelled(nodes)
    costs = [
        workers.on(node) - workers.on(node, beside=head.requests) if node in mine else 0
        for node in head.labelled(nodes)
        if head.on(node)
    ]
    return alone - min(costs, default=0)


def amount(quantity: object) -> float:
    """A quantity of Kubernetes in units or bytes; 0 where it is none."""
    match = _QUANTITY.fullmatch(str(quantity))
    return 0.0 if match is None else float(match[1]) * _SUFFIXES[match[2]]


def _allocatable(node: Object) -> dict[str, float]:
    listed = node.get("status", {}).get("allocatable", {})
    return {name: amount(quantity) for name, quantity in listed.items()}


def _tolerates(toleration: Object, taint: Object) -> bool:
    is_any = toleration.get("operator", "Equal") == "Exists"
    return (
        toleration.get("effect") in (None, taint["effect"])
        and toleration.get("key") == taint["key"]
        and (is_any or toleration.get("value", "") == taint.get("value", ""))
    )


def _words(name: str, value: float) -> str:
    if name == "cpu":
        return f"{value:g} cores"
    if name == "memory":
        return f"{value / _GIB:.5g}Gi"
    if name.startswith("hugepages-"):
        return f"{value / _GIB:.5g}Gi of {name}"
    return f"{value:g} {name}"
