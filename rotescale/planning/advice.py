"""What to say about a placement: why it does not fit, what helps, and what is worth knowing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from rotescale.kuberay_spec import MOST_GRACE_SECONDS
from rotescale.launch_spec import LaunchSpec
from rotescale.planning.footprint import Placement
from rotescale.planning.moments import Moment
from rotescale.planning.rates import Range
from rotescale.planning.timing import Timing
from rotescale.spec import ExperimentSpec
from rotescale.zero3_sizes import KEPT

_MOST_NODES = 512
_HOOK_SECONDS = 30
"""What a pod needs of its grace beside the save: to notice, and to end."""
_SAVING = "time to save"
_FEWER_GATHERED = 100_000_000
_FEWER_ROW_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Remedy:
    """A field that could be set to fit on less."""

    setting: str
    """As ``--set`` takes it."""
    device_peak: int
    """What a worker's device would hold at most on as many workers, in bytes."""
    lacks: tuple[str, ...]
    """What there would be too little of on as many: nothing, or ``GPU``, ``host memory``, ``nodes``
    and ``time to save``."""
    smallest: int | None
    """The smallest number of workers that it would fit on."""
    changes_results: bool

    @property
    def fits(self) -> bool:
        """Whether it would fit on as many workers."""
        return not self.lacks


def gigabytes(num_bytes: float) -> str:
    """``35.3 GB``: 10^9 bytes."""
    if num_bytes >= 1e12:
        return f"{num_bytes / 1e12:.2f} TB"
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 5e7 else f"{num_bytes / 1e6:.1f} MB"


def duration(seconds: Range) -> str:
    """``12 to 40 min``, in the unit that suits the longer one."""
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds.high >= 2 * size:
            return f"{_short(seconds.low / size)} to {_short(seconds.high / size)} {unit}"
    return f"{_short(seconds.low)} to {_short(seconds.high)} s"


def money(cost: Range) -> str:
    """``1,200 to 3,400``, in the currency of the price."""
    digits = 0 if cost.high >= 100 else 2
    return f"{cost.low:,.{digits}f} to {cost.high:,.{digits}f}"


def _short(number: float) -> str:
    return f"{number:.0f}" if number >= 10 else f"{number:.1f}"


def smallest_workers(place: Placement) -> int | None:
    """The smallest number of workers that the experiment fits on; None: none that is tried."""
    return next((number for number in _numbers(place) if not lacks(place.on(number))), None)


def _numbers(place: Placement) -> Iterator[int]:
    """One by one on the first node, then whole nodes."""
    if place.spec.engine.kind == "eager":
        yield 1
        return
    yield from range(1, place.room + 1)
    if place.launch.place != "local":
        yield from (place.room * nodes for nodes in range(2, _MOST_NODES + 1))


def lacks(place: Placement) -> tuple[str, ...]:
    """What there is too little of: nothing where it fits."""
    late = (_SAVING,) if _save_limit(place).is_short else ()
    return (*_lacks_room(place), *late)


def _lacks_room(place: Placement) -> tuple[str, ...]:
    short = {
        "nodes": _lacks_nodes(place),
        "GPU": place.device_excess > 0,
        "host memory": place.host_excess > 0,
    }
    return tuple(name for name, lacking in short.items() if lacking)


def _lacks_nodes(place: Placement) -> bool:
    return place.launch.place == "local" and place.num_nodes > 1


class _SaveLimit(NamedTuple):
    """How long a run that is asked to leave may save."""

    field: str
    """Of the launch spec."""
    seconds: float
    save_seconds: int
    """That a full checkpoint may take."""
    wanted: int
    """What the field would have to be."""
    most: float
    """What it may be."""
    consequence: str

    @property
    def is_short(self) -> bool:
        """Whether a save may be cut off."""
        return self.seconds < self.wanted

    @property
    def remedy(self) -> str:
        """What to do where it is short."""
        if self.wanted > self.most:
            return f"it may be {self.most:g} at most: give the run faster storage or more nodes"
        return f"set it to {self.wanted} or more, or give the run faster storage"


