"""Makes any number of fictional facts of a shipped relation, from a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from rotescale.errors import DataError
from rotescale.facts.options import draw_indices
from rotescale.facts.prompts import shipped_relation
from rotescale.facts.types import HELD_FACTS, NUM_DISTRACTORS, Fact, FactSet, LazyFacts
from rotescale.facts.vocabulary import (
    BANDS,
    BOOKS,
    CITIES,
    CLASSES,
    COUNTRIES,
    GENRES,
    PEOPLE,
    SCHOOLS,
    THINGS,
    WOMEN,
    NameSpace,
)

_NUM_ROUNDS = 4
_VERSION = 1
"""Of what makes a name of an index, and draws distractors: another one makes other facts."""


@dataclass(frozen=True, slots=True)
class _Share:
    """Every ``stride``-th name of a space, from ``offset``.

    Roles that share a space take disjoint shares of it, so that no author is also somebody's child.
    """

    space: NameSpace
    stride: int = 1
    offset: int = 0

    @property
    def size(self) -> int:
        return (self.space.size - self.offset) // self.stride

    def names(self, seed: int) -> Callable[[int], str]:
        """The seeded order of the share: index to name."""
        place = _permutation(self.space.size, key=f"{seed}/{self.space.label}")
        return lambda index: self.space.name(place(index * self.stride + self.offset))


# Subject and object of each relation.
_ROLES: dict[str, tuple[_Share, _Share]] = {
    "author": (_Share(BOOKS), _Share(PEOPLE, stride=3, offset=0)),
    "capital": (_Share(COUNTRIES), _Share(CITIES)),
    "educated_at": (_Share(PEOPLE, stride=3, offset=1), _Share(SCHOOLS)),
    "genre": (_Share(BANDS), _Share(GENRES)),
    "mother": (_Share(PEOPLE, stride=3, offset=2), _Share(WOMEN)),
    "instance_of": (_Share(THINGS), _Share(CLASSES)),
}


def iter_pairs(relation: str, *, num_facts: int, seed: int) -> Iterator[tuple[str, str]]:
    """Yield ``(subject, object)`` pairs, all subjects distinct and all objects distinct.

    Lazy and of constant memory. The same seed gives the same pairs, fewer being the first of more.
    No name is a shipped one: every name holds a made-up word, and no shipped name does.
    """
    made = GeneratedPart(relation, num_facts=num_facts, seed=seed)
    return map(made.pair, range(num_facts))


def generate(relation: str, *, num_facts: int, seed: int) -> FactSet:
    """Facts with the relation's shipped prompts, each with 99 distractors drawn for it.

    Distractors are objects of the other facts; below 100 facts, also names that answer none. More
    than ``HELD_FACTS`` are made when they are asked for.
    """
    made = GeneratedPart(relation, num_facts=num_facts, seed=seed)
    if num_facts > HELD_FACTS:
        return FactSet((shipped_relation(relation),), LazyFacts((made,)))
    # Each name is made once, and shared by the facts that have it as a distractor.
    _, objects = _names(relation, seed)
    names = [objects(index) for index in range(made.num_options)]
    facts = tuple(made.fact(index, name=names.__getitem__) for index in range(num_facts))
    return FactSet((shipped_relation(relation),), facts)


@dataclass(frozen=True, slots=True)
class GeneratedPart:
    """The fictional facts of one relation, each a pure function of its index and the seed."""

    relation: str
    num_facts: int
    seed: int

    def __post_init__(self) -> None:
        _check(self.relation, num_facts=self.num_facts)

    def pair(self, index: int) -> tuple[str, str]:
        """Subject and object of the fact of that index."""
        subjects, objects = _names(self.relation, self.seed)
        return subjects(index), objects(index)

    @property
    def num_options(self) -> int:
        """Objects that distractors are drawn from; below 100 facts, also some that answer none."""
        return max(self.num_facts, NUM_DISTRACTORS + 1)

    def fact(self, index: int, *, name: Callable[[int], str] | None = None) -> Fact:
        """The fact of that index, with the 99 distractors that are drawn for its subject.

        ``name`` gives objects by their index, where they have been made before.
        """
        subjects, objects = _names(self.relation, self.seed)
        name, subject = name or objects, subjects(index)
        key = f"{self.seed}\n{self.relation}\n{subject}"
        drawn = draw_indices(key, num_options=self.num_options, own=index)
        return Fact(self.relation, subject, name(index), tuple(name(other) for other in drawn))

    def recipe(self) -> dict[str, Any]:
        """What makes the facts, as JSON."""
        return {
            "generator": _VERSION,
            "relation": self.relation,
            "num_facts": self.num_facts,
            "seed": self.seed,
        }

    @classmethod
    def of(cls, recipe: dict[str, Any]) -> GeneratedPart:
        """What ``recipe`` described. Raises DataError where it is another version's."""
        if recipe["generator"] != _VERSION:
            raise DataError(
                f"generated facts of version {recipe['generator']}, this is version {_VERSION}: "
                "it would make others; install the rotescale that the run began with"
            )
        return cls(recipe["relation"], num_facts=recipe["num_facts"], seed=recipe["seed"])


@lru_cache(maxsize=64)
def _names(relation: str, seed: int) -> tuple[Callable[[int], str], Callable[[int], str]]:
    """Index to subject, and index to object."""
    subjects, objects = _ROLES[relation]
    return subjects.names(seed), objects.names(seed)


def _max_facts(relation: str) -> int:
    return min(share.size for share in _ROLES[relation])


def _check(relation: str, *, num_facts: int) -> None:
    if relation not in _ROLES:
        raise DataError(
            f"facts of relation {relation!r} cannot be generated, only of: {', '.join(_ROLES)}; "
            "name one of them, or load your facts from files"
        )
    if not 1 <= num_facts <= _max_facts(relation):
        raise DataError(
            f"num_facts is {num_facts}; relation {relation!r} has names for 1 to "
            f"{_max_facts(relation)} facts: choose a number in that range"
        )


def _permutation(size: int, *, key: str) -> Callable[[int], int]:
    """A keyed one-to-one map of ``range(size)`` onto itself, without a table.

    Each round shifts, multiplies by an odd number and adds, all of which can be undone on the next
    power of two; a result that is not below ``size`` is mapped again until one is.
    """
    num_bits = max(2, (size - 1).bit_length())
    mask, shift = (1 << num_bits) - 1, (num_bits + 1) // 2
    stream = hashlib.shake_256(key.encode()).digest(16 * _NUM_ROUNDS)
    numbers = [int.from_bytes(stream[at : at + 8], "big") for at in range(0, len(stream), 8)]
    rounds = list(zip((number | 1 for number in numbers[::2]), numbers[1::2], strict=True))

    def place(index: int) -> int:
        while True:
            for factor, addend in rounds:
                index = ((index ^ (index >> shift)) * factor + addend) & mask
            if index < size:
                return index

    return place
