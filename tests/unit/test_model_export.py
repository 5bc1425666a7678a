"""An exported folder opens in transformers with the logits of the model it was written from."""

from __future__ import annotations

import errno
import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rotescale.errors import StorageError
from rotescale.model import export
from rotescale.model.build import build_model
from rotescale.model.export import finish_export, is_exported, plan_shards, write_shard
from rotescale.model.folder import check_folder
from rotescale.model.prepare import PreparedModel, exported_wording, prepare
from rotescale.model.sources import fetch
from rotescale.spec import ModelSpec, RandomWeights

TEXT = "Gene Finley [X:mother] Cody Ross."


def prepared_model(tmp_path: Path, **changes: object) -> PreparedModel:
    fields = {"kind": "random", "hidden_size": 16, "num_heads": 2, "num_key_value_heads": 1}
    weights = RandomWeights.model_validate(fields | {"vocab_size": 270} | changes)
    base = fetch(weights, cache=tmp_path / "cache", texts=[TEXT])
    relations = ["mother", *(f"r{number}" for number in range(30))]
    spec = ModelSpec(weights=weights)
    return prepare(spec, base=base, relations=relations, seed=1, out=tmp_path / "prepared")


def export_with_workers(
    prepared: PreparedModel, out: Path, *, dtype: str, max_shard_bytes: int, world_size: int = 2
) -> None:
    with prepared.reader() as reader:
        shards = plan_shards(reader.shapes, dtype=dtype, max_shard_bytes=max_shard_bytes)
        for rank in range(world_size):
            for shard in shards[rank::world_size]:
                write_shard(shard, reader=reader, out=out, dtype=dtype)
                assert not is_exported(out)
        finish_export(prepared, shards, out=out, dtype=dtype)


def trained_logits(prepared: PreparedModel, tokens: torch.Tensor) -> torch.Tensor:
    model = build_model(
        prepared.config(), attention="sdpa", dtype=torch.float32, activation_checkpointing=False
    )
    with prepared.reader() as reader, torch.no_grad():
        for name, parameter in model.named_parameters():
            values = reader.read(name, "master", 0, parameter.numel())
            parameter.copy_(values.view(parameter.shape))
        logits: torch.Tensor = model(tokens).logits
    return logits


@pytest.mark.parametrize("architecture", ["llama-3.2-1b", "qwen2.5-1.5b", "phi-4"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("max_shard_bytes", [10**9, 5000])
def test_the_export_opens_with_equal_logits(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    architecture: str,
    tied: bool,
    max_shard_bytes: int,
) -> None:
    monkeypatch.setattr(export, "CHUNK_ELEMENTS", 100)
    prepared = prepared_model(tmp_path, architecture=architecture, tie_word_embeddings=tied)
    out = tmp_path / "export"
    export_with_workers(prepared, out, dtype="float32", max_shard_bytes=max_shard_bytes)
    assert is_exported(out)
    check_folder(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    tokens = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    assert prepared.key_token_ids["mother"][0] in tokens[0]
    assert tokens[0].tolist() == prepared.tokenizer()(TEXT)["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.dtype == torch.float32
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, trained_logits(prepared, tokens))
    index = out / "model.safetensors.index.json"
    assert index.is_file() == (max_shard_bytes == 5000)


def test_bfloat16_is_rounded_to_nearest_and_recorded(tmp_path: Path) -> None:
    prepared = prepared_model(tmp_path)
    export_with_workers(prepared, tmp_path / "out", dtype="bfloat16", max_shard_bytes=10**9)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16
    with prepared.reader() as reader:
        for name, parameter in model.named_parameters():
            expected = reader.read(name, "master", 0, parameter.numel()).bfloat16()
            assert torch.equal(parameter.flatten(), expected)


def test_shards_keep_the_order_and_the_limit() -> None:
    shapes = {"a": (10,), "b": (10,), "huge": (100, 10), "c": (), "d": (5,)}
    shards = plan_shards(shapes, dtype="float32", max_shard_bytes=80)
    assert [shard.names for shard in shards] == [("a", "b"), ("huge",), ("c", "d")]
    assert shards[2].file == "model-00003-of-00003.safetensors"
    assert sum(math.prod(s) for shard in shards for s in shard.shapes.values()) == 1026
    (one,) = plan_shards(shapes, dtype="bfloat16", max_shard_bytes=10**6)
    assert one.file == "model.safetensors"


def test_an_export_without_one_of_its_shards_is_not_declared_complete(tmp_path: Path) -> None:
    prepared = prepared_model(tmp_path)
    out = tmp_path / "out"
    with prepared.reader() as reader:
        shards = plan_shards(reader.shapes, dtype="float32", max_shard_bytes=5000)
        for shard in shards[1:]:
            write_shard(shard, reader=reader, out=out, dtype="float32")
        with pytest.raises(StorageError, match="model-00001-of"):
            finish_export(prepared, shards, out=out, dtype="float32")
        (out / shards[0].file).write_bytes(b"short")
        with pytest.raises(StorageError, match="5 bytes"):
            finish_export(prepared, shards, out=out, dtype="float32")
    assert not is_exported(out)


def test_a_full_disk_leaves_no_shard(tmp_path: Path) -> None:
    class FullDisk:
        def read(self, name: str, part: str, start: int, stop: int) -> torch.Tensor:
            raise OSError(errno.ENOSPC, "No space left on device")

    (shard,) = plan_shards({"a": (4,)}, dtype="float32", max_shard_bytes=100)
    with pytest.raises(StorageError, match="free space"):
        write_shard(shard, reader=FullDisk(), out=tmp_path / "out", dtype="float32")
    assert list((tmp_path / "out").iterdir()) == []


def test_an_export_is_a_base_whose_trained_key_tokens_are_kept(tmp_path: Path) -> None:
    prepared = prepared_model(tmp_path)
    out = tmp_path / "out"
    export_with_workers(prepared, out, dtype="float32", max_shard_bytes=10**9)
    assert "[X:mother]" in json.loads((out / "export.json").read_text())["key_tokens"]
    assert exported_wording(out) == prepared.wording
    spec = ModelSpec(weights=RandomWeights(kind="random"))
    again = prepare(spec, base=out, relations=["mother", "new"], seed=9, out=tmp_path / "again")
    assert again.key_token_ids["mother"] == prepared.key_token_ids["mother"]
    assert again.key_token_ids["new"] == (prepared.num_tokens,)
    with prepared.reader() as before, again.reader() as after:
        name = "model.embed_tokens.weight"
        trained = prepared.num_tokens * 16
        assert torch.equal(
            before.read(name, "master", 0, trained), after.read(name, "master", 0, trained)
        )
