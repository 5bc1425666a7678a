"""Facts go out as EasyEdit's requests, and what it says of them comes back as rows and a table."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from helpers import MICRO

from rotescale.cli import app
from rotescale.data.examples import select_facts
from rotescale.errors import DataError, SpecError
from rotescale.facts import load_shipped


def rotescale(*arguments: str | Path) -> None:
    """Run a command in this process; our errors are raised."""
    app(["facts", "easyedit", *map(str, arguments)], standalone_mode=False)


def exported(path: Path, *arguments: str | Path) -> list[dict[str, Any]]:
    rotescale("export", *arguments, "--out", path)
    requests: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return requests


def test_shipped_relations_are_exported(tmp_path: Path) -> None:
    requests = exported(tmp_path / "requests.json", "--relation", "mother", "--relation", "author")
    facts = load_shipped(["mother", "author"]).facts
    assert [(r["subject"], r["target_new"]) for r in requests] == [
        (fact.subject, fact.object) for fact in facts
    ]


def test_an_experiments_facts_are_those_that_a_phase_of_its_seed_tells(tmp_path: Path) -> None:
    requests = exported(
        *(tmp_path / "requests.json", MICRO, "--facts-per-relation", "7", "--seed", "3"),
        *("--train-prompt", "1", "--test-prompt", "2"),
    )
    fact_set = load_shipped(["mother"])
    places = select_facts(fact_set, facts_per_relation=7, seed=3)
    assert [r["subject"] for r in requests] == [fact_set.facts[p].subject for p in places]
    prompts = fact_set.relations[0]
    subject = requests[0]["subject"]
    assert requests[0]["prompt"] == prompts.train_prompts[1].replace("{subject}", subject)
    assert requests[0]["rephrase_prompt"] == prompts.test_prompts[2].replace("{subject}", subject)


def test_a_users_file_is_exported_and_its_results_are_imported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "mother.csv"
    names = [f"Mother {number}" for number in range(6)]
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("Person", "Mother", "Others"))
        for number, name in enumerate(names):
            others = [other for other in names if other != name]
            writer.writerow((f"Child {number}", name, json.dumps(others)))
    columns = "subject=Person,object=Mother,distractors=Others"
    source = (table, "--columns", columns)
    requests = exported(tmp_path / "requests.json", *source)
    assert [request["target_new"] for request in requests] == names
    # As an editor might report them: four of six rewritten whole, one of these rephrased so.
    results = [
        {
            "requested_rewrite": request,
            "pre": {"rewrite_acc": [0.0], "rephrase_acc": [0.25]},
            "post": {
                "rewrite_acc": [1.0 if number < 4 else 0.5],
                "rephrase_acc": [1.0 if number == 0 else 0.5],
                "portability": {"reversed_acc": [0.5]},
            },
        }
        for number, request in enumerate(requests)
    ]
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results))
    rows_path = tmp_path / "rows.json"
    rotescale("import", path, *source, "--method", "ROME", "--json", rows_path)
    shown = capsys.readouterr().out
    assert "ROME" in shown
    assert str(rows_path) in shown
    rows = json.loads(rows_path.read_text(encoding="utf-8"))
    values = {(row["stage"], row["prompts"], row["metric"]): row["value"] for row in rows}
    assert values == pytest.approx(
        {
            ("base", "train", "token_accuracy"): 0.0,
            ("base", "train", "whole_target"): 0.0,
            ("base", "test", "token_accuracy"): 0.25,
            ("base", "test", "whole_target"): 0.0,
            ("edit", "train", "token_accuracy"): 5 / 6,
            ("edit", "train", "whole_target"): 4 / 6,
            ("edit", "test", "token_accuracy"): 3.5 / 6,
            ("edit", "test", "whole_target"): 1 / 6,
            ("edit", "reversed", "token_accuracy"): 0.5,
            ("edit", "reversed", "whole_target"): 0.0,
        }
    )
    assert {(row["relation"], row["split"], row["suite"], row["count"]) for row in rows} == {
        ("mother", "trained", "editing", 6)
    }
    assert all(row["low"] <= row["value"] <= row["high"] for row in rows)


def test_results_about_two_relations_are_also_pooled(tmp_path: Path) -> None:
    source = ("--relation", "mother", "--relation", "author")
    requests = exported(tmp_path / "requests.json", *source)
    results = [
        {"requested_rewrite": request, "post": {"rewrite_acc": value}}
        for request, value in ((requests[0], 1.0), (requests[1], 1.0), (requests[150], 0.0))
    ]
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results))
    rotescale("import", path, *source, "--json", tmp_path / "rows.json")
    rows = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    assert [
        (row["relation"], row["count"], row["value"])
        for row in rows
        if row["metric"] == "whole_target"
    ] == [("mother", 2, 1.0), ("author", 1, 0.0), ("all", 3, pytest.approx(2 / 3))]


def test_what_is_no_source_or_other_facts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="0 sources of facts: name files"):
        exported(tmp_path / "requests.json")
    with pytest.raises(SpecError, match=r"none\.csv: no such file or folder"):
        exported(tmp_path / "requests.json", tmp_path / "none.csv")
    requests = exported(tmp_path / "requests.json", "--relation", "mother")
    results = tmp_path / "results.json"
    results.write_text(
        json.dumps([{"requested_rewrite": requests[0], "post": {"rewrite_acc": 1.0}}])
    )
    with pytest.raises(DataError, match="is not among these facts"):
        rotescale("import", results, "--relation", "author")
