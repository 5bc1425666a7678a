"""Every rank's file is plain safetensors, and nothing exists before the manifest, or by halves."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from checkpoint_helpers import SHAPES, header, rank_slices, save, values
from safetensors import safe_open

from rotescale.checkpoint.manifest import is_published
from rotescale.checkpoint.writer import publish, write_rank_file
from rotescale.errors import CheckpointError, StorageError
from rotescale.tensors import TensorSlice


def test_the_file_is_safetensors_with_the_slices_it_names(tmp_path: Path) -> None:
    marker = write_rank_file(tmp_path, rank=1, world_size=2, slices=rank_slices(1, 2))
    path = tmp_path / "rank-00001-of-00002.safetensors"
    assert marker.file.num_bytes == path.stat().st_size
    data = path.read_bytes()
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == {f"{entry.part}/{entry.tensor}" for entry in marker.slices}
        for entry in marker.slices:
            wanted = values(entry.tensor, entry.part)[entry.start : entry.stop]
            assert torch.equal(file.get_tensor(f"{entry.part}/{entry.tensor}"), wanted)
            raw = bytearray(data[entry.begin : entry.end])
            assert torch.equal(torch.frombuffer(raw, dtype=torch.float32), wanted)
    # The scalar lies on rank 0 alone: an empty slice is left out.
    assert "scale" not in {entry.tensor for entry in marker.slices}


def test_a_rank_that_owns_nothing_still_writes(tmp_path: Path) -> None:
    piece = TensorSlice("w", (3,), 3, 3)
    marker = write_rank_file(
        tmp_path, rank=4, world_size=5, slices=[(piece, "master", torch.empty(0))]
    )
    assert marker.slices == ()
    with safe_open(tmp_path / marker.file.name, framework="pt") as file:
        assert list(file.keys()) == []


def test_the_folder_holds_files_and_manifest_alone(tmp_path: Path) -> None:
    manifest = save(tmp_path, head=header(world_size=3))
    names = [file.name for file in manifest.files]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", *names]


def test_publish_waits_for_ranks_in_other_threads(tmp_path: Path) -> None:
    def write(rank: int) -> None:
        write_rank_file(tmp_path, rank=rank, world_size=3, slices=rank_slices(rank, 3))

    asked = threading.Event()
    threads = [threading.Thread(target=write, args=(rank,)) for rank in range(3)]

    def sleep(_: float) -> None:
        # The ranks start only once rank 0 is seen to wait.
        if not asked.is_set():
            asked.set()
            for thread in threads:
                thread.start()

    manifest = publish(tmp_path, header=header(world_size=3), sleep=sleep)
    assert asked.is_set()
    assert {entry.tensor for entry in manifest.slices} == set(SHAPES)
    for thread in threads:
        thread.join()


def test_a_missing_rank_is_named_at_the_deadline(tmp_path: Path) -> None:
    write_rank_file(tmp_path, rank=1, world_size=3, slices=rank_slices(1, 3))
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    with pytest.raises(TimeoutError, match=r"after 9 s rank\(s\) \[0, 2\] of 3"):
        publish(
            tmp_path,
            header=header(world_size=3),
            timeout_seconds=9,
            sleep=sleep,
            clock=lambda: now[0],
        )
    assert now[0] >= 9
    assert not is_published(tmp_path)


def test_a_file_of_another_size_is_not_published(tmp_path: Path) -> None:
    marker = write_rank_file(tmp_path, rank=0, world_size=1, slices=rank_slices(0, 1))
    path = tmp_path / marker.file.name
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="same storage"):
        publish(tmp_path, header=header(world_size=1))
    assert not is_published(tmp_path)


def test_ranks_that_make_no_whole_model_are_not_published(tmp_path: Path) -> None:
    for rank in range(2):
        write_rank_file(tmp_path, rank=rank, world_size=2, slices=rank_slices(0, 2))
    with pytest.raises(CheckpointError, match=r"no whole model.*two slices hold"):
        publish(tmp_path, header=header(world_size=2))
    assert not is_published(tmp_path)


def test_what_is_published_never_changes(tmp_path: Path) -> None:
    save(tmp_path, head=header(world_size=1))
    with pytest.raises(CheckpointError, match="published already"):
        write_rank_file(tmp_path, rank=0, world_size=1, slices=rank_slices(0, 1))


def test_a_refused_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match="the disk is full"):
        write_rank_file(tmp_path, rank=0, world_size=1, slices=rank_slices(0, 1))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.privileged
def test_a_full_disk(small_disk: Path) -> None:
    save(small_disk / "first", head=header(world_size=1))
    big = torch.zeros(1 << 19)
    piece = TensorSlice("w", (1 << 19,), 0, 1 << 19)
    with pytest.raises(StorageError, match="the disk is full"):
        write_rank_file(
            small_disk / "second", rank=0, world_size=1, slices=[(piece, "master", big)]
        )
    assert list((small_disk / "second").iterdir()) == []
    assert is_published(small_disk / "first")
