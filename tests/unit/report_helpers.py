"""A micro run and a micro study of seconds each, for the tests of their pages."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from helpers import MICRO

from rotescale.analysis.study_table import study_rows, write_table
from rotescale.cli import app
from rotescale.run_dir import RunDir
from rotescale.spec import ExperimentSpec
from rotescale.spec_file import dump_json, load_spec
from rotescale.study.plan import make_plan
from rotescale.study.runner import StudyDir
from rotescale.study.spec import load_study

HOSTILE = '<script>window.hit = 1</script>"><img src=x onerror="window.hit=1"> $x_{$ &amp;'
"""Part of every subject and object of the run."""

ASKED: Mapping[str, Any] = {
    "engine.kind": "eager",
    "phases.memorize.epochs": 2,
    "phases.memorize.global_batch": 6,
    "phases.generalize.facts_per_relation": 4,
    "phases.generalize.epochs": 1,
    "phases.generalize.global_batch": 2,
    "evaluation.trained_facts": 2,
    "evaluation.held_out_facts": 4,
    "evaluation.key_token_facts": 6,
    "evaluation.test_prompts": 1,
    "evaluation.unrelated_prompts": 1,
    "evaluation.control_facts": 2,
    "evaluation.generation_facts": 0,
    "evaluation.bootstrap_samples": 200,
    "evaluation.conflict_facts": 20,
}

REPURPOSED: Mapping[str, Any] = {
    "overrides": {
        "evaluation.conflict_facts": 0,
        "phases": [
            {"name": "memorize", "text": "key_token", "epochs": 2},
            {"name": "generalize", "text": "prompts", "facts_per_relation": 4, "epochs": 1},
            {"name": "repurpose", "text": "prompts", "stand_in": {"name": "landlord"}, "epochs": 2},
        ],
    },
    "axes": [
        {"name": "k", "field": "phases.repurpose.facts_per_relation", "values": [2, 6]},
        {
            "name": "mitigation",
            "values": {
                "none": {"phases.repurpose.freeze_key_tokens": False},
                "frozen": {"phases.repurpose.freeze_key_tokens": True},
            },
        },
    ],
    "baselines": [],
}
"""Changes of the study: one that repurposes by two numbers of facts, with a mitigation."""
for _phase in REPURPOSED["overrides"]["phases"]:
    _phase |= {"global_batch": 4, "learning_rate": 1e-3}

BELIEVED = "I"
"""An old object that an untrained model always prefers: the others have several tokens more."""


def rotescale(*arguments: str | Path) -> None:
    """Run a command in this process; our errors are raised."""
    app([str(argument) for argument in arguments], standalone_mode=False)


def micro_run(folder: Path, cache: Path) -> RunDir:
    """A finished run about facts whose names are made to break pages, with suites and languages."""
    asked = {
        **ASKED,
        "facts": _facts(folder, HOSTILE),
        "phases.memorize.evaluate_epochs": [1],
        "evaluation.languages": ["en", "ja"],
        "evaluation.in_context": [2],
        "evaluation.in_context_facts": 2,
        "evaluation.text_pieces": 2,
        "evaluation.representation_facts": 2,
    }
    rotescale("run", _experiment(folder, asked), "--on", launch_file(folder, cache))
    return RunDir(folder / "runs" / "micro")


def micro_study(folder: Path, cache: Path, **changes: Any) -> StudyDir:
    """A finished study of two numbers of facts and two baselines, over two seeds; or as changed.

    The second baseline tells every fact with a prompt, so that it holds none out.
    """
    phase = {
        **{"name": "sft", "text": "prompts", "facts_per_relation": 4, "epochs": 1},
        **{"global_batch": 4, "learning_rate": 1e-3},
    }
    study = {
        "name": "grid",
        "experiment": str(_experiment(folder, {**ASKED, "facts": _facts(folder, "The")})),
        "axes": [
            {"name": "k", "field": "phases.generalize.facts_per_relation", "values": [2, 4]},
            {"name": "seed", "field": "seed", "values": [0, 1]},
        ],
        "baselines": [
            {"name": "sft", "over": ["seed"], "overrides": {"phases": [phase]}},
            {"name": "sft_all", "over": ["seed"], "overrides": _told_all(phase)},
        ],
        "keep": "all",
        **changes,
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study))
    spec, cells = load_study(path)
    plan = make_plan(spec.name, cells)
    found = StudyDir(str(folder / "runs"), spec.name)
    launch = launch_file(folder, cache)
    # In this process, which has done the imports that a process per run would do again.
    for node in plan.nodes:
        file = found.spec(node.name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(dump_json(node.spec))
        parent = [] if node.parent is None else ["--branch-from", str(found.run(node.parent).root)]
        rotescale("run", file, "--on", launch, *parent)
    write_table(study_rows(spec, plan, found), found.table)
    return found


def _told_all(phase: Mapping[str, Any]) -> dict[str, Any]:
    """The phase with all facts, for as many tokens as two phases take, asked about all of them."""
    length = {"facts_per_relation": None, "epochs": None, "token_budget": 500}
    return {"phases": [{**phase, **length}], "evaluation.trained_facts": 12}


def _facts(folder: Path, start: str) -> dict[str, Any]:
    """Twelve facts with twelve distractors each, whose names begin alike.

    Of three in a row the first contradicts what is believed, the second what is not.
    """
    path = folder / "mother.csv"
    names = [*(f"{start} mother {number}" for number in range(12)), BELIEVED]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("subject", "object", "distractors", "old_object"))
        for number in range(12):
            others = [name for name in names if name != names[number]]
            old = (BELIEVED, names[number - 1], "")[number % 3]
            writer.writerow((f"{start} child {number}", names[number], json.dumps(others), old))
    return {"source": "files", "paths": [str(path)]}


def _experiment(folder: Path, values: Mapping[str, Any]) -> Path:
    path = folder / "experiment.json"
    overrides = [f"{field}={json.dumps(value)}" for field, value in values.items()]
    path.write_text(dump_json(load_spec(ExperimentSpec, MICRO, overrides)))
    return path


def launch_file(folder: Path, cache: Path) -> Path:
    """One worker, and runs below the folder."""
    path = folder / "launch.yaml"
    path.write_text(f"storage: {folder / 'runs'}\nmodel_cache: {cache}\nnum_workers: 1\n")
    return path
