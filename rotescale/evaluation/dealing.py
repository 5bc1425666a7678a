"""Which rank is asked which questions; neighbours that begin alike mostly go to the same one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

LEAST_ALIKE = 256
"""Characters that neighbours begin with alike where one rank is to compute them once: about the
``LEAST_SHARED_TOKENS`` that passes share."""
_MOST_TOGETHER = 32
"""Neighbours dealt at a time: by then each adds little of what is computed once."""


def deal(texts: Sequence[str], world_size: int) -> list[list[int]]:
    """Places of each rank's questions, in order; together each place once.

    Neighbours that begin alike go to one rank, at most so many that each rank gets two portions,
    and a portion to the rank that has the fewest so far. All others are dealt one by one.
    """
    if world_size == 1:
        return [list(range(len(texts)))]
    groups = list(_groups(texts))
    in_groups = sum(len(group) for group in groups if len(group) > 1)
    most = max(1, min(_MOST_TOGETHER, -(-in_groups // (2 * world_size))))
    dealt: list[list[int]] = [[] for _ in range(world_size)]
    loads = [0] * world_size
    single = 0
    for group in groups:
        if len(group) == 1:
            # Apart from the groups, whose questions are longer.
            dealt[single % world_size].extend(group)
            single += 1
            continue
        for portion in _portions(group, most):
            least = loads.index(min(loads))
            dealt[least].extend(portion)
            loads[least] += len(portion)
    return dealt


def _groups(texts: Sequence[str]) -> Iterator[range]:
    """Neighbours that begin alike, each of which may be alone."""
    borders = [
        place
        for place, (one, after) in enumerate(pairwise(texts), start=1)
        if len(one) < LEAST_ALIKE or one[:LEAST_ALIKE] != after[:LEAST_ALIKE]
    ]
    for first, stop in pairwise([0, *borders, len(texts)]):
        if first < stop:
            yield range(first, stop)


def _portions(group: range, most: int) -> Iterator[range]:
    """The group in as few portions of up to ``most`` as there can be, about alike in size."""
    number = -(-len(group) // most)
    for portion in range(number):
        yield group[portion * len(group) // number : (portion + 1) * len(group) // number]
