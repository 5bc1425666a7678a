"""Which questions are asked: a seeded sample of split x prompts x fact, the same at every stage."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from rotescale.errors import DataError, SpecError
from rotescale.facts import (
    HELD_FACTS,
    Fact,
    FactSet,
    Relation,
    Wording,
    load_shipped,
    normalise,
)
from rotescale.spec import BASE_LANGUAGE, EvaluationSpec

Split = Literal["trained", "held_out"]
"""Whether any phase told the fact with a meaningful prompt; never mixed."""

Prompts = Literal[
    "key_token",
    "train",
    "test",
    "unrelated",
    "wrong_relation",
    "reversed",
    "two_hop",
    "text",
]
"""Kinds of prompts; ``wrong_relation`` and ``reversed`` are the automatic controls."""

CORE = "core"
"""The suite of what is asked of every run."""

SPLITS: tuple[Split, ...] = ("trained", "held_out")
PROMPT_KINDS: tuple[Prompts, ...] = (
    *("key_token", "train", "test", "unrelated"),
    *("wrong_relation", "reversed"),
)
KINDS: tuple[Prompts, ...] = (*PROMPT_KINDS, "two_hop", "text")
TRANSLATED_KINDS: tuple[Prompts, ...] = ("train", "test", "unrelated")
"""Kinds that are asked in every language of the spec; the others are asked in English."""

MAX_REVERSED_OPTIONS = 100


@dataclass(frozen=True, slots=True)
class Item:
    """One question about one fact, with its options."""

    fact: int
    """Place in the fact set."""
    relation: str
    split: Split
    prompts: Prompts
    prompt_index: int
    """Place of the prompt among those of its kind."""
    language: str
    """Code of the language that the prompt is in."""
    text: str
    """The filled prompt; an option follows after one space, or at once where it ends with one."""
    options: tuple[str, ...]
    gold: int
    """Place of the right option."""
    generate: bool
    """Whether the model also answers freely."""
    suite: str = CORE
    """What it is part of; rows of different suites are never mixed."""
    tokens: tuple[int, ...] = ()
    """A piece of text whose loss is measured, in place of a prompt with options."""
    old: int | None = None
    """Place of the option that contradicts the right one: what the model held before."""

    @property
    def key(self) -> tuple[int, str, str, str, int, str, str]:
        """Which question this is, as ``Outcome.key`` says it of its answer."""
        return (
            *(self.fact, self.relation, self.split),
            *(self.prompts, self.prompt_index, self.language, self.suite),
        )


def build_items(
    fact_set: FactSet,
    *,
    trained: Collection[int],
    asked: Collection[int] | None = None,
    wording: Wording,
    spec: EvaluationSpec,
    seed: int,
) -> tuple[Item, ...]:
    """Every question that is asked at each stage.

    ``trained`` and ``asked`` hold places of facts; None asks about all of them. Of a relation
    without a key prompt no questions with it are asked.

    All samples of a relation are the first facts of one order, drawn from (seed, relation): a
    smaller sample is part of a larger one, and generation, controls and choice share facts. Every
    language asks about the same facts with the same prompts. Raises SpecError where a relation has
    no prompts in one of the spec's languages.
    """
    check_languages(fact_set, spec)
    known = quick_lookup(trained)
    items: list[Item] = []
    for relation in fact_set.relations:
        places = drawn_places(fact_set, relation.name, asked=asked, seed=seed)
        questions = _Questions(
            fact_set=fact_set,
            relation=relation,
            wrong=_other_relation(fact_set, relation),
            wording=wording,
            spec=spec,
            seed=seed,
            pairs=relation_pairs(fact_set, relation.name),
        )
        asked_with_key = frozenset(places[: spec.key_token_facts])
        for split in SPLITS:
            of_split = [i for i in places if (i in known) == (split == "trained")]
            items += _of_split(questions, split=split, places=of_split, with_key=asked_with_key)
    return tuple(items)


def drawn_places(
    fact_set: FactSet, relation: str, *, asked: Collection[int] | None, seed: int
) -> list[int]:
    """The places of a relation's facts that are asked about, in the drawn order.

    Of facts that are not held, and ``asked`` None, the first ``HELD_FACTS`` of the relation.
    """
    of_relation = fact_set.places(relation)
    if fact_set.is_held:
        places = [place for place in of_relation if asked is None or place in asked]
    elif asked is None:
        places = list(of_relation[:HELD_FACTS])
    else:
        places = sorted(place for place in asked if place in of_relation)
    random.Random(f"{seed}/evaluation/{relation}").shuffle(places)
    return places


def quick_lookup(places: Collection[int]) -> Collection[int]:
    """The same places, in which one is found at once; a range of millions is not copied."""
    return places if isinstance(places, range) else frozenset(places)


def check_languages(fact_set: FactSet, spec: EvaluationSpec) -> None:
    """Raise SpecError where a relation has no prompts in a language that is to be asked."""
    for relation in fact_set.relations:
        for language in spec.languages:
            if language not in relation.languages:
                raise SpecError(
                    f"evaluation.languages: {language!r} asked for, but relation "
                    f"{relation.name!r} has prompts in {', '.join(relation.languages)} only; "
                    "leave it out, or give the relation translations in a relations file "
                    "(facts.relations_file)"
                )


@dataclass(frozen=True, slots=True)
class _Questions:
    """Makes the items of one relation."""

    fact_set: FactSet
    relation: Relation
    wrong: Relation
    wording: Wording
    spec: EvaluationSpec
    seed: int
    pairs: tuple[tuple[str, str], ...]
    """Subject and normalised object of each of the relation's facts."""

    def texts(self, kind: Prompts, fact: Fact, *, language: str) -> tuple[str, ...]:
        """The filled prompts of one kind in one language."""
        prompts = self.relation.in_language(language)
        match kind:
            case "key_token":
                if self.relation.name not in self.wording.key_prompts:
                    return ()
                return (Relation.fill(self.wording.key_prompt(self.relation.name), fact.subject),)
            case "wrong_relation":
                return (self._asked(self.wrong.train_prompts[0], fact.subject),)
            case "reversed":
                return (self._asked(self.relation.train_prompts[0], fact.object),)
            case "train":
                chosen = prompts.train_prompts[: self.spec.train_prompts]
            case "test":
                chosen = prompts.test_prompts[: self.spec.test_prompts]
            case "unrelated":
                chosen = prompts.unrelated_prompts[: self.spec.unrelated_prompts]
        return tuple(self._asked(prompt, fact.subject) for prompt in chosen)

    def _asked(self, prompt: str, subject: str) -> str:
        """A meaningful prompt about the subject, as the model is shown it."""
        return Relation.fill(self.wording.prompt(prompt), subject)

    def items(
        self, kind: Prompts, place: int, *, language: str, split: Split, generate: bool
    ) -> Iterator[Item]:
        """The items of one fact, kind and language; a sample generates from the first prompt."""
        options, gold = shuffled_options(
            self.fact_set, place, kind=kind, seed=self.seed, pairs=self.pairs
        )
        if not is_question(options):
            return
        texts = self.texts(kind, self.fact_set.facts[place], language=language)
        for index, text in enumerate(texts):
            yield Item(
                fact=place,
                relation=self.relation.name,
                split=split,
                prompts=kind,
                prompt_index=index,
                language=language,
                text=text,
                options=options,
                gold=gold,
                generate=generate and (index == 0 or self.spec.generation_facts is None),
            )


