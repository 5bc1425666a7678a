"""Ranged reads give what transformers loads, whatever the files look like and however it is cut."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from rotescale.errors import DataError
from rotescale.model.build import (
    build_model,
    embedding_names,
    model_layout,
    parameter_shapes,
)
from rotescale.model.folder import check_folder, load_config
from rotescale.model.prepare import PreparedModel, prepare
from rotescale.model.sources import fetch
from rotescale.model.weights import FolderReader
from rotescale.spec import ModelSpec, RandomWeights
from rotescale.tensors import partition

ARCHITECTURES = ("llama-3.2-1b", "qwen2.5-1.5b", "phi-4")
TEXTS = ["Gene Finley is the mother of Cody Ross."] * 3


def micro(cache: Path, **changes: object) -> Path:
    fields = {"kind": "random", "hidden_size": 16, "num_heads": 2, "num_key_value_heads": 1}
    fields |= {"intermediate_size": 24, "vocab_size": 270} | changes
    return fetch(RandomWeights.model_validate(fields), cache=cache, texts=TEXTS)


def prepared_from(base: Path, out: Path, *, relations: int = 2) -> PreparedModel:
    spec = ModelSpec(weights=RandomWeights(kind="random"))
    names = [f"relation{number}" for number in range(relations)]
    return prepare(spec, base=base, relations=names, seed=5, out=out)


def rewrite(base: Path, out: Path, *, dtype: torch.dtype, max_shard_size: str) -> Path:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    model.save_pretrained(out, max_shard_size=max_shard_size)
    for file in base.glob("tokenizer*"):
        (out / file.name).write_bytes(file.read_bytes())
    return out


def assemble(prepared: PreparedModel, *, world_size: int) -> dict[str, torch.Tensor]:
    """What the ranks of a ZeRO-3 group read, put together again."""
    ranks = [prepared.reader() for _ in range(world_size)]
    whole: dict[str, torch.Tensor] = {}
    for name, shape in ranks[0].shapes.items():
        size = math.prod(shape)
        cuts = [partition(size, rank=r, world_size=world_size) for r in range(world_size)]
        parts = [reader.read(name, "master", *cut) for reader, cut in zip(ranks, cuts, strict=True)]
        whole[name] = torch.cat(parts).view(shape)
    for reader in ranks:
        reader.close()
    return whole


def resized_by_transformers(prepared: PreparedModel) -> dict[str, torch.Tensor]:
    """The model, grown plainly, with the prepared rows written over its embeddings."""
    model = AutoModelForCausalLM.from_pretrained(prepared.base, dtype=torch.float32)
    if prepared.vocab_size != model.config.vocab_size:
        model.resize_token_embeddings(prepared.vocab_size, mean_resizing=False)
    rows = load_file(prepared.folder / "key_rows.safetensors")
    indices = rows.pop("rows")
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, values in rows.items():
            parameters[name][indices] = values
    return parameters


@pytest.mark.parametrize("shards", ["10GB", "5KB"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("relations", [2, 40])
def test_partitions_reassemble_to_the_resized_model(
    tmp_path: Path, shards: str, dtype: torch.dtype, tied: bool, relations: int
) -> None:
    source = micro(tmp_path, tie_word_embeddings=tied)
    base = rewrite(source, tmp_path / "base", dtype=dtype, max_shard_size=shards)
    assert len(list(base.glob("*.safetensors"))) == 1 or shards == "5KB"
    prepared = prepared_from(base, tmp_path / "out", relations=relations)
    expected = resized_by_transformers(prepared)
    for world_size in (1, 2, 3):
        actual = assemble(prepared, world_size=world_size)
        assert actual.keys() == expected.keys()
        for name, tensor in actual.items():
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, expected[name]), (name, world_size)


def test_a_tied_output_embedding_may_be_stored_too(tmp_path: Path) -> None:
    base = micro(tmp_path)
    tensors = load_file(base / "model.safetensors")
    assert "lm_head.weight" not in tensors
    embedding = tensors["model.embed_tokens.weight"]
    both = tmp_path / "both"
    other_name = tmp_path / "other_name"
    for folder in (both, other_name):
        folder.mkdir()
        for file in base.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
    save_file(tensors | {"lm_head.weight": embedding.clone()}, both / "model.safetensors")
    del tensors["model.embed_tokens.weight"]
    save_file(tensors | {"lm_head.weight": embedding}, other_name / "model.safetensors")
    for folder in (both, other_name):
        check_folder(folder)
        with FolderReader(folder, layout=model_layout(load_config(folder))) as reader:
            for name in ("lm_head.weight", "model.embed_tokens.weight"):
                assert torch.equal(reader.read(name, "master", 5, 90), embedding.flatten()[5:90])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("tied", [True, False])
def test_every_architecture_reads_as_transformers_loads_it(
    tmp_path: Path, architecture: str, tied: bool
) -> None:
    base = micro(tmp_path, architecture=architecture, tie_word_embeddings=tied)
    prepared = prepared_from(base, tmp_path / "out")
    expected = resized_by_transformers(prepared)
    actual = assemble(prepared, world_size=3)
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    config = prepared.config()
    input_name, output_name = embedding_names(config)
    assert input_name == "model.embed_tokens.weight"
    assert output_name == (None if tied else "lm_head.weight")
    assert parameter_shapes(config) == {n: tuple(t.shape) for n, t in expected.items()}


def test_a_rank_reads_only_its_share(tmp_path: Path) -> None:
    prepared = prepared_from(micro(tmp_path, tie_word_embeddings=False), tmp_path / "out")
    with prepared.reader() as reader:
        total = 0
        for name, shape in reader.shapes.items():
            start, stop = partition(math.prod(shape), rank=1, world_size=3)
            reader.read(name, "master", start, stop)
            total += stop - start
        assert reader.bytes_read == total * 4


def test_reads_of_nothing_of_moments_and_of_unknown_names(tmp_path: Path) -> None:
    prepared = prepared_from(micro(tmp_path), tmp_path / "out")
    with prepared.reader() as reader:
        assert reader.read("model.norm.weight", "master", 16, 16).shape == (0,)
        with pytest.raises(DataError, match="moments"):
            reader.read("model.norm.weight", "exp_avg", 0, 1)
        with pytest.raises(DataError, match=r"nothing\.weight"):
            reader.read("nothing.weight", "master", 0, 1)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_built_model_with_the_read_weights_equals_the_loaded_one(
    tmp_path: Path, architecture: str
) -> None:
    base = micro(tmp_path, architecture=architecture)
    config = load_config(base)
    model = build_model(
        config, attention="sdpa", dtype=torch.float32, activation_checkpointing=True
    )
    with FolderReader(base, layout=model_layout(config)) as reader:
        for name, parameter in model.named_parameters():
            values = reader.read(name, "master", 0, parameter.numel())
            parameter.data.copy_(values.view(parameter.shape))
    loaded = AutoModelForCausalLM.from_pretrained(base)
    tokens = torch.tensor([[1, 2, 3, 4]])
    assert model.training
    assert torch.equal(model(tokens).logits, loaded(tokens).logits)
    model(tokens).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_model_is_built_without_dropout_and_without_cache(tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        "gpt2", n_embd=16, n_layer=1, n_head=2, vocab_size=32, resid_pdrop=0.5, attn_pdrop=0.5
    )
    model = build_model(
        config, attention="eager", dtype=torch.float32, activation_checkpointing=False
    )
    assert config.resid_pdrop == 0.5
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0.0}
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    tokens = torch.tensor([[1, 2, 3]])
    output = model(tokens)
    assert output.past_key_values is None
    assert torch.equal(output.logits, model(tokens).logits)


def test_the_published_configurations_give_the_published_sizes() -> None:
    folder = Path(__file__).parents[2] / "rotescale" / "model" / "architectures"
    billions = {"llama-3.2-1b": 1.236, "qwen2.5-1.5b": 1.544, "phi-4": 14.66}
    for name, size in billions.items():
        raw = json.loads((folder / f"{name}.json").read_text())
        shapes = parameter_shapes(AutoConfig.for_model(**raw))
        assert sum(map(math.prod, shapes.values())) / 1e9 == pytest.approx(size, abs=0.005)
