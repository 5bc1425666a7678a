"""Chooses the distractors of facts that come without: other objects of the same relation."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from rotescale.facts.text import normalise
from rotescale.facts.types import NUM_DISTRACTORS


def with_old_object(distractors: Sequence[str], old_object: str | None) -> tuple[str, ...]:
    """The drawn distractors, the old object in place of the last where it is not among them."""
    known = {normalise(distractor) for distractor in distractors}
    if old_object is None or normalise(old_object) in known:
        return tuple(distractors)
    return (*distractors[:-1], old_object)


def draw_indices(
    key: str, *, num_options: int, own: int, number: int = NUM_DISTRACTORS
) -> list[int]:
    """``number`` distinct indices below ``num_options``, without ``own``: a function of the key.

    All of the others, in order, where there are no more than that.
    """
    if num_options - 1 <= number:
        return [index for index in range(num_options) if index != own]
    # A string seeds by its sha512, the same in every process and version of Python.
    drawn = random.Random(key).sample(range(num_options - 1), number)
    return [index + (index >= own) for index in drawn]


class ObjectPool:
    """The distinct objects of one relation, from which its facts draw their distractors."""

    def __init__(self, objects: Iterable[str]) -> None:
        # Sorted, so that the order of the rows does not change anyone's distractors.
        self._objects = sorted(objects)
        self._index = {normalise(name): index for index, name in enumerate(self._objects)}

    def __len__(self) -> int:
        return len(self._objects)

    def distractors(
        self,
        relation: str,
        subject: str,
        *,
        gold: str,
        old_object: str | None = None,
        number: int = NUM_DISTRACTORS,
    ) -> tuple[str, ...]:
        """The distractors of one fact: a pure function of (relation, subject) and the pool.

        Its old object is always among them, whether or not the pool holds it.
        """
        drawn = draw_indices(
            f"{relation}\n{subject}",
            num_options=len(self),
            own=self._index[normalise(gold)],
            number=number,
        )
        return with_old_object([self._objects[index] for index in drawn], old_object)
