"""Runs that lie in storage when a study begins: which are the study's own, and which are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import MICRO

from rotescale.errors import SpecError
from rotescale.run_dir import Outcome, RunDir, open_run
from rotescale.spec import ExperimentSpec
from rotescale.spec_file import dump_json, load_spec
from rotescale.study.earlier_runs import check_earlier_runs
from rotescale.study.plan import Plan, make_plan
from rotescale.study.runner import StudyDir
from rotescale.study.spec import load_study

K = "phases.generalize.facts_per_relation"
STUDY: dict[str, Any] = {
    "name": "grid",
    "experiment": str(MICRO),
    "axes": [{"name": "k", "field": K, "values": [2, 6]}],
    "overrides": {"evaluation.held_out_facts": 4},
}


def planned(folder: Path, **changes: Any) -> Plan:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**STUDY, **changes}))
    study, cells = load_study(path)
    return make_plan(study.name, cells)


def finish(run: RunDir, spec: ExperimentSpec) -> None:
    """Leave what a finished run leaves, as far as it is looked at."""
    open_run(run.root, spec_json=dump_json(spec), digest=spec.digest())
    Outcome(status="finished", attempt=1).write(run)


@pytest.fixture
def folder(tmp_path: Path) -> StudyDir:
    """Where all runs of the study have finished."""
    found = StudyDir(str(tmp_path / "runs"), "grid")
    for node in planned(tmp_path).nodes:
        finish(found.run(node.name), node.spec)
    return found


def check(folder: StudyDir, plan: Plan) -> None:
    known = [node.name for node in plan.nodes if folder.run(node.name).spec_json.exists()]
    check_earlier_runs(plan, folder, finished=known)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({}, None),
        ({"checkpoints.every_steps": 7}, None),
        ({"evaluation.base": False}, None),
        ({"evaluation.held_out_facts": 3}, "evaluation.held_out_facts was 4 and is 3"),
        (
            {"phases.generalize.learning_rate": 0.5},
            "phases.generalize.learning_rate was 0.001 and is 0.5",
        ),
        ({"evaluation.test_prompts": 1, "evaluation.train_prompts": 2}, "evaluation.t"),
    ],
)
def test_a_finished_run_is_taken_only_for_the_same_spec(
    tmp_path: Path, folder: StudyDir, overrides: dict[str, Any], told: str | None
) -> None:
    plan = planned(tmp_path, overrides={**STUDY["overrides"], **overrides})
    if told is None:
        check(folder, plan)
        return
    with pytest.raises(SpecError, match="finished with another spec than the study's") as refusal:
        check(folder, plan)
    assert told in str(refusal.value)
    assert "another name" in str(refusal.value)


def test_a_study_may_grow_by_cells_that_want_what_was_measured(
    tmp_path: Path, folder: StudyDir
) -> None:
    grown = planned(
        tmp_path,
        axes=[
            {"name": "k", "field": K, "values": [2, 6]},
            {"name": "seed", "values": {"new": {"seed": 5}}},
        ],
    )
    known = {node.name for node in planned(tmp_path).nodes}
    assert not known & set(grown.ends)
    check(folder, grown)


def test_points_on_the_way_that_nobody_measured_are_not_taken_for_granted(
    tmp_path: Path, folder: StudyDir
) -> None:
    wanted = {**STUDY["overrides"], "phases.memorize.evaluate_epochs": [1]}
    with pytest.raises(
        SpecError, match=r"shared-\w+: finished without an evaluation after epoch 1 of phase 'mem"
    ):
        check(folder, planned(tmp_path, overrides=wanted))


def test_weights_that_were_removed_are_missed_before_the_first_run(
    tmp_path: Path, folder: StudyDir
) -> None:
    plan = planned(tmp_path, axes=[{"name": "k", "field": K, "values": [2, 6, 4]}])
    with pytest.raises(SpecError, match=r"its weights were removed .*'grid-k4' goes on from them"):
        check(folder, plan)


def test_a_study_is_not_called_as_a_run_is(tmp_path: Path, folder: StudyDir) -> None:
    finish(folder.run("grid"), load_spec(ExperimentSpec, MICRO, ["name=grid"]))
    with pytest.raises(SpecError, match=r"grid: holds a run, and this study is called 'grid' too"):
        check(folder, planned(tmp_path))
