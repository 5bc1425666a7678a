"""What a run measured, out of its records: results.json, a table, and paired differences."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from rich.box import SIMPLE_HEAD
from rich.table import Table

from rotescale.errors import DataError
from rotescale.evaluation import outcome_file
from rotescale.evaluation.conflict import BELIEVED, CONFLICT
from rotescale.evaluation.harness.results import HARNESS
from rotescale.evaluation.items import CORE, PROMPT_KINDS, SPLITS, TRANSLATED_KINDS
from rotescale.evaluation.metrics import (
    TEXT_LOSS,
    Outcome,
    mean_over_seeds,
    paired_difference,
    paired_difference_over_seeds,
)
from rotescale.records import ALL_RELATIONS, EvaluationRow, read_records
from rotescale.run_dir import RunDir
from rotescale.spec import BASE_LANGUAGE
from rotescale.storage import StoragePath, write_atomic

_NOT_RESULTS = {"kind", "attempt"}

HEADINGS = {
    "key_token": "key token",
    "train": "train prompts",
    "test": "test prompts",
    "unrelated": "unrelated",
    "wrong_relation": "wrong relation",
    "reversed": "reversed",
    "two_hop": "two hops",
}
METRIC_HEADINGS = {
    "multiple_choice": "multiple choice",
    "multiple_choice_normalized": "multiple choice, by token",
    "object_probability": "object probability",
    "object_share": "object share",
    "generation_exact": "generation, exact",
    "generation_contains": "generation, contains",
}


def write_results(run_dir: RunDir) -> tuple[EvaluationRow, ...]:
    """Write results.json, a list of rows in the order they were measured, and return them."""
    rows = read_records(run_dir).evaluations
    write_rows(rows, run_dir.results_json)
    return rows


def write_rows(rows: Iterable[EvaluationRow], path: StoragePath) -> None:
    """Write evaluation rows as a JSON list, a row a line."""
    lines = [json.dumps(row.model_dump(exclude=_NOT_RESULTS)) for row in rows]
    write_atomic(path, ("[\n" + ",\n".join(lines) + "\n]\n").encode())


def results_table(
    rows: Sequence[EvaluationRow], *, relation: str, metric: str = "multiple_choice"
) -> Table:
    """One metric of one relation in English: a line per split and kind of prompts.

    A column per stage.
    """
    lines = [(kind, BASE_LANGUAGE, HEADINGS[kind]) for kind in PROMPT_KINDS]
    title = f"{relation}: {METRIC_HEADINGS[metric]}, with 95 % intervals over facts"
    return _stages_table(title, _measured(rows, relation=relation, metric=metric), lines)


def languages_table(
    rows: Sequence[EvaluationRow], *, relation: str, metric: str = "multiple_choice"
) -> Table:
    """The same by language: a line per split, kind of prompts that are translated, and language."""
    lines = [
        (kind, language, f"{HEADINGS[kind]}, {language}")
        for kind in TRANSLATED_KINDS
        for language in languages_of(rows)
    ]
    title = f"{relation}: {METRIC_HEADINGS[metric]} by language, with 95 % intervals over facts"
    return _stages_table(title, _measured(rows, relation=relation, metric=metric), lines)


def languages_of(rows: Iterable[EvaluationRow | Outcome]) -> tuple[str, ...]:
    """The languages that were asked in, English first, then as they were asked."""
    return tuple(dict.fromkeys([BASE_LANGUAGE, *(row.language for row in rows)]))


def core_relations(rows: Iterable[EvaluationRow]) -> list[str]:
    """The relations that the core asks about, in order; ``all`` last where there are several."""
    return list(dict.fromkeys(row.relation for row in rows if row.suite == CORE))


SUITE_METRICS = {"capability": TEXT_LOSS}
"""The metric of a suite's table; of the others multiple choice, and of the harness's all."""


def suites_table(rows: Sequence[EvaluationRow]) -> Table | None:
    """What each suite beyond the core measured, a column per stage; None where there is none.

    Multiple choice; of capability the loss in nats per token, where less is better; of the
    harness's tasks the metric that the line names. Conflicts have a table of their own.
    """
    chosen = [
        row
        for row in rows
        if row.suite == HARNESS
        or (
            row.suite not in (CORE, CONFLICT, BELIEVED)
            and row.metric == SUITE_METRICS.get(row.suite, "multiple_choice")
        )
    ]
    if not chosen:
        return None
    stages = list(dict.fromkeys((row.stage, row.epoch) for row in chosen))
    told = "multiple choice, or loss in nats per token"
    told += ", or the metric named" if any(row.suite == HARNESS for row in chosen) else ""
    table = open_table(f"suites: {told}, with 95 % intervals")
    for heading in ("suite", "about", "asked with", "n"):
        table.add_column(heading, no_wrap=True)
    for stage, epoch in stages:
        table.add_column(stage if epoch is None else f"{stage} {epoch}", justify="right")
    groups: dict[tuple[str, ...], dict[tuple[str, int | None], EvaluationRow]] = {}
    for row in chosen:
        asked_with = row.metric if row.suite == HARNESS else HEADINGS.get(row.prompts, row.prompts)
        key = (row.suite, _about(row), asked_with)
        groups.setdefault(key, {})[row.stage, row.epoch] = row
    for (suite, about, asked_with), found in groups.items():
        count = str(next(iter(found.values())).count)
        cells = [value_cell(found.get(stage)) for stage in stages]
        table.add_row(suite, about, asked_with, count, *cells)
    return table


def _about(row: EvaluationRow) -> str:
    is_document = row.suite == HARNESS or row.prompts == "text"
    return row.relation if is_document else f"{row.relation}, {row.split.replace('_', '-')}"


def _measured(
    rows: Sequence[EvaluationRow], *, relation: str, metric: str
) -> Sequence[EvaluationRow]:
    wanted = (CORE, relation, metric)
    return [row for row in rows if (row.suite, row.relation, row.metric) == wanted]


def _stages_table(
    title: str, rows: Sequence[EvaluationRow], lines: Sequence[tuple[str, str, str]]
) -> Table:
    """The lines (kind of prompts, language, heading) of each split, with a column per stage."""
    stages = list(dict.fromkeys((row.stage, row.epoch) for row in rows))
    table = open_table(title)
    table.add_column("asked with", no_wrap=True)
    table.add_column("n", justify="right")
    for stage, epoch in stages:
        table.add_column(stage if epoch is None else f"{stage} {epoch}", justify="right")
    for split in SPLITS:
        of_split = [row for row in rows if row.split == split]
        if of_split:
            table.add_row(f"{split.replace('_', '-')} facts", style="bold")
        for kind, language, heading in lines:
            found = {
                (row.stage, row.epoch): row
                for row in of_split
                if (row.prompts, row.language) == (kind, language)
            }
            if found:
                count = str(next(iter(found.values())).count)
                table.add_row(f"  {heading}", count, *(value_cell(found.get(at)) for at in stages))
    return table


def open_table(title: str) -> Table:
    """A table without vertical lines, so that three stages fit into 80 characters."""
    return Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 0, 0, 1))


def value_cell(row: EvaluationRow | None) -> str:
    """Such as ``0.50 [0.41 0.59]``; a dash where nothing was measured."""
    if row is None:
        return "-"
    if row.low is None or row.high is None:
        return _number(row.value)
    return f"{_number(row.value)} [{_number(row.low)} {_number(row.high)}]"


def _number(value: float) -> str:
    """A perplexity may be large."""
    return f"{value:.2f}" if abs(value) < 10_000 else f"{value:.2e}"


def comparison_table(runs: Mapping[str, Sequence[EvaluationRow]], *, relation: str) -> Table:
    """Multiple choice on held-out facts of several runs: before the last phase → after it."""
    table = open_table(f"{relation}, held-out facts: multiple choice before → after the last phase")
    table.add_column("asked with", no_wrap=True)
    for name in runs:
        table.add_column(name, justify="right")
    table.add_column(f"mean of {len(runs)}", justify="right")
    every_language = languages_of(row for rows in runs.values() for row in rows)
    for kind, language, heading in _lines(every_language):
        pairs = [
            _last_two(rows, relation=relation, kind=kind, language=language)
            for rows in runs.values()
        ]
        known = [pair for pair in pairs if pair is not None]
        mean = "-"
        if len(known) == len(pairs):
            before, after = (sum(column) / len(known) for column in zip(*known, strict=True))
            mean = f"{before:.2f} → {after:.2f}"
        cells = ["-" if pair is None else f"{pair[0]:.2f} → {pair[1]:.2f}" for pair in pairs]
        table.add_row(heading, *cells, mean)
    return table


def seeds_table(
    before: Mapping[int, Sequence[Outcome]],
    after: Mapping[int, Sequence[Outcome]],
    *,
    relation: str,
) -> Table | None:
    """Over runs that differ in their seed: held-out facts after the last phase, and the change.

    ``before`` and ``after`` are what the questions of the last two stages came to, by seed. Seeds
    and facts are both a sample, and the change is paired by both. None for fewer than two seeds.
    """
    if len(after) < 2:
        return None
    table = open_table(f"{relation}, held-out facts: after the last phase, over {len(after)} seeds")
    table.add_column("asked with", no_wrap=True)
    for name in ("n", "multiple choice", "change"):
        table.add_column(name, justify="right")
    for kind, language, heading in _lines(languages_of(o for one in after.values() for o in one)):
        a, b = (
            {seed: _group(found, relation, kind, language) for seed, found in of_stage.items()}
            for of_stage in (before, after)
        )
        if not (all(a.values()) and all(b.values())):
            continue
        n = sum(map(len, b.values()))
        mean = mean_over_seeds(b, metric="multiple_choice", seed=0)
        change = paired_difference_over_seeds(a, b, metric="multiple_choice", seed=0)
        cells = [
            "{:.2f} [{:.2f} {:.2f}]".format(*mean),
            "{:+.2f} [{:+.2f} {:+.2f}]".format(*change),
        ]
        table.add_row(heading, str(n), *cells)
    return table


def _group(outcomes: Sequence[Outcome], relation: str, kind: str, language: str) -> list[Outcome]:
    """Those of the core about held-out facts of the relation, or of all."""
    return [
        one
        for one in outcomes
        if (one.suite, one.split) == (CORE, "held_out")
        and (one.prompts, one.language) == (kind, language)
        and relation in (one.relation, ALL_RELATIONS)
    ]


def _lines(languages: Sequence[str]) -> list[tuple[str, str, str]]:
    """(kind of prompts, language, heading) in order; each further language below English."""
    return [
        (kind, language, HEADINGS[kind] + ("" if language == BASE_LANGUAGE else f", {language}"))
        for kind in PROMPT_KINDS
        for language in (languages if kind in TRANSLATED_KINDS else (BASE_LANGUAGE,))
    ]


def _last_two(
    rows: Sequence[EvaluationRow], *, relation: str, kind: str, language: str
) -> tuple[float, float] | None:
    """Accuracy at the last two stages; None where it was not measured at two."""
    found = [
        row.value
        for row in rows
        if (row.suite, row.relation) == (CORE, relation)
        and (row.metric, row.epoch) == ("multiple_choice", None)
        and (row.split, row.prompts, row.language) == ("held_out", kind, language)
    ]
    return (found[-2], found[-1]) if len(found) > 1 else None


def read_outcomes(run_dir: RunDir, stage: str) -> list[Outcome]:
    """What each question of a stage's end came to."""
    path = run_dir.evaluation(stage, None)
    try:
        return outcome_file.read_outcomes(path)
    except FileNotFoundError:
        raise DataError(f"{path}: stage {stage!r} was not evaluated; run it to its end") from None


def differences_table(outcomes: Mapping[str, Sequence[Outcome]], *, seed: int) -> Table:
    """Multiple choice on held-out facts, each stage against the one before, paired by fact.

    ``outcomes`` by stage, in order.
    """
    table = open_table("held-out facts: change of multiple choice, paired over facts")
    table.add_column("asked with", no_wrap=True)
    pairs = list(pairwise(outcomes))
    for before, after in pairs:
        table.add_column(f"{before} to {after}", justify="right")
    every_language = languages_of(o for of_stage in outcomes.values() for o in of_stage)
    for kind, language, heading in _lines(every_language):
        group = {
            stage: _group(found, ALL_RELATIONS, kind, language) for stage, found in outcomes.items()
        }
        cells = [_difference(group[before], group[after], seed=seed) for before, after in pairs]
        table.add_row(heading, *cells)
    return table


def _difference(before: Sequence[Outcome], after: Sequence[Outcome], *, seed: int) -> str:
    """The change in the answers to the same questions; a dash where one side was not asked."""
    if not before or not after:
        return "-"
    value, low, high = paired_difference(before, after, metric="multiple_choice", seed=seed)
    return f"{value:+.2f} [{low:+.2f} {high:+.2f}]"
