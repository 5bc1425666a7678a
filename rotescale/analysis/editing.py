"""What a model editor reached on the same facts, as rows beside a run's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.table import Table

from rotescale.analysis.results import HEADINGS, open_table, value_cell
from rotescale.errors import SpecError
from rotescale.evaluation.intervals import bootstrap_interval
from rotescale.facts import FactSet
from rotescale.facts.easyedit import Edited, read_results
from rotescale.records import ALL_RELATIONS, EvaluationRow
from rotescale.spec import BASE_LANGUAGE

SUITE = "editing"
TOKEN_ACCURACY = "token_accuracy"
"""Part of the target's tokens that are predicted, each behind the true ones before it."""
WHOLE_TARGET = "whole_target"
"""1 where all of them are, as they must be for the model to write the target by itself."""

EDITED = "edit"
"""The stage behind the edits; before them it is ``base``."""

_STAGES = {"pre": "base", "post": EDITED}
_PROMPTS = {
    "rewrite_acc": "train",
    "rephrase_acc": "test",
    "wrong_relation_acc": "wrong_relation",
    "reversed_acc": "reversed",
}
_VALUES: Mapping[str, Callable[[float], float]] = {
    TOKEN_ACCURACY: float,
    WHOLE_TARGET: lambda value: float(value >= 1.0),
}


def read_editing(
    path: Path, fact_set: FactSet, *, seed: int = 0, bootstrap_samples: int = 10_000
) -> tuple[EvaluationRow, ...]:
    """A row per relation (and for all), stage, kind of prompts and metric of EasyEdit's results.

    An edit tells a fact with a prompt, so all of its facts are trained ones. Raises DataError where
    the file holds no results about these facts.
    """
    edited = read_results(path, fact_set)
    relations = list(dict.fromkeys(fact_set.facts[one.fact].relation for one in edited))
    rows = []
    for relation in [*relations, *([ALL_RELATIONS] if len(relations) > 1 else [])]:
        about = [
            one for one in edited if relation in (ALL_RELATIONS, fact_set.facts[one.fact].relation)
        ]
        for (moment, metric), group in _grouped(about).items():
            for name, value_of in _VALUES.items():
                values = np.array([value_of(one.value) for one in group])
                low, high = bootstrap_interval(
                    values,
                    facts=np.array([one.fact for one in group]),
                    num_samples=bootstrap_samples,
                    seed=seed,
                )
                rows.append(
                    EvaluationRow(
                        attempt=0,
                        relation=relation,
                        stage=_STAGES[moment],
                        epoch=None,
                        seed=seed,
                        suite=SUITE,
                        split="trained",
                        prompts=_PROMPTS[metric],
                        language=BASE_LANGUAGE,
                        metric=name,
                        value=float(values.mean()),
                        count=len(group),
                        low=low,
                        high=high,
                    )
                )
    return tuple(rows)


def _grouped(edited: Iterable[Edited]) -> Mapping[tuple[str, str], list[Edited]]:
    """Values by moment and EasyEdit's metric, before the edits first."""
    groups: dict[tuple[str, str], list[Edited]] = {}
    for one in sorted(edited, key=lambda one: list(_STAGES).index(one.moment)):
        groups.setdefault((one.moment, one.metric), []).append(one)
    return groups


def parse_editings(texts: Iterable[str]) -> dict[str, Path]:
    """Method -> file of ``ROME=results.json``, each method once."""
    found: dict[str, Path] = {}
    for text in texts:
        name, _, path = text.partition("=")
        if not name or not path or name in found:
            raise SpecError(
                f"--easyedit {text!r}: write it as METHOD=FILE, such as ROME=results.json, each "
                "method once"
            )
        found[name] = Path(path)
    return found


def editing_table(rows: Sequence[EvaluationRow], *, method: str) -> Table:
    """A line per relation and kind of prompts; what was reached before and behind the edits."""
    table = open_table(f"{method}, edited facts: predicted targets, with 95 % intervals")
    for heading in ("about", "asked with", "n"):
        table.add_column(heading, no_wrap=True)
    columns = [(stage, metric) for metric in _VALUES for stage in _STAGES.values()]
    for stage, metric in columns:
        table.add_column(f"{metric.replace('_', ' ')}, {stage}", justify="right")
    lines: dict[tuple[str, str], dict[tuple[str, str], EvaluationRow]] = {}
    for row in rows:
        lines.setdefault((row.relation, row.prompts), {})[row.stage, row.metric] = row
    for (relation, prompts), found in lines.items():
        count = str(next(iter(found.values())).count)
        cells = [value_cell(found.get(column)) for column in columns]
        table.add_row(relation, HEADINGS[prompts], count, *cells)
    return table