def _save_limit(place: Placement) -> _SaveLimit:
    launch, longest = place.launch, math.ceil(Timing(place).full_save.high)
    if launch.kuberay is None:
        cut = "a run that is cancelled would be ended while it saves"
        seconds = launch.resize_save_seconds
        return _SaveLimit("resize_save_seconds", seconds, longest, longest, math.inf, cut)
    cut = "a pod that is taken away would be ended while it saves"
    grace, wanted = launch.kuberay.grace_seconds, longest + _HOOK_SECONDS
    return _SaveLimit("kuberay.grace_seconds", grace, longest, wanted, MOST_GRACE_SECONDS, cut)


def remedies(place: Placement) -> tuple[Remedy, ...]:
    """What could be turned on to fit on less, each alone and at last all that change no result."""
    found: list[Remedy] = []
    together: dict[str, Any] = {}
    for field, value, changes in _settings(place):
        changed = _with(place, {field: value})
        if changed.device_peak >= place.device_peak and place.host_excess <= changed.host_excess:
            continue
        found.append(_remedy(changed, {field: value}, changes=changes))
        if not changes:
            together[field] = value
    if len(together) > 1:
        found.append(_remedy(_with(place, together), together, changes=False))
    return tuple(found)


def _settings(place: Placement) -> Iterator[tuple[str, Any, bool]]:
    """Field, value, and whether it changes results: where it is not set like that already."""
    spec = place.spec
    if not place.checkpoints_activations:
        yield "model.activation_checkpointing", True, False
    if not spec.engine.fused_loss:
        yield "engine.fused_loss", True, False
    if spec.engine.kind == "zero3":
        if place.sizes.kept > KEPT:
            yield "engine.persistence_threshold", KEPT, False
        if place.sizes.gathered > _FEWER_GATHERED:
            yield "engine.gathered_parameters", _FEWER_GATHERED, False
        if place.on_gpu and spec.engine.offload_optimizer == "none":
            yield "engine.offload_optimizer", "cpu", False
        if place.on_gpu and spec.engine.offload_optimizer != "nvme":
            in_memory = _with(place, {"engine.offload_optimizer": "cpu"})
            if in_memory.host_excess > 0:
                yield "engine.offload_optimizer", "nvme", False
    if place.row_tokens > _FEWER_ROW_TOKENS:
        yield "engine.row_tokens", _FEWER_ROW_TOKENS, False
    if spec.engine.precision == "bf16" and spec.engine.gradient_dtype == "fp32":
        yield "engine.gradient_dtype", "bf16", True
    if spec.engine.precision == "fp32" and place.on_gpu:
        yield "engine.precision", "bf16", True


def _with(place: Placement, values: dict[str, Any]) -> Placement:
    spec: ExperimentSpec = place.spec
    for field, value in values.items():
        section, name = field.split(".")
        part = getattr(spec, section).model_copy(update={name: value})
        spec = spec.model_copy(update={section: part})
    return replace(place, spec=spec)


def _remedy(changed: Placement, values: dict[str, Any], *, changes: bool) -> Remedy:
    return Remedy(
        setting=" ".join(f"{field}={_yaml(value)}" for field, value in values.items()),
        device_peak=changed.device_peak,
        lacks=lacks(changed),
        smallest=smallest_workers(changed),
        changes_results=changes,
    )


def _yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def reasons(
    place: Placement, *, smallest: int | None, offered: Sequence[Remedy]
) -> tuple[str, ...]:
    """Why the placement does not fit, and the remedy at the end; nothing where it fits.

    ``smallest``, ``offered``: its ``smallest_workers`` and ``remedies``.
    """
    found = [*_shortages(place), *_short_of_time(place)]
    return (*found, *_way_out(place, smallest, offered)) if found else ()


def _short_of_time(place: Placement) -> Iterator[str]:
    limit = _save_limit(place)
    if limit.is_short:
        yield (
            f"{limit.field} is {limit.seconds:g}, and a full checkpoint may take "
            f"{limit.save_seconds} s here, so {limit.consequence}; {limit.remedy}."
        )


