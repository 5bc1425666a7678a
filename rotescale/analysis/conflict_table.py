"""The table of conflicts: whether a model says what it held before, or what it was told."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from rich.table import Table

from rotescale.analysis.results import HEADINGS, open_table, value_cell
from rotescale.evaluation.conflict import BELIEVED, CONFLICT
from rotescale.evaluation.items import PROMPT_KINDS, SPLITS
from rotescale.records import ALL_RELATIONS, EvaluationRow

CONFLICT_HEADINGS = {
    "multiple_choice": "new wins",
    "prefers_old": "old wins",
    "prefers_neither": "neither wins",
    "object_probability": "P(new)",
    "old_probability": "P(old)",
    "new_over_old": "new over old",
}
"""What the metrics of conflicts are called, in the order of their lines."""

_FIRST = next(iter(CONFLICT_HEADINGS))


def conflict_table(rows: Sequence[EvaluationRow]) -> Table | None:
    """Which of old and new object wins, and how probable both are; None where it was not asked.

    Of the facts that the untrained model held, over all relations; where there is none, of all that
    were asked about. A column per stage, a line per split, kind of prompts and measure.
    """
    suite = BELIEVED if any(row.suite == BELIEVED for row in rows) else CONFLICT
    chosen = _of_suite(rows, suite)
    if not chosen:
        return None
    stages = list(dict.fromkeys((row.stage, row.epoch) for row in chosen))
    table = open_table(f"{chosen[0].relation}, conflict: {_about(rows)}, with 95 % intervals")
    for heading in ("facts", "asked with", "", "n"):
        table.add_column(heading, no_wrap=True)
    for stage, epoch in stages:
        table.add_column(stage if epoch is None else f"{stage} {epoch}", justify="right")
    for split, kind, (metric, heading) in product(SPLITS, PROMPT_KINDS, CONFLICT_HEADINGS.items()):
        found = {
            (row.stage, row.epoch): row
            for row in chosen
            if (row.split, row.prompts, row.metric) == (split, kind, metric)
        }
        if found:
            names = (split.replace("_", "-"), HEADINGS[kind]) if metric == _FIRST else ("", "")
            count = str(next(iter(found.values())).count)
            table.add_row(*names, heading, count, *(value_cell(found.get(at)) for at in stages))
    return table


def _of_suite(rows: Sequence[EvaluationRow], suite: str) -> list[EvaluationRow]:
    """The suite's rows over all relations, or of the only one."""
    of_suite = [row for row in rows if row.suite == suite and row.metric in CONFLICT_HEADINGS]
    relations = [row.relation for row in of_suite]
    relation = ALL_RELATIONS if ALL_RELATIONS in relations else next(iter(relations), "")
    return [row for row in of_suite if row.relation == relation]


def _about(rows: Sequence[EvaluationRow]) -> str:
    """Which facts the table shows, and which part of those asked about they are."""
    counts = [
        {
            (row.stage, row.epoch, row.split): row.count
            for row in _of_suite(rows, suite)
            if (row.prompts, row.metric) == ("train", _FIRST)
        }
        for suite in (BELIEVED, CONFLICT)
    ]
    believed, asked = (sum(of_suite.values()) for of_suite in counts)
    if not believed:
        return "all facts asked about"
    return f"believed facts ({believed / asked:.0%})"
