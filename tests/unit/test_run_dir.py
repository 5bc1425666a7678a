"""Paths are spelled once, a run belongs to one experiment, and its outcome stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rotescale.errors import CheckpointError, SpecError, StorageError
from rotescale.run_dir import CheckpointName, Outcome, RunDir, SegmentName, open_run
from rotescale.spec import ExperimentSpec
from rotescale.spec_file import dump_json


def spec(**changes: Any) -> ExperimentSpec:
    raw = {
        "name": "tiny",
        "model": {"weights": {"kind": "random"}},
        "facts": {"source": "generated", "relations": ["mother"]},
        "phases": [
            {
                "name": "memorize",
                "text": "key_token",
                "epochs": 1,
                "global_batch": 4,
                "learning_rate": 1e-4,
            }
        ],
    }
    return ExperimentSpec.model_validate({**raw, **changes})


def open_spec(root: Path, experiment: ExperimentSpec) -> RunDir:
    return open_run(root, spec_json=dump_json(experiment), digest=experiment.digest())


def test_a_checkpoint_name_survives_its_path(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    name = CheckpointName(12, 1, "generalize-step-2", 1234567, "weights")
    relative = run_dir.manifest(name).relative_to(tmp_path).as_posix()
    assert relative == (
        "checkpoints/attempt-0012/02-generalize-step-2-step-1234567-weights/manifest.json"
    )
    assert run_dir.manifest_name(relative) == name
    run_dir.checkpoint(name).mkdir(parents=True)
    assert run_dir.checkpoint_folders(12) == [name]
    assert run_dir.checkpoint_attempts() == [12]


@pytest.mark.parametrize(
    "relative",
    [
        "",
        "checkpoints/attempt-0001/01-a-step-000001-full",
        "checkpoints/attempt-1/01-a-step-000001-full/manifest.json",
        "checkpoints/attempt-0001/00-a-step-000001-full/manifest.json",
        "checkpoints/attempt-0001/01-a-step-000001-fuller/manifest.json",
    ],
)
def test_other_paths_are_no_manifests(tmp_path: Path, relative: str) -> None:
    with pytest.raises(CheckpointError, match="no path of a manifest"):
        RunDir(tmp_path).manifest_name(relative)


def test_attempts_are_listed_by_number(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    run_dir.attempts_dir.mkdir()
    for name in ("0002.json", "0010.json", "10000.json", "0003.json.tmp", ".0011.json.x.tmp"):
        (run_dir.attempts_dir / name).touch()
    assert run_dir.attempt_numbers() == [2, 10, 10000]
    assert run_dir.newest_attempt() == 10000
    assert run_dir.attempt(10) == run_dir.attempts_dir / "0010.json"


def test_segments_are_spelled_and_listed(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    name = SegmentName(3, 0, 1)
    path = run_dir.record_segment(name)
    assert path == tmp_path / "records/attempt-0003/rank-00000/segment-000001.jsonl"
    path.parent.mkdir(parents=True)
    path.touch()
    assert run_dir.record_segments() == [name]


def test_a_run_is_created_and_opened_again(tmp_path: Path) -> None:
    root = tmp_path / "runs" / "tiny"
    run_dir = open_spec(root, spec())
    assert run_dir.spec_json.read_text() == dump_json(spec())
    assert open_spec(root, spec()) == run_dir
    changed = spec(checkpoints={"keep_last": 5})
    open_spec(root, changed)
    assert run_dir.spec_json.read_text() == dump_json(changed)


def test_another_experiment_is_refused(tmp_path: Path) -> None:
    open_spec(tmp_path, spec())
    other = spec(name="other", seed=1)
    with pytest.raises(SpecError, match=rf"'tiny' \(digest {spec().digest()}\).*'other'.*choose"):
        open_spec(tmp_path, other)
    assert RunDir(tmp_path).spec_json.read_text() == dump_json(spec())


def test_a_place_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="choose another folder"):
        open_spec(tmp_path / "file" / "run", spec())
    with pytest.raises(StorageError, match="choose another folder"):
        open_spec(tmp_path / "file", spec())


def test_an_outcome_is_saved_read_and_cleared(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    assert Outcome.read(run_dir) is None
    failed = Outcome(status="failed", attempt=2, exit_code=3, error="TrainingError", message="NaN")
    assert failed.write(run_dir)
    saved = Outcome.read(run_dir)
    assert saved is not None
    assert saved.time is not None
    assert saved == failed.model_copy(update={"time": saved.time})
    Outcome.clear(run_dir)
    Outcome.clear(run_dir)
    assert Outcome.read(run_dir) is None


def test_a_superseded_attempt_ends_no_run(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    run_dir.attempts_dir.mkdir()
    run_dir.attempt(2).touch()
    assert not Outcome(status="failed", attempt=1, exit_code=2, error="StorageError").write(run_dir)
    assert Outcome.read(run_dir) is None
    assert Outcome(status="finished", attempt=2).write(run_dir)


def test_a_damaged_outcome_is_named(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    run_dir.outcome_json.write_text('{"status": "fin')
    with pytest.raises(CheckpointError, match=r"outcome\.json: damaged.*delete it"):
        Outcome.read(run_dir)
