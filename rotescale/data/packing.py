"""From the examples of one step to packed rows, equally many on every rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rotescale.data.encoding import IGNORE

LINE_TOKENS = 128
"""About as many tokens stand in a line of a folded row."""


@dataclass(frozen=True, slots=True)
class PackedRow:
    """Examples side by side in one row of T tokens, of which K predict something.

    ``tokens`` (T,) int64, or (L, T) in L lines; ``position_ids`` of the same shape, from 0 again at
    each example, by which attention keeps the examples apart; ``target_positions`` (K,) int64,
    where logits are read, counted over all lines; ``targets`` (K,) int64, the tokens they must
    predict.
    """

    tokens: NDArray[np.int64]
    position_ids: NDArray[np.int64]
    target_positions: NDArray[np.int64]
    targets: NDArray[np.int64]


def assign(lengths: Sequence[int], *, row_tokens: int, world_size: int) -> list[list[list[int]]]:
    """Deal examples of the given lengths to ranks and rows: ``result[rank][row]`` lists them.

    The longest goes first, to the rank with the fewest tokens; a row holds at most
    ``row_tokens``, save where one example alone is longer. Every rank gets the same number of
    rows, since each is a forward pass and under ZeRO-3 those are collective: the missing ones
    are empty lists. A pure function of its arguments, so that all ranks agree without a word.
    """
    ranks = _deal(lengths, world_size)
    rows = [_fill_rows(mine, lengths, row_tokens=row_tokens) for mine in ranks]
    num_passes = max(len(mine) for mine in rows)
    return [mine + [[] for _ in range(num_passes - len(mine))] for mine in rows]


def _deal(lengths: Sequence[int], number: int) -> list[list[int]]:
    """The longest example goes first, to whoever has the fewest tokens; each in their order."""
    by_length = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    dealt: list[list[int]] = [[] for _ in range(number)]
    loads = [0] * number
    for example in by_length:
        least = loads.index(min(loads))
        dealt[least].append(example)
        loads[least] += lengths[example]
    return [sorted(mine) for mine in dealt]


def _fill_rows(examples: list[int], lengths: Sequence[int], *, row_tokens: int) -> list[list[int]]:
    """First fit: each example goes to the first row that has room."""
    rows: list[list[int]] = []
    room: list[int] = []
    for example in examples:
        for number, free in enumerate(room):
            if lengths[example] <= free:
                rows[number].append(example)
                room[number] -= lengths[example]
                break
        else:
            rows.append([example])
            room.append(row_tokens - lengths[example])
    return rows


def pack(examples: Sequence[tuple[Sequence[int], Sequence[int]]]) -> PackedRow:
    """One row from (tokens, labels) of each example; no examples: a filler without targets.

    The label of token i is read from the logits at i - 1, within the same example.
    """
    if not examples:
        token = np.zeros(2, dtype=np.int64)
        none = np.zeros(0, dtype=np.int64)
        return PackedRow(token, np.arange(2, dtype=np.int64), none, none)
    tokens = np.concatenate([np.asarray(t, dtype=np.int64) for t, _ in examples])
    labels = np.concatenate([np.asarray(y, dtype=np.int64) for _, y in examples])
    positions = np.concatenate([np.arange(len(t), dtype=np.int64) for t, _ in examples])
    counted = np.flatnonzero((labels != IGNORE) & (positions > 0))
    return PackedRow(tokens, positions, counted - 1, labels[counted])


def fold(row: PackedRow) -> PackedRow:
    """The same examples in lines of about ``LINE_TOKENS``, or one line: tokens (L, T).

    Attention costs the square of a line's length, and of short examples most of it is masked. No
    example is cut; the longest go first, to the line with the fewest tokens, and what the lines
    lack of the longest is filled up with tokens that predict nothing. Targets keep their order.
    """
    starts = np.flatnonzero(row.position_ids == 0)
    lengths = np.diff(starts, append=len(row.tokens)).tolist()
    num_lines = max(1, len(row.tokens) // max(LINE_TOKENS, *lengths))
    lines = _deal(lengths, num_lines)
    width = max(sum(lengths[example] for example in line) for line in lines)
    tokens, positions = (np.zeros((num_lines, width), dtype=np.int64) for _ in range(2))
    place = np.empty(len(row.tokens), dtype=np.int64)
    for number, line in enumerate(lines):
        moved = np.concatenate([np.arange(starts[e], starts[e] + lengths[e]) for e in line])
        tokens[number, : len(moved)] = row.tokens[moved]
        positions[number, : len(moved)] = row.position_ids[moved]
        # What fills a line up is an example of its own.
        positions[number, len(moved) :] = np.arange(width - len(moved))
        place[moved] = number * width + np.arange(len(moved))
    return PackedRow(tokens, positions, place[row.target_positions], row.targets)
