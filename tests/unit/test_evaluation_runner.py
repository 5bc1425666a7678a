"""The runner: an oracle is right everywhere, a uniform model nowhere, and ranks agree."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from known_models import Knowing, KnownModel, ask, word_tokenizer
from transformers import PreTrainedTokenizerFast

from rotescale.evaluation.items import PROMPT_KINDS, SPLITS, Item, build_items
from rotescale.evaluation.metrics import METRICS, Outcome, summarise
from rotescale.facts import Wording, load_shipped
from rotescale.spec import EvaluationSpec

SPEC = EvaluationSpec(
    trained_facts=4,
    held_out_facts=6,
    key_token_facts=15,
    test_prompts=2,
    unrelated_prompts=1,
    control_facts=3,
    generation_facts=3,
    max_new_tokens=8,
)


@pytest.fixture(scope="module")
def items() -> tuple[Item, ...]:
    return build_items(
        load_shipped(["mother", "educated_at"]),
        trained=range(0, 200, 2),
        wording=Wording.placeholder(["mother", "educated_at"]),
        spec=SPEC,
        seed=0,
    )


@pytest.fixture(scope="module")
def tokenizer(items: tuple[Item, ...]) -> PreTrainedTokenizerFast:
    return word_tokenizer(text for item in items for text in (item.text, *item.options))


class Oracle(Knowing):
    """Knows the gold of every prompt."""

    def __init__(self, items: tuple[Item, ...], tokenizer: Any) -> None:
        super().__init__(tokenizer)
        for item in items:
            answer = tokenizer(item.options[item.gold])["input_ids"]
            self.learn(tokenizer(item.text)["input_ids"], [*answer, tokenizer.eos_token_id])


class Flat(KnownModel):
    """Gives every token the same logit, but for noise."""

    def __init__(self, tokenizer: Any, *, noise: float) -> None:
        super().__init__(tokenizer)
        self.noise = noise
        self.generator = torch.Generator().manual_seed(0)

    def logits(self, seen: list[tuple[int, ...]]) -> torch.Tensor:
        return self.noise * torch.randn(1, len(seen), self.num_rows, generator=self.generator)


def run(
    model: KnownModel, items: tuple[Item, ...], tokenizer: Any, **changes: Any
) -> list[Outcome]:
    return ask(model, items, tokenizer, max_new_tokens=SPEC.max_new_tokens, **changes)


def test_an_oracle_is_right_on_every_split_and_kind(items: Any, tokenizer: Any) -> None:
    done: list[int] = []
    model = Oracle(items, tokenizer)
    outcomes = run(model, items, tokenizer, progress=done.append)
    rows = summarise(outcomes, stage="base", epoch=None, seed=0, bootstrap_samples=50)
    kinds = {(row.split, row.prompts) for row in rows}
    assert len(kinds) == len(SPLITS) * len(PROMPT_KINDS)
    assert {row.relation for row in rows} == {"mother", "educated_at", "all"}
    assert {row.metric for row in rows} == set(METRICS)
    for row in rows:
        assert row.value == pytest.approx(1.0, abs=1e-4), row
    assert [outcome.fact for outcome in outcomes] == [item.fact for item in items]
    assert done == sorted(done)
    assert done[-1] == len(items) + sum(item.generate for item in items)
    assert model.training


def test_shuffled_gold_scores_at_chance(items: Any, tokenizer: Any) -> None:
    model = Oracle(items, tokenizer)
    draw = random.Random(0)
    shuffled = tuple(replace(item, gold=draw.randrange(len(item.options))) for item in items)
    rows = summarise(
        run(model, shuffled, tokenizer), stage="base", epoch=None, seed=0, bootstrap_samples=50
    )
    assert max(row.value for row in rows if row.count >= 20) <= 0.1
    overall = [row for row in rows if row.metric == "multiple_choice" and row.relation != "all"]
    assert sum(row.value * row.count for row in overall) / len(items) < 0.04


def test_a_uniform_model_ties_and_ties_are_wrong(items: Any, tokenizer: Any) -> None:
    # Names of two words all: their sums are equal to the last bit.
    people = tuple(i for i in items if all(len(option.split()) == 2 for option in i.options))
    assert len(people) > 20
    outcomes = run(Flat(tokenizer, noise=0.0), people, tokenizer)
    for outcome in outcomes:
        assert outcome.values["multiple_choice"] == 0.0
        assert outcome.values["multiple_choice_normalized"] == 0.0
        assert outcome.values["object_share"] == pytest.approx(0.01)


def test_a_uniform_model_with_noise_scores_at_chance(items: Any, tokenizer: Any) -> None:
    asked = tuple(replace(item, generate=False) for item in items) * 2
    outcomes = run(Flat(tokenizer, noise=1e-3), asked, tokenizer)
    accuracy = sum(o.values["multiple_choice_normalized"] for o in outcomes) / len(outcomes)
    assert 0.0 < accuracy < 0.04


class Ranks:
    """Collectives between threads, as many as there are ranks."""

    def __init__(self, world_size: int) -> None:
        self.barrier = threading.Barrier(world_size, timeout=60)
        self.slots: list[Any] = [None] * world_size

    def gather(self, rank: int) -> Callable[[Any], list[Any]]:
        def gather(mine: Any) -> list[Any]:
            self.slots[rank] = mine
            self.barrier.wait()
            everything = list(self.slots)
            self.barrier.wait()
            return everything

        return gather


def run_ranks(
    items: tuple[Item, ...],
    tokenizer: Any,
    *,
    world_size: int,
    collective: bool,
    **changes: Any,
) -> tuple[list[list[Outcome]], list[int]]:
    """Every rank's outcomes, and how many passes it made."""
    oracles = [Oracle(items, tokenizer) for _ in range(world_size)]
    results = ask_ranks(oracles, items, tokenizer, collective=collective, **changes)
    return results, [oracle.num_passes for oracle in oracles]


