"""The order of examples is a permutation that depends on seed, phase and epoch alone."""

from __future__ import annotations

import numpy as np
import pytest

from rotescale.data.order import Batches, Order, Source, derive_key, permute


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 100, 1000, 4097])
def test_permute_shows_each_index_once(size: int) -> None:
    found = permute(np.arange(size), size=size, key=7)
    assert sorted(found.tolist()) == list(range(size))


def test_permute_is_evaluated_anywhere_without_what_came_before() -> None:
    whole = permute(np.arange(1000), size=1000, key=3)
    assert permute(np.array([731]), size=1000, key=3)[0] == whole[731]


def test_keys_give_different_permutations() -> None:
    orders = {tuple(permute(np.arange(50), size=50, key=derive_key(seed))) for seed in range(20)}
    assert len(orders) == 20


def test_places_are_spread_evenly() -> None:
    """Where index 0 goes over many keys is uniform: chi-square with 9 degrees of freedom."""
    places = [permute(np.array([0]), size=10, key=derive_key("spread", k))[0] for k in range(2000)]
    counts = np.bincount(places, minlength=10)
    assert ((counts - 200) ** 2 / 200).sum() < 27.9  # p = 0.001


def test_each_epoch_shows_every_row_once_in_another_order() -> None:
    order = Order(seed=1, phase="memorize", sources=(Source("facts", 100),))
    epochs = [order.locate(range(e * 100, (e + 1) * 100))[1].tolist() for e in range(3)]
    assert all(sorted(rows) == list(range(100)) for rows in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_shuffle_blocks_keep_rows_near_and_still_show_each_once() -> None:
    order = Order(1, "memorize", (Source("facts", 95),), shuffle_block_rows=20)
    _, rows = order.locate(range(95))
    assert sorted(rows.tolist()) == list(range(95))
    assert all(len({row // 20 for row in rows[start : start + 20]}) == 1 for start in (0, 20, 40))


def test_mixture_weights_and_sources_of_unequal_length() -> None:
    sources = (Source("facts", 40), Source("replay", 1000, weight=0.01), Source("known", 3, 2.0))
    order = Order(5, "generalize", sources)
    assert order.epoch_size == 40 + 10 + 6
    seen: list[int] = []
    for epoch in range(100):
        found, rows = order.locate(range(epoch * 56, (epoch + 1) * 56))
        assert sorted(rows[found == 0].tolist()) == list(range(40))
        assert np.bincount(rows[found == 2]).tolist() == [2, 2, 2]
        seen += rows[found == 1].tolist()
    # 100 epochs of 10 draws go once through the 1000 rows, none of them twice.
    assert sorted(seen) == list(range(1000))


def test_batches_end_with_the_epoch() -> None:
    batches = Batches(epoch_size=10, batch_size=4)
    assert [list(batches.indices(step)) for step in range(4)] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9],
        [10, 11, 12, 13],
    ]
    assert [batches.cursor(step) for step in range(4)] == [0, 4, 8, 10]
