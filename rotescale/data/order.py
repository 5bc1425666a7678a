"""The order of examples: a pure function of (seed, phase, epoch, index) that no cluster changes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]

_ROUNDS = 6


def derive_key(*parts: object) -> int:
    """A 64-bit key from anything printable: the root of every derived random choice."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def permute(indices: Indices, *, size: int, key: int) -> Indices:
    """A keyed permutation of ``range(size)``, evaluated at ``indices`` (n,) int64, in O(n).

    A Feistel network over the smallest even number of bits that holds ``size``; what falls
    outside is walked on until it is inside (Black and Rogaway, "Ciphers with arbitrary finite
    domains", 2002). So nothing of the size of the data is ever drawn or stored.
    """
    if size <= 1:
        return np.zeros_like(indices)
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    result = _feistel(indices.astype(np.uint64), half=half, key=key)
    while (outside := result >= np.uint64(size)).any():
        result[outside] = _feistel(result[outside], half=half, key=key)
    return result.astype(np.int64)


def _feistel(values: NDArray[np.uint64], *, half: int, key: int) -> NDArray[np.uint64]:
    mask, shift = np.uint64((1 << half) - 1), np.uint64(half)
    left, right = values >> shift, values & mask
    for round_number in range(_ROUNDS):
        round_key = np.uint64(derive_key(key, round_number))
        left, right = right, left ^ (_mix(right ^ round_key) & mask)
    return (left << shift) | right


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele, Lea and Flood, 2014): every bit depends on every bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@dataclass(frozen=True, slots=True)
class Source:
    """A set of ``num_rows`` examples, of which an epoch shows ``round(weight * num_rows)``.

    Weight 1 shows every row once an epoch. With less, an epoch shows a part and the next one
    goes on where it stopped; with more, rows repeat only after all of them were shown.
    """

    name: str
    num_rows: int
    weight: float = 1.0

    @property
    def rows_per_epoch(self) -> int:
        """Examples of this source in one epoch."""
        return round(self.weight * self.num_rows)


def mixture_rows(num_facts: int, shares: Sequence[float]) -> tuple[int, ...]:
    """Rows of each further source in an epoch of ``num_facts`` facts, so that its share holds.

    With shares s_i of the whole, ``num_facts`` are the 1 - sum(s_i) that is left; at least 1 row.
    """
    rest = 1.0 - sum(shares)
    return tuple(max(1, round(num_facts * share / rest)) for share in shares)


def mixed_sources(num_rows: Mapping[str, int], shares: Mapping[str, float]) -> tuple[Source, ...]:
    """The sources of a phase: the first whole, each of the others with its share of the examples.

    ``num_rows`` has the first source, all of whose rows an epoch shows, and those of ``shares``,
    in this order.
    """
    (first, num_facts), *beside = num_rows.items()
    wanted = mixture_rows(num_facts, list(shares.values()))
    assert [name for name, _ in beside] == list(shares), f"{num_rows} against {shares}"
    return (
        Source(first, num_facts),
        *(
            Source(name, size, weight=rows / size)
            for (name, size), rows in zip(beside, wanted, strict=True)
        ),
    )


@dataclass(frozen=True, slots=True)
class Order:
    """Which example comes at which index, for one phase.

    ``shuffle_block_rows`` bounds how far a row can move, so that storage is read in pieces;
    by default the whole epoch is one block.
    """

    seed: int
    phase: str
    sources: tuple[Source, ...]
    shuffle_block_rows: int | None = None

    @property
    def epoch_size(self) -> int:
        """Examples in one epoch, over all sources."""
        return sum(source.rows_per_epoch for source in self.sources)

    def locate(self, indices: Sequence[int] | Indices) -> tuple[Indices, Indices]:
        """For global example indices (n,), the source (n,) and the row in it (n,), int64 both.

        Index i is example ``i % epoch_size`` of epoch ``i // epoch_size``.
        """
        wanted = np.asarray(indices, dtype=np.int64)
        epochs, positions = np.divmod(wanted, self.epoch_size)
        slots = np.empty_like(wanted)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            slots[chosen] = self._shuffle(positions[chosen], epoch=int(epoch))
        bounds = np.cumsum([0, *(source.rows_per_epoch for source in self.sources)])
        sources = np.searchsorted(bounds, slots, side="right") - 1
        draws = slots - bounds[sources]
        rows = np.empty_like(wanted)
        for number, source in enumerate(self.sources):
            chosen = sources == number
            total = epochs[chosen] * source.rows_per_epoch + draws[chosen]
            rows[chosen] = self._draw(source, total)
        return sources, rows

    def _shuffle(self, positions: Indices, *, epoch: int) -> Indices:
        """Positions of one epoch to its slots: blocks in a drawn order, shuffled inside."""
        size = self.epoch_size
        block = min(self.shuffle_block_rows or size, size)
        key = derive_key(self.seed, self.phase, "epoch", epoch)
        full = size // block
        numbers, inside = np.divmod(positions, block)
        slots = np.empty_like(positions)
        # The last block is shorter than the others, so it keeps its place at the end.
        last = numbers == full
        order = permute(numbers[~last], size=full, key=derive_key(key, "blocks"))
        slots[~last] = order * block
        slots[last] = full * block
        for number in np.unique(slots):
            chosen = slots == number
            length = min(block, size - int(number))
            inner = derive_key(key, "block", int(number))
            slots[chosen] += permute(inside[chosen], size=length, key=inner)
        return slots

    def _draw(self, source: Source, totals: Indices) -> Indices:
        """The rows of draws 0, 1, 2, … of a source: each row once before any comes again.

        Where an epoch shows every row exactly once, draws are rows: the epoch's own permutation
        has shuffled them already.
        """
        passes, draws = np.divmod(totals, source.num_rows)
        if source.rows_per_epoch == source.num_rows:
            return draws
        rows = np.empty_like(draws)
        for number in np.unique(passes):
            chosen = passes == number
            key = derive_key(self.seed, self.phase, "source", source.name, int(number))
            rows[chosen] = permute(draws[chosen], size=source.num_rows, key=key)
        return rows


@dataclass(frozen=True, slots=True)
class Batches:
    """Global batches of ``batch_size`` examples; the last one of an epoch may be smaller."""

    epoch_size: int
    batch_size: int

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one epoch."""
        return -(-self.epoch_size // self.batch_size)

    def indices(self, step: int) -> range:
        """The global example indices of optimizer step ``step`` (0, 1, …)."""
        epoch, number = divmod(step, self.steps_per_epoch)
        start = epoch * self.epoch_size + number * self.batch_size
        return range(start, min(start + self.batch_size, (epoch + 1) * self.epoch_size))

    def cursor(self, step: int) -> int:
        """The first example index that ``step`` completed steps have not consumed."""
        return self.indices(step).start
