"""Drops what is twice in imported facts, where a user asks for it, and says how much that was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from rotescale.facts.check import by_relation
from rotescale.facts.rows import Row
from rotescale.facts.text import normalise


def repaired(rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """The rows without what is twice, and what was dropped, in words, a line per relation.

    Dropped are repeated pairs, objects among their own distractors, and repeated distractors.
    Where that leaves facts of a relation with unequal numbers of distractors, or they came so, all
    are cut to the least, so that they have one chance level. A subject with two different objects
    stays, to be refused: which of them is meant cannot be guessed.
    """
    kept: list[Row] = []
    dropped = {row.relation: Counter[str]() for row in rows}
    pairs: set[tuple[str, str, str]] = set()
    for row in rows:
        pair = (row.relation, normalise(row.subject), normalise(row.object))
        if pair in pairs:
            dropped[row.relation]["repeated facts"] += 1
            continue
        pairs.add(pair)
        kept.append(_without_repeats(row, dropped[row.relation]))
    least = {name: _least(members) for name, members in by_relation(kept).items()}
    for index, row in enumerate(kept):
        most = least[row.relation]
        if row.distractors is not None and len(row.distractors) > most:
            dropped[row.relation]["distractors beyond the least number"] += (
                len(row.distractors) - most
            )
            kept[index] = replace(row, distractors=row.distractors[:most])
    notes = [
        f"relation {name!r}: dropped {', '.join(f'{n} {what}' for what, n in counts.items())}; "
        f"{least[name]} distractors are left for each fact"
        for name, counts in dropped.items()
        if counts
    ]
    return kept, notes


def _without_repeats(row: Row, dropped: Counter[str]) -> Row:
    """The row with distinct distractors, none of them its object."""
    if row.distractors is None:
        return row
    gold = normalise(row.object)
    kept: dict[str, str] = {}
    for distractor in row.distractors:
        name = normalise(distractor)
        if name == gold:
            dropped["objects among their distractors"] += 1
        elif name in kept:
            dropped["repeated distractors"] += 1
        else:
            kept[name] = distractor
    return replace(row, distractors=tuple(kept.values()))


def _least(rows: Sequence[Row]) -> int:
    """The least number of distractors; a fact without any does not count, and will be refused."""
    return min((len(row.distractors) for row in rows if row.distractors), default=0)