def shuffled_options(
    fact_set: FactSet,
    place: int,
    *,
    kind: Prompts,
    seed: int,
    pairs: Sequence[tuple[str, str]] | None = None,
) -> tuple[tuple[str, ...], int]:
    """The options in a seeded order that tells nothing about the gold, and the gold's place.

    Objects; for ``reversed`` subjects. ``pairs``, where there are many to ask, are those of
    ``relation_pairs``.
    """
    fact = fact_set.facts[place]
    asked = "subjects" if kind == "reversed" else "objects"
    draw = random.Random(f"{seed}/{asked}/{fact.relation}/{fact.subject}")
    if kind == "reversed":
        gold = fact.subject
        others = _other_subjects(fact, pairs or relation_pairs(fact_set, fact.relation))
        if len(others) >= MAX_REVERSED_OPTIONS:
            others = draw.sample(others, MAX_REVERSED_OPTIONS - 1)
    else:
        gold = fact.object
        others = list(fact.distractors)
    options = [gold, *others]
    draw.shuffle(options)
    return tuple(options), options.index(gold)


def is_question(options: Sequence[str]) -> bool:
    """Whether there is a wrong answer: none where all other subjects have the same object, too."""
    return len(options) > 1


def item_about(fact_set: FactSet, place: int, *, split: Split, text: str, seed: int) -> Item:
    """A question about a fact with its own options, as the suites vary it."""
    options, gold = shuffled_options(fact_set, place, kind="train", seed=seed)
    return Item(
        fact=place,
        relation=fact_set.facts[place].relation,
        split=split,
        prompts="train",
        prompt_index=0,
        language=BASE_LANGUAGE,
        text=text,
        options=options,
        gold=gold,
        generate=False,
    )


