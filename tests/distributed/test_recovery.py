"""A run that is killed and started again ends as one that never was, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import assert_key_tokens_frozen, run_workers, steps
from recovery_helpers import FAULTS, PHASES, assert_equal_runs, events, made_of

from rotescale.checkpoint.attempts import newest, read_attempt
from rotescale.checkpoint.manifest import MANIFEST
from rotescale.errors import TrainingError
from rotescale.faults import VARIABLE
from rotescale.run_dir import Outcome, RunDir

QUICK_FOR_ALL = ("during the write",)
SLOW_FOR_ONE = (
    *("start-up", "before the first save", "in phase 2", "after the manifest", "during prune"),
    *("between phases", "in export"),
)
ONLY_RANK_0 = ("after the manifest", "during prune")


@pytest.mark.parametrize(
    ("name", "victims"),
    [
        pytest.param(name, "one", marks=pytest.mark.slow if name in SLOW_FOR_ONE else ())
        for name in FAULTS
    ]
    + [
        pytest.param(name, "all", marks=() if name in QUICK_FOR_ALL else pytest.mark.slow)
        for name in FAULTS
        if name not in ONLY_RANK_0
    ],
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
    assert_key_tokens_frozen(run_dir)


def damage_newest(run_dir: RunDir, *, how: str) -> int:
    """Change a file of the newest checkpoint, and return which step it is of."""
    found = newest(run_dir, max(run_dir.attempt_numbers()))
    assert found is not None
    file = found.directory / found.manifest.files[1].name
    manifest = found.directory / MANIFEST
    match how:
        case "flip":
            entry = next(entry for entry in found.manifest.slices if entry.file == file.name)
            data = bytearray(file.read_bytes())
            data[entry.begin] ^= 1
            file.write_bytes(data)
        case "truncate":
            file.write_bytes(file.read_bytes()[:-2])
        case "half a manifest":
            manifest.write_bytes(manifest.read_bytes()[: manifest.stat().st_size // 2])
        case "another's manifest":
            other = found.directory.with_name("01-memorize-step-000003-full") / MANIFEST
            manifest.write_bytes(other.read_bytes())
        case "a digit of the manifest":
            cursor = found.manifest.cursor
            text = manifest.read_bytes()
            changed = text.replace(b'"cursor":%d' % cursor, b'"cursor":%d' % (cursor + 1))
            assert changed != text
            manifest.write_bytes(changed)
    return found.manifest.step


IN_PHASE_1 = {"point": "published", "phase": "memorize", "rank": 0}


@pytest.mark.parametrize(
    ("fault", "how", "damaged", "resumes_after"),
    [
        ({**IN_PHASE_1, "step": 4}, "flip", 4, 3),
        ({**IN_PHASE_1, "step": 2}, "truncate", 2, None),
        pytest.param(
            {"point": "export", "phase": "memorize", "rank": 0},
            "flip",
            6,
            4,
            marks=pytest.mark.slow,
        ),
        ({"point": "phase", "phase": "generalize", "rank": 0}, "flip", 6, 4),
        pytest.param({**IN_PHASE_1, "step": 4}, "another's manifest", 4, 3, marks=pytest.mark.slow),
        ({**IN_PHASE_1, "step": 2}, "half a manifest", 2, None),
        pytest.param(
            {"point": "phase", "phase": "generalize", "rank": 0},
            "a digit of the manifest",
            6,
            4,
            marks=pytest.mark.slow,
        ),
    ],
    ids=[
        "a full one",
        "the only one, cut",
        "the end of a phase",
        "the end of a phase that was exported and measured",
        "another's manifest",
        "half a manifest, of the only one",
        "a digit of a manifest, at the end of a phase",
    ],
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
    run_dir = start("checkpoints.keep_last=2")
    variable = json.dumps({**fault, "attempt": 1, "marker": str(tmp_path / "fired")})
    run_workers(run_dir, world_size=2, environment={VARIABLE: variable})
    assert (tmp_path / "fired").exists()
    assert damage_newest(run_dir, how=how) == damaged
    assert run_workers(run_dir, world_size=2) == [0, 0]
    assert run_dir.attempt_numbers() == [1, 2, 3]
    resumed = read_attempt(run_dir, 3).resumes
    found = None if resumed is None else run_dir.manifest_name(resumed).step
    assert found == resumes_after
    [event] = events(run_dir, "damaged")
    assert event.attempt == 2
    if "manifest" in how:
        assert "manifest.json: damaged: " in event.message
    else:
        assert "rank-00001-of-00002.safetensors" in event.message
        assert " of model." in event.message
    assert_equal_runs(run_dir, undisturbed)
    # What was exported and measured is the end that training went on from.
    assert (made_of(run_dir, "memorize"), made_of(run_dir, "generalize")) == (
        "checkpoints/attempt-0003/01-memorize-step-000006-weights",
        "checkpoints/attempt-0003/02-generalize-step-000012-weights",
    )


def test_a_lost_end_of_a_phase_that_is_over_costs_nothing(
    start: Callable[..., RunDir], undisturbed: RunDir, tmp_path: Path
) -> None:
    """Its export and evaluation were made of it, and the next phase goes on from its own."""
    run_dir = start()
    fault = {"point": "step", "phase": "generalize", "step": 5, "rank": 1, "attempt": 1}
    variable = json.dumps({**fault, "marker": str(tmp_path / "fired")})
    run_workers(run_dir, world_size=2, environment={VARIABLE: variable})
    assert (tmp_path / "fired").exists()
    end = made_of(run_dir, "memorize")
    manifest = run_dir.root / end / MANIFEST
    manifest.write_bytes(manifest.read_bytes()[:-100])
    assert run_workers(run_dir, world_size=2) == [0, 0]
    assert [event.attempt for event in events(run_dir, "damaged")] == [2]
    assert made_of(run_dir, "memorize") == end
    assert {row.attempt for row in steps(run_dir) if row.phase == "memorize"} == {1}
    assert not manifest.exists()
    assert_equal_runs(run_dir, undisturbed, phases=PHASES[1:])


def test_bf16_resumes_from_masters(start: Callable[..., RunDir], tmp_path: Path) -> None:
    whole, cut = start("engine.precision=bf16"), start("engine.precision=bf16")
    assert run_workers(whole, world_size=2) == [0, 0]
    fault = {"point": "step", "phase": "memorize", "step": 5, "rank": 1, "attempt": 1}
    variable = json.dumps({**fault, "marker": str(tmp_path / "fired")})
    run_workers(cut, world_size=2, environment={VARIABLE: variable})
    assert (tmp_path / "fired").exists()
    assert run_workers(cut, world_size=2) == [0, 0]
    assert_equal_runs(cut, whole)


@pytest.mark.slow
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
        assert one.loss == pytest.approx(other.loss, rel=1e-5, abs=1e-7)


def test_a_save_that_comes_too_soon_is_skipped_by_all_ranks_alike(
    start: Callable[..., RunDir], undisturbed: RunDir
) -> None:
    run_dir = start("checkpoints.every_steps=1", "checkpoints.while_saving=skip")
    assert run_workers(run_dir, world_size=2) == [0, 0]
    assert_equal_runs(run_dir, undisturbed)
    skipped, saved = events(run_dir, "skipped"), events(run_dir, "checkpoint")
    assert len(saved) == len(events(run_dir, "rank_file"))
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
