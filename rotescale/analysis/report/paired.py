"""The section about methods against each other, paired by seed and fact."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from rotescale.analysis.report.estimates import OWN, What, are_paired, difference
from rotescale.analysis.report.material import Group, Material, Stage
from rotescale.analysis.report.page import Content, Section, number, table
from rotescale.analysis.report.sections import MAIN_KINDS, comparable, mean_cost
from rotescale.analysis.results import HEADINGS
from rotescale.evaluation.items import CORE

MOST_PAIRS = 60

_FACTS = {
    ("held_out", "held_out"): "held out in both",
    ("held_out", "trained"): "held out in the first, told to the second",
    ("trained", "held_out"): "told to the first, held out in the second",
    ("trained", "trained"): "told to both",
}
"""Splits of the first and the second method -> which facts are compared."""


@dataclass(frozen=True)
class _Pair:
    """Two methods, and the kinds of prompts that both were asked with about the same facts."""

    one: Group
    two: Group
    splits: tuple[str, str]
    kinds: tuple[str, ...]

    @property
    def methods(self) -> tuple[str, str]:
        return self.one.method, self.two.method


def paired_section(material: Material) -> Section | str:
    """Differences between methods, paired by seed and fact."""
    methods = list(dict.fromkeys(group.method for group in material.groups))
    if len(methods) < 2:
        return "Methods against each other: it takes a study with baselines."
    compared = (_pair(*two) for two in combinations(material.groups, 2) if comparable(*two))
    pairs = [pair for pair in compared if pair.kinds]
    if not pairs:
        return "Methods against each other: no two methods share seeds and facts."
    kept = _dealt(pairs)
    rows = [row for pair in kept for row in _rows(pair)]
    more = ""
    if len(kept) < len(pairs):
        more = f" {len(kept)} of {len(pairs)} pairs, dealt evenly over the pairs of methods."
    headings = ["setting", "less", "asked with", "which facts", "facts", "seeds"]
    return Section(
        "paired",
        "Methods against each other",
        "Differences on questions about the same facts, asked under the same seed. A method that "
        "tells every fact with a prompt holds none out: it is compared on the facts that the other "
        "one held out, of which it was told, so it has been trained on the very train prompt, and "
        "test prompts say more. Tokens are those that each was trained on, mean over seeds. 95 % "
        "intervals over facts, and over seeds where there are two or more; not corrected for the "
        f"number of comparisons ({len(rows)}).{more}",
        (
            table(
                "Difference of accuracy at the end of training: the first setting less the second",
                [*headings, "difference", "tokens", "tokens of the second"],
                rows,
            ),
        ),
    )


def _pair(one: Group, two: Group) -> _Pair:
    splits = (_split(one), _split(two))
    has_keys = one.first.memorize is not None and two.first.memorize is not None
    asked = [kind for kind in MAIN_KINDS if kind != "key_token" or has_keys]
    ends = (_end(two), _end(one))
    known = [k for k in asked if are_paired(*ends, What(OWN, k), splits=splits[::-1])]
    return _Pair(one, two, splits, tuple(known))


def _end(group: Group) -> tuple[Group, Stage]:
    return group, group.first.end


def _split(group: Group) -> str:
    """Held-out facts, or those told with a prompt where no others were asked about."""
    asked = (o for cell in group.cells for o in cell.outcomes(group.first.end) if o.suite == CORE)
    splits = {outcome.split for outcome in asked}
    return "trained" if splits == {"trained"} else "held_out"


def _dealt(pairs: Sequence[_Pair]) -> list[_Pair]:
    """At most so many, of every two methods as many as of any others; in their own order."""
    seen: Counter[tuple[str, str]] = Counter()
    turns: list[tuple[int, int]] = []
    for place, pair in enumerate(pairs):
        turns.append((seen[pair.methods], place))
        seen[pair.methods] += 1
    chosen = sorted(place for _, place in sorted(turns)[:MOST_PAIRS])
    return [pairs[place] for place in chosen]


def _rows(pair: _Pair) -> list[list[Content]]:
    tokens: list[Content] = [mean_cost(group).num_tokens for group in (pair.one, pair.two)]
    rows: list[list[Content]] = []
    for kind in pair.kinds:
        found = difference(
            _end(pair.two), _end(pair.one), What(OWN, kind), splits=pair.splits[::-1]
        )
        assert found is not None
        about = [pair.one.name, pair.two.name, HEADINGS[kind], _FACTS[pair.splits]]
        counts: list[Content] = [found.num_facts, len(found.seeds)]
        rows.append([*about, *counts, number(found, signed=True), *tokens])
    return rows
