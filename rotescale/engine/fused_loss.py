"""The loss taken inside the output matrix: logits of some targets at a time, never all of them.

A row of 4,096 targets and a vocabulary of 128,256 make 2.1 GB of fp32 logits, and as much again of
their gradients. Torch's ``linear_cross_entropy`` has one chunk of them at a time. They are computed
twice, for the loss in the forward pass and for the gradients in the backward pass: a third more
work in that matrix, which need not be kept from the one to the other.

On a GPU torch adds up gradients of targets that are alike in no fixed order, so a step is not
repeated bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PretrainedConfig

from rotescale.errors import SpecError
from rotescale.spec.running import FUSED_TARGETS

ARCHITECTURES = ("llama", "phi3", "qwen2")
"""The model types whose logits are what the output matrix gives, neither scaled nor capped; others
may be so, but have not been looked at."""

_ROWS = 4096
"""How many rows of a gradient are made fp32 at a time."""

_OPTIONS = nn.LinearCrossEntropyOptions(batch_chunk_size=FUSED_TARGETS, chunking_method=None)


def check_fusable(config: PretrainedConfig) -> None:
    """Raises SpecError where the logits may be more than the output matrix's product."""
    if config.model_type not in ARCHITECTURES:
        raise SpecError(
            f"engine.fused_loss: true is for models of type {', '.join(ARCHITECTURES)}, not "
            f"{config.model_type!r}, whose logits may be scaled behind the output matrix; set it "
            "to false"
        )


def output_matrix(model: Any) -> Any:
    """The module of a model, or of DeepSpeed's engine around it, that gives the logits."""
    return getattr(model, "module", model).get_output_embeddings()


@contextmanager
def loss_for_logits(model: Any, targets: Tensor) -> Iterator[None]:
    """Have the model return, in place of logits, their summed cross-entropy: () float32.

    The output matrix must be asked at the target positions alone: ``targets`` are (n,) int64. It
    is called as the module that it is, so what ZeRO-3 does before and after it is done.
    """
    head = output_matrix(model)

    def forward(hidden: Tensor) -> Tensor:
        loss: Tensor = _SummedLoss.apply(  # type: ignore[no-untyped-call]
            hidden.flatten(0, -2), head.weight, head, targets
        )
        return loss

    head.forward = forward
    try:
        yield
    finally:
        del head.forward


class _SummedLoss(torch.autograd.Function):
    """Summed in fp32; the factor that comes from behind is applied to each gradient in fp32.

    Torch's own function takes it in the model's precision, where it would be rounded once for all.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, head: Any, targets: Tensor) -> Tensor:
        # The matrix is not saved: ZeRO-3 may release it, and gathers it before the backward pass.
        ctx.head = head
        ctx.save_for_backward(hidden, targets)
        return _losses(hidden, weight, targets, reduction="none").float().sum()

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
        hidden, targets = ctx.saved_tensors
        learns_hidden, learns_weight, *_ = ctx.needs_input_grad
        hidden = hidden.detach().requires_grad_(learns_hidden)
        weight = ctx.head.weight.detach().requires_grad_(learns_weight)
        with torch.enable_grad():
            loss = _losses(hidden, weight, targets, reduction="sum")
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = [one.grad for one in (hidden, weight)]
        for gradient in gradients:
            if gradient is not None:
                _scale(gradient, factor)
        return *gradients, None, None


def _scale(gradient: Tensor, factor: Tensor) -> None:
    """Multiply by a () float32 in fp32, and round once; the factor stays on its device.

    To read it would leave a GPU idle between rows, and torch's own product rounds it first.
    """
    if gradient.dtype == torch.float32:
        gradient.mul_(factor)
        return
    for some in torch.split(gradient, _ROWS):
        some.copy_(some.float().mul_(factor))


def _losses(hidden: Tensor, weight: Tensor, targets: Tensor, *, reduction: str) -> Tensor:
    return functional.linear_cross_entropy(
        hidden, weight, targets, reduction=reduction, options=_OPTIONS
    )
