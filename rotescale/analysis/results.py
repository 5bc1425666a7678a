"""What a run measured, out of its records: results.json, a table, and paired differences."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from rich.box import SIMPLE_HEAD
from rich.table import Table

from rotescale.errors import DataError
from rotescale.evaluation.items import PROMPT_KINDS, SPLITS
from rotescale.evaluation.metrics import Outcome, paired_difference
from rotescale.records import EvaluationRow, read_records
from rotescale.run_dir import RunDir
from rotescale.storage import StoragePath, write_atomic

_NOT_RESULTS = {"kind", "attempt"}

HEADINGS = {
    "key_token": "key token",
    "train": "train prompts",
    "test": "test prompts",
    "unrelated": "unrelated",
    "wrong_relation": "wrong relation",
    "reversed": "reversed",
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
    """One metric of one relation: a line per split and kind of prompts, a column per stage."""
    chosen = [row for row in rows if (row.relation, row.metric) == (relation, metric)]
    stages = list(dict.fromkeys((row.stage, row.epoch) for row in chosen))
    table = _table(f"{relation}: {METRIC_HEADINGS[metric]}, with 95 % intervals over facts")
    table.add_column("asked with", no_wrap=True)
    table.add_column("n", justify="right")
    for stage, epoch in stages:
        table.add_column(stage if epoch is None else f"{stage} {epoch}", justify="right")
    for split in SPLITS:
        of_split = [row for row in chosen if row.split == split]
        if of_split:
            table.add_row(f"{split.replace('_', '-')} facts", style="bold")
        for kind in PROMPT_KINDS:
            found = {(r.stage, r.epoch): r for r in of_split if r.prompts == kind}
            if found:
                count = str(next(iter(found.values())).count)
                cells = [_cell(found.get(stage)) for stage in stages]
                table.add_row(f"  {HEADINGS[kind]}", count, *cells)
    return table


def _table(title: str) -> Table:
    """A table without vertical lines, so that three stages fit into 80 characters."""
    return Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 0, 0, 1))


def _cell(row: EvaluationRow | None) -> str:
    if row is None:
        return "-"
    if row.low is None or row.high is None:
        return f"{row.value:.2f}"
    return f"{row.value:.2f} [{row.low:.2f} {row.high:.2f}]"


def comparison_table(runs: Mapping[str, Sequence[EvaluationRow]], *, relation: str) -> Table:
    """Multiple choice on held-out facts of several runs: before the last phase → after it."""
    table = _table(f"{relation}, held-out facts: multiple choice before → after the last phase")
    table.add_column("asked with", no_wrap=True)
    for name in runs:
        table.add_column(name, justify="right")
    table.add_column(f"mean of {len(runs)}", justify="right")
    for kind in PROMPT_KINDS:
        pairs = [_last_two(rows, relation=relation, kind=kind) for rows in runs.values()]
        known = [pair for pair in pairs if pair is not None]
        mean = "-"
        if len(known) == len(pairs):
            before, after = (sum(column) / len(known) for column in zip(*known, strict=True))
            mean = f"{before:.2f} → {after:.2f}"
        cells = ["-" if pair is None else f"{pair[0]:.2f} → {pair[1]:.2f}" for pair in pairs]
        table.add_row(HEADINGS[kind], *cells, mean)
    return table


def _last_two(
    rows: Sequence[EvaluationRow], *, relation: str, kind: str
) -> tuple[float, float] | None:
    """Accuracy at the last two stages; None where it was not measured at two."""
    found = [
        row.value
        for row in rows
        if (row.relation, row.metric, row.epoch) == (relation, "multiple_choice", None)
        and (row.split, row.prompts) == ("held_out", kind)
    ]
    return (found[-2], found[-1]) if len(found) > 1 else None


def read_outcomes(run_dir: RunDir, stage: str) -> list[Outcome]:
    """What each question of a stage's end came to."""
    path = run_dir.evaluation(stage, None)
    try:
        _, *lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise DataError(f"{path}: stage {stage!r} was not evaluated; run it to its end") from None
    return [Outcome.from_json(json.loads(line)) for line in lines]


def differences_table(run_dir: RunDir, stages: Sequence[str], *, seed: int) -> Table:
    """Multiple choice on held-out facts, each stage against the one before, paired by fact."""
    table = _table("held-out facts: change of multiple choice, paired over facts")
    table.add_column("asked with", no_wrap=True)
    outcomes = {stage: read_outcomes(run_dir, stage) for stage in stages}
    pairs = list(pairwise(stages))
    for before, after in pairs:
        table.add_column(f"{before} to {after}", justify="right")
    for kind in PROMPT_KINDS:
        cells = [
            _difference(outcomes[before], outcomes[after], kind=kind, seed=seed)
            for before, after in pairs
        ]
        table.add_row(HEADINGS[kind], *cells)
    return table


def _difference(before: list[Outcome], after: list[Outcome], *, kind: str, seed: int) -> str:
    a, b = (
        [o for o in outcomes if (o.split, o.prompts) == ("held_out", kind)]
        for outcomes in (before, after)
    )
    if not a:
        return "-"
    value, low, high = paired_difference(a, b, metric="multiple_choice", seed=seed)
    return f"{value:+.2f} [{low:+.2f} {high:+.2f}]"
