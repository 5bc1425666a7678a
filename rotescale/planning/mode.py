"""How a run evaluates: one rule, for plans and for the preparation of the run itself."""

from __future__ import annotations

from rotescale.hardware import NodeShape
from rotescale.launch_spec import LaunchSpec
from rotescale.planning.memory import evaluation_mode
from rotescale.spec import EvaluationMode, ExperimentSpec


def workers_of(spec: ExperimentSpec, launch: LaunchSpec) -> tuple[int, int]:
    """The least and the most workers that a run of the experiment has there."""
    return (1, 1) if spec.engine.kind == "eager" else launch.num_workers


def room(launch: LaunchSpec, node: NodeShape) -> int:
    """Workers that a node has GPUs and cores for; at least one.

    The Ray cluster that is started on one machine takes cores to be as many as wanted.
    """
    by_cores = int(node.cpus // worker_cores(launch, node, node.cpus))
    if not launch.gpus_per_worker:
        return max(1, by_cores)
    by_gpus = node.gpus_per_node
    return by_gpus if launch.place == "local" else max(1, min(by_cores, by_gpus))


def worker_cores(launch: LaunchSpec, node: NodeShape, num_workers: int) -> float:
    """Cores of each of so many workers."""
    if launch.cpus_per_worker == "auto":
        return max(1, node.cpus // num_workers)
    return launch.cpus_per_worker


def workers_per_node(launch: LaunchSpec, node: NodeShape, num_workers: int) -> int:
    """The most of these workers on one node."""
    if launch.place == "local" and not launch.gpus_per_worker:
        return num_workers
    return min(num_workers, room(launch, node))


def mode_on(
    spec: ExperimentSpec,
    launch: LaunchSpec,
    node: NodeShape,
    *,
    workers: tuple[int, int],
    num_parameters: int,
    num_trainable: int,
) -> EvaluationMode:
    """The mode on nodes of that shape; a copy only where it fits for the least and the most."""
    if spec.engine.evaluation_mode != "auto":
        return spec.engine.evaluation_mode
    if launch.gpus_per_worker:
        memory, sharing = node.gpu_bytes, dict.fromkeys(workers, 1)
    else:
        memory = node.host_bytes
        sharing = {number: workers_per_node(launch, node, number) for number in workers}
    modes = {
        evaluation_mode(
            num_parameters=num_parameters,
            num_trainable=num_trainable,
            precision=spec.engine.precision,
            num_workers=number,
            workers_per_memory=here,
            memory=memory,
            offloaded=spec.engine.offload_optimizer != "none" and launch.gpus_per_worker > 0,
        )
        for number, here in sharing.items()
    }
    return "replicated" if modes == {"replicated"} else "sharded"
