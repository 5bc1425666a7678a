"""Questions are dealt to ranks: each once, neighbours that begin alike together, loads alike."""

from __future__ import annotations

import pytest

from rotescale.evaluation.dealing import LEAST_ALIKE, deal


def behind(context: int, number: int) -> list[str]:
    """Texts of as many questions behind the same context."""
    return [f"{context:0{LEAST_ALIKE}d} {question}" for question in range(number)]


@pytest.mark.parametrize("world_size", [1, 2, 3, 7, 64])
def test_each_place_is_dealt_once_and_in_order(world_size: int) -> None:
    texts = ["short", *behind(0, 20), "short", *behind(1, 3), *(f"{n}" for n in range(40))]
    dealt = deal(texts, world_size)
    assert len(dealt) == world_size
    assert sorted(place for mine in dealt for place in mine) == list(range(len(texts)))
    assert all(mine == sorted(mine) for mine in dealt)


def test_questions_with_no_beginning_are_dealt_one_by_one() -> None:
    texts = ["a", "a", "b" * LEAST_ALIKE, "c" * LEAST_ALIKE, "d"]
    assert deal(texts, 2) == [[0, 2, 4], [1, 3]]


def test_ranks_get_whole_contexts_where_there_are_enough() -> None:
    texts = [text for context in range(20) for text in behind(context, 20)]
    dealt = deal(texts, 4)
    assert [len(mine) for mine in dealt] == [100] * 4
    assert [len({place // 20 for place in mine}) for mine in dealt] == [5] * 4


@pytest.mark.parametrize("world_size", [16, 17, 64])
def test_many_ranks_share_contexts_about_evenly(world_size: int) -> None:
    texts = [text for context in range(20) for text in behind(context, 20)]
    dealt = deal(texts, world_size)
    loads = [len(mine) for mine in dealt]
    assert max(loads) <= 1.5 * len(texts) / world_size
    contexts = sum(len({place // 20 for place in mine}) for mine in dealt)
    # One by one each question would be behind a context of its own.
    assert contexts <= len(texts) // 3


def test_a_long_beginning_of_all_texts_leaves_no_rank_idle() -> None:
    dealt = deal(behind(0, 1000), 4)
    assert max(len(mine) for mine in dealt) - min(len(mine) for mine in dealt) <= 32


def test_no_questions() -> None:
    assert deal([], 3) == [[], [], []]
