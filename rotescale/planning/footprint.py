"""Memory by part: what a worker holds on its device, and a node in its host memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from rotescale.evaluation.budget import OUTPUT_ROWS_AT_ONCE, pass_budget
from rotescale.hardware import NodeShape
from rotescale.launch_spec import LaunchSpec
from rotescale.planning.activations import layer_activation_bytes
from rotescale.planning.architecture import Architecture, layer_parameters
from rotescale.planning.counting import ParameterCount, count_parameters
from rotescale.planning.memory import BYTES_PER_PARAMETER, MASTER_AND_MOMENTS_BYTES
from rotescale.planning.mode import (
    mode_on,
    room,
    worker_cores,
    workers_of,
    workers_per_node,
)
from rotescale.planning.moments import HostMemory, Moment
from rotescale.planning.workload import GENERATED_AT_ONCE, Workload
from rotescale.spec import EvaluationMode, ExperimentSpec
from rotescale.spec.running import FUSED_TARGETS
from rotescale.zero3_sizes import PAGE_BYTES, Zero3Sizes, zero3_sizes

GIB = 1 << 30

CONTEXT_BYTES = 2 * GIB
"""What CUDA, its libraries and NCCL take of a GPU before anything is put there; a guess."""
FRAGMENTED_SHARE = 0.05
"""Of the rest, what torch's allocator holds and cannot give; a guess."""
GPU_PROCESS_BYTES = 4 * GIB
"""Host memory of a worker that uses a GPU, beside what is counted; a guess."""
CPU_PROCESS_BYTES = int(0.7 * GIB)
"""Of one that computes on the CPU: about what was seen beside its model."""
NODE_BYTES = 2 * GIB
"""Ray, the fork server and the driver."""

_LOGITS_AT_ONCE = 256