def relation_pairs(fact_set: FactSet, relation: str) -> tuple[tuple[str, str], ...]:
    """Subject and normalised object of each of the relation's facts.

    Of facts that are not held, of the first ``HELD_FACTS``.
    """
    places = fact_set.places(relation)
    if not fact_set.is_held:
        places = places[:HELD_FACTS]
    pairs = map(fact_set.pair, places)
    return tuple((subject, normalise(object_)) for subject, object_ in pairs)


def _other_subjects(fact: Fact, pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Subjects of the relation that are wrong answers: those of the same object are right."""
    right = normalise(fact.object)
    subjects = dict.fromkeys(subject for subject, object_ in pairs if object_ != right)
    subjects.pop(fact.subject, None)
    return list(subjects)


def _of_split(
    questions: _Questions,
    *,
    split: Split,
    places: Sequence[int],
    with_key: Collection[int],
) -> Iterator[Item]:
    """The items of one relation and split; ``places`` are the split's facts in the drawn order."""
    spec = questions.spec
    generated = frozenset(places[: spec.generation_facts])
    for kind in PROMPT_KINDS:
        sample = _sample(kind, places, split=split, with_key=with_key, spec=spec)
        for language in spec.languages if kind in TRANSLATED_KINDS else (BASE_LANGUAGE,):
            for place in sample:
                yield from questions.items(
                    kind, place, language=language, split=split, generate=place in generated
                )


def _sample(
    kind: Prompts,
    places: Sequence[int],
    *,
    split: Split,
    with_key: Collection[int],
    spec: EvaluationSpec,
) -> Sequence[int]:
    """The facts of a split that are asked with that kind of prompts."""
    match kind:
        case "key_token":
            return [place for place in places if place in with_key]
        case "wrong_relation" | "reversed":
            return places[: spec.control_facts]
        case _:
            return places[: spec.trained_facts if split == "trained" else spec.held_out_facts]


def _other_relation(fact_set: FactSet, relation: Relation) -> Relation:
    """The relation whose prompt is the wrong one: the next in the set, else a shipped one."""
    names = [one.name for one in fact_set.relations]
    following = fact_set.relations[(names.index(relation.name) + 1) % len(names)]
    if following.name != relation.name:
        return following
    for shipped in load_shipped().relations:
        if shipped.name != relation.name:
            return shipped
    raise DataError("the shipped facts hold no second relation; reinstall rotescale")


@dataclass(frozen=True, slots=True)
class SampleRow:
    """How much is asked of one split with one kind of prompts, over all relations."""

    suite: str
    split: Split
    prompts: Prompts
    num_facts: int
    num_items: int
    num_generated: int


def sample_rows(items: Sequence[Item]) -> tuple[SampleRow, ...]:
    """The sample, counted by split and kind of prompts; combinations without items are left out."""
    groups: dict[tuple[str, Split, Prompts], list[Item]] = {}
    for item in items:
        groups.setdefault((item.suite, item.split, item.prompts), []).append(item)
    ordered = sorted(
        groups, key=lambda key: (key[0] != CORE, key[0], SPLITS.index(key[1]), KINDS.index(key[2]))
    )
    return tuple(
        SampleRow(
            *key,
            num_facts=len({(item.relation, item.fact) for item in groups[key]}),
            num_items=len(groups[key]),
            num_generated=sum(item.generate for item in groups[key]),
        )
        for key in ordered
    )


def describe_sample(items: Sequence[Item]) -> str:
    """A table that says what is scored at each stage, for the output of a run."""
    about = [item for item in items if not item.tokens]
    relations = ", ".join(dict.fromkeys(item.relation for item in about)) or "none"
    languages = list(dict.fromkeys(item.language for item in items))
    lines = [
        f"Scored at each stage: {len(items)} questions about "
        f"{len({item.fact for item in about})} facts of: {relations}",
        *([f"  in the languages {', '.join(languages)}"] if len(languages) > 1 else []),
        f"  {'split':<10}{'prompts':<16}{'facts':>7}{'questions':>11}{'generated':>11}",
    ]
    lines += [
        f"  {row.split:<10}{row.prompts:<16}{row.num_facts:>7}{row.num_items:>11}"
        f"{row.num_generated:>11}" + ("" if row.suite == CORE else f"  {row.suite}")
        for row in sample_rows(items)
    ]
    return "\n".join(lines)
