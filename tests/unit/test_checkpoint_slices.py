"""What is read equals what was written, at any world size, and damage is named."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from checkpoint_helpers import SHAPES, header, save, values

from rotescale.checkpoint.manifest import DIGEST_BYTES, load_manifest
from rotescale.checkpoint.slices import CheckpointReader
from rotescale.checkpoint.writer import publish, write_rank_file
from rotescale.errors import CheckpointError
from rotescale.tensors import PARTS, TensorSlice, partition


@pytest.mark.parametrize(
    ("writers", "readers"), [(1, 2), (2, 3), (3, 1), (2, 2), (1, 1), (4, 7), (40, 3)]
)
def test_another_world_size_reads_its_own_elements(
    tmp_path: Path, writers: int, readers: int
) -> None:
    save(tmp_path, head=header(world_size=writers))
    manifest = load_manifest(tmp_path / "manifest.json")
    total = 0
    for rank in range(readers):
        touched = 0
        with CheckpointReader(tmp_path, manifest) as reader:
            for name, shape in SHAPES.items():
                start, stop = partition(math.prod(shape), rank=rank, world_size=readers)
                for part in PARTS:
                    found = reader.read(name, part=part, start=start, stop=stop)
                    assert found.dtype == torch.float32
                    assert torch.equal(found, values(name, part)[start:stop])
                    total += stop - start
                    # Small slices are one block each, which is read whole to be verified.
                    touched += sum(
                        entry.stop - entry.start
                        for entry in manifest.slices
                        if (entry.tensor, entry.part) == (name, part)
                        and max(entry.start, start) < min(entry.stop, stop)
                    )
            assert reader.bytes_read == 4 * touched
    assert total == 3 * sum(math.prod(shape) for shape in SHAPES.values())


def test_every_range_of_a_tensor_can_be_read(tmp_path: Path) -> None:
    reader = CheckpointReader(tmp_path, save(tmp_path, head=header(world_size=3)))
    whole = values("mlp.weight", "exp_avg_sq")
    for start in range(25):
        for stop in range(start, 25):
            found = reader.read("mlp.weight", "exp_avg_sq", start, stop)
            assert torch.equal(found, whole[start:stop])


def test_more_files_than_may_be_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rotescale.ranges._MAX_OPEN_FILES", 2)
    with CheckpointReader(tmp_path, save(tmp_path, head=header(world_size=7))) as reader:
        assert torch.equal(
            reader.read("embed.weight", "master", 0, 35), values("embed.weight", "master")
        )
        reader.verify()


def test_shapes_and_parts(tmp_path: Path) -> None:
    full = CheckpointReader(tmp_path / "a", save(tmp_path / "a", head=header()))
    weights = CheckpointReader(tmp_path / "b", save(tmp_path / "b", head=header(kind="weights")))
    assert full.shapes == weights.shapes == SHAPES
    assert full.has("exp_avg")
    assert weights.has("master")
    assert not weights.has("exp_avg")
    with pytest.raises(CheckpointError, match=r"weights checkpoint holds no exp_avg of bias.*full"):
        weights.read("bias", "exp_avg", 0, 1)


def test_unknown_tensor_and_range(tmp_path: Path) -> None:
    reader = CheckpointReader(tmp_path, save(tmp_path, head=header()))
    with pytest.raises(CheckpointError, match=r"no tensor 'embed.weights'.*'embed.weight'"):
        reader.read("embed.weights", "master", 0, 1)
    with pytest.raises(CheckpointError, match=r"bias has 2 elements, and \[1, 3\)"):
        reader.read("bias", "master", 1, 3)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    reader = CheckpointReader(tmp_path, save(tmp_path, head=header()))
    reader.verify()
    file = tmp_path / "rank-00000-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(CheckpointError, match=r"rank-00000-of-00002.*exp_avg_sq of bias"):
        reader.read("bias", "exp_avg_sq", 0, 2)
    with pytest.raises(CheckpointError, match=r"rank-00000-of-00002.*the manifest says"):
        reader.verify()


def test_a_flipped_byte_is_found(tmp_path: Path) -> None:
    reader = CheckpointReader(tmp_path, save(tmp_path, head=header()))
    file = tmp_path / "rank-00001-of-00002.safetensors"
    data = bytearray(file.read_bytes())
    data[-7] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"rank-00001-of-00002.*bytes have changed"):
        reader.verify()
    with pytest.raises(
        CheckpointError, match=r"rank-00001-of-00002.*exp_avg_sq of mlp\.weight have changed"
    ):
        reader.read("mlp.weight", "exp_avg_sq", 13, 15)


def test_damage_is_collected_and_read_as_zeros(tmp_path: Path) -> None:
    damage: list[str] = []
    manifest = save(tmp_path, head=header())
    reader = CheckpointReader(tmp_path, manifest, on_damage=damage.append)
    file = tmp_path / "rank-00001-of-00002.safetensors"
    data = bytearray(file.read_bytes())
    [entry] = [
        e for e in manifest.slices if e.file == file.name and e.part == "master" and e.start == 18
    ]
    data[entry.begin] ^= 1
    file.write_bytes(data)
    found = reader.read("embed.weight", "master", 10, 30)
    assert torch.equal(found[:8], values("embed.weight", "master")[10:18])
    assert torch.equal(found[8:], torch.zeros(12))
    assert len(damage) == 1
    assert "master of embed.weight have changed" in damage[0]


def test_every_block_of_a_long_slice_is_verified_by_itself(tmp_path: Path) -> None:
    per_block = DIGEST_BYTES // 4
    whole = torch.randn(2 * per_block + 3, generator=torch.Generator().manual_seed(0))
    piece = TensorSlice("w", tuple(whole.shape), 0, len(whole))
    write_rank_file(tmp_path, rank=0, world_size=1, slices=[(piece, "master", whole)])
    manifest = publish(tmp_path, header=header(kind="weights", world_size=1), timeout_seconds=0)
    file = tmp_path / manifest.slices[0].file
    data = bytearray(file.read_bytes())
    data[manifest.slices[0].begin + DIGEST_BYTES + 40] ^= 1
    file.write_bytes(data)
    with CheckpointReader(tmp_path, manifest) as reader:
        assert torch.equal(reader.read("w", "master", 5, per_block), whole[5:per_block])
        assert reader.bytes_read == DIGEST_BYTES
        tail = reader.read("w", "master", 2 * per_block + 1, len(whole))
        assert torch.equal(tail, whole[2 * per_block + 1 :])
        assert reader.bytes_read == DIGEST_BYTES + 12
        with pytest.raises(CheckpointError, match=r"master of w have changed \(block 1"):
            reader.read("w", "master", per_block - 1, per_block + 1)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    reader = CheckpointReader(tmp_path, save(tmp_path, head=header()))
    (tmp_path / "rank-00001-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"rank-00001-of-00002.*No such file"):
        reader.read("embed.weight", "master", 0, 35)
