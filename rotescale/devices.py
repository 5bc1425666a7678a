"""What is decided about the devices that workers compute on: before they start, and by each."""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path
from typing import TYPE_CHECKING

from rotescale.cores import cpu_cores
from rotescale.errors import NodeError, SpecError
from rotescale.facts import FactSet
from rotescale.hardware import NodeShape
from rotescale.launch_spec import LaunchSpec
from rotescale.planning.architecture import architecture_of
from rotescale.planning.footprint import GIB, Placement
from rotescale.planning.mode import mode_on, workers_of
from rotescale.planning.place import node_of, this_machine
from rotescale.planning.workload import count_work
from rotescale.run_dir import RunDir
from rotescale.spec import Attention, EvaluationMode, ExperimentSpec
from rotescale.spec_file import load_spec

if TYPE_CHECKING:
    import torch

FLASH_ATTENTION = "flash-attn"
"""The package that ``flash_attention_2`` needs."""
_FLASH_CAPABILITY = (8, 0)


def computes_here(spec: ExperimentSpec, launch: LaunchSpec) -> bool:
    """Whether the machine that prepares the run, and drives it, is the one that trains."""
    return launch.place == "local" or spec.engine.kind == "eager"


def check_devices(spec: ExperimentSpec, launch: LaunchSpec) -> None:
    """SpecError where workers want GPUs, and this machine, or the profile's node, has none.

    Of a cluster's nodes nothing is known here: its head, where the driver runs, needs no GPU. There
    each worker looks for itself (``require_gpu``).
    """
    import torch

    if launch.node is not None:
        node_of(launch)
    if spec.model.attention == "flash_attention_2" and not launch.gpus_per_worker:
        raise SpecError(
            "model.attention: flash_attention_2 is for GPUs, but gpus_per_worker is 0; set "
            "model.attention to sdpa"
        )
    if launch.gpus_per_worker and computes_here(spec, launch) and not torch.cuda.is_available():
        raise SpecError(
            f"gpus_per_worker: {launch.gpus_per_worker}, but torch sees no GPU here; "
            "use a launch spec with gpus_per_worker: 0"
        )


def name_accelerator(launch: LaunchSpec) -> None:
    """Tell DeepSpeed, which transformers imports, what is used of this machine.

    It is for this process and what it starts on this machine, never for workers elsewhere.
    """
    import torch

    used = launch.gpus_per_worker and torch.cuda.is_available()
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if used else "cpu")


def evaluation_mode(
    spec: ExperimentSpec, launch: LaunchSpec, *, num_parameters: int, num_trainable: int
) -> EvaluationMode:
    """Whether each worker gets a whole copy of the model for an evaluation, as a plan says it.

    By the memory of the profile's node; where it names none by this machine's, if it trains; else
    ``sharded``, which fits wherever training does.
    """
    if spec.engine.evaluation_mode != "auto":
        return spec.engine.evaluation_mode
    node = _known_node(spec, launch)
    if node is None:
        return "sharded"
    return mode_on(
        *(spec, launch, node),
        workers=workers_of(spec, launch),
        num_parameters=num_parameters,
        num_trainable=num_trainable,
    )


def recomputes_activations(
    spec: ExperimentSpec, launch: LaunchSpec, *, config: Path, fact_set: FactSet
) -> bool:
    """Whether layers compute their activations again in the backward pass, as a plan says it.

    By the same node as ``evaluation_mode``; where nothing is known of it, or of the arithmetic of
    the model, whose config.json is ``config``, only if the spec says so.
    """
    if spec.model.activation_checkpointing != "auto":
        return spec.model.activation_checkpointing
    node = _known_node(spec, launch)
    if node is None:
        return False
    try:
        architecture = architecture_of(spec.model.weights, config=config)
    except SpecError:
        return False
    work = count_work(spec, fact_set)
    place = Placement.least(spec, launch, node, architecture=architecture, work=work)
    return place.checkpoints_activations


