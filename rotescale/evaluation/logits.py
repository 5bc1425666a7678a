"""Logits in fp32 from a model in another precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from rotescale.evaluation.budget import OUTPUT_ROWS_AT_ONCE


@contextmanager
def logits_in_fp32(model: Any) -> Iterator[None]:
    """Have the output matrix multiply in fp32, where the model is in another precision.

    Logits of about 20 are 0.125 apart in bfloat16, so that options would be equal which are not.
    The matrix is called as the module that it is, so what ZeRO-3 does before and after it is done,
    and what the model does with logits is done to these. An output matrix of another kind than
    torch's ``Linear`` is left as it is.
    """
    head = model.get_output_embeddings()
    if model.dtype == torch.float32 or not isinstance(head, nn.Linear):
        yield
        return

    @torch.no_grad()
    def forward(hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden.float()
        logits = hidden.new_empty(*hidden.shape[:-1], len(head.weight))
        for rows, some in zip(
            torch.split(head.weight, OUTPUT_ROWS_AT_ONCE),
            torch.split(logits, OUTPUT_ROWS_AT_ONCE, dim=-1),
            strict=True,
        ):
            some.copy_(functional.linear(hidden, rows.float()))
        return logits if head.bias is None else logits.add_(head.bias.float())

    head.forward = forward  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        del head.forward
