"""The plan of an experiment on a place: a pure function of what both say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from rotescale.hardware import NodeShape
from rotescale.launch_spec import LaunchSpec
from rotescale.planning.advice import (
    Remedy,
    lacks,
    notes,
    reasons,
    remedies,
    smallest_workers,
)
from rotescale.planning.architecture import Architecture
from rotescale.planning.counting import count_parameters
from rotescale.planning.footprint import Placement
from rotescale.planning.mode import workers_of
from rotescale.planning.moments import HostMemory, Moment
from rotescale.planning.rates import Range
from rotescale.planning.timing import (
    FULL_BYTES,
    WEIGHTS_BYTES,
    PhaseTime,
    Timing,
    disk_bytes,
    flops,
)
from rotescale.planning.workload import Workload
from rotescale.spec import EvaluationMode, ExperimentSpec


@dataclass(frozen=True, slots=True)
class Sizes:
    """The model, in parameters, and what training keeps of them, in bytes."""

    published: int
    """Parameters of the model as it is published."""
    total: int
    """With rows of key tokens, and adapters."""
    trainable: int
    state_per_parameter: int
    """Weights, gradients, masters and moments of a trained parameter."""
    state: int
    """Of the whole model."""
    state_per_worker: int
    state_with_bf16_gradients: int
    """What the state would be with ``engine.gradient_dtype: bf16``."""
    checkpoint: int
    """A full checkpoint: masters and both moments."""
    weights_checkpoint: int
    """The end of a phase: masters."""
    disk: int
    """What a run takes of its storage at most."""
    offload_disk: int
    """What ``engine.offload_optimizer: nvme`` takes of the fullest node's own disk."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What running an experiment on a place takes, in numbers alone."""

    experiment: str
    model: str
    profile: str
    node: NodeShape
    on_gpu: bool
    workers: tuple[int, int]
    """The least and the most."""
    num_workers: int
    """Those that memory and steps are told for: the least, or the most where only they are short
    of something."""
    num_nodes: int
    sizes: Sizes
    device: dict[str, Moment]
    """What a worker's device holds at the three moments at which it holds most."""
    host: HostMemory
    evaluation_mode: EvaluationMode
    checkpoints_activations: bool
    """Whether layers compute their activations again in the backward pass."""
    tokens: int
    """That are trained on, about."""
    flops: float
    work: Workload
    phases: tuple[PhaseTime, ...]
    seconds: dict[str, Range]
    """Part of the run -> its seconds: at best with the most workers, at worst with the least."""
    cost: Range | None
    fits: bool
    reasons: tuple[str, ...]
    """Why it does not fit, and what helps."""
    notes: tuple[str, ...]
    """What is worth knowing before it starts."""
    smallest: int | None
    """The smallest number of workers that it fits on."""
    remedies: tuple[Remedy, ...]
    """What could be turned on to fit on less."""

    @property
    def device_peak(self) -> int:
        """The most that a worker's device holds, in bytes."""
        return max(moment.total for moment in self.device.values())

    @property
    def total_seconds(self) -> Range:
        """The whole run."""
        low = sum(part.low for part in self.seconds.values())
        return Range(low, sum(part.high for part in self.seconds.values()))

    def as_dict(self) -> dict[str, Any]:
        """The plan as JSON knows it; sums are in it too."""
        found = asdict(self) | {"node": self.node.model_dump()}
        found["device_peak"] = self.device_peak
        found["total_seconds"] = asdict(self.total_seconds)
        for name, moment in self.device.items():
            found["device"][name]["total"] = moment.total
        found["host"]["total"] = self.host.total
        for place, phase in zip(found["phases"], self.phases, strict=True):
            place["step"]["total"] = asdict(phase.step.total)
            place["step"]["communication_share"] = phase.step.communication_share
        return found


def make_plan(
    spec: ExperimentSpec,
    launch: LaunchSpec,
    node: NodeShape,
    *,
    architecture: Architecture,
    work: Workload,
) -> Plan:
    """What the experiment takes on nodes of that shape; nothing is read, started or looked up.

    Raises SpecError where the spec trains what the model does not have.
    """
    least, most = workers_of(spec, launch)
    first = Placement.least(spec, launch, node, architecture=architecture, work=work)
    both = (first, replace(first, num_workers=most))
    # The least hold the most on a GPU each; on one machine's CPU it is the most that do.
    place = next((one for one in both if lacks(one)), first)
    timing = Timing(place)
    best, worst = Timing(both[1]), Timing(first)
    smallest, offered = smallest_workers(place), remedies(place)
    why = reasons(place, smallest=smallest, offered=offered)
    return Plan(
        experiment=spec.name,
        model=architecture.name,
        profile=launch.name,
        node=node,
        on_gpu=place.on_gpu,
        workers=(least, most),
        num_workers=place.num_workers,
        num_nodes=place.num_nodes,
        sizes=_sizes(place, architecture),
        device=place.moments(),
        host=place.host(),
        evaluation_mode=place.evaluation_mode,
        checkpoints_activations=place.checkpoints_activations,
        tokens=sum(phase.tokens for phase in work.phases),
        flops=flops(place),
        work=work,
        phases=timing.phases,
        seconds=dict(_between(best.parts, worst.parts)),
        cost=_cost(best, worst),
        fits=not why,
        reasons=why,
        notes=notes(place, timing),
        smallest=smallest,
        remedies=offered,
    )


def _sizes(place: Placement, published: Architecture) -> Sizes:
    trainable = place.count.trainable
    plain = place.spec.model.model_copy(update={"lora": None, "frozen": ()})
    return Sizes(
        published=count_parameters(plain, published).total,
        total=place.count.total,
        trainable=trainable,
        state_per_parameter=place.state_bytes_per_parameter,
        state=place.state_bytes,
        state_per_worker=place.state_bytes // place.num_workers,
        state_with_bf16_gradients=place.state_bytes - trainable * (place.gradient_bytes - 2),
        checkpoint=FULL_BYTES * trainable,
        weights_checkpoint=WEIGHTS_BYTES * trainable,
        disk=disk_bytes(place),
        offload_disk=place.offload_disk_bytes,
    )


def _between(best: dict[str, Range], worst: dict[str, Range]) -> Iterator[tuple[str, Range]]:
    for name, one in best.items():
        low, high = min(one.low, worst[name].low), max(one.high, worst[name].high)
        yield name, Range(low, high)


def _cost(best: Timing, worst: Timing) -> Range | None:
    one, other = best.cost(), worst.cost()
    if one is None or other is None:
        return None
    return replace(one, low=min(one.low, other.low), high=max(one.high, other.high))