def _shortages(place: Placement) -> Iterator[str]:
    node, number = place.node, place.num_workers
    if _lacks_nodes(place):
        yield (
            f"{number} workers want {number} GPUs, and place: local is one machine, whose "
            f"{node.name} has {node.gpus_per_node}."
        )
    if place.device_excess > 0:
        name, moment = max(place.moments().items(), key=lambda entry: entry[1].total)
        yield (
            f"On {number} worker{_s(number)} {name} takes {gigabytes(moment.total)} of each GPU, "
            f"and the {node.gpu} has {gigabytes(node.gpu_bytes)}: "
            f"{gigabytes(place.device_excess)} too little. {_largest(moment)}"
        )
    if place.host_excess > 0:
        host = place.host()
        part, size = max(host.parts(), key=lambda entry: entry[1])
        yield (
            f"{place.workers_per_node} worker{_s(place.workers_per_node)} of one node take "
            f"{gigabytes(host.total)} of its memory, and {node.name} has "
            f"{gigabytes(node.host_bytes)}: {gigabytes(place.host_excess)} too little. "
            f"Most of it, {gigabytes(size)}, is {part}."
        )


def _largest(moment: Moment) -> str:
    """The part that takes most, and whether more workers would make it smaller."""
    part, size = max(moment.parts(), key=lambda entry: entry[1])
    if part == "gathered":
        whole = "parameters that each worker holds whole, however many there are"
        return f"Most of it, {gigabytes(size)}, is {part}: {whole}."
    shared = part in ("weights", "gradients", "optimizer")
    shrinks = "is spread over the workers" if shared else "is the same on any number of workers"
    return f"Most of it, {gigabytes(size)}, is {part}, which {shrinks}."


def _way_out(place: Placement, smallest: int | None, offered: Sequence[Remedy]) -> Iterator[str]:
    """What to do about memory and nodes, or what else gives a save its time; perhaps nothing."""
    limit = _save_limit(place)
    if ways := _ways(place, smallest, offered):
        yield f"What helps: {'; '.join(ways)}."
    elif not _lacks_room(place):
        return
    elif limit.is_short and (ways := _ways_with_time(place, limit)):
        yield f"What helps: {limit.field} {limit.wanted}, and {'; '.join(ways)}."
    elif place.launch.place == "local":
        yield "Nothing helps on this machine: plan for a cluster, or take a smaller model."
    else:
        yield "Nothing helps on such nodes: name larger ones (node), or take a smaller model."


def _ways(place: Placement, smallest: int | None, offered: Sequence[Remedy]) -> list[str]:
    """A remedy on as many workers, or as many workers as it takes; else both."""
    ways = list(_ways_here(place, offered))
    if smallest is not None:
        ways.append(f"as it is, it fits on {_workers(place, smallest)}")
    later = [(remedy.smallest, remedy) for remedy in offered if remedy.smallest is not None]
    if not ways and later:
        number, best = min(later, key=lambda entry: entry[0])
        ways.append(f"{_flags(best)} on {_workers(place, number)}")
    return ways


def _ways_here(place: Placement, offered: Sequence[Remedy]) -> Iterator[str]:
    """The mildest remedy for memory on as many workers, with the time to save that it wants."""
    if not _lacks_room(place):
        return
    limit = _save_limit(place)
    settable = {_SAVING} if limit.wanted <= limit.most else set()
    here = [remedy for remedy in offered if not set(remedy.lacks) - settable]
    # The first is the mildest, unless it changes results and another does not.
    here.sort(key=lambda remedy: remedy.changes_results)
    if here:
        then = f", with {limit.field} {limit.wanted}" if here[0].lacks else ""
        yield f"{_flags(here[0])} fits it on as many workers{then}"


def _ways_with_time(place: Placement, limit: _SaveLimit) -> list[str]:
    """What would help if a save had the time that it wants here."""
    if limit.wanted > limit.most:
        return []
    patient = replace(place, launch=_with_limit(place.launch, limit.wanted))
    return _ways(patient, smallest_workers(patient), remedies(patient))


def _with_limit(launch: LaunchSpec, seconds: int) -> LaunchSpec:
    """The same with so much time for a save."""
    if launch.kuberay is None:
        return launch.model_copy(update={"resize_save_seconds": float(seconds)})
    kuberay = launch.kuberay.model_copy(update={"grace_seconds": seconds})
    return launch.model_copy(update={"kuberay": kuberay})


