"""Where a plan is for: the node that a profile names, or the machine that it is made on."""

from __future__ import annotations

from rotescale.cores import cpu_cores
from rotescale.errors import SpecError
from rotescale.hardware import SHAPES, NodeShape
from rotescale.launch_spec import LaunchSpec
from rotescale.planning.memory import host_memory


def node_of(launch: LaunchSpec) -> NodeShape:
    """The profile's node; this machine where the profile runs on its CPU and names none.

    Raises SpecError for a place whose nodes cannot be known from here.
    """
    if launch.node is None:
        if launch.place == "local" and not launch.gpus_per_worker:
            return this_machine()
        wanted = "its GPUs and network" if launch.gpus_per_worker else "its memory and network"
        raise SpecError(
            f"node: profile {launch.name!r} names none, and a plan needs {wanted}; set node to one "
            f"of {', '.join(SHAPES)}, or to the node's own numbers"
        )
    if launch.gpus_per_worker and launch.node.gpu is None:
        raise SpecError(
            f"node: {launch.node.name} has no GPU, but gpus_per_worker is "
            f"{launch.gpus_per_worker}; name a node with GPUs, or set gpus_per_worker to 0"
        )
    return launch.node


def this_machine() -> NodeShape:
    """The machine that this runs on: its memory and cores; the rest is guessed."""
    known = NodeShape.model_validate({"like": "cpu", "name": "this-machine"})
    memory = host_memory() / (1 << 30)
    return known.model_copy(update={"host_memory_gib": memory, "cpus": cpu_cores()})