def _known_node(spec: ExperimentSpec, launch: LaunchSpec) -> NodeShape | None:
    """The profile's node; where it names none this machine, if it trains."""
    import torch

    if launch.node is not None:
        return node_of(launch)
    if not computes_here(spec, launch):
        return None
    if not launch.gpus_per_worker:
        return this_machine()
    gpu = torch.cuda.get_device_properties(0)
    found = {
        "gpu": gpu.name,
        "gpus_per_node": torch.cuda.device_count(),
        "gpu_memory_gib": gpu.total_memory / GIB,
    }
    return this_machine().model_copy(update=found)


def with_cores(launch: LaunchSpec, run_dir: RunDir) -> LaunchSpec:
    """The launch spec with a number of cores per worker, where it leaves that to this machine.

    A run that goes on here with as many workers keeps its number, for sums are added in an order
    that follows it, unless the machine has fewer cores by now.
    """
    shared = launch.sharing(cpu_cores())
    if launch.cpus_per_worker != "auto" or not run_dir.launch_json.exists():
        return shared
    earlier = load_spec(LaunchSpec, run_dir.launch_json)
    same = (earlier.place, earlier.num_workers) == (launch.place, launch.num_workers)
    if not same or earlier.worker_cores > shared.worker_cores:
        return shared
    return launch.model_copy(update={"cpus_per_worker": earlier.worker_cores})


def chosen_attention(
    spec: ExperimentSpec, launch: LaunchSpec, *, earlier: Attention | None
) -> Attention:
    """The attention that workers compute with; ``auto`` is what an ``earlier`` start chose, if any.

    The driver's packages stand for those of the workers, who look again
    (``require_flash_attention``).
    """
    if spec.model.attention != "auto":
        return spec.model.attention
    if not launch.gpus_per_worker or spec.engine.precision != "bf16":
        return "sdpa"
    if earlier is not None:
        return earlier
    return "flash_attention_2" if installed(FLASH_ATTENTION) is not None else "sdpa"


def installed(package: str) -> str | None:
    """The version of a package; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def require_flash_attention(node: str) -> None:
    """In a worker, before it opens a GPU: raise SpecError where it has no flash attention."""
    from transformers.utils import is_flash_attn_2_available

    # Gradients are then summed in a fixed order, as far as it goes.
    os.environ.setdefault("FLASH_ATTENTION_DETERMINISTIC", "1")
    if is_flash_attn_2_available():
        return
    found = installed(FLASH_ATTENTION)
    raise SpecError(
        "model.attention: flash_attention_2, but on node "
        f"{node} {FLASH_ATTENTION} {found or 'is not installed'}{' cannot be used' * bool(found)}; "
        f"install {FLASH_ATTENTION} 2.3.3 or later in the Python of every node, or set "
        "model.attention to sdpa. Then --retry goes on"
    )


def require_flash_capability(device: torch.device, *, node: str) -> None:
    """In a worker: raise SpecError where its GPU is older than flash attention."""
    import torch

    capability = torch.cuda.get_device_capability(device)
    if capability < _FLASH_CAPABILITY:
        raise SpecError(
            f"model.attention: flash_attention_2 is for GPUs of compute capability 8.0 (Ampere) or "
            f"later, and node {node} has one of {capability[0]}.{capability[1]}; set "
            "model.attention to sdpa. Then --retry goes on"
        )


def require_gpu(launch: LaunchSpec, *, node: str, has_begun: bool) -> None:
    """In a worker that is to compute on a GPU: raise where it finds none.

    ``has_begun`` says that workers of the run have started before. Then a node has changed, a
    NodeError: workers elsewhere may do better. Else it is how the place is set up, a SpecError,
    which nobody tries again.
    """
    import torch

    if torch.cuda.is_available():
        return
    built = "a build for CPUs" if torch.version.cuda is None else f"for CUDA {torch.version.cuda}"
    message = (
        f"gpus_per_worker: {launch.gpus_per_worker}, but torch {torch.__version__} ({built}) sees "
        f"no GPU on node {node}"
    )
    if has_begun:
        raise NodeError(f"{message}, and the run has begun before; replace the node")
    raise SpecError(
        f"{message}; give workers a CUDA build of torch and a driver that is new enough for it, or "
        "use a launch spec with gpus_per_worker: 0. Then --retry goes on"
    )
