"""What interrupts a run from outside or inside: a request to save, a hang, a slow evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import (
    QUICK,
    join_workers,
    micro_spec,
    prepare,
    run_workers,
    start_workers,
    steps,
    wait_until,
)
from recovery_helpers import assert_equal_runs, events

from rotescale.checkpoint.attempts import read_attempt
from rotescale.faults import VARIABLE
from rotescale.launch_spec import StageLimits
from rotescale.nodes import read_faults
from rotescale.notices import request_save
from rotescale.records import read_records
from rotescale.run_dir import Outcome
from rotescale.watchdog import EXIT_CODE

RARELY = (*QUICK, "checkpoints.every_steps=100000", "checkpoints.while_saving=skip")


@pytest.mark.slow
def test_a_request_is_answered_by_a_checkpoint_from_which_the_run_goes_on(
    tmp_path: Path, model_cache: Path
) -> None:
    """Whoever is about to stop the workers asks first, and loses at most the steps since."""
    spec = micro_spec(*RARELY, "phases.0.epochs=20")
    run_dir = prepare(spec, tmp_path / "stopped", cache=model_cache, num_workers=2)
    slow = {VARIABLE: json.dumps({"point": "step", "action": "delay"})}
    workers = start_workers(run_dir, world_size=2, environment=slow)
    wait_until(lambda: bool(steps(run_dir)))
    assert request_save(run_dir, "the node is needed", limit_seconds=120)
    trained = steps(run_dir)[-1].step
    for worker in workers:
        worker.kill()
    assert join_workers(run_dir, workers) == [-9, -9]
    assert run_workers(run_dir, world_size=2) == [0, 0]
    assert [event.message for event in events(run_dir, "save_request")] == ["the node is needed"]
    resumed = read_attempt(run_dir, 2).resumes
    assert resumed is not None
    # The records are written before the checkpoint that they lead to.
    assert run_dir.manifest_name(resumed).step >= trained > 0
    calm = prepare(spec, tmp_path / "calm", cache=model_cache, num_workers=2)
    assert run_workers(calm, world_size=2) == [0, 0]
    assert_equal_runs(run_dir, calm)


def test_a_worker_that_hangs_is_ended_with_its_stacks_in_the_run(
    tmp_path: Path, model_cache: Path
) -> None:
    limits = StageLimits(first_step_seconds=30.0, step_seconds=8.0)
    spec = micro_spec(*QUICK, "checkpoints.every_steps=2")
    run_dir = prepare(spec, tmp_path / "hung", cache=model_cache, num_workers=2, limits=limits)
    fault = {"point": "step", "phase": "memorize", "step": 5, "rank": 1, "action": "hang"}
    variable = json.dumps({**fault, "attempt": 1, "marker": str(tmp_path / "fired")})
    codes = run_workers(run_dir, world_size=2, environment={VARIABLE: variable})
    assert (tmp_path / "fired").exists()
    # Both wait, one for its peer; who is ended first may be seen by the other as a lost peer.
    assert EXIT_CODE in codes
    assert 0 not in codes
    assert Outcome.read(run_dir) is None
    hung = events(run_dir, "hang")
    assert hung
    assert "step took longer than 8 s" in hung[0].message
    logs = [run_dir.worker_log(attempt=1, rank=rank).read_text() for rank in (0, 1)]
    assert any("hang: step took longer" in log and "_train_step" in log for log in logs)
    # Of the two, the one that stood still in what it does alone is at fault.
    [fault] = read_faults(run_dir)
    assert (fault.attempt, fault.reason, fault.num_nodes) == (1, "hang", 1)
    assert fault.message.startswith("rank 1: step took longer than 8 s")
    assert run_workers(run_dir, world_size=2) == [0, 0]
    resumed = read_attempt(run_dir, 2).resumes
    assert resumed is not None
    assert run_dir.manifest_name(resumed).step in (2, 4)
    calm = prepare(spec, tmp_path / "calm", cache=model_cache, num_workers=2)
    assert run_workers(calm, world_size=2) == [0, 0]
    assert [(s.phase, s.step, s.example_ids, s.loss) for s in steps(run_dir)] == [
        (s.phase, s.step, s.example_ids, s.loss) for s in steps(calm)
    ]


@pytest.mark.slow
def test_a_start_that_hangs_is_ended_too(tmp_path: Path, model_cache: Path) -> None:
    limits = StageLimits(start_seconds=20.0)
    spec = micro_spec(*QUICK)
    run_dir = prepare(spec, tmp_path, cache=model_cache, num_workers=2, limits=limits)
    fault = {"point": "start", "rank": 1, "attempt": 1, "action": "hang"}
    codes = run_workers(run_dir, world_size=2, environment={VARIABLE: json.dumps(fault)})
    assert EXIT_CODE in codes
    log = run_dir.worker_log(attempt=1, rank=1).read_text()
    assert "hang: start took longer than 20 s" in log
    assert "fault_point" in log
    assert run_workers(run_dir, world_size=2) == [0, 0]


@pytest.mark.parametrize("best", ["trained", "held_out"])
def test_what_was_trained_before_an_evaluation_is_saved_first_and_the_best_is_kept(
    best: str, tmp_path: Path, model_cache: Path
) -> None:
    spec = micro_spec(
        *RARELY,
        # Grows worse after a while, so that the best is not the last.
        "phases.0.learning_rate=0.03",
        "phases.0.epochs=6",
        "phases.0.evaluate_epochs=[1,2,3,4,5]",
        "evaluation.trained_facts=6",
        "evaluation.held_out_facts=4",
        f"checkpoints.keep_best={{metric: object_probability, prompts: train, split: {best}}}",
        "checkpoints.keep_last=1",
    )
    run_dir = prepare(spec, tmp_path, cache=model_cache, num_workers=2)
    assert run_workers(run_dir, world_size=1) == [0]
    saved = [
        e.details["step"] for e in events(run_dir, "checkpoint") if e.details["kind"] == "full"
    ]
    assert saved == [3, 6, 9, 12, 15]
    measured = {
        row.epoch: row.value
        for row in read_records(run_dir).evaluations
        if (row.stage, row.split, row.prompts, row.metric)
        == ("memorize", best, "train", "object_probability")
        and row.epoch is not None
    }
    assert sorted(measured) == [1, 2, 3, 4, 5]
    expected = {3 * max(measured, key=lambda epoch: measured[epoch]), 15}
    left = {name.step for name in run_dir.checkpoint_folders(1) if name.kind == "full"}
    assert left == expected
