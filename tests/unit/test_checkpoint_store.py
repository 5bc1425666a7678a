"""The store finds the place to go on from, and removes only what nobody can need."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoint_helpers import begin, published, rank_slices, save_at, values

from rotescale.checkpoint.manifest import DamagedManifestError
from rotescale.checkpoint.slices import CheckpointReader
from rotescale.checkpoint.store import CheckpointStore
from rotescale.checkpoint.writer import write_rank_file
from rotescale.run_dir import CheckpointName, RunDir


def leave_unpublished(run_dir: RunDir, *, attempt: int, step: int) -> Path:
    folder = run_dir.checkpoint(CheckpointName(attempt, 0, "memorize", step, "full"))
    write_rank_file(folder, rank=0, world_size=1, slices=rank_slices(0, 1))
    return folder


def test_the_path_names_the_attempt(tmp_path: Path) -> None:
    store = begin(RunDir(tmp_path))
    folder = store.directory("memorize", phase_index=0, step=50, kind="full")
    assert folder == tmp_path / "checkpoints/attempt-0001/01-memorize-step-000050-full"


def test_newest_goes_by_phase_then_step_then_kind(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    store = begin(run_dir)
    assert store.newest() is None
    save_at(run_dir, attempt=1, step=100, kind="weights", phase_end=True)
    save_at(run_dir, attempt=1, step=50)
    found = store.newest()
    assert found is not None
    assert (found.manifest.step, found.manifest.kind) == (100, "weights")
    save_at(run_dir, attempt=1, step=100)
    found = store.newest()
    assert found is not None
    assert found.manifest.kind == "full"
    save_at(run_dir, attempt=1, step=7, phase_index=1)
    found = store.newest()
    assert found is not None
    assert (found.manifest.phase, found.manifest.step) == ("generalize", 7)
    reader = CheckpointReader(found.directory, found.manifest)
    assert torch.equal(reader.read("bias", "master", 0, 2), values("bias", "master"))


def test_weights_within_a_phase_are_no_place_to_go_on_from(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    store = begin(run_dir)
    save_at(run_dir, attempt=1, step=50)
    save_at(run_dir, attempt=1, step=60, kind="weights")
    found = store.newest()
    assert found is not None
    assert found.manifest.step == 50


def test_folders_without_a_manifest_are_ignored(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    store = begin(run_dir)
    save_at(run_dir, attempt=1, step=50)
    leave_unpublished(run_dir, attempt=1, step=100)
    (run_dir.checkpoints_dir / "attempt-0001" / "01-memorize-step-000200-full.old").mkdir()
    (run_dir.checkpoints_dir / "attempt-0001" / "notes.txt").touch()
    found = store.newest()
    assert found is not None
    assert found.manifest.step == 50


def test_a_checkpoint_in_another_folder_is_damaged(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    store = begin(run_dir)
    folder = run_dir.checkpoint(save_at(run_dir, attempt=1, step=50))
    folder.rename(folder.with_name("01-memorize-step-000060-full"))
    with pytest.raises(DamagedManifestError, match="if the folder was renamed, move it back"):
        store.newest()


def cut(run_dir: RunDir, name: CheckpointName) -> None:
    manifest = run_dir.manifest(name)
    manifest.write_bytes(manifest.read_bytes()[:200])


def test_with_its_newest_manifest_damaged_an_attempt_removes_nothing(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    begin(run_dir)
    save_at(run_dir, attempt=1, step=10)
    store = begin(run_dir)
    save_at(run_dir, attempt=1, step=15)
    for step in (20, 30):
        save_at(run_dir, attempt=2, step=step)
    cut(run_dir, save_at(run_dir, attempt=2, step=40))
    assert store.prune(1) == []
    assert store.collect_orphans() == []
    assert published(run_dir) == [(1, 10), (1, 15), (2, 20), (2, 30), (2, 40)]


def test_prune_leaves_what_it_cannot_read(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    store = begin(run_dir)
    names = [save_at(run_dir, attempt=1, step=step) for step in (10, 20, 30)]
    cut(run_dir, names[0])
    assert store.prune(1) == [names[1]]
    assert published(run_dir) == [(1, 10), (1, 30)]


def test_the_end_of_a_phase_is_found_in_the_lineage(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    first = begin(run_dir)
    save_at(run_dir, attempt=1, step=50)
    assert first.phase_end("memorize") is None
    second = begin(run_dir)
    save_at(run_dir, attempt=1, step=100, kind="weights", phase_end=True)
    assert second.phase_end("memorize") is None
    save_at(run_dir, attempt=2, step=100, kind="weights", phase_end=True)
    save_at(run_dir, attempt=2, step=7, phase_index=1)
    found = begin(run_dir).phase_end("memorize")
    assert found is not None
    assert found.manifest.attempt == 2


def test_prune_keeps_the_last_and_the_ends_of_phases(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    store = begin(run_dir)
    for step in (10, 20):
        save_at(run_dir, attempt=1, step=step)
    save_at(run_dir, attempt=1, step=25, kind="weights")
    save_at(run_dir, attempt=1, step=30, phase_end=True)
    for step in (1, 2, 3):
        save_at(run_dir, attempt=1, step=step, phase_index=1)
    removed = store.prune(2)
    assert [(name.phase, name.step) for name in removed] == [
        ("memorize", 10),
        ("memorize", 20),
        ("generalize", 1),
    ]
    assert published(run_dir) == [(1, 25), (1, 30), (1, 2), (1, 3)]
    assert not any(run_dir.checkpoint(name).exists() for name in removed)
    assert store.prune(2) == []


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_newest(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    store = begin(run_dir)
    save_at(run_dir, attempt=1, step=10)
    save_at(run_dir, attempt=1, step=20)
    found = store.newest()
    assert found is not None
    assert store.set_aside(found.directory)
    assert published(run_dir) == [(1, 10)]
    assert (found.directory / "manifest.json.damaged").exists()
    left = store.newest()
    assert left is not None
    assert left.manifest.step == 10


def test_a_superseded_attempt_sets_nothing_aside(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    store = begin(run_dir)
    name = save_at(run_dir, attempt=1, step=10)
    begin(run_dir)
    assert not store.set_aside(run_dir.checkpoint(name))
    assert published(run_dir) == [(1, 10)]


def test_prune_keeps_every_mth(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    store = begin(run_dir)
    for step in (10, 20, 30, 40, 50):
        save_at(run_dir, attempt=1, step=step)
    removed = store.prune(1, keep_every=20)
    assert [name.step for name in removed] == [10, 30]
    assert [step for _, step in published(run_dir)] == [20, 40, 50]


def test_prune_leaves_the_resume_point_until_there_is_an_own_checkpoint(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    begin(run_dir)
    for step in (10, 20, 30):
        save_at(run_dir, attempt=1, step=step)
    second = begin(run_dir)
    assert second.prune(1) == []
    save_at(run_dir, attempt=2, step=40)
    assert [name.step for name in second.prune(2)] == [10, 20]
    save_at(run_dir, attempt=2, step=50)
    assert [(name.attempt, name.step) for name in second.prune(2)] == [(1, 30)]
    found = begin(run_dir).newest()
    assert found is not None
    assert found.manifest.step == 50


def test_a_superseded_attempt_prunes_nothing(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    first = begin(run_dir)
    for step in (10, 20):
        save_at(run_dir, attempt=1, step=step)
    begin(run_dir)
    save_at(run_dir, attempt=1, step=30)
    assert first.prune(1) == []
    assert published(run_dir) == [(1, 10), (1, 20), (1, 30)]


def test_an_attempt_that_starts_while_one_prunes_keeps_its_resume_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = RunDir(tmp_path)
    first = begin(run_dir)
    for step in (10, 20):
        save_at(run_dir, attempt=1, step=step)
    answers = [True, False]
    monkeypatch.setattr(CheckpointStore, "is_newest", lambda *_: answers.pop(0))
    assert first.prune(1) == []
    assert answers == []
    assert published(run_dir) == [(1, 10), (1, 20)]


def test_the_newest_attempt_collects_orphans(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    first = begin(run_dir)
    save_at(run_dir, attempt=1, step=10)
    orphan = leave_unpublished(run_dir, attempt=1, step=20)
    assert first.collect_orphans() == []
    second = begin(run_dir)
    save_at(run_dir, attempt=1, step=30)
    own = leave_unpublished(run_dir, attempt=2, step=20)
    assert first.collect_orphans() == []
    assert [name.step for name in second.collect_orphans()] == [20]
    assert not orphan.exists()
    assert own.exists()
    # The superseded attempt's checkpoint can only go once there is one to replace it.
    assert published(run_dir) == [(1, 10), (1, 30)]
    save_at(run_dir, attempt=2, step=40)
    assert [name.step for name in second.collect_orphans()] == [30]
    assert published(run_dir) == [(1, 10), (2, 40)]


def test_a_removal_that_was_cut_short_is_finished_by_the_next_attempt(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    begin(run_dir)
    name = save_at(run_dir, attempt=1, step=10)
    save_at(run_dir, attempt=1, step=20)
    run_dir.manifest(name).unlink()
    assert begin(run_dir).collect_orphans() == [name]


def test_a_superseded_writer_loses_its_files_without_harm(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    begin(run_dir)
    save_at(run_dir, attempt=1, step=10)
    folder = leave_unpublished(run_dir, attempt=1, step=20)
    second = begin(run_dir)
    second.collect_orphans()
    assert not folder.exists()
    write_rank_file(folder, rank=0, world_size=1, slices=rank_slices(0, 1))
    found = second.newest()
    assert found is not None
    assert found.manifest.step == 10
