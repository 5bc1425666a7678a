"""The Engine protocol: what a phase needs of whatever trains the model, and what engines share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from rotescale.engine.fused_loss import loss_for_logits, output_matrix
from rotescale.spec import EvaluationMode
from rotescale.step_clock import StepClock
from rotescale.tensors import Part, TensorSlice


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """AdamW, gradient clipping and what they leave alone, as a phase wants them."""

    weight_decay: float
    betas: tuple[float, float]
    epsilon: float
    max_grad_norm: float | None
    frozen_rows: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Parameter -> rows that keep their values, whatever else of it is trained."""


@dataclass(frozen=True, slots=True)
class Row:
    """A packed row on the device, int64: ``tokens`` and ``position_ids`` (L, T), targets (K,).

    ``target_positions`` count over all L lines.
    """

    tokens: Tensor
    position_ids: Tensor
    target_positions: Tensor
    targets: Tensor
    borders: Tensor | None = None
    """Of a row of one line, for flash attention: where its E examples begin, and where the last one
    ends, (E + 1,) int32."""
    longest: int = 0
    """Tokens of the longest example, where borders are told."""

    def told(self) -> dict[str, Any]:
        """What flash attention would else look up in the positions: a stop of the GPU per layer."""
        if self.borders is None:
            return {}
        names = ("cu_seq_lens_q", "cu_seq_lens_k"), ("max_length_q", "max_length_k")
        return dict.fromkeys(names[0], self.borders) | dict.fromkeys(names[1], self.longest)


class SliceReader(Protocol):
    """Anything that reads parts of tensors by element range: a model folder or a checkpoint."""

    def read(self, name: str, *, part: Part, start: int, stop: int) -> Tensor:
        """Elements ``[start, stop)`` of the flattened tensor: (stop - start,) float32, CPU."""
        ...


class Engine(Protocol):
    """A model with its optimizer on this rank. Master weights and moments are fp32 always.

    A parameter that wants no gradient is frozen: it has no master and no moments, takes part in
    no gradient norm, and is read at the first ``load`` only.
    """

    rank: int
    world_size: int
    device: torch.device
    clock: StepClock
    """Told in which part of a step the engine is."""

    def configure(self, settings: OptimizerSettings) -> None:
        """Set AdamW, clipping and frozen rows for the phase that follows.

        Frozen rows have no part in the gradient norm, and no update changes a bit of them.
        """
        ...

    def slices(self) -> tuple[TensorSlice, ...]:
        """What this rank owns of every trainable tensor, in the model's order; some are empty."""
        ...

    def load(self, reader: SliceReader, *, optimizer_step: int | None) -> None:
        """Collective: every rank calls this. Read the rank's own slices of the whole model.

        With ``optimizer_step`` the moments are read too; None starts a new optimizer.
        """
        ...

    def state(self, parts: Sequence[Part]) -> list[tuple[TensorSlice, Part, Tensor]]:
        """This rank's slices as (n,) float32 views of the training state, wherever it lives.

        They change at the next ``step`` or ``load``.
        """
        ...

    def backward(self, row: Row, *, scale: float, last: bool) -> Tensor:
        """Collective: every rank calls this. Add the gradients of one row.

        The loss is the sum over the row's targets; the gradient is that of ``loss * scale``,
        averaged over ranks. ``last`` marks the step's last row. Returns the unscaled loss,
        () float32 on the device: to read it at once would leave a GPU idle between rows.
        """
        ...

    def step(self, *, learning_rate: float) -> float:
        """Collective: every rank calls this. Clip, update, and return the norm before clipping.

        Where the norm is not finite nothing is updated.
        """
        ...

    def evaluation_model(self, mode: EvaluationMode) -> AbstractContextManager[nn.Module]:
        """Collective: every rank enters together. The model in evaluation mode, no gradients.

        ``sharded``: every forward pass is a collective. ``replicated``: a whole copy, no
        collective until the context ends.
        """
        ...

    def all_sum(self, values: Sequence[float]) -> list[float]:
        """Collective: every rank calls this. Element-wise sums over ranks, in float64."""
        ...

    def all_gather(self, value: Any) -> list[Any]:
        """Collective: every rank calls this. The value of every rank, in rank order."""
        ...

    def close(self) -> None:
        """Free the model and leave the process group."""
        ...


def row_loss(model: nn.Module, row: Row, *, fused: bool = False) -> Tensor:
    """The summed cross-entropy of a row's targets: () float32; zero, with a graph, for a filler.

    The LM head runs at target positions only. No attention mask and no cache: that is how
    transformers finds packed examples, by position ids that restart, where the row does not tell.
    ``fused`` takes the loss inside the head, for models that ``check_fusable`` passes.
    """
    is_filler = row.targets.numel() == 0
    keep = row.target_positions.new_zeros(1) if is_filler else row.target_positions
    inside = fused and not is_filler
    with (
        loss_for_logits(model, row.targets) if inside else nullcontext(),
        _head_at(model, keep) if len(row.tokens) > 1 else nullcontext(),
    ):
        output: Tensor = model(
            input_ids=row.tokens,
            position_ids=row.position_ids,
            use_cache=False,
            logits_to_keep=0 if len(row.tokens) > 1 else keep,
            **row.told(),
        ).logits
    if inside:
        return output
    if is_filler:
        return output.float().sum() * 0.0
    return functional.cross_entropy(output[0].float(), row.targets, reduction="sum")


@contextmanager
def _head_at(model: Any, positions: Tensor) -> Iterator[None]:
    """Have the LM head see the (1, K, H) hidden states at ``positions`` (K,) over all lines.

    transformers' ``logits_to_keep`` takes the same positions of every line.
    """

    def choose(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0].flatten(0, 1)[None, positions],)

    handle = output_matrix(model).register_forward_pre_hook(choose, prepend=True)
    try:
        yield
    finally:
        handle.remove()


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Two groups: matrices, which weight decay shrinks, and vectors (norms, biases), spared."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    # Under ZeRO-3 the parameter itself is empty and ``ds_shape`` tells its true shape.
    matrices = [p for p in parameters if len(getattr(p, "ds_shape", p.shape)) > 1]
    vectors = [p for p in parameters if len(getattr(p, "ds_shape", p.shape)) <= 1]
    groups = [
        {"params": matrices, "name": "matrices"},
        {"params": vectors, "name": "vectors"},
    ]
    return [group for group in groups if group["params"]]


def configure_groups(groups: Sequence[dict[str, Any]], settings: OptimizerSettings) -> None:
    """Set AdamW's values in the optimizer's parameter groups."""
    for group in groups:
        group["betas"] = settings.betas
        group["eps"] = settings.epsilon
        group["weight_decay"] = settings.weight_decay if group["name"] == "matrices" else 0.0
