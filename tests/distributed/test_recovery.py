"""A run that is killed and started again ends as one that never was, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import QUICK, micro_spec, phase_end_weights, prepare, run_workers, steps

from rotescale.checkpoint.attempts import read_attempt
from rotescale.errors import TrainingError
from rotescale.faults import VARIABLE
from rotescale.run_dir import Outcome, RunDir

SAVING = (
    *QUICK,
    "checkpoints.every_steps=2",
    "phases.0.evaluate_epochs=[1]",
    "phases.0.weight_decay=0.1",
)
PHASES = ("memorize", "generalize")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, model_cache: Path) -> Callable[..., RunDir]:
    def start(*overrides: str) -> RunDir:
        storage = tmp_path_factory.mktemp("run")
        return prepare(micro_spec(*SAVING, *overrides), storage, cache=model_cache, num_workers=2)

    return start


@pytest.fixture(scope="module")
def undisturbed(start: Callable[..., RunDir]) -> RunDir:
    run_dir = start()
    assert run_workers(run_dir, world_size=2) == [0, 0]
    return run_dir


def assert_equal_runs(one: RunDir, other: RunDir) -> None:
    """Every step with the same examples and loss, once; weights equal bit for bit."""
    ours, theirs = steps(one), steps(other)
    assert [(s.phase, s.step, s.example_ids, s.loss) for s in ours] == [
        (s.phase, s.step, s.example_ids, s.loss) for s in theirs
    ]
    for phase in PHASES:
        a, b = phase_end_weights(one, phase), phase_end_weights(other, phase)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)


FAULTS = {
    "start": ({"point": "start", "rank": 1}, None),
    "in phase 1": ({"point": "step", "phase": "memorize", "step": 5, "rank": 1}, 4),
    "before the first save": ({"point": "step", "phase": "memorize", "step": 1, "rank": 0}, None),
    "in phase 2, rank 0": ({"point": "step", "phase": "generalize", "step": 7, "rank": 0}, 6),
    "between slice and manifest": ({"point": "save", "phase": "memorize", "step": 4, "rank": 0}, 2),
    "at a phase's end": ({"point": "export", "phase": "memorize", "rank": 0}, 6),
    "in evaluation": ({"point": "evaluation", "phase": "generalize", "rank": 1}, 12),
}


@pytest.mark.parametrize("name", FAULTS)
def test_killed_and_resumed_equals_undisturbed(
    name: str, start: Callable[..., RunDir], undisturbed: RunDir, tmp_path: Path
) -> None:
    """Fault 7 of the released code: resume started from a fresh optimizer."""
    fault, resumes_after = FAULTS[name]
    run_dir = start()
    marker = tmp_path / "fired"
    variable = json.dumps({**fault, "attempt": 1, "marker": str(marker)})
    codes = run_workers(run_dir, world_size=2, environment={VARIABLE: variable})
    assert marker.exists(), "the fault did not fire"
    assert codes[fault["rank"]] == -9
    assert Outcome.read(run_dir) is None
    assert run_workers(run_dir, world_size=2, environment={VARIABLE: variable}) == [0, 0]
    outcome = Outcome.read(run_dir)
    assert outcome is not None
    assert outcome.status == "finished", outcome.message
    resumed = read_attempt(run_dir, 2).resumes
    if resumes_after is None:
        assert resumed is None
    else:
        assert resumed is not None
        assert run_dir.manifest_name(resumed).step == resumes_after
    assert_equal_runs(run_dir, undisturbed)


def test_bf16_resumes_from_masters(start: Callable[..., RunDir], tmp_path: Path) -> None:
    whole, cut = start("engine.precision=bf16"), start("engine.precision=bf16")
    assert run_workers(whole, world_size=2) == [0, 0]
    fault = {"point": "step", "phase": "memorize", "step": 5, "rank": 1, "attempt": 1}
    variable = json.dumps({**fault, "marker": str(tmp_path / "fired")})
    run_workers(cut, world_size=2, environment={VARIABLE: variable})
    assert (tmp_path / "fired").exists()
    assert run_workers(cut, world_size=2) == [0, 0]
    assert_equal_runs(cut, whole)


def test_another_world_size_resumes_with_the_same_examples(
    start: Callable[..., RunDir], undisturbed: RunDir, tmp_path: Path
) -> None:
    run_dir = start()
    fault = {"point": "step", "phase": "memorize", "step": 5, "rank": 1, "attempt": 1}
    variable = json.dumps({**fault, "marker": str(tmp_path / "fired")})
    run_workers(run_dir, world_size=2, environment={VARIABLE: variable})
    assert (tmp_path / "fired").exists()
    assert run_workers(run_dir, world_size=3) == [0, 0, 0]
    for one, other in zip(steps(run_dir), steps(undisturbed), strict=True):
        assert one.example_ids == other.example_ids
        assert one.loss == pytest.approx(other.loss, rel=1e-4)


def test_a_loss_that_is_not_finite_ends_the_run_once(start: Callable[..., RunDir]) -> None:
    run_dir = start("phases.0.learning_rate=1e45", "phases.0.max_grad_norm=null")
    assert run_workers(run_dir, world_size=2) == [0, 0]
    outcome = Outcome.read(run_dir)
    assert outcome is not None
    assert (outcome.status, outcome.error) == ("failed", "TrainingError")
    assert outcome.exit_code == TrainingError.exit_code
    for named in ("memorize", "step", "(fact, prompt)", "learning_rate"):
        assert named in outcome.message
    # A second start reads the outcome and tries nothing.
    assert run_workers(run_dir, world_size=2) == [0, 0]
    assert run_dir.attempt_numbers() == [1]


def test_a_finished_run_is_left_alone(undisturbed: RunDir) -> None:
    before = sorted(path for path in undisturbed.root.rglob("*") if path.is_file())
    assert run_workers(undisturbed, world_size=2) == [0, 0]
    assert sorted(path for path in undisturbed.root.rglob("*") if path.is_file()) == before
