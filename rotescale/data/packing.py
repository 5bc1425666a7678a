"""From the examples of one step to packed rows, equally many on every rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rotescale.data.encoding import IGNORE


@dataclass(frozen=True, slots=True)
class PackedRow:
    """Examples side by side in one row of T tokens, of which K predict something.

    ``tokens`` (T,) int64; ``position_ids`` (T,) int64, from 0 again at each example, by which
    attention keeps the examples apart; ``target_positions`` (K,) int64, where logits are read;
    ``targets`` (K,) int64, the tokens they must predict.
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
    by_length = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    ranks: list[list[int]] = [[] for _ in range(world_size)]
    loads = [0] * world_size
    for example in by_length:
        rank = loads.index(min(loads))
        ranks[rank].append(example)
        loads[rank] += lengths[example]
    rows = [_fill_rows(sorted(mine), lengths, row_tokens=row_tokens) for mine in ranks]
    num_passes = max(len(mine) for mine in rows)
    return [mine + [[] for _ in range(num_passes - len(mine))] for mine in rows]


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
