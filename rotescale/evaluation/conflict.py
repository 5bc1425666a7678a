"""Facts that contradict what a model held: questions about them, and which it was shown to hold."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from rotescale.errors import DataError
from rotescale.evaluation.items import Item, Prompts, Split, drawn_places, item_about
from rotescale.evaluation.metrics import Outcome
from rotescale.facts import FactSet, Relation, Wording, normalise
from rotescale.spec import EvaluationSpec

CONFLICT = "conflict"
"""The suite of all facts that have an old object."""

BELIEVED = "conflict_believed"
"""The same questions about those facts alone whose old object the untrained model preferred."""


def conflict_items(
    fact_set: FactSet,
    *,
    trained: Collection[int],
    asked: Collection[int] | None,
    wording: Wording,
    spec: EvaluationSpec,
    seed: int,
) -> Iterator[Item]:
    """Key token, train and test prompts about the first facts that have an old object.

    The sample is the same whatever is trained, so that runs that share the untrained model share
    what it believes. Raises DataError where no fact has an old object.
    """
    if not spec.conflict_facts:
        return
    if not fact_set.is_held or all(fact.old_object is None for fact in fact_set.facts):
        raise DataError(
            f"evaluation.conflict_facts: {spec.conflict_facts} facts asked for, but none of these "
            "has an old_object; use facts.source: capitals, give facts of your own that column, "
            "or set it to 0"
        )
    for relation in fact_set.relations:
        drawn = drawn_places(fact_set, relation.name, asked=asked, seed=seed)
        contradicting = [place for place in drawn if fact_set.facts[place].old_object is not None]
        for place in contradicting[: spec.conflict_facts]:
            item = _about(fact_set, place, is_trained=place in trained, seed=seed)
            for kind, prompts in _prompts(relation, wording, spec).items():
                for index, prompt in enumerate(prompts):
                    text = Relation.fill(prompt, fact_set.facts[place].subject)
                    yield replace(item, prompts=kind, prompt_index=index, text=text)


def _about(fact_set: FactSet, place: int, *, is_trained: bool, seed: int) -> Item:
    """A question about the fact, still without its words."""
    split: Split = "trained" if is_trained else "held_out"
    item = item_about(fact_set, place, split=split, text="", seed=seed)
    options = [normalise(option) for option in item.options]
    old = options.index(normalise(fact_set.facts[place].old_object or ""))
    return replace(item, suite=CONFLICT, old=old)


def _prompts(
    relation: Relation, wording: Wording, spec: EvaluationSpec
) -> Mapping[Prompts, Sequence[str]]:
    has_key = relation.name in wording.key_prompts
    return {
        "key_token": [wording.key_prompt(relation.name)] if has_key else [],
        "train": [wording.prompt(one) for one in relation.train_prompts[: spec.train_prompts]],
        "test": [wording.prompt(one) for one in relation.test_prompts[: spec.test_prompts]],
    }


def beliefs(base: Iterable[Outcome]) -> dict[int, bool]:
    """Place of a fact -> whether the untrained model held its old object.

    It did where that was its most probable option at the fact's first train prompt. ``base`` are
    the outcomes of the stage base.
    """
    return {
        outcome.fact: outcome.values["prefers_old"] == 1.0
        for outcome in base
        if (outcome.suite, outcome.prompts, outcome.prompt_index) == (CONFLICT, "train", 0)
    }


def with_believed(outcomes: Sequence[Outcome], believed: Mapping[int, bool]) -> list[Outcome]:
    """The outcomes, and those of facts that were believed once more, as a suite of their own.

    Raises DataError for a fact of the suite of which it is not known.
    """
    asked = [outcome for outcome in outcomes if outcome.suite == CONFLICT]
    unknown = sorted({outcome.fact for outcome in asked} - believed.keys())
    if unknown:
        raise DataError(
            f"suite {CONFLICT}: what the untrained model believes was not measured for "
            f"{len(unknown)} facts, such as fact {unknown[0]}; measure the stage base with the "
            "same evaluation.conflict_facts"
        )
    held = [replace(one, suite=BELIEVED) for one in asked if believed[one.fact]]
    return [*outcomes, *held]
