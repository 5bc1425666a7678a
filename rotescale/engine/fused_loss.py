"""The loss taken inside the output matrix: logits of some targets at a time, never all of them.

A row of 4,096 targets and a vocabulary of 128,256 make 2.1 GB of fp32 logits, and as much again of
their gradients. Torch's ``linear_cross_entropy`` has one chunk of them at a time; its backward pass
computes them once more, a third more work in that matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from transformers import PretrainedConfig

from rotescale.errors import SpecError
from rotescale.spec.running import FUSED_TARGETS

ARCHITECTURES = ("llama", "phi3", "qwen2")
"""The model types whose logits are what the output matrix gives, neither scaled nor capped; others
may be so, but have not been looked at."""

_OPTIONS = nn.LinearCrossEntropyOptions(batch_chunk_size=FUSED_TARGETS, chunking_method=None)


def check_fusable(config: PretrainedConfig) -> None:
    """Raises SpecError where the logits may be more than the output matrix's product."""
    if config.model_type not in ARCHITECTURES:
        raise SpecError(
            f"engine.fused_loss: true is for models of type {', '.join(ARCHITECTURES)}, not "
            f"{config.model_type!r}, whose logits may be scaled behind the output matrix; set it "
            "to false"
        )


@contextmanager
def loss_for_logits(model: Any, targets: Tensor) -> Iterator[None]:
    """Have the model return, in place of logits, their summed cross-entropy: () float32.

    The output matrix must be asked at the target positions alone: ``targets`` are (n,) int64. It
    is called as the module that it is, so what ZeRO-3 does before and after it is done.
    """
    # DeepSpeed's engine wraps the model.
    head: Any = getattr(model, "module", model).get_output_embeddings()

    def forward(hidden: Tensor) -> Tensor:
        # Each target's loss, to be summed in fp32 whatever the model's precision is.
        losses = functional.linear_cross_entropy(
            hidden.flatten(0, -2),
            head.weight,
            targets,
            linear_bias=head.bias,
            reduction="none",
            options=_OPTIONS,
        )
        return losses.float().sum()

    head.forward = forward
    try:
        yield
    finally:
        del head.forward
