"""How long a run takes: a range, from rates that are reached in part, and what they depend on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from rotescale.planning.counting import flops_per_target, flops_per_token
from rotescale.planning.footprint import Placement
from rotescale.planning.rates import (
    CALL_SECONDS,
    COMPUTE,
    CPU_CALL_SECONDS,
    CPU_COMPUTE,
    DISK_BYTES_PER_SECOND,
    DOWNLOAD_BYTES_PER_SECOND,
    GLOO_GBIT,
    LAYER_SECONDS,
    LOCAL_START_SECONDS,
    MEMORY,
    NETWORK,
    NONE,
    QUESTION_SECONDS,
    START_SECONDS,
    STORAGE,
    TO_HOST_BYTES_PER_SECOND,
    UPDATED_PER_SECOND,
    Range,
    bytes_per_second,
    seconds_at,
    total_of,
)
from rotescale.planning.workload import GENERATED_AT_ONCE, PhaseWork
from rotescale.spec import HubWeights, WheelWeights

FULL_BYTES = 12
"""Of a parameter in a full checkpoint: fp32 master and two moments."""
WEIGHTS_BYTES = 4
"""Of a parameter in a checkpoint of weights."""


@dataclass(frozen=True, slots=True)
class StepTime:
    """One optimizer step, in seconds."""

    compute: Range
    communication: Range
    update: Range
    overlaps: bool
    """Whether communication may run beside computation."""

    @property
    def total(self) -> Range:
        """The step; at best the longer of computing and communicating, where they overlap."""
        best = self.compute.low + self.communication.low
        if self.overlaps:
            best = max(self.compute.low, self.communication.low)
        both = Range(best, self.compute.high + self.communication.high)
        return both + self.update

    @property
    def communication_share(self) -> float:
        """Part of the step's work that is communication, halfway between best and worst."""
        work = self.compute.middle + self.communication.middle + self.update.middle
        return self.communication.middle / work


@dataclass(frozen=True, slots=True)
class PhaseTime:
    """One phase, in seconds."""

    name: str
    step: StepTime
    steps: Range
    """All optimizer steps."""
    saving: Range
    """What training waits for checkpoints: those that take longer than the steps beside them."""
    full_save: Range
    """The writing of one full checkpoint, beside training."""
    balanced_tokens: int
    """Tokens of a worker's row from which computing takes as long as communicating."""
    balanced_batch: int
    """Examples per step that fill such rows on all workers."""
    idle_workers: int
    """Workers that a batch leaves without an example: they only gather and reduce."""


