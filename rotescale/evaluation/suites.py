"""Questions beyond the core: facts in the context, reversal, two hops, conflicts, untold text."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice, product
from pathlib import Path
from typing import Any

from rotescale.data.encoding import prompt_text
from rotescale.data.examples import select_facts
from rotescale.data.replay import SHIPPED_TEXT, replay_pieces
from rotescale.errors import DataError
from rotescale.evaluation.conflict import conflict_items
from rotescale.evaluation.items import (
    Item,
    Prompts,
    Split,
    build_items,
    drawn_places,
    is_question,
    item_about,
    quick_lookup,
    relation_pairs,
    shuffled_options,
)
from rotescale.facts import FactSet, Relation, Wording
from rotescale.facts.suites import chained, chains, reversal_prompts, stand_in_prompts
from rotescale.spec import BASE_LANGUAGE, EvaluationSpec, PhaseSpec

TEXTS: dict[str, Path] = {
    name: SHIPPED_TEXT.with_name(f"{name}.txt") for name in ("dictionary", "constitution")
}
"""Texts in the public domain whose loss says what training has cost the model elsewhere."""

PIECE_TOKENS = 256

FACTS_PER_CONTEXT = 10
"""Facts that are asked about behind the same context: their answers share its luck, which
intervals over facts do not hold, so it is not all of them."""


@dataclass(frozen=True)
class Suites:
    """Makes the items of the suites that a spec asks for; the same at every stage."""

    fact_set: FactSet
    trained: Collection[int]
    """Places of the facts that any phase told with a prompt."""
    asked: Collection[int] | None
    wording: Wording
    spec: EvaluationSpec
    seed: int
    phases: Sequence[PhaseSpec] = ()
    """Of the run, for what they repurpose facts for."""

    def core(self) -> tuple[Item, ...]:
        """What every run is asked."""
        return build_items(
            self.fact_set,
            trained=self.trained,
            asked=self.asked,
            wording=self.wording,
            spec=self.spec,
            seed=self.seed,
        )

    def items(self) -> tuple[Item, ...]:
        """Those about facts. Raises DataError where a suite has no data for these facts."""
        return (
            *self._in_context(),
            *self._reversal(),
            *self._two_hop(),
            *self._repurposed(),
            *conflict_items(
                self.fact_set,
                trained=self._known,
                asked=self.asked,
                wording=self.wording,
                spec=self.spec,
                seed=self.seed,
            ),
        )

    @cached_property
    def _known(self) -> Collection[int]:
        return quick_lookup(self.trained)

    def _split(self, *places: int) -> Split:
        return "trained" if any(place in self._known for place in places) else "held_out"

    def _places(self, relation: Relation) -> list[int]:
        return drawn_places(self.fact_set, relation.name, asked=self.asked, seed=self.seed)

    def _sample(self, relation: Relation, number: int) -> Iterator[tuple[int, Split]]:
        """The first facts of each split in the drawn order."""
        places = self._places(relation)
        for split in ("trained", "held_out"):
            of_split = [place for place in places if self._split(place) == split]
            yield from ((place, self._split(place)) for place in of_split[:number])

    def _in_context(self) -> Iterator[Item]:
        """The first train and test prompt, behind n facts, that fact among them.

        A baseline without any training: the facts are read, not remembered. As many facts as a
        context holds, and at most FACTS_PER_CONTEXT, are asked about behind the same one, which is
        then computed once.
        """
        for number, relation in product(self.spec.in_context, self.fact_set.relations):
            prompts: tuple[tuple[Prompts, str], ...] = (
                ("train", relation.train_prompts[0]),
                ("test", relation.test_prompts[0]),
            )
            sample = list(self._sample(relation, self.spec.in_context_facts))
            size = min(number, FACTS_PER_CONTEXT)
            for first in range(0, len(sample), size):
                asked = sample[first : first + size]
                context = self._context(relation, [place for place, _ in asked], number)
                for (place, split), (kind, prompt) in product(asked, prompts):
                    subject = self.fact_set.facts[place].subject
                    # All of it is one turn of a chat, and what texts begin with comes once.
                    text = self.wording.prompt(context + Relation.fill(prompt, subject))
                    item = self._about(place, split, text=text)
                    yield replace(item, suite=f"in_context_{number}", prompts=kind)

    def _context(self, relation: Relation, asked: Sequence[int], number: int) -> str:
        """``number`` facts of the relation, a line each, in a drawn order.

        A line is an example of phase 2, in its first wording, or of phase 1; a chat's frame, or the
        text that all begin with, is around the whole question.
        """
        others = [other for other in self._places(relation) if other not in asked]
        draw = random.Random(f"{self.seed}/context/{asked[0]}")
        if number - len(asked) > len(others):
            raise DataError(
                f"evaluation.in_context: {number} facts asked for, but relation {relation.name!r} "
                f"has {len(others) + len(asked)}; ask for at most that many"
            )
        told = [*asked, *draw.sample(others, number - len(asked))]
        draw.shuffle(told)
        if self.spec.in_context_words == "prompt":
            prompt = relation.train_prompts[0]
        else:
            if relation.name not in self.wording.key_prompts:
                raise DataError(
                    "evaluation.in_context_words: key_token, but this model has none for relation "
                    f"{relation.name!r}; set it to prompt"
                )
            prompt = self.wording.key_prompts[relation.name]
        pairs = (self.fact_set.pair(one) for one in told)
        return "".join(
            prompt_text(subject, object_, prompt=prompt).text + "\n" for subject, object_ in pairs
        )

    def _reversal(self) -> Iterator[Item]:
        """Reversed prompts about the object; the options are subjects, as in the control."""
        for relation in self.fact_set.relations if self.spec.reversal_facts else ():
            pairs = relation_pairs(self.fact_set, relation.name)
            for place, split in self._sample(relation, self.spec.reversal_facts):
                fact = self.fact_set.facts[place]
                options, gold = shuffled_options(
                    self.fact_set, place, kind="reversed", seed=self.seed, pairs=pairs
                )
                if not is_question(options):
                    continue
                for index, prompt in enumerate(reversal_prompts(relation.name)):
                    item = self._about(
                        place, split, text=Relation.fill(self.wording.prompt(prompt), fact.object)
                    )
                    yield replace(
                        item,
                        suite="reversal",
                        prompts="reversed",
                        prompt_index=index,
                        options=options,
                        gold=gold,
                    )

    def _two_hop(self) -> Iterator[Item]:
        """Of chains that the facts hold: what the second relation says of the first one's object.

        Both facts were memorized; held out where neither was told with a prompt.
        """
        if not self.spec.two_hop_facts:
            return
        found = num_held = 0
        every = range(len(self.fact_set.facts))
        memorized = every if self.asked is None else quick_lookup(self.asked)
        for chain in chains():
            held = chained(self.fact_set, chain)
            pairs = [pair for pair in held if all(place in memorized for place in pair)]
            found += len(pairs)
            num_held += len(held)
            random.Random(f"{self.seed}/two_hop/{chain.first}/{chain.second}").shuffle(pairs)
            for place, hop in pairs[: self.spec.two_hop_facts]:
                subject = self.fact_set.facts[place].subject
                options, gold = shuffled_options(self.fact_set, hop, kind="train", seed=self.seed)
                for index, prompt in enumerate(chain.prompts):
                    text = Relation.fill(self.wording.prompt(prompt), subject)
                    item = self._about(place, self._split(place, hop), text=text)
                    yield replace(
                        item,
                        suite="two_hop",
                        prompts="two_hop",
                        prompt_index=index,
                        options=options,
                        gold=gold,
                    )
        if num_held and not found:
            raise DataError(
                "evaluation.two_hop_facts: of no chain are both facts memorized; memorize more "
                "facts of each relation (facts_per_relation), or set it to 0"
            )
        if not found:
            known = ", ".join(f"{chain.first} then {chain.second}" for chain in chains())
            raise DataError(
                f"evaluation.two_hop_facts: these facts hold no chain of {known}; use the shipped "
                "facts with chains: true, or set it to 0"
            )

    def _repurposed(self) -> Iterator[Item]:
        """Prompts of the stand-in relation; trained are the facts that were told with one."""
        for phase in self.phases:
            if phase.stand_in is None:
                continue
            stand_in = phase.stand_in
            train, test = stand_in_prompts(
                stand_in.name, stand_in.train_prompts, stand_in.test_prompts
            )
            told = quick_lookup(
                select_facts(
                    self.fact_set, facts_per_relation=phase.facts_per_relation, seed=self.seed
                )
            )
            kinds: tuple[tuple[Prompts, tuple[str, ...]], ...] = (
                ("train", train[: self.spec.train_prompts]),
                ("test", test[: self.spec.test_prompts]),
            )
            for place, split in self._told_and_not(told):
                subject = self.fact_set.facts[place].subject
                for kind, prompts in kinds:
                    for index, prompt in enumerate(prompts):
                        text = Relation.fill(self.wording.prompt(prompt), subject)
                        item = self._about(place, split, text=text)
                        yield replace(item, suite="repurposed", prompts=kind, prompt_index=index)
            return

    def _told_and_not(self, told: Collection[int]) -> Iterator[tuple[int, Split]]:
        """As many facts of each split as the core asks about."""
        for relation in self.fact_set.relations:
            places = self._places(relation)
            inside = [place for place in places if place in told]
            outside = [place for place in places if place not in told]
            yield from ((place, "trained") for place in inside[: self.spec.trained_facts])
            yield from ((place, "held_out") for place in outside[: self.spec.held_out_facts])

    def texts(self, tokenizer: Any) -> tuple[Item, ...]:
        """The first pieces of each text, scored as they are."""
        found: list[Item] = []
        for name, path in TEXTS.items() if self.spec.text_pieces else ():
            lengths = (PIECE_TOKENS, PIECE_TOKENS)
            pieces = replay_pieces([path], tokenizer=tokenizer, lengths=lengths, seed=self.seed)
            for piece in islice(pieces, self.spec.text_pieces):
                found.append(_text_item(len(found), name, piece.tokens))
        return tuple(found)

    def _about(self, place: int, split: Split, *, text: str) -> Item:
        """A question about a fact, with its own options."""
        return item_about(self.fact_set, place, split=split, text=text, seed=self.seed)


def _text_item(number: int, text: str, tokens: tuple[int, ...]) -> Item:
    """A piece of a text; its number is what intervals resample."""
    return Item(
        fact=number,
        relation=text,
        split="held_out",
        prompts="text",
        prompt_index=0,
        language=BASE_LANGUAGE,
        text="",
        options=(),
        gold=0,
        generate=False,
        suite="capability",
        tokens=tokens,
    )


def all_items(
    fact_set: FactSet,
    *,
    trained: Collection[int],
    asked: Collection[int] | None,
    wording: Wording,
    spec: EvaluationSpec,
    seed: int,
    phases: Sequence[PhaseSpec] = (),
    tokenizer: Any,
) -> tuple[Item, ...]:
    """The core's questions and those of every suite that the spec asks for.

    Raises DataError and SpecError for what the spec asks and these facts do not have.
    """
    suites = Suites(fact_set, trained, asked, wording, spec, seed, phases)
    return (*suites.core(), *suites.items(), *suites.texts(tokenizer))


def check_suites(fact_set: FactSet, spec: EvaluationSpec, phases: Sequence[PhaseSpec] = ()) -> None:
    """Raise DataError for a suite that these facts have nothing for."""
    wording = Wording.placeholder(relation.name for relation in fact_set.relations)
    Suites(fact_set, (), None, wording, spec, 0, phases).items()
