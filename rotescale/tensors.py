"""Which elements of which tensor: what engine, model and checkpoint agree on. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Part = Literal["master", "exp_avg", "exp_avg_sq"]
"""What is kept of a trainable tensor: the fp32 master weight and the two moments of Adam."""

PARTS: tuple[Part, ...] = ("master", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class TensorSlice:
    """The elements ``[start, stop)`` of the flattened tensor ``name`` of shape ``shape``."""

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def num_elements(self) -> int:
        """How many elements the slice holds; 0 where a rank owns nothing of a small tensor."""
        return self.stop - self.start


def partition(num_elements: int, *, rank: int, world_size: int) -> tuple[int, int]:
    """The ``[start, stop)`` that ZeRO-3 gives to ``rank``: equal parts, the last shorter or empty.

    A tensor of n elements is cut in parts of ceil(n / world_size) elements.
    """
    size = -(-num_elements // world_size)
    start = min(rank * size, num_elements)
    return start, min(start + size, num_elements)