@dataclass(frozen=True)
class Timing:
    """How long everything takes on a placement."""

    place: Placement

    @cached_property
    def phases(self) -> tuple[PhaseTime, ...]:
        """Each phase."""
        return tuple(self._phase(phase) for phase in self.place.work.phases)

    @cached_property
    def parts(self) -> dict[str, Range]:
        """Name of a part of the run -> its seconds, over the whole run."""
        return {
            "start-up": self._start(),
            "loading": self._loading(),
            "training": total_of(phase.steps for phase in self.phases),
            "waiting for saves": total_of(phase.saving for phase in self.phases),
            "evaluation": self.one_evaluation() * self.place.work.measurements,
            "export": self._exporting(),
        }

    @property
    def total(self) -> Range:
        """The whole run."""
        return total_of(self.parts.values())

    @property
    def full_save(self) -> Range:
        """The writing of one full checkpoint, of any phase."""
        return self._storing(FULL_BYTES * self.place.count.trainable)

    def cost(self) -> Range | None:
        """Of all nodes for that long; None where the node has no price."""
        price = self.place.node.price_per_hour
        return None if price is None else self.total * (price * self.place.num_nodes / 3600)

    def step(self, phase: PhaseWork) -> StepTime:
        """One step of the phase: its passes, their gathers and reductions, and the update."""
        passes = self._passes(phase)
        return StepTime(
            compute=self._computing(phase, passes),
            communication=self._exchanging(passes),
            update=self._updating(),
            overlaps=self.place.sizes.overlaps and self.place.on_gpu,
        )

    def one_evaluation(self) -> Range:
        """All questions of one stage, and the generated answers."""
        place, asked = self.place, self.place.work.evaluation
        collective = place.evaluates_together
        gather = self._gathering() if collective else NONE
        questions = math.ceil(asked.num_questions / place.num_workers)
        predicted = min(asked.option_tokens, asked.question_tokens)
        number = min(place.questions_per_pass, max(1, questions))
        # Those of options are computed in fp32, whatever the model is in.
        logits = number * predicted * self._fp32_factor
        one = self._forward(number * asked.question_tokens, logits=logits) + gather
        total = one * math.ceil(questions / number) + QUESTION_SECONDS * questions
        generated = math.ceil(asked.num_generated / place.num_workers)
        batches, at_once = math.ceil(generated / GENERATED_AT_ONCE), GENERATED_AT_ONCE
        token = self._forward(min(at_once, generated), logits=min(at_once, generated)) + gather
        total += token * (batches * asked.max_new_tokens)
        # Without sharding each worker first puts a copy together.
        return total if collective else total + self._gathering()

    def _phase(self, phase: PhaseWork) -> PhaseTime:
        step = self.step(phase)
        save = self.full_save
        beside = step.total * phase.save_interval
        tokens = self._balanced_tokens(phase)
        workers = self.place.num_workers
        waits = sorted((max(0.0, save.low - beside.low), max(0.0, save.high - beside.high)))
        return PhaseTime(
            name=phase.name,
            step=step,
            steps=step.total * phase.steps,
            saving=Range(*waits) * phase.full_saves
            + self._storing(WEIGHTS_BYTES * self.place.count.trainable),
            full_save=save,
            balanced_tokens=tokens,
            balanced_batch=math.ceil(
                tokens * workers * phase.num_examples / phase.tokens_per_epoch
            ),
            idle_workers=max(0, workers - phase.global_batch),
        )

    def _passes(self, phase: PhaseWork) -> int:
        """Passes of each worker in one step: packed rows, and at least one."""
        share = phase.tokens_per_step / self.place.num_workers
        return max(1, math.ceil(share / self.place.spec.engine.row_tokens))

    def _computing(self, phase: PhaseWork, passes: int) -> Range:
        """Forward and backward of the fullest worker's rows.

        No less time than it takes to read the weights three times and write their gradients.
        """
        place = self.place
        examples = -(-phase.global_batch // place.num_workers)
        share = examples * phase.tokens_per_epoch / phase.num_examples
        targets = examples * phase.targets_per_epoch / phase.num_examples
        again = 2 if place.checkpoints_activations else 0
        flops = flops_per_token(place.count) * share
        # Torch's fused loss computes the logits once more.
        per_target = (8 / 6 if place.spec.engine.fused_loss else 1) * flops_per_target(
            place.architecture
        )
        flops += per_target * targets
        flops += again * place.count.multiplied * share
        moved = (4 + again // 2) * place.precision_bytes * place.count.total * passes
        layers = place.architecture.num_layers * passes
        return self._at_rates(flops, moved) + LAYER_SECONDS * layers

    @property
    def _fp32_factor(self) -> float:
        """How many times as long an operation in fp32 takes as one in the model's precision."""
        place, node = self.place, self.place.node
        if not place.on_gpu or place.precision_bytes == 4:
            return 1.0
        return node.gpu_flops_bf16 / node.gpu_flops_fp32

    def _forward(self, tokens: float, *, logits: float) -> Range:
        """One forward pass: 2 operations per parameter and token, 2 per logit and dimension."""
        place = self.place
        shape = place.architecture
        flops = 2 * place.count.multiplied * tokens + 2 * shape.hidden_size * (
            shape.vocab_size * logits
        )
        moved = place.precision_bytes * place.count.total
        return self._at_rates(flops, moved) + LAYER_SECONDS * (shape.num_layers / 3)

    def _at_rates(self, flops: float, moved: float) -> Range:
        """Seconds for so many operations while so many bytes pass through the memory."""
        place, node = self.place, self.place.node
        if not place.on_gpu:
            cores = min(place.worker_cores, node.cpus / place.workers_per_node)
            # bf16 on CPUs that have no instructions for it was seen to be 15 to 40 times slower.
            slower = 25.0 if place.spec.engine.precision == "bf16" else 1.0
            return seconds_at(flops * slower, node.cpu_flops * max(cores, 0.1), CPU_COMPUTE)
        peak = node.gpu_flops_bf16 if place.precision_bytes == 2 else node.gpu_flops_fp32
        computed, read = (
            seconds_at(flops, peak, COMPUTE),
            seconds_at(moved, node.gpu_memory_bandwidth, MEMORY),
        )
        return Range(max(computed.low, read.low), max(computed.high, read.high))

    def _exchanging(self, passes: int) -> Range:
        """Gathers and reductions of one step.

        ZeRO-3 moves 3 times the parameters: gathered for forward and for backward, and gradients
        reduced ("ZeRO", Rajbhandari et al., 2020, section 7.2). Here in each pass, since a pass is
        DeepSpeed's micro batch; what stays gathered is gathered once, after the update, each
        parameter by itself as ever.
        """
        place = self.place
        if place.num_workers == 1:
            return NONE
        kept = place.count.below(place.sizes.kept)
        released = place.count.total - kept
        # With room for all, what forward has gathered is still there in backward.
        gathers = 1 if 2 * released <= place.sizes.gathered else 2
        moved = place.precision_bytes * (released * gathers * passes + kept)
        moved += place.gradient_bytes * place.count.trainable * passes
        tensors = sum(size >= place.sizes.kept for size in place.count.sizes)
        buckets = place.count.trainable // place.sizes.bucket + 1
        calls = passes * (tensors * gathers + max(buckets, tensors))
        calls += len(place.count.sizes) - tensors
        return self._moving(moved) + self._call_seconds * calls

    def _gathering(self) -> Range:
        """All weights put together once on every worker."""
        if self.place.num_workers == 1:
            return NONE
        moved = self.place.precision_bytes * self.place.count.total
        return self._moving(moved) + self._call_seconds * len(self.place.count.sizes)

    @property
    def _call_seconds(self) -> Range:
        return CALL_SECONDS if self.place.on_gpu else CPU_CALL_SECONDS

    def _moving(self, num_bytes: float) -> Range:
        """A ring's gather, or reduction, of that much on every worker.

        Each worker receives all but its own part; between nodes, each node all but its own. On CPUs
        of several nodes all of it goes by Gloo, to each worker alone.
        """
        place, node = self.place, self.place.node
        by_messages = not (place.on_gpu or place.shares_memory)
        here = place.workers_per_node
        within = num_bytes * (place.num_workers - 1) / place.num_workers if here > 1 else 0.0
        between = num_bytes * (place.num_nodes - 1) / place.num_nodes
        if by_messages:
            between *= here
        gbit = min(node.intranode_gbit, GLOO_GBIT) if by_messages else node.intranode_gbit
        a = seconds_at(within, bytes_per_second(gbit), NETWORK)
        b = seconds_at(between, bytes_per_second(node.interconnect_gbit), NETWORK)
        return Range(max(a.low, b.low), max(a.high, b.high))

    def _updating(self) -> Range:
        """AdamW on the worker's part: memory-bound on a GPU, else at the rate of its cores."""
        place = self.place
        part = place.count.trainable / place.num_workers
        if place.on_gpu and not place.offloaded:
            moved = part * (2 * FULL_BYTES + 2 * place.gradient_bytes + place.precision_bytes)
            return seconds_at(moved, place.node.gpu_memory_bandwidth, MEMORY)
        cores = max(place.worker_cores, 0.1)
        best, worst = (part / (rate * cores) for rate in UPDATED_PER_SECOND)
        across = 0.0
        if place.offloaded:
            moved = place.gradient_bytes + place.precision_bytes
            across = part * moved / TO_HOST_BYTES_PER_SECOND
        if place.spec.engine.offload_optimizer == "nvme":
            # Read and written once each, by all workers of a node.
            here = part * place.workers_per_node
            across += 2 * FULL_BYTES * here / DISK_BYTES_PER_SECOND
        return Range(best + across, worst + 2 * across)

    def _balanced_tokens(self, phase: PhaseWork) -> int:
        """Tokens of a row that takes as long to compute as its weights to gather and reduce."""
        again = 2 if self.place.checkpoints_activations else 0
        repeated = again * self.place.count.multiplied
        a_token = self._at_rates(flops_per_token(self.place.count) + repeated, 0.0)
        return round(self._exchanging(1).middle / a_token.middle)

    def _start(self) -> Range:
        """Until workers can load: Ray, imports, and the model where it must be fetched first."""
        place = self.place
        start = LOCAL_START_SECONDS if place.launch.place == "local" else START_SECONDS
        fetched = 0.0
        if isinstance(place.spec.model.weights, HubWeights | WheelWeights):
            fetched = 2 * place.count.total / DOWNLOAD_BYTES_PER_SECOND
        return start + Range(0.0, fetched)

    def _loading(self) -> Range:
        """Reads of the base for its measurement and the first phase, of each phase's end after."""
        place, work = self.place, self.place.work
        base = self._storing(place.precision_bytes * place.count.total)
        weights = self._storing(WEIGHTS_BYTES * place.count.trainable)
        ends = sum(phase.measurements > 0 for phase in work.phases) + len(work.phases) - 1
        return base * (1 + work.measures_base) + weights * ends

    def _exporting(self) -> Range:
        """Folders are put together from the published checkpoint, shards dealt to the workers."""
        place = self.place
        number = sum(phase.exported for phase in place.work.phases)
        dtype = 4 if place.spec.model.export_dtype == "float32" else 2
        read = self._storing(WEIGHTS_BYTES * place.count.total)
        return (read + self._storing(dtype * place.count.total)) * number

    def _storing(self, num_bytes: float) -> Range:
        """Reading or writing that much, dealt to all nodes."""
        rate = bytes_per_second(self.place.node.storage_gbit) * self.place.num_nodes
        return seconds_at(num_bytes, rate, STORAGE)


def disk_bytes(place: Placement) -> int:
    """What a run takes of its storage at most: checkpoints, one in flight, and exports."""
    kept = place.spec.checkpoints.keep_last + 1
    full = FULL_BYTES * place.count.trainable * min(kept, 1 + _most_saves(place))
    ends = WEIGHTS_BYTES * place.count.trainable * len(place.work.phases)
    dtype = 4 if place.spec.model.export_dtype == "float32" else 2
    exports = dtype * place.count.total * sum(phase.exported for phase in place.work.phases)
    return full + ends + exports


def _most_saves(place: Placement) -> int:
    return max(phase.full_saves for phase in place.work.phases)


def flops(place: Placement) -> float:
    """Floating-point operations of training, without those that are done again."""
    a_token, a_target = flops_per_token(place.count), flops_per_target(place.architecture)
    return sum(a_token * one.tokens + a_target * one.targets for one in place.work.phases)
