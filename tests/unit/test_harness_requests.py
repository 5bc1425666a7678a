"""Requests of tokens: the same answers as one pass each, on any number of ranks."""

from __future__ import annotations

from itertools import takewhile
from typing import Any

import pytest
import torch
from harness_helpers import Ranks, asker_of
from test_evaluation_scoring import TOKENIZERS, micro_model

from rotescale.evaluation.generation import end_tokens
from rotescale.evaluation.harness import requests
from rotescale.evaluation.harness.requests import Leader, Pair, follow
from rotescale.evaluation.runner import Share

TOKENIZER = TOKENIZERS["byte_level"]


def pairs_of(model: Any) -> list[Pair]:
    """Contexts with several continuations, one that is greedy, and a context of one token."""
    contexts = [tuple(range(5 + n, 12 + 2 * n)) for n in range(5)]
    pairs = [(c, tuple(range(20 + n, 23 + 2 * n))) for c in contexts for n in range(3)]
    pairs.insert(4, (contexts[1], greedy(model, contexts[1], 4)))
    return [*pairs, ((7,), (8, 9)), ((7,), (8,)), ((7,), (8, 9))]


@torch.no_grad()
def greedy(model: Any, context: tuple[int, ...], number: int) -> tuple[int, ...]:
    said = list(context)
    for _ in range(number):
        logits = model(input_ids=torch.tensor([said])).logits[0, -1, : len(TOKENIZER)]
        said.append(int(logits.argmax()))
    return tuple(said[len(context) :])


@torch.no_grad()
def one_by_one(model: Any, pairs: list[Pair]) -> list[tuple[float, bool]]:
    found = []
    for context, own in pairs:
        logits = model(input_ids=torch.tensor([[*context, *own]])).logits[0, :, : len(TOKENIZER)]
        rows = logits[len(context) - 1 : -1]
        value = rows.log_softmax(dim=-1)[range(len(own)), list(own)].double().sum()
        found.append((float(value), rows.argmax(dim=-1).tolist() == list(own)))
    return found


def assert_alike(found: list[tuple[float, bool]], expected: list[tuple[float, bool]]) -> None:
    assert [value for value, _ in found] == pytest.approx([v for v, _ in expected], rel=1e-5)
    assert [is_greedy for _, is_greedy in found] == [is_greedy for _, is_greedy in expected]


@pytest.mark.parametrize("most", [1024, 4])
def test_log_likelihoods_are_those_of_one_pass_each(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "_TREE_TOKENS", most)
    model = micro_model("llama")
    pairs = pairs_of(model)
    told: list[tuple[int, int]] = []
    found = asker_of(model, TOKENIZER).log_likelihoods(
        pairs, progress=lambda done, total: told.append((done, total))
    )
    assert_alike(found, one_by_one(model, pairs))
    assert found[4][1], "what the model would say is greedy"
    assert told[-1] == (len(pairs), len(pairs))


def test_neighbours_of_one_context_share_a_pass() -> None:
    model = micro_model("llama")
    pairs = pairs_of(model)
    told: list[int] = []
    asker_of(model, TOKENIZER).log_likelihoods(pairs, progress=lambda done, _: told.append(done))
    assert len(told) == len({context for context, _ in pairs})


def test_continuations_end_at_a_stop() -> None:
    model = micro_model("llama")
    prompts = [tuple(range(5 + n, 12 + n)) for n in range(40)]
    ends = end_tokens(model, TOKENIZER)
    said = [greedy(model, prompt, 10) for prompt in prompts]
    whole = [
        TOKENIZER.decode(list(takewhile(lambda token: token not in ends, tokens)))
        for tokens in said
    ]
    stops = ["a", "1"]
    found = asker_of(model, TOKENIZER).continuations(
        prompts, stops=stops, max_new_tokens=10, progress=lambda done, total: None
    )
    assert found == [text.partition("a")[0].partition("1")[0] for text in whole]
    assert any(text != cut for text, cut in zip(whole, found, strict=True))
    assert any(not ends.isdisjoint(tokens) for tokens in said)


@pytest.mark.parametrize("collective", [True, False])
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_follow_and_make_equal_passes(world_size: int, collective: bool) -> None:
    whole = micro_model("llama")
    pairs, prompts = pairs_of(whole), [tuple(range(5 + n, 9 + n)) for n in range(4)]
    ask: dict[str, Any] = {"progress": lambda done, total: None}
    generate: dict[str, Any] = {"stops": ["a"], "max_new_tokens": 6, **ask}
    alone = asker_of(whole, TOKENIZER)
    expected = alone.log_likelihoods(pairs, **ask), alone.continuations(prompts, **generate)
    ranks = Ranks(world_size)
    passes = [0] * world_size
    models = [micro_model("llama") for _ in range(world_size)]
    for model in models:
        model.load_state_dict(whole.state_dict())

    def of_rank(rank: int) -> Any:
        def count(*_: Any) -> None:
            passes[rank] += 1

        models[rank].register_forward_pre_hook(count)
        gather = ranks.gather(rank)
        asker = asker_of(
            models[rank],
            TOKENIZER,
            share=Share(rank, world_size, collective),
            gather=gather,
            all_done=lambda done: all(gather(done)),
        )
        if rank:
            return follow(asker, progress=lambda done, total: None)
        leader = Leader(asker)
        found = leader.log_likelihoods(pairs, **ask), leader.continuations(prompts, **generate)
        leader.end()
        return found

    results = ranks.run(of_rank)
    assert_alike(results[0][0], expected[0])
    assert results[0][1] == expected[1]
    assert results[1:] == [None] * (world_size - 1)
    if collective:
        assert len(set(passes)) == 1
