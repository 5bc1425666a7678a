"""What the matrix products of a training step take by themselves, each as one kernel."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from statistics import median

import torch

from rotescale.model.build import model_layout
from rotescale.model.prepare import load_prepared

_REPEATS = 5


def product_seconds(prepared: Path, rows: list[tuple[int, int]]) -> float:
    """Seconds of all products of a rank's rows, (tokens, targets) each, forward and backward.

    A linear layer takes three for n tokens: (n, in) by (in, out) forward, and backward (n, out) by
    (out, in) for its input and (out, n) by (n, in) for its weights; the output matrix the same for
    the targets. Attention's products are not counted. Each shape is measured, the median of
    several, with the threads of this process, on float32; its memory is warm.
    """
    layout = model_layout(load_prepared(prepared).config())
    layers = Counter(layout.shapes[f"{name}.weight"] for name in layout.linear_layers)
    output = layout.output_embedding or layout.input_embedding
    total = 0.0
    for num_tokens, num_targets in rows:
        total += sum(_layer(shape, num_tokens) * n for shape, n in layers.items())
        total += _layer(layout.shapes[output], num_targets)
    return total


def _layer(shape: tuple[int, ...], num_tokens: int) -> float:
    rows, columns = shape
    weight = torch.randn(rows, columns)
    x, gradient = torch.randn(num_tokens, columns), torch.randn(num_tokens, rows)
    forward = torch.empty(num_tokens, rows)
    to_input, to_weight = torch.empty(num_tokens, columns), torch.empty(rows, columns)
    return sum(
        _seconds(*product)
        for product in (
            (x, weight.T, forward),
            (gradient, weight, to_input),
            (gradient.T, x, to_weight),
        )
    )


def _seconds(first: torch.Tensor, second: torch.Tensor, out: torch.Tensor) -> float:
    found = []
    for _ in range(1 + _REPEATS):
        began = time.perf_counter()
        torch.mm(first, second, out=out)
        found.append(time.perf_counter() - began)
    return median(found[1:])
