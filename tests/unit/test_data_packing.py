"""Packing deals every example to exactly one row, with equally many rows on every rank."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rotescale.data.encoding import IGNORE
from rotescale.data.packing import LINE_TOKENS, assign, fold, pack


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


@settings(deadline=None)
@given(st.lists(st.integers(2, 300), min_size=1, max_size=120), st.integers(0, 3))
def test_folding_keeps_every_example_whole_and_all_targets_in_order(
    lengths: list[int], seed: int
) -> None:
    draw = np.random.default_rng(seed)
    examples = [
        (draw.integers(1, 99, n).tolist(), draw.integers(1, 99, n).tolist()) for n in lengths
    ]
    row = pack(examples)
    folded = fold(row)
    num_lines, width = folded.tokens.shape
    assert num_lines == max(1, sum(lengths) // max(LINE_TOKENS, *lengths))
    assert width <= sum(lengths) / num_lines + max(lengths)
    assert folded.targets.tolist() == row.targets.tolist()
    tokens, positions = folded.tokens.reshape(-1), folded.position_ids.reshape(-1)
    assert tokens[folded.target_positions].tolist() == row.tokens[row.target_positions].tolist()
    assert (folded.position_ids[:, 0] == 0).all()
    # Between restarts of positions stand the examples, and what fills lines up.
    cuts = sorted({*np.flatnonzero(positions == 0).tolist(), *range(0, num_lines * width, width)})
    found = [tokens[a:b].tolist() for a, b in zip(cuts, [*cuts[1:], len(tokens)], strict=True)]
    told = sorted(one for one in found if any(one))
    assert told == sorted(tokens for tokens, _ in examples)
