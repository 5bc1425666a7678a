"""Benchmarks under ZeRO-3 on two ranks equal those of the exported model in one process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from harness_helpers import skip_without_harness, write_tasks
from helpers import QUICK, micro_spec, prepare, run_workers

from rotescale.analysis.results import read_outcomes, suites_table
from rotescale.errors import SpecError
from rotescale.evaluation.folder import STAGE, evaluate_folder
from rotescale.evaluation.metrics import paired_difference
from rotescale.preparation import Resolved
from rotescale.records import EvaluationRow, read_records
from rotescale.run_dir import Outcome, RunDir
from rotescale.storage import remove

TASKS = ("rotescale_continuation", "rotescale_last_word", "own_text", "own_answer")
ASKED = (
    *QUICK,
    # As with a large model: nothing stays gathered, and every pass is a collective.
    "engine.persistence_threshold=0",
    "engine.evaluation_mode=sharded",
    "phases.0.evaluate_epochs=[1]",
    "evaluation.base=true",
    "evaluation.bootstrap_samples=50",
    "evaluation.harness_limit=5",
    f"evaluation.harness_tasks=[{', '.join(TASKS)}]",
)
STAGES = [("base", None), ("memorize", 1), ("memorize", None), ("generalize", None)]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, model_cache: Path) -> RunDir:
    """A run on two sharded ranks that was asked the tasks at every stage."""
    skip_without_harness()
    folder = write_tasks(tmp_path_factory.mktemp("tasks"))
    storage = tmp_path_factory.mktemp("run")
    spec = micro_spec(*ASKED, f"evaluation.harness_folder={folder}")
    run_dir = prepare(spec, storage, cache=model_cache, num_workers=2, allow_task_code=True)
    assert run_workers(run_dir, world_size=2) == [0, 0]
    finished(run_dir)
    return run_dir


def finished(run_dir: RunDir) -> None:
    outcome = Outcome.read(run_dir)
    assert outcome is not None
    assert outcome.status == "finished", outcome.message


def rows(run_dir: RunDir, *stage: str | int | None) -> dict[tuple[str, str], EvaluationRow]:
    return {
        (row.relation, row.metric): row
        for row in read_records(run_dir).evaluations
        if row.suite == "harness" and (row.stage, row.epoch) == stage
    }


def test_every_stage_has_the_tasks_and_the_table_shows_them(run_dir: RunDir) -> None:
    for stage in STAGES:
        found = rows(run_dir, *stage)
        assert {task for task, _ in found} == set(TASKS)
        assert {row.count for row in found.values()} == {5}
    values = {rows(run_dir, *stage)["own_text", "bits_per_byte"].value for stage in STAGES}
    assert len(values) == len(STAGES)
    assert suites_table(read_records(run_dir).evaluations) is not None
    assert Resolved.read(run_dir).versions["lm-eval"]


def test_sharded_values_are_those_of_the_exported_model(run_dir: RunDir) -> None:
    spec = micro_spec(*ASKED).evaluation.model_copy(
        update={"harness_folder": Resolved.read(run_dir).harness_folder}
    )
    folder = run_dir.model_folder("generalize")
    assert isinstance(folder, Path)
    with pytest.raises(SpecError, match="allow-task-code"):
        evaluate_folder(folder, (), spec=spec, seed=0, progress=lambda done: None)
    alone, _ = evaluate_folder(
        folder, (), spec=spec, seed=0, allow_code=True, progress=lambda done: None
    )
    sharded = rows(run_dir, "generalize", None)
    assert len(alone) == len(sharded)
    for row in alone:
        assert row.stage == STAGE
        assert row.value == pytest.approx(sharded[row.relation, row.metric].value, rel=1e-4)


def test_stages_are_paired(run_dir: RunDir) -> None:
    before, after = (
        [o for o in read_outcomes(run_dir, stage) if o.relation == "rotescale_continuation"]
        for stage in ("base", "generalize")
    )
    value, low, high = paired_difference(before, after, metric="acc", seed=0)
    change = [rows(run_dir, stage, None)["rotescale_continuation", "acc"].value for stage in
              ("base", "generalize")]  # fmt: skip
    assert value == pytest.approx(change[1] - change[0])
    assert low <= value <= high


def test_only_what_is_missing_is_measured_again(run_dir: RunDir) -> None:
    """This time by a whole copy on each rank, which gives the same values."""
    *unchanged, last = [run_dir.evaluation(*stage) for stage in STAGES]
    written = [path.stat().st_mtime_ns for path in unchanged]
    before = rows(run_dir, "generalize", None)
    remove(last)
    Outcome.clear(run_dir)
    resolved = json.loads(run_dir.resolved_json.read_text())
    assert resolved["evaluation_mode"] == "sharded"
    run_dir.resolved_json.write_text(json.dumps(resolved | {"evaluation_mode": "replicated"}))
    assert run_workers(run_dir, world_size=2) == [0, 0]
    finished(run_dir)
    assert [path.stat().st_mtime_ns for path in unchanged] == written
    after = rows(run_dir, "generalize", None)
    assert {row.attempt for row in after.values()} == {2}
    for key, row in after.items():
        assert row.value == pytest.approx(before[key].value, rel=1e-4)


def test_workers_load_no_folder_that_the_place_no_longer_allows(run_dir: RunDir) -> None:
    evaluation, launch = run_dir.evaluation("generalize", None), run_dir.launch_json
    launch.write_text(json.dumps(json.loads(launch.read_text()) | {"allow_task_code": False}))
    remove(evaluation)
    Outcome.clear(run_dir)
    run_workers(run_dir, world_size=2)
    outcome = Outcome.read(run_dir)
    assert outcome is not None
    assert (outcome.status, outcome.error) == ("failed", "SpecError")
    assert "set allow_task_code: true in the launch spec" in outcome.message
