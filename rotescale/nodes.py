"""Nodes by name, and the run's ledger of what went wrong on which. No torch.

A node that has failed twice gets no more workers of the run. Names outlive what Ray and Kubernetes
renew: a raylet that restarts has a new id, a pod that is made again a new host name and address.
"""

from __future__ import annotations

import os
import re
import socket
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError

from rotescale.errors import CheckpointError
from rotescale.run_dir import RunDir
from rotescale.storage import create_exclusive, entries, make_folder

HOST_VARIABLE = "ROTESCALE_HOST"
"""What the machine is called by whoever runs it, in the environment of Ray's node: in a pod, the
Kubernetes node."""
NAME_VARIABLE = "ROTESCALE_NODE"
"""The name of a worker's node; set by the driver for its workers."""
RAY_VARIABLE = "ROTESCALE_RAY_NODE"
"""Ray's id of it; set by the driver for its workers."""
FAULTS_ALLOWED = 1
"""With one more, a node gets no more workers."""

_UNSAFE = re.compile(r"[^A-Za-z0-9.-]")
_HARDWARE = (
    # As CUDA words them (cudaGetErrorString).
    "uncorrectable ecc error",
    "uncorrectable nvlink error",
    "hardware stack error",
)

Reason = Literal["preflight", "hang", "hardware"]
"""``preflight``: measured below a floor; ``hang``: a worker stood still in what it did alone;
``hardware``: CUDA said that the GPU is broken."""


@dataclass(frozen=True, slots=True)
class Node:
    """The node that a worker runs on."""

    name: str
    ray_id: str | None = None
    """Ray's id, new at each start of its raylet; None where Ray has not started the worker."""

    @classmethod
    def here(cls) -> Node:
        """This process's node, as the driver has named it, or else by its host name."""
        environment = os.environ
        return cls(environment.get(NAME_VARIABLE) or node_name(), environment.get(RAY_VARIABLE))


def node_name(address: str | None = None) -> str:
    """What this machine is called: by ``ROTESCALE_HOST``, or as HOST@ADDRESS, or as HOST alone."""
    given = os.environ.get(HOST_VARIABLE)
    if given:
        return given
    host = socket.gethostname()
    return host if address is None else f"{host}@{address}"


class NodeFault(BaseModel):
    """What went wrong on a node in one attempt; a file of its own, which never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    attempt: PositiveInt
    node: str
    ray_id: str | None = None
    """Ray's id of the node at the time."""
    reason: Reason
    message: str
    num_nodes: PositiveInt
    """How many nodes the attempt ran on."""
    time: str
    """UTC, ISO 8601."""


def record_fault(
    run_dir: RunDir, node: Node, *, attempt: int, reason: Reason, message: str, num_nodes: int
) -> bool:
    """Note a fault of the node; False where this attempt has noted one of it before.

    Raises StorageError where nothing can be written.
    """
    fault = NodeFault(
        attempt=attempt,
        node=node.name,
        ray_id=node.ray_id,
        reason=reason,
        message=message,
        num_nodes=num_nodes,
        time=datetime.now(UTC).isoformat(),
    )
    make_folder(run_dir.node_faults)
    path = run_dir.node_fault(attempt, _UNSAFE.sub("_", node.name))
    return create_exclusive(path, (fault.model_dump_json(indent=2) + "\n").encode())


def read_faults(run_dir: RunDir) -> tuple[NodeFault, ...]:
    """All faults that are listed, by attempt and node. CheckpointError for a damaged file."""
    found = []
    for path in entries(run_dir.node_faults):
        if path.name.startswith(".") or not path.name.endswith(".json"):
            continue
        try:
            found.append(NodeFault.model_validate_json(path.read_bytes()))
        except FileNotFoundError:
            # Somebody trusts the node again.
            continue
        except ValidationError as error:
            raise CheckpointError(
                f"{path}: damaged ({error.errors()[0]['msg']}); delete it, and the node has one "
                "fault less"
            ) from None
    return tuple(sorted(found, key=lambda fault: (fault.attempt, fault.node)))


def left_out(faults: Iterable[NodeFault]) -> dict[str, tuple[NodeFault, ...]]:
    """The nodes that get no more workers, by name, each with the faults that count.

    An attempt that blames more than half of its nodes blames something else, such as a floor that
    nobody reaches or storage that has stood still; it does not count.
    """
    listed = list(faults)
    blamed = Counter(fault.attempt for fault in listed)
    counted: dict[str, list[NodeFault]] = defaultdict(list)
    for fault in listed:
        if 2 * blamed[fault.attempt] <= fault.num_nodes:
            counted[fault.node].append(fault)
    return {
        node: tuple(found) for node, found in sorted(counted.items()) if len(found) > FAULTS_ALLOWED
    }


def describe_left_out(run_dir: RunDir, node: str, faults: Iterable[NodeFault]) -> str:
    """A line for whoever looks after the run: why the node gets no workers, and how it would."""
    reasons = "; ".join(f"attempt {one.attempt}, {one.reason}: {one.message}" for one in faults)
    return (
        f"node {node} gets no more workers of this run ({reasons}); replace or cordon it, or "
        f"delete its files in {run_dir.node_faults} to use it again"
    )


def is_hardware_error(error: BaseException) -> bool:
    """Whether an error, by its words, is CUDA's for a broken GPU."""
    text = str(error).lower()
    return any(words in text for words in _HARDWARE)
