"""Passes: questions in order, no pass over its budget, and a beginning where it is worth it."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence

import pytest
import torch

from rotescale.evaluation.budget import CPU_NODES, pass_budget
from rotescale.evaluation.passes import (
    LEAST_SHARED_TOKENS,
    Pack,
    Placed,
    Prefill,
    plan_passes,
)
from rotescale.evaluation.tree import TokenTree, grow

LONG = list(range(1000, 1000 + 2 * LEAST_SHARED_TOKENS))


def tree(*prompt: int, num_options: int = 3) -> TokenTree:
    """Options of two tokens: a prompt and a node for each."""
    options = [[*prompt, 1 + number, 9] for number in range(num_options)]
    return grow(options, start=len(prompt), window=None)


def planned(
    trees: Sequence[TokenTree], *, token_budget: int = 1, share_beginnings: bool = True
) -> list[Prefill | Pack]:
    passes = plan_passes(
        enumerate(trees), token_budget=token_budget, share_beginnings=share_beginnings
    )
    return list(passes)


def described(passes: Sequence[Prefill | Pack]) -> list[tuple[int, ...] | int]:
    """A prefill by its length, a pack by its places."""
    return [
        len(one.tokens) if isinstance(one, Prefill) else tuple(place for place, _ in one.placed)
        for one in passes
    ]


def test_a_pass_takes_as_many_questions_as_its_budget_holds() -> None:
    trees = [tree(5, 6), tree(7), tree(5, 6, 7), tree(8), tree(*range(20)), tree(8)]
    sizes = [len(one.tokens) for one in trees]
    assert sizes == [5, 4, 6, 4, 23, 4]
    assert described(planned(trees, token_budget=10)) == [(0, 1), (2, 3), (4,), (5,)]
    assert described(planned(trees)) == [(place,) for place in range(6)]
    assert described(planned(trees, token_budget=1000)) == [tuple(range(6))]
    assert planned([]) == []


def test_a_cpu_fills_smaller_passes_than_a_row_of_training() -> None:
    assert pass_budget(4096, on_gpu=True, collective=False) == 4096
    assert pass_budget(4096, on_gpu=False, collective=True) == 4096
    assert pass_budget(4096, on_gpu=False, collective=False) == CPU_NODES
    assert pass_budget(100, on_gpu=False, collective=False) == 100


def test_a_long_beginning_is_computed_once() -> None:
    trees = [tree(4), tree(*LONG, 5), tree(*LONG, 6, 7), tree(*LONG, 8), tree(4, 4)]
    passes = planned(trees, token_budget=9)
    assert described(passes) == [(0,), len(LONG), (1, 2), (3,), (4,)]
    shared = [one.num_shared for one in passes if isinstance(one, Pack)]
    assert shared == [0, len(LONG), len(LONG), 0]
    assert described(planned(trees, token_budget=9, share_beginnings=False)) == [
        (place,) for place in range(5)
    ]


def test_who_shares_less_of_it_uses_what_is_shared() -> None:
    trees = [tree(*LONG, 5, 6), tree(*LONG, 5, 7), tree(*LONG, 8), tree(*LONG[:70], 9)]
    passes = planned(trees)
    assert described(passes) == [len(LONG) + 1, (0,), (1,), (2,), (3,)]
    shared = [one.num_shared for one in passes if isinstance(one, Pack)]
    assert shared == [len(LONG) + 1, len(LONG) + 1, len(LONG), 70]


def told(asked: Sequence[threading.Event]) -> Iterator[Prefill | Pack]:
    """A pass for each question, which tells when it is asked for."""

    def questions() -> Iterator[Placed]:
        for place, event in enumerate(asked):
            event.set()
            yield place, tree(4)

    return plan_passes(questions(), token_budget=1, share_beginnings=True)


def test_passes_are_made_one_by_one() -> None:
    asked = [threading.Event() for _ in range(5)]
    # A pass is known to be full by the question behind it, and that one is looked ahead of.
    assert described([next(told(asked))]) == [(0,)]
    assert [event.is_set() for event in asked] == [True, True, True, False, False]


def test_a_short_beginning_is_not_worth_a_pass() -> None:
    short = LONG[: LEAST_SHARED_TOKENS - 1]
    assert described(planned([tree(*short, 5), tree(*short, 6)])) == [(0,), (1,)]


def test_one_question_behind_a_long_text_is_a_pass_of_its_own() -> None:
    assert described(planned([tree(*LONG, 5), tree(4)])) == [(0,), (1,)]


@pytest.mark.parametrize("seed", range(20))
def test_every_question_is_in_one_pass_with_its_own_beginning(seed: int) -> None:
    draw = random.Random(seed)
    beginnings = [LONG, LONG[:100], [*LONG[:90], *range(30)], [3], LONG]
    trees = [
        tree(*draw.choice(beginnings), *draw.choices(range(9), k=draw.randrange(1, 4)))
        for _ in range(40)
    ]
    budget = draw.choice([1, 20, 500])
    passes = planned(trees, token_budget=budget)
    packs = [one for one in passes if isinstance(one, Pack)]
    assert [place for one in packs for place, _ in one.placed] == list(range(40))
    beginning = torch.empty(0, dtype=torch.int64)
    for one in passes:
        if isinstance(one, Prefill):
            beginning = one.tokens
            continue
        # What was computed of the beginning is cut, and stays cut.
        beginning = beginning[: one.num_shared] if one.num_shared else beginning
        for _, found in one.placed:
            assert one.num_shared < found.num_trunk
            assert torch.equal(found.tokens[: one.num_shared], beginning[: one.num_shared])
        own = [len(found.tokens) - one.num_shared for _, found in one.placed]
        assert sum(own) <= budget or len(own) == 1