def _flags(remedy: Remedy) -> str:
    flags = " ".join(f"--set {setting}" for setting in remedy.setting.split())
    return f"{flags} (which changes results)" if remedy.changes_results else flags


def _workers(place: Placement, number: int) -> str:
    nodes = place.on(number).num_nodes
    return f"{number} worker{_s(number)}" + (f" ({nodes} nodes)" if nodes > 1 else "")


def notes(place: Placement, timing: Timing) -> tuple[str, ...]:
    """What a person would want to know before this starts."""
    return (*_on_steps(place, timing), *_on_saves(place, timing), *_on_the_rest(place, timing))


def _on_steps(place: Placement, timing: Timing) -> Iterator[str]:
    """Of the phase that takes longest: whom a batch leaves idle, and what steps consist of."""
    phase = max(timing.phases, key=lambda phase: phase.steps.middle)
    share = phase.step.communication_share
    if phase.idle_workers:
        yield (
            f"{phase.name}: a batch has an example for {place.num_workers - phase.idle_workers} of "
            f"{place.num_workers} workers; the other {phase.idle_workers} compute nothing and take "
            "part in gathers and reductions alone."
        )
    if share >= 0.5:
        yield (
            f"{phase.name}: steps mostly move weights, communication being {share:.0%} of their "
            f"work. Below a batch of about {phase.balanced_batch:,} examples (rows of "
            f"{phase.balanced_tokens:,} tokens) workers wait for weights."
        )


def _on_saves(place: Placement, timing: Timing) -> Iterator[str]:
    for phase, work in zip(timing.phases, place.work.phases, strict=True):
        beside = phase.step.total * work.save_interval
        if work.full_saves and phase.full_save.middle > beside.middle:
            steps = round(phase.full_save.high / phase.step.total.low) + 1
            yield (
                f"{phase.name}: a full checkpoint is written in {duration(phase.full_save)}, and "
                f"the {work.save_interval} steps beside it take {duration(beside)}, so training "
                f"waits. checkpoints.every_steps={steps} would let it write in peace."
            )


def _on_the_rest(place: Placement, timing: Timing) -> Iterator[str]:
    evaluation = timing.parts["evaluation"].middle
    if evaluation > 0.5 * timing.total.middle:
        yield (
            f"Evaluation is {evaluation / timing.total.middle:.0%} of the time: "
            f"{place.work.evaluation.num_questions:,} questions, {place.work.measurements} times. "
            "Fewer facts, prompts or languages (evaluation) make it shorter."
        )
    if place.on_gpu and place.room < place.node.gpus_per_node:
        yield (
            f"A node has cores for {place.room} of its {place.node.gpus_per_node} GPUs: "
            f"{place.node.cpus} of them at cpus_per_worker {place.worker_cores:g}. "
            "Lower it, and no GPU stands idle."
        )
    if place.checkpoints_activations:
        yield from _on_activations(place)
    if place.offload_disk_bytes:
        where = "/local, an emptyDir" if place.launch.place == "kuberay" else "ROTESCALE_LOCAL"
        yield (
            f"engine.offload_optimizer=nvme takes {gigabytes(place.offload_disk_bytes)} of each "
            f"node's own disk, below {where}; whether it has them no plan knows."
        )
    if place.spec.engine.precision == "bf16" and not place.on_gpu:
        yield "bf16 on a CPU is 15 to 40 times slower than fp32: set engine.precision=fp32."


def _on_activations(place: Placement) -> Iterator[str]:
    """Where activations are computed again: that they have to be, or need not."""
    kept = _with(place, {"model.activation_checkpointing": False})
    holds = f"{gigabytes(kept.device_peak)} at most without"
    if place.on_gpu:
        holds += f", and the {place.node.gpu} has {gigabytes(place.node.gpu_bytes)}"
    costs = "it costs about a third more computing"
    if place.spec.model.activation_checkpointing == "auto":
        yield f"model.activation_checkpointing: auto is on; {costs}. A worker would hold {holds}."
    elif not _lacks_room(kept):
        yield (
            f"model.activation_checkpointing is on, and not needed: {costs}. A worker holds "
            f"{holds}. auto would leave it off."
        )


def _s(number: int) -> str:
    return "" if number == 1 else "s"