def ask_ranks(
    oracles: Sequence[Oracle],
    items: tuple[Item, ...],
    tokenizer: Any,
    *,
    collective: bool,
    **changes: Any,
) -> list[list[Outcome]]:
    """Every rank's outcomes, where each has an oracle."""
    world_size = len(oracles)
    ranks = Ranks(world_size)
    results: list[Any] = [None] * world_size

    def of_rank(rank: int) -> None:
        gather = ranks.gather(rank)
        results[rank] = run(
            oracles[rank],
            items,
            tokenizer,
            rank=rank,
            world_size=world_size,
            collective=collective,
            gather=gather,
            all_done=(lambda done: all(gather(done))) if collective else refuse,
            **changes,
        )

    threads = [threading.Thread(target=of_rank, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    return results


def refuse(done: bool) -> bool:
    raise AssertionError("a replicated evaluation must not synchronize its passes")


@pytest.mark.parametrize("world_size", [2, 3])
def test_collective_ranks_make_equal_passes_and_agree(
    world_size: int, items: Any, tokenizer: Any
) -> None:
    asked = items[:40]
    expected = run(Oracle(asked, tokenizer), asked, tokenizer)
    results, passes = run_ranks(asked, tokenizer, world_size=world_size, collective=True)
    assert all(result == expected for result in results)
    assert len(set(passes)) == 1


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("token_budget", [1, 100, 2000])
def test_packs_and_shared_beginnings_change_no_outcome(
    world_size: int, token_budget: int, items: Any, tokenizer: Any
) -> None:
    # Behind a text of 100 words, every third behind one that ends differently.
    [*words] = sorted(set(tokenizer.get_vocab()) - {"<end>", "<unknown>", "\n"})[:100]
    contexts = [" ".join(words), " ".join(words), " ".join([*words[:80], *words[:20]])]
    asked = tuple(
        replace(item, text=f"{contexts[place % 3]} {item.text}", generate=place < 2)
        for place, item in enumerate(items[:30])
    )
    expected = run(Oracle(asked, tokenizer), asked, tokenizer)
    assert all(outcome.values["multiple_choice"] == 1.0 for outcome in expected)
    results, passes = run_ranks(
        asked, tokenizer, world_size=world_size, collective=True, token_budget=token_budget
    )
    assert all(result == expected for result in results)
    assert len(set(passes)) == 1
    assert (passes[0] < len(asked) // world_size) == (token_budget == 2000)


def test_more_ranks_than_items(items: Any, tokenizer: Any) -> None:
    generating = next(item for item in items if item.generate)
    results, passes = run_ranks((generating,), tokenizer, world_size=3, collective=True)
    assert all(len(result) == 1 for result in results)
    assert len(set(passes)) == 1
    assert passes[0] > 1


def test_replicated_ranks_score_their_own_items_only(items: Any, tokenizer: Any) -> None:
    asked = items[:41]
    expected = run(Oracle(asked, tokenizer), asked, tokenizer)
    results, passes = run_ranks(asked, tokenizer, world_size=2, collective=False)
    assert results == [expected, expected]
    assert passes[0] != passes[1]


@pytest.mark.parametrize("collective", [False, True])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_context_is_computed_by_one_rank_alone(
    world_size: int, collective: bool, items: Any, tokenizer: Any
) -> None:
    # Six contexts of 100 words, four questions behind each, and others between them.
    [*words] = sorted(set(tokenizer.get_vocab()) - {"<end>"})[:100]
    asked: list[Item] = []
    for number in range(6):
        context = " ".join([*words[10 * number :], *words[: 10 * number]])
        some = items[5 * number : 5 * number + 5]
        behind = [replace(item, text=f"{context} {item.text}", generate=False) for item in some[:4]]
        asked.extend([*behind, replace(some[4], generate=False)])
    everything = tuple(asked)
    expected = run(Oracle(everything, tokenizer), everything, tokenizer)
    assert all(outcome.values["multiple_choice"] == 1.0 for outcome in expected)
    oracles = [Oracle(everything, tokenizer) for _ in range(world_size)]
    results = ask_ranks(oracles, everything, tokenizer, collective=collective, token_budget=2000)
    assert all(result == expected for result in results)
    prefills = [prefill for oracle in oracles for prefill in oracle.prefills]
    assert len(prefills) == len(set(prefills)) == 6
    assert {len(oracle.prefills) for oracle in oracles} == {6 // world_size}


def test_no_items_give_no_outcomes(tokenizer: Any) -> None:
    assert run(Oracle((), tokenizer), (), tokenizer) == []
