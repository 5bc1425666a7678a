"""A run that is killed and started again ends as one that never was, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import QUICK, micro_spec, phase_end_weights, prepare, run_workers, steps

from rotescale.checkpoint.attempts import newest, read_attempt
from rotescale.errors import TrainingError
from rotescale.faults import VARIABLE
from rotescale.records import read_records
from rotescale.run_dir import CheckpointName, Outcome, RunDir

SAVING = (
    *QUICK,
    "checkpoints.every_steps=2",
    "checkpoints.keep_last=1",
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


# Point of the fault -> where it strikes, and the steps that the next attempt may go on from. A save
# that is in flight when a process dies may be lost; the one before it never is.
FAULTS = {
    "start-up": ({"point": "start", "rank": 1}, {None}),
    "before the first save": ({"point": "step", "phase": "memorize", "step": 1, "rank": 0}, {None}),
    "in a step": ({"point": "step", "phase": "memorize", "step": 5, "rank": 1}, {2, 4}),
    "in phase 2": ({"point": "step", "phase": "generalize", "step": 7, "rank": 0}, {4, 6}),
    "during the copy": ({"point": "copy", "phase": "memorize", "step": 4, "rank": 1}, {2}),
    "during the write": ({"point": "write", "phase": "memorize", "step": 4, "rank": 1}, {2}),
    "before the manifest": ({"point": "save", "phase": "memorize", "step": 4, "rank": 0}, {2}),
    "after the manifest": ({"point": "published", "phase": "memorize", "step": 4, "rank": 0}, {4}),
    "during prune": ({"point": "prune", "phase": "memorize", "rank": 0}, {4}),
    "between phases": ({"point": "phase", "phase": "generalize", "rank": 1}, {6}),
    "in export": ({"point": "export", "phase": "memorize", "rank": 0}, {6}),
    "in evaluation": ({"point": "evaluation", "phase": "generalize", "rank": 1}, {12}),
}
ONLY_RANK_0 = ("after the manifest", "during prune")


@pytest.mark.parametrize(
    ("name", "victims"),
    [(name, "one") for name in FAULTS]
    + [(name, "all") for name in FAULTS if name not in ONLY_RANK_0],
)
def test_killed_and_resumed_equals_undisturbed(
    name: str,
    victims: str,
    start: Callable[..., RunDir],
    undisturbed: RunDir,
    tmp_path: Path,
) -> None:
    """Fault 7 of the released code: resume started from a fresh optimizer."""
    fault, resumes_after = FAULTS[name]
    run_dir = start()
    marker = tmp_path / "fired"
    where = {**fault, "attempt": 1}
    if victims == "all":
        del where["rank"]
    codes = run_workers(
        run_dir,
        world_size=2,
        environment={VARIABLE: json.dumps({**where, "marker": str(marker)})},
    )
    assert marker.exists(), "the fault did not fire"
    # Of two that die together, one may lose the other in a collective just before its own turn.
    assert -9 in codes if victims == "all" else codes[fault["rank"]] == -9
    assert 0 not in codes
    assert Outcome.read(run_dir) is None
    assert run_workers(run_dir, world_size=2) == [0, 0]
    outcome = Outcome.read(run_dir)
    assert outcome is not None
    assert outcome.status == "finished", outcome.message
    resumed = read_attempt(run_dir, 2).resumes
    found = None if resumed is None else run_dir.manifest_name(resumed).step
    assert found in resumes_after
    assert_equal_runs(run_dir, undisturbed)


def damage_newest(run_dir: RunDir, *, rank: int, how: str) -> CheckpointName:
    """Change the newest checkpoint's file of one rank, and return which checkpoint it is."""
    found = newest(run_dir, max(run_dir.attempt_numbers()))
    assert found is not None
    file = found.directory / found.manifest.files[rank].name
    data = bytearray(file.read_bytes())
    match how:
        case "flip":
            entry = next(entry for entry in found.manifest.slices if entry.file == file.name)
            data[entry.begin] ^= 1
        case "truncate":
            del data[-2:]
    file.write_bytes(data)
    manifest = found.manifest
    return CheckpointName(
        manifest.attempt, manifest.phase_index, manifest.phase, manifest.step, manifest.kind
    )


@pytest.mark.parametrize(
    ("fault", "how", "damaged", "resumes_after"),
    [
        ({"point": "published", "phase": "memorize", "step": 4, "rank": 0}, "flip", 4, 2),
        ({"point": "published", "phase": "memorize", "step": 2, "rank": 0}, "truncate", 2, None),
        ({"point": "export", "phase": "memorize", "rank": 0}, "flip", 6, 4),
    ],
    ids=["a full one", "the only one", "the end of a phase"],
)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    fault: dict[str, object],
    how: str,
    damaged: int,
    resumes_after: int | None,
    start: Callable[..., RunDir],
    undisturbed: RunDir,
    tmp_path: Path,
) -> None:
    run_dir = start()
    variable = json.dumps({**fault, "attempt": 1, "marker": str(tmp_path / "fired")})
    run_workers(run_dir, world_size=2, environment={VARIABLE: variable})
    assert (tmp_path / "fired").exists()
    name = damage_newest(run_dir, rank=1, how=how)
    assert name.step == damaged
    assert run_workers(run_dir, world_size=2) == [0, 0]
    assert run_dir.attempt_numbers() == [1, 2, 3]
    resumed = read_attempt(run_dir, 3).resumes
    if resumes_after is None:
        assert resumed is None
    else:
        assert resumed is not None
        assert run_dir.manifest_name(resumed).step == resumes_after
    [event] = [event for event in read_records(run_dir).events if event.name == "damaged"]
    assert event.attempt == 2
    assert "rank-00001-of-00002.safetensors" in event.message
    assert " of model." in event.message
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


def test_a_save_that_comes_too_soon_is_skipped_by_all_ranks_alike(
    start: Callable[..., RunDir], undisturbed: RunDir
) -> None:
    run_dir = start("checkpoints.every_steps=1", "checkpoints.while_saving=skip")
    assert run_workers(run_dir, world_size=2) == [0, 0]
    assert_equal_runs(run_dir, undisturbed)
    events = read_records(run_dir).events
    skipped = [event.message for event in events if event.name == "skipped"]
    saved = [event for event in events if event.name == "checkpoint"]
    others = [event for event in events if event.name == "rank_file"]
    assert len(saved) == len(others)
    assert len(saved) + len(skipped) == len(steps(run_dir))
    for event in saved:
        costs = event.details
        assert costs["num_bytes"] > 0
        assert 0 < costs["write_seconds"] <= costs["total_seconds"]


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