@dataclass(frozen=True)
class Placement:
    """An experiment on so many workers of one place; its memory follows by arithmetic."""

    spec: ExperimentSpec
    launch: LaunchSpec
    node: NodeShape
    architecture: Architecture
    """With the rows of the key tokens."""
    count: ParameterCount
    work: Workload
    num_workers: int
    among: tuple[int, int] | None = None
    """The least and the most workers of the run that these are one size of; None: it has no
    other."""

    @classmethod
    def least(
        cls,
        spec: ExperimentSpec,
        launch: LaunchSpec,
        node: NodeShape,
        *,
        architecture: Architecture,
        work: Workload,
    ) -> Placement:
        """The run on the least of its workers; ``architecture`` is without key tokens.

        Raises SpecError where the spec trains what the model does not have.
        """
        among = workers_of(spec, launch)
        grown = architecture.with_key_tokens(work.num_key_tokens)
        count = count_parameters(spec.model, grown)
        return cls(spec, launch, node, grown, count, work, among[0], among)

    @property
    def on_gpu(self) -> bool:
        """Whether workers compute on GPUs."""
        return self.launch.gpus_per_worker > 0

    @property
    def workers_per_node(self) -> int:
        """The most workers of one node."""
        return workers_per_node(self.launch, self.node, self.num_workers)

    @property
    def room(self) -> int:
        """Workers that a node has GPUs and cores for; at least one."""
        return room(self.launch, self.node)

    @property
    def worker_cores(self) -> float:
        """CPU cores of each worker."""
        most = self.num_workers if self.among is None else self.among[1]
        return worker_cores(self.launch, self.node, most)

    @property
    def num_nodes(self) -> int:
        """Nodes that these workers fill."""
        return -(-self.num_workers // self.workers_per_node)

    @property
    def shares_memory(self) -> bool:
        """Whether workers exchange through memory of one machine; on CPUs, else by messages."""
        return not self.on_gpu and self.num_nodes == 1 and self.num_workers > 1

    @property
    def precision_bytes(self) -> int:
        """Bytes of a weight in forward and backward."""
        return BYTES_PER_PARAMETER[self.spec.engine.precision]

    @property
    def gradient_bytes(self) -> int:
        """Bytes of a gradient as it is reduced and kept."""
        return BYTES_PER_PARAMETER[self.spec.engine.gradient_dtype]

    @cached_property
    def sizes(self) -> Zero3Sizes:
        """ZeRO-3's buffers for this model."""
        return zero3_sizes(
            self.spec.engine,
            layer_parameters=layer_parameters(self.architecture),
            model_parameters=self.count.total,
            on_gpu=self.on_gpu,
        )

    @property
    def offloaded(self) -> bool:
        """Whether masters and moments lie in another memory than the device's."""
        return self.spec.engine.offload_optimizer != "none" and self.on_gpu

    @property
    def row_tokens(self) -> int:
        """Tokens of the longest row that a worker computes in one pass, at most."""
        return max(self._row(phase.global_batch, phase.longest) for phase in self.work.phases)

    def _row(self, batch: int, longest: int) -> int:
        share = -(-batch // self.num_workers)
        return max(longest, min(self.spec.engine.row_tokens, share * longest))

    @cached_property
    def evaluation_mode(self) -> EvaluationMode:
        """As preparation decides it on such nodes."""
        return mode_on(
            *(self.spec, self.launch, self.node),
            workers=self.among or (self.num_workers, self.num_workers),
            num_parameters=self.count.total,
            num_trainable=self.count.trainable,
        )

    @cached_property
    def checkpoints_activations(self) -> bool:
        """Whether layers compute their activations again, as preparation decides it on such nodes.

        Where the spec leaves it open: if the run has too little memory without, on the least or the
        most of its workers, and holds less with it.
        """
        wanted = self.spec.model.activation_checkpointing
        if wanted != "auto":
            return wanted
        for number in self.among or (self.num_workers,):
            keeping, again = (self._recomputing(value, number) for value in (False, True))
            # What a GPU's worker keeps is not in host memory.
            short = keeping.device_excess if self.on_gpu else keeping.host_excess
            if short > 0 and again.device_peak < keeping.device_peak:
                return True
        return False

    def _recomputing(self, value: bool, num_workers: int) -> Placement:
        model = self.spec.model.model_copy(update={"activation_checkpointing": value})
        spec = self.spec.model_copy(update={"model": model})
        return replace(self, spec=spec, num_workers=num_workers)

    @property
    def evaluates_together(self) -> bool:
        """Whether all workers make an evaluation's passes together, gathering layer by layer."""
        return self.evaluation_mode == "sharded" and self.num_workers > 1

    @property
    def questions_per_pass(self) -> int:
        """About how many questions share a pass, where they fill it."""
        budget = pass_budget(
            self.spec.engine.row_tokens, on_gpu=self.on_gpu, collective=self.evaluates_together
        )
        return max(1, int(budget / max(1.0, self.work.evaluation.question_tokens)))

    @property
    def state_bytes_per_parameter(self) -> int:
        """Weights, gradients, masters and moments of a trained parameter: 16 with bf16 gradients.

        "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models" (Rajbhandari et al.,
        2020), section 3.1, counts 2 + 2 + 12 for mixed precision.
        """
        return self.precision_bytes + self.gradient_bytes + MASTER_AND_MOMENTS_BYTES

    @property
    def state_bytes(self) -> int:
        """Weights of all parameters; gradients, masters and moments of what is trained."""
        state = self.gradient_bytes + MASTER_AND_MOMENTS_BYTES
        return self.count.total * self.precision_bytes + self.count.trainable * state

    def moments(self) -> dict[str, Moment]:
        """The three moments at which a worker's device holds most."""
        training, update = self._training(), self._update()
        if not self.on_gpu:
            update = replace(update, system=self._kept(training, update))
        found = {"training": training, "update": update, "measuring": self._asked()}
        return {name: self._with_system(moment) for name, moment in found.items()}

    @cached_property
    def device_peak(self) -> int:
        """The most that a worker's device holds at any moment, in bytes."""
        return max(moment.total for moment in self.moments().values())

    def host(self) -> HostMemory:
        """The host memory of the fullest node.

        Checkpoints are copied into memory that is pinned where there is a GPU, and torch rounds
        pinned memory up to a power of two; so does DeepSpeed's for the gradients of what is
        offloaded.
        """
        here, trained = self.workers_per_node, self._part(self.count.trainable)
        process = GPU_PROCESS_BYTES if self.on_gpu else CPU_PROCESS_BYTES
        offloaded = 0
        if self.offloaded:
            gradients = self.gradient_bytes * trained, 4 * trained
            if self.spec.engine.offload_optimizer == "nvme":
                # Masters are made in memory, and then moved; moments are made in files.
                offloaded = sum(gradients) + 4 * trained
            else:
                offloaded = MASTER_AND_MOMENTS_BYTES * trained + sum(map(self._pinned, gradients))
        return HostMemory(
            processes=NODE_BYTES + here * process,
            training=0 if self.on_gpu else here * self.device_peak,
            offloaded=here * offloaded,
            snapshot=here * self._pinned(MASTER_AND_MOMENTS_BYTES * trained),
        )

    @property
    def offload_disk_bytes(self) -> int:
        """What is offloaded to the own disk of the fullest node."""
        if self.spec.engine.offload_optimizer != "nvme":
            return 0
        here = self.workers_per_node
        return here * MASTER_AND_MOMENTS_BYTES * self._part(self.count.trainable)

    def fits(self) -> bool:
        """Whether each worker's device and each node's host memory hold what they must."""
        return self.device_excess <= 0 and self.host_excess <= 0

    @property
    def device_excess(self) -> int:
        """Bytes that a GPU lacks; below zero what is left of it, and zero on the CPU."""
        return self.device_peak - self.node.gpu_bytes if self.on_gpu else 0

    @property
    def host_excess(self) -> int:
        """Bytes that a node's host memory lacks; below zero what is left of it."""
        return self.host().total - self.node.host_bytes

    def on(self, num_workers: int) -> Placement:
        """The same experiment on another number of workers."""
        return replace(self, num_workers=num_workers, among=None)

    def _part(self, elements: int) -> int:
        """What one worker holds of something that is partitioned."""
        return -(-elements // self.num_workers)

    def _pinned(self, num_bytes: int) -> int:
        return 1 << (num_bytes - 1).bit_length() if self.on_gpu and num_bytes else num_bytes

    def _state(self) -> Moment:
        trained = self._part(self.count.trainable)
        kept = 0 if self.offloaded else trained
        return Moment(
            weights=self.precision_bytes * self._part(self.count.total),
            gradients=self.gradient_bytes * kept,
            optimizer=MASTER_AND_MOMENTS_BYTES * kept,
            gathered=self.precision_bytes * self._gathered,
            activations=0,
            logits=0,
            system=0,
            buffers=self._always_there,
        )

    @property
    def _always_there(self) -> int:
        """Bytes of the bucket that gradients are copied into; on one machine's CPUs of all pages.

        Those pages (``engine/shared_memory.py``) are there once, and counted for each who reads.
        """
        if self._is_eager:
            return 0
        if self.on_gpu:
            return self.gradient_bytes * self.sizes.bucket
        return 2 * PAGE_BYTES * self.num_workers if self.shares_memory else 0

    @property
    def _is_eager(self) -> bool:
        return self.spec.engine.kind == "eager"

    @property
    def _gathered(self) -> int:
        """Elements that are whole on a worker, which ``engine.gathered_parameters`` bounds.

        But for what stays gathered always, and the layer in use, however large it is.
        """
        if self.num_workers == 1:
            return 0
        # DeepSpeed fetches nothing ahead beyond the bound, but what is in use it must have.
        ahead = min(self.sizes.prefetch, self.sizes.gathered)
        bound = max(self.sizes.gathered, self.count.largest + ahead)
        kept = self.count.below(self.sizes.kept)
        return min(self.count.total, bound + kept)

    def _training(self) -> Moment:
        """The backward pass, where gradients are reduced."""
        if self._is_eager:
            # Plain torch has all gradients twice: of the weights, and added to the masters'.
            largest = self.count.largest_trained
            reduced = self.precision_bytes * self.count.trainable + 2 * 4 * largest
        else:
            reduced = self._reducing()
        state = self._state()
        return replace(
            state,
            activations=self._activations(),
            logits=self._logits(),
            buffers=state.buffers + reduced,
        )

    def _reducing(self) -> int:
        """Bytes beside the bucket in which gradients are collected until it is full.

        Read in DeepSpeed 0.19.8's ZeRO-3: a gradient as autograd makes it, which stays where it is
        if the bucket cannot hold it; of what is reduced together a copy in the dtype of the
        reduction, and on GPUs one that is joined and padded. On CPUs (``engine/gloo.py``) they
        wait where autograd has made them; between nodes the others' parts are joined, and as much
        comes from them.
        """
        largest = self.count.largest_trained
        together = max(largest, min(self.sizes.bucket, self.count.trainable))
        copied = together if self.gradient_bytes != self.precision_bytes else 0
        if not self.on_gpu:
            if not self.shares_memory:
                copied += 2 * together * (self.num_workers - 1) // self.num_workers
            return self.precision_bytes * together + self.gradient_bytes * copied
        if together > largest or largest % self.num_workers:
            copied += together
        return self.precision_bytes * largest + self.gradient_bytes * copied

    def _update(self) -> Moment:
        """The optimizer's step: an fp32 copy of the gradients of one sub-group at a time."""
        state = self._state()
        size = min(self.spec.engine.sub_group_size, self._part(self.count.trainable))
        copies = 4 + (self.gradient_bytes if self.gradient_bytes != 4 else 0)
        kept = min(self._gathered, self.count.below(self.sizes.kept))
        return replace(
            state,
            gathered=self.precision_bytes * kept,
            buffers=state.buffers + (0 if self.offloaded or self._is_eager else copies * size),
        )

    def _asked(self) -> Moment:
        """An evaluation: the state, a whole copy or gathered layers, logits and generated text."""
        state, asked = self._state(), self.work.evaluation
        shape, precision = self.architecture, self.precision_bytes
        gathered = state.gathered
        if self.evaluation_mode == "replicated" and not self._is_eager:
            gathered = precision * (self.count.total + self.count.largest)
        cached = GENERATED_AT_ONCE * (asked.prompt_tokens + asked.max_new_tokens)
        cache = 2 * precision * shape.num_layers * shape.key_size * cached
        number = self.questions_per_pass
        wide = 4 * precision * shape.intermediate_size * round(number * asked.question_tokens)
        predicted = number * asked.option_tokens
        logits = 4 * predicted + 8 * min(predicted, _LOGITS_AT_ONCE)
        # Where weights are not fp32, of some rows of the output matrix there is a copy that is.
        copied = 0 if precision == 4 else 4 * min(OUTPUT_ROWS_AT_ONCE, shape.vocab_size)
        return replace(
            state,
            gathered=gathered,
            activations=max(cache if asked.num_generated else 0, wide),
            logits=logits * shape.vocab_size + copied * shape.hidden_size,
        )

    def _activations(self) -> int:
        """What the forward pass keeps for the backward pass of the longest row.

        With activation checkpointing a layer's input each, and all of one layer at a time.
        """
        shape, tokens = self.architecture, self.row_tokens
        layer = layer_activation_bytes(
            shape, tokens, precision=self.precision_bytes, attention=self.spec.model.attention
        )
        last = (4 + 2 * self.precision_bytes) * shape.hidden_size * tokens
        if self.checkpoints_activations:
            kept = shape.num_layers * self.precision_bytes * shape.hidden_size * tokens
            return kept + layer + last
        return shape.num_layers * layer + last

    def _logits(self) -> int:
        """Logits in the model's precision, in fp32, and their gradients, of a row's targets."""
        precision, most = self.precision_bytes, 0
        for phase in self.work.phases:
            share = -(-phase.global_batch // self.num_workers) * phase.most_targets
            most = max(most, min(share, self._row(phase.global_batch, phase.longest)))
        if self.spec.engine.fused_loss:
            most = min(most, FUSED_TARGETS)
        # fp32 log-probabilities and their gradient; logits, or their gradient, in bf16 beside.
        per_logit = 8 + (precision if precision != 4 else 0)
        return per_logit * most * self.architecture.vocab_size

    def _kept(self, training: Moment, update: Moment) -> int:
        """On the CPU glibc keeps what the backward pass has freed, for the next step's.

        The update's copies are larger than what is kept, each for itself, so they come on top; what
        is kept goes back before an evaluation (``freed_memory``). It is too much for a model whose
        matrices are larger than 32 MiB, which glibc never keeps.
        """
        buffers = training.buffers - self._state().buffers
        gathered = training.gathered - update.gathered
        return training.activations + training.logits + buffers + gathered

    def _with_system(self, moment: Moment) -> Moment:
        if not self.on_gpu:
            return moment
        return replace(moment, system=CONTEXT_BYTES + int(FRAGMENTED_SHARE * moment.total))
