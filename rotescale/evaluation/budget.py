"""How many nodes of token trees share a forward pass; known without torch."""

from __future__ import annotations

CPU_NODES = 512
"""A CPU's products are no faster beyond some 400 rows, and memory for logits grows with them."""
OUTPUT_ROWS_AT_ONCE = 8192
"""Rows of an output matrix in bf16 of which there is an fp32 copy at a time."""


def pass_budget(row_tokens: int, *, on_gpu: bool, collective: bool) -> int:
    """Nodes that a pass takes, or one tree if that has more.

    As many as a row of training has (``row_tokens``) on GPUs, and where layers are gathered for
    each pass; else at most ``CPU_NODES``.
    """
    return row_tokens if on_gpu or collective else min(row_tokens, CPU_NODES)
