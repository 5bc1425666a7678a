"""Tables of results: English as it is, other languages in lines of their own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rotescale.analysis.conflict_table import conflict_table
from rotescale.analysis.results import (
    comparison_table,
    differences_table,
    languages_of,
    languages_table,
    read_outcomes,
    results_table,
    seeds_table,
    suites_table,
)
from rotescale.evaluation.metrics import Outcome
from rotescale.records import EvaluationRow
from rotescale.run_dir import RunDir

STAGES = ("base", "memorize")
ENGLISH = {("test", "en"): (0.1, 0.5), ("key_token", "en"): (0.0, 1.0)}
SEVERAL = {**ENGLISH, ("test", "de"): (0.2, 0.3)}


def rows_of(values: dict[tuple[str, str], tuple[float, float]]) -> list[EvaluationRow]:
    """Rows of held-out facts: (kind, language) to the values after the two stages."""
    return [
        EvaluationRow(
            attempt=1,
            relation="mother",
            stage=stage,
            epoch=None,
            seed=0,
            suite="core",
            split="held_out",
            prompts=kind,
            language=language,
            metric="multiple_choice",
            value=value,
            count=50,
            low=None,
            high=None,
        )
        for (kind, language), of_stages in values.items()
        for stage, value in zip(STAGES, of_stages, strict=True)
    ]


def lines_of(table: Table) -> list[list[str]]:
    """The words of each printed line."""
    console = Console(width=120)
    with console.capture() as capture:
        console.print(table)
    return [line.split() for line in capture.get().splitlines() if line.strip()]


def test_languages_come_with_english_first() -> None:
    assert languages_of(rows_of({("test", "zh"): (0, 0), ("test", "de"): (0, 0)})) == (
        *("en", "zh", "de"),
    )
    assert languages_of([]) == ("en",)


def test_the_results_of_a_relation_are_the_english_ones() -> None:
    lines = lines_of(results_table(rows_of(SEVERAL), relation="mother"))
    assert ["test", "prompts", "50", "0.10", "0.50"] in lines
    assert lines == lines_of(results_table(rows_of(ENGLISH), relation="mother"))


def test_results_by_language_have_a_line_per_kind_and_language() -> None:
    lines = lines_of(languages_table(rows_of(SEVERAL), relation="mother"))
    assert ["test", "prompts,", "en", "50", "0.10", "0.50"] in lines
    assert ["test", "prompts,", "de", "50", "0.20", "0.30"] in lines
    assert not any("key" in line for line in lines)


def test_a_comparison_has_further_languages_below_english() -> None:
    runs = {"one": rows_of(SEVERAL), "two": rows_of(SEVERAL)}
    lines = lines_of(comparison_table(runs, relation="mother"))
    before, after = ["test", "prompts"], ["test", "prompts,", "de"]
    assert [*before, *3 * ["0.10", "→", "0.50"]] in lines
    assert [*after, *3 * ["0.20", "→", "0.30"]] in lines


def test_benchmarks_have_a_line_per_task_and_metric() -> None:
    row = rows_of(ENGLISH)[0]
    rows = [
        row.model_copy(
            update={"suite": "harness", "relation": task, "metric": metric, "value": value}
        )
        for task, metric, value in (
            *(("arc_easy", "acc", 0.5), ("arc_easy", "acc_norm", 0.625)),
            ("wikitext", "word_perplexity", 123456.0),
        )
    ]
    found = suites_table(rows)
    assert found is not None
    lines = lines_of(found)
    assert ["harness", "arc_easy", "acc", "50", "0.50"] in lines
    assert ["harness", "arc_easy", "acc_norm", "50", "0.62"] in lines
    assert ["harness", "wikitext", "word_perplexity", "50", "1.23e+05"] in lines
    assert suites_table([row]) is None


def outcome(language: str, value: float) -> Outcome:
    values = {"multiple_choice": value}
    return Outcome(0, "mother", "held_out", "test", 0, language, "Ann", "Ann", values)


def test_changes_are_told_for_each_language(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    for stage, english, german in (("base", 0.0, 1.0), ("memorize", 1.0, 0.0)):
        write_outcomes(run_dir, stage, [outcome("en", english), outcome("de", german)])
    outcomes = {stage: read_outcomes(run_dir, stage) for stage in STAGES}
    lines = lines_of(differences_table(outcomes, seed=0))
    # One fact says almost nothing, so the interval is nearly all there is.
    changes = [line[:-2] for line in lines]
    assert ["test", "prompts", "+1.00"] in changes
    assert ["test", "prompts,", "de", "-1.00"] in changes


def test_runs_of_several_seeds_have_an_interval_over_seeds_and_facts() -> None:
    def answers(value: float) -> list[Outcome]:
        values = {"multiple_choice": value}
        return [
            Outcome(fact, relation, "held_out", "test", 0, "en", "Ann", "Ann", values)
            for fact, relation in enumerate(["mother"] * 20 + ["genre"] * 20)
        ]

    before, after = ({seed: answers(v) for seed in (3, 4, 5)} for v in (0.0, 1.0))
    for relation, count in (("mother", "60"), ("all", "120")):
        table = seeds_table(before, after, relation=relation)
        assert table is not None
        [line] = [line for line in lines_of(table) if line[:1] == ["test"]]
        told = " ".join(line)
        assert told.startswith(f"test prompts {count} 1.00 [")
        assert "+1.00 [+" in told
    assert seeds_table({3: before[3]}, {3: after[3]}, relation="all") is None


def write_outcomes(run_dir: RunDir, stage: str, outcomes: Sequence[Outcome]) -> None:
    path = Path(str(run_dir.evaluation(stage, None)))
    path.parent.mkdir(exist_ok=True)
    lines = ["{}", *(json.dumps(one.to_json()) for one in outcomes)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def conflict_rows(suite: str, *, count: int) -> list[EvaluationRow]:
    """At base the old object wins, and after a phase the new one; of both splits, and of all."""
    values = {"multiple_choice": (0.0, 0.75), "prefers_old": (1.0, 0.25)}
    values |= {"object_probability": (0.01, 0.5), "old_share": (0.9, 0.1)}
    return [
        rows_of({("train", "en"): of_stages})[number].model_copy(
            update={"suite": suite, "split": split, "metric": metric, "count": count}
            | {"relation": relation}
        )
        for relation in ("capital", "mother", "all")
        for split in ("trained", "held_out")
        for metric, of_stages in values.items()
        for number in (0, 1)
    ]


def test_conflicts_are_a_table_of_believed_facts() -> None:
    rows = [*conflict_rows("conflict", count=40), *conflict_rows("conflict_believed", count=10)]
    table = conflict_table(rows)
    assert table is not None
    lines = lines_of(table)
    assert " ".join(chain(*lines)).startswith("all, conflict: believed facts (25%), with 95 %")
    lines = lines[lines.index(["facts", "asked", "with", "n", *STAGES]) :]
    assert lines[2:5] == [
        ["trained", "train", "prompts", "new", "wins", "10", "0.00", "0.75"],
        ["old", "wins", "10", "1.00", "0.25"],
        ["P(new)", "10", "0.01", "0.50"],
    ]
    assert lines[5][0] == "held-out"
    assert len(lines) == 8
    # The other suites' table leaves them out.
    assert suites_table(rows) is None


def test_conflicts_that_nothing_was_believed_of_are_a_table_of_all() -> None:
    table = conflict_table(conflict_rows("conflict", count=40))
    assert table is not None
    assert "all, conflict: all facts asked about, with" in " ".join(lines_of(table)[0])
    assert conflict_table(rows_of(ENGLISH)) is None
