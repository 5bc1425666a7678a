"""Packing deals every example to exactly one row, with equally many rows on every rank."""

from __future__ import annotations

import numpy as np
import pytest

from rotescale.data.encoding import IGNORE
from rotescale.data.packing import assign, pack


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("num_examples", [1, 2, 5, 40])
def test_each_example_once_and_equal_passes(world_size: int, num_examples: int) -> None:
    lengths = np.random.default_rng(num_examples).integers(3, 30, size=num_examples).tolist()
    dealt = assign(lengths, row_tokens=64, world_size=world_size)
    assert len(dealt) == world_size
    assert len({len(rows) for rows in dealt}) == 1
    flat = [example for rows in dealt for row in rows for example in row]
    assert sorted(flat) == list(range(num_examples))
    assert all(sum(lengths[e] for e in row) <= 64 for rows in dealt for row in rows)


def test_a_long_example_has_a_row_of_its_own() -> None:
    assert [[0], [1, 2]] in assign([100, 5, 5], row_tokens=32, world_size=1)


def test_ranks_get_about_the_same_number_of_tokens() -> None:
    lengths = np.random.default_rng(0).integers(8, 20, size=64).tolist()
    loads = [
        sum(lengths[e] for row in rows for e in row)
        for rows in assign(lengths, row_tokens=1024, world_size=4)
    ]
    assert max(loads) - min(loads) <= 20


def test_labels_that_reach_the_loss_are_the_labels_built() -> None:
    """Fault 1 of the released code: a collator that rebuilds labels from the inputs."""
    first = ([5, 6, 7, 8], [IGNORE, IGNORE, 7, 8])
    second = ([9, 10, 11], [IGNORE, 10, IGNORE])
    row = pack([first, second])
    assert row.tokens.tolist() == [5, 6, 7, 8, 9, 10, 11]
    assert row.position_ids.tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert row.target_positions.tolist() == [1, 2, 4]
    assert row.targets.tolist() == [7, 8, 10]


def test_the_first_token_is_never_a_target_of_the_example_before() -> None:
    row = pack([([1, 2], [1, 2]), ([3, 4], [3, 4])])
    assert row.targets.tolist() == [2, 4]
    assert row.target_positions.tolist() == [0, 2]


def test_a_filler_has_no_target() -> None:
    assert pack([]).targets.size == 0
    assert pack([]).tokens.size > 0
