"""Folders that cannot be trained are refused before anything starts, each with its remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from rotescale.errors import DataError
from rotescale.model.folder import check_folder
from rotescale.model.sources import fetch
from rotescale.spec import RandomWeights

WEIGHTS = "model.safetensors"
NORM = "model.norm.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    weights = RandomWeights(
        kind="random", hidden_size=16, num_heads=2, num_key_value_heads=1, vocab_size=270
    )
    return fetch(weights, cache=tmp_path, texts=["hello"])


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(DataError) as caught:
        check_folder(folder)
    for word in (str(folder), *words):
        assert word in str(caught.value)
    assert "; " in str(caught.value), "the remedy stands behind a semicolon"


def change_config(folder: Path, **values: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def change_tensors(folder: Path, values: dict[str, torch.Tensor | None]) -> None:
    tensors = load_file(folder / WEIGHTS) | values
    save_file({n: t for n, t in tensors.items() if t is not None}, folder / WEIGHTS)


def shard(folder: Path) -> list[Path]:
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / WEIGHTS).unlink()
    model.save_pretrained(folder, max_shard_size="5KB")
    return sorted(folder.glob("model-*.safetensors"))


def test_a_whole_folder_passes(folder: Path) -> None:
    check_folder(folder)
    assert len(shard(folder)) > 1
    check_folder(folder)


def test_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    refused(folder, "config.json", "missing")


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"model_type": "no-such-model"}, "no-such-model"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantization_config"),
        ({"vocab_size": 100}, "embed_tokens"),
    ],
)
def test_config_that_does_not_fit(folder: Path, values: dict[str, object], word: str) -> None:
    change_config(folder, **values)
    refused(folder, word)


def test_a_vocabulary_smaller_than_the_tokenizers(folder: Path) -> None:
    change_config(folder, vocab_size=200)
    embedding = load_file(folder / WEIGHTS)["model.embed_tokens.weight"]
    change_tensors(folder, {"model.embed_tokens.weight": embedding[:200].clone()})
    refused(folder, "vocab_size 200", "tokenizer")


def test_no_weights(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    refused(folder, WEIGHTS, "safetensors format")


def test_a_missing_shard(folder: Path) -> None:
    file = shard(folder)[1]
    file.unlink()
    refused(folder, file.name, "missing")


def test_an_index_that_names_a_tensor_its_shard_lacks(folder: Path) -> None:
    shard(folder)
    index = folder / "model.safetensors.index.json"
    raw = json.loads(index.read_text())
    files = sorted(set(raw["weight_map"].values()))
    raw["weight_map"][NORM] = next(f for f in files if f != raw["weight_map"][NORM])
    index.write_text(json.dumps(raw))
    refused(folder, NORM)
    index.write_text("[]")
    refused(folder, "not an index")


@pytest.mark.parametrize("keep", [4, 100, -7])
def test_a_truncated_file(folder: Path, keep: int) -> None:
    file = folder / WEIGHTS
    file.write_bytes(file.read_bytes()[:keep])
    refused(folder, WEIGHTS, "truncated")


def test_a_header_that_is_not_json(folder: Path) -> None:
    file = folder / WEIGHTS
    data = bytearray(file.read_bytes())
    data[8:12] = b"????"
    file.write_bytes(data)
    refused(folder, WEIGHTS, "not JSON")


def test_a_tensor_of_another_shape(folder: Path) -> None:
    change_tensors(folder, {NORM: torch.ones(17)})
    refused(folder, NORM, "[17]", "[16]")


def test_a_missing_tensor(folder: Path) -> None:
    change_tensors(folder, {NORM: None})
    refused(folder, NORM)


def test_an_unsupported_dtype(folder: Path) -> None:
    change_tensors(folder, {NORM: torch.ones(16, dtype=torch.float64)})
    refused(folder, NORM, "F64")


def test_an_untied_model_needs_its_output_embedding(folder: Path) -> None:
    change_config(folder, tie_word_embeddings=False)
    refused(folder, "lm_head.weight")


def test_no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    refused(folder, "tokenizer")


def test_a_damaged_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    refused(folder, "tokenizer")
