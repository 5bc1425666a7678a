"""Frozen parameters are named by patterns, and a whole model is read from two places."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from checkpoint_helpers import header
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from rotescale.checkpoint.slices import CheckpointReader
from rotescale.checkpoint.writer import publish, write_rank_file
from rotescale.errors import CheckpointError, SpecError
from rotescale.model.build import ModelLayout, model_layout
from rotescale.model.export import finish_export, plan_shards, write_shard
from rotescale.model.frozen import WholeReader, freeze, frozen_names
from rotescale.model.prepare import PreparedModel, prepare
from rotescale.model.sources import fetch
from rotescale.spec import ModelSpec, RandomWeights
from rotescale.tensors import PARTS, TensorSlice, partition

LAYOUT = ModelLayout(
    architecture="Tiny",
    shapes={"embed.weight": (4, 2), "layers.0.mlp.up": (2,), "layers.1.mlp.up": (2,), "norm": (2,)},
    aliases={"head.weight": "embed.weight"},
    input_embedding="embed.weight",
    output_embedding=None,
    vocabulary=("embed.weight",),
    stored_buffers=(),
    base_prefix="model.",
    linear_layers=(),
)


def test_patterns_match_whole_names_and_cross_dots() -> None:
    assert frozen_names([], LAYOUT) == frozenset()
    assert frozen_names(["*.mlp.*"], LAYOUT) == {"layers.0.mlp.up", "layers.1.mlp.up"}
    assert frozen_names(["layers.0.*", "nor[m]"], LAYOUT) == {"layers.0.mlp.up", "norm"}


@pytest.mark.parametrize(
    ("patterns", "told"),
    [
        (
            ["norm", "layers.2.*"],
            r"model.frozen.1: 'layers.2.\*' matches none of the 4 param.*'lay",
        ),
        (["mlp"], "model.frozen.0: 'mlp' matches none"),
        (["NORM"], "'NORM' matches none"),
        (["head.*"], "names head.weight, which is tied to embed.weight; name that one"),
        (["embed*", "layers*", "norm"], "freezes all 4 parameters.*name fewer"),
    ],
)
def test_patterns_that_freeze_nothing_or_everything(patterns: list[str], told: str) -> None:
    with pytest.raises(SpecError, match=told):
        frozen_names(patterns, LAYOUT)


def test_frozen_parameters_want_no_gradient() -> None:
    model = freeze(nn.Linear(2, 3), frozenset({"bias"}))
    assert model.weight.requires_grad
    assert not model.bias.requires_grad


FROZEN = ["model.embed_tokens.*", "*.0.mlp.*"]


@pytest.fixture
def prepared(tmp_path: Path, model_cache: Path) -> PreparedModel:
    weights = RandomWeights(kind="random", hidden_size=18, num_heads=3, num_key_value_heads=1)
    base = fetch(weights, cache=model_cache, texts=["Gene Finley is the mother of Cody Ross."])
    relations = ["mother", *(f"relation{number}" for number in range(20))]
    spec = ModelSpec(weights=weights)
    return prepare(spec, base=base, relations=relations, seed=1, out=tmp_path / "prepared")


def trained_value(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.arange(math.prod(shape), dtype=torch.float32) / 7


def checkpoint(
    directory: Path, shapes: dict[str, tuple[int, ...]], *, world_size: int = 2
) -> CheckpointReader:
    """A full checkpoint of those tensors, as that many ranks leave it."""
    for rank in range(world_size):
        slices = []
        for name, shape in shapes.items():
            cut = partition(math.prod(shape), rank=rank, world_size=world_size)
            piece = TensorSlice(name, shape, *cut)
            slices += [(piece, part, trained_value(shape)[slice(*cut)]) for part in PARTS]
        write_rank_file(directory, rank=rank, world_size=world_size, slices=slices)
    return CheckpointReader(directory, publish(directory, header=header(world_size=world_size)))


def test_a_whole_model_is_read_from_checkpoint_and_base(
    prepared: PreparedModel, tmp_path: Path
) -> None:
    shapes = model_layout(prepared.config()).shapes
    frozen = frozen_names(FROZEN, model_layout(prepared.config()))
    trained = {name: shape for name, shape in shapes.items() if name not in frozen}
    saved = checkpoint(tmp_path / "saved", trained)
    with (
        WholeReader(saved, prepared=prepared, frozen=FROZEN) as whole,
        prepared.reader() as base,
    ):
        assert list(whole.shapes.items()) == list(shapes.items())
        for name, shape in shapes.items():
            size = math.prod(shape)
            start, stop = size // 3, size - 1
            read = whole.read(name, "master", start, stop)
            if name in frozen:
                assert torch.equal(read, base.read(name, "master", start, stop))
            else:
                assert torch.equal(read, trained_value(shape)[start:stop])
                assert torch.equal(whole.read(name, "exp_avg", 0, size), trained_value(shape))
        assert whole.bytes_read == saved.bytes_read + base.bytes_read

        out = tmp_path / "export"
        shards = plan_shards(whole.shapes, dtype="float32", max_shard_bytes=20_000)
        for shard in shards:
            write_shard(shard, reader=whole, out=out, dtype="float32")
        finish_export(prepared, shards, out=out, dtype="float32")
        model = AutoModelForCausalLM.from_pretrained(out)
        for name, parameter in model.named_parameters():
            assert torch.equal(
                parameter.flatten(), whole.read(name, "master", 0, parameter.numel())
            )
        # The key token's row of the frozen embedding, which no file of the base holds.
        [row] = prepared.key_token_ids["relation19"]
        assert row >= load_file(prepared.base / "model.safetensors")[
            "model.embed_tokens.weight"
        ].size(0)
        assert model.get_input_embeddings().weight[row].abs().sum() > 0


def test_a_whole_model_without_frozen_tensors_is_the_checkpoint(
    prepared: PreparedModel, tmp_path: Path
) -> None:
    saved = checkpoint(tmp_path, {"only.weight": (3,)}, world_size=1)
    with WholeReader(saved, prepared=prepared, frozen=[]) as whole:
        assert whole.shapes == {"only.weight": (3,)}
        assert torch.equal(whole.read("only.weight", "master", 0, 3), trained_value((3,)))


@pytest.mark.parametrize(
    ("patterns", "told"),
    [
        (["*.mlp.*"], "lacks the trainable tensor 'model.embed_tokens.weight'"),
        (["model.embed_tokens.*", "*.mlp.*", "*norm*"], "holds the frozen tensor 'model.layers.0"),
    ],
)
def test_a_checkpoint_of_other_frozen_tensors_is_refused(
    patterns: list[str], told: str, prepared: PreparedModel, tmp_path: Path
) -> None:
    layout = model_layout(prepared.config())
    kept = frozen_names(["model.embed_tokens.*", "*.mlp.*"], layout)
    shapes = {name: shape for name, shape in layout.shapes.items() if name not in kept}
    saved = checkpoint(tmp_path, shapes, world_size=1)
    with pytest.raises(CheckpointError, match=told):
        WholeReader(saved, prepared=prepared, frozen=patterns)
