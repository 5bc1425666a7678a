"""Ranges of time, and what is reached of a vendor's rates: the guesses behind every duration."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Range:
    """Seconds, or a currency: from what may be hoped for to what should be reckoned with."""

    low: float
    high: float

    def __add__(self, other: Range) -> Range:
        return Range(self.low + other.low, self.high + other.high)

    def __mul__(self, factor: float) -> Range:
        return Range(self.low * factor, self.high * factor)

    @property
    def middle(self) -> float:
        """Halfway."""
        return (self.low + self.high) / 2


NONE = Range(0.0, 0.0)

# What is reached of a vendor's rate, at best and where it goes badly: guesses.
COMPUTE = (0.6, 0.25)
CPU_COMPUTE = (0.85, 0.35)
MEMORY = (0.85, 0.5)
NETWORK = (0.85, 0.45)
STORAGE = (0.9, 0.35)

LAYER_SECONDS = Range(0.001, 0.004)
"""Of one layer's forward and backward: Python, launches of kernels, ZeRO's hooks; a guess."""
CALL_SECONDS = Range(2e-5, 1e-4)
"""Of one collective, whatever its size, by NCCL; a guess."""
CPU_CALL_SECONDS = Range(2e-4, 1e-3)
"""By gloo."""
GLOO_GBIT = 4.0
"""Per second between two processes of one node, as a step of a small model was seen to reach."""
QUESTION_SECONDS = Range(0.005, 0.02)
"""Of the tokenizer and the tree of one question."""
START_SECONDS = Range(60.0, 300.0)
"""Ray, imports, NCCL and the engine on a cluster, once; a guess."""
LOCAL_START_SECONDS = Range(25.0, 90.0)
"""The same on one machine's CPU, as seen."""
DOWNLOAD_BYTES_PER_SECOND = 1e8
"""Of a model that is in no cache yet; in the best case it is."""
UPDATED_PER_SECOND = (7.5e8, 4.0e8)
"""Parameters that AdamW updates on one core; seen with one thread."""
TO_HOST_BYTES_PER_SECOND = 2.0e10
"""Between a GPU and its host; a guess."""
DISK_BYTES_PER_SECOND = 5.0e9
"""Of a node's own NVMe disks together; a guess."""


def bytes_per_second(gbit: float) -> float:
    """The same rate in bytes."""
    return gbit * 1e9 / 8


def seconds_at(amount: float, rate: float, reached: tuple[float, float]) -> Range:
    """Seconds for an amount at a rate that is reached in part."""
    best, worst = reached
    return Range(amount / (rate * best), amount / (rate * worst))


def total_of(ranges: Iterable[Range]) -> Range:
    """One after the other."""
    total = NONE
    for one in ranges:
        total = total + one
    return total
