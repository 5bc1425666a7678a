"""Optimizer state that lies in files of a node's own disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from rotescale.engine.mapped import map_copy, map_zeros
from rotescale.errors import StorageError


def test_a_mapped_tensor_lies_on_the_disk_and_leaves_no_file(tmp_path: Path) -> None:
    folder = tmp_path / "node" / "offload"
    values = torch.arange(300_000, dtype=torch.float32)
    mapped = map_copy(values, folder=folder)
    assert torch.equal(mapped, values)
    assert list(folder.iterdir()) == []
    maps = Path("/proc/self/maps").read_text()
    assert any(str(folder) in line and "rw-s" in line for line in maps.splitlines())
    # Whatever reads it sees one memory.
    view = mapped[1000:2000]
    mapped.mul_(2.0)
    assert torch.equal(view, 2 * values[1000:2000])
    del mapped, view
    assert str(folder) not in Path("/proc/self/maps").read_text()


def test_zeros_are_zeros_and_an_empty_part_is_empty(tmp_path: Path) -> None:
    assert not map_zeros(5000, folder=tmp_path).any()
    assert map_zeros(0, folder=tmp_path).shape == (0,)


def test_a_full_disk_is_told_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StorageError, match=r"nvme: .* 0\.40 GB \(No space.*ROTESCALE_LOCAL"):
        map_zeros(100_000_000, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []
