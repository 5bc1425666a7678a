"""LoRA: which parameters an adapted model has, what they start from, and what is refused."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import micro_spec
from lora_helpers import QWEN, UNTIED, lora_spec, prepared_model, saved, whole
from transformers import DeepseekV3Config, GPT2Config, MambaConfig, PretrainedConfig

from rotescale.composition import make_engine
from rotescale.errors import CheckpointError, SpecError
from rotescale.model.build import ModelLayout, meta_model, model_layout
from rotescale.model.lora import AdaptedLayout, LoraReader, a_name, b_name
from rotescale.model.prepare import PreparedModel
from rotescale.model.trained import (
    check_trainable,
    count_parameters,
    start_reader,
    trainable_part,
    whole_reader,
)
from rotescale.spec import ExperimentSpec, LoraSpec

LAYOUT = ModelLayout(
    architecture="Tiny",
    shapes={
        "embed.weight": (8, 4),
        "layers.0.q_proj.weight": (6, 4),
        "layers.0.q_proj.bias": (6,),
        "layers.0.up_proj.weight": (4, 6),
        "layers.1.q_proj.weight": (6, 4),
        "norm": (4,),
    },
    aliases={"head.weight": "embed.weight"},
    input_embedding="embed.weight",
    output_embedding=None,
    vocabulary=("embed.weight",),
    stored_buffers=(),
    base_prefix="model.",
    linear_layers=("layers.0.q_proj", "layers.0.up_proj", "layers.1.q_proj"),
)
Prepare = Callable[[ExperimentSpec], PreparedModel]


@pytest.fixture
def prepared_for(tmp_path: Path, model_cache: Path) -> Prepare:
    """Makes the prepared model of a spec."""
    return partial(prepared_model, out=tmp_path / "prepared", cache=model_cache)


def test_adapted_layers_move_and_gain_two_matrices() -> None:
    adapted = AdaptedLayout.of(LoraSpec(r=2, target_modules=("q_proj",)), LAYOUT)
    assert adapted.layers == ("layers.0.q_proj", "layers.1.q_proj")
    assert adapted.shapes == {
        "embed.weight": (8, 4),
        "layers.0.q_proj.base_layer.weight": (6, 4),
        "layers.0.q_proj.base_layer.bias": (6,),
        "layers.0.up_proj.weight": (4, 6),
        "layers.1.q_proj.base_layer.weight": (6, 4),
        "norm": (4,),
        "layers.0.q_proj.lora_A.default.weight": (2, 4),
        "layers.0.q_proj.lora_B.default.weight": (6, 2),
        "layers.1.q_proj.lora_A.default.weight": (2, 4),
        "layers.1.q_proj.lora_B.default.weight": (6, 2),
    }
    adapters = {name for name in adapted.shapes if ".lora_" in name}
    assert adapted.trained == {"embed.weight", *adapters}
    frozen = LoraSpec(r=2, target_modules=("q_proj",), train_embeddings=False)
    assert AdaptedLayout.of(frozen, LAYOUT).trained == adapters


@pytest.mark.parametrize(
    ("targets", "layers"),
    [
        ((), LAYOUT.linear_layers),
        (("up_proj",), ["layers.0.up_proj"]),
        (("*.q_*", "layers.0.q_proj"), ["layers.0.q_proj", "layers.1.q_proj"]),
        (("layers.0.*",), ["layers.0.q_proj", "layers.0.up_proj"]),
    ],
)
def test_targets_are_ends_of_names_or_patterns(
    targets: tuple[str, ...], layers: Sequence[str]
) -> None:
    assert AdaptedLayout.of(LoraSpec(target_modules=targets), LAYOUT).layers == tuple(layers)


@pytest.mark.parametrize(
    ("targets", "told"),
    [
        (("q_proj", "up_prj"), "target_modules.1: 'up_prj' matches none of the 3.*'up_proj'"),
        (("layers.7.q_proj",), "target_modules.0: .*did you mean 'layers.[01].q_proj'"),
        (("embed",), "'embed' matches none of the 3 linear layers"),
        (("proj",), "'proj' matches none of the 3 linear layers"),
    ],
)
def test_targets_that_name_no_linear_layer(targets: tuple[str, ...], told: str) -> None:
    with pytest.raises(SpecError, match=told):
        AdaptedLayout.of(LoraSpec(target_modules=targets), LAYOUT)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["model.lora={r: 0}"], r"model\.lora\.r"),
        (["model.lora={alpha: 0}"], r"model\.lora\.alpha"),
        (["model.lora={dropout: 0.1}"], r"model\.lora\.dropout"),
        (["model.lora={}", "model.frozen=['*.mlp.*']"], "full fine-tuning.*drop frozen"),
    ],
)
def test_specs_that_are_refused(overrides: list[str], told: str) -> None:
    with pytest.raises(SpecError, match=told):
        micro_spec(*overrides)


@pytest.mark.parametrize("weights", [UNTIED, QWEN, "model.weights.architecture=phi-4"])
def test_the_layout_is_what_peft_makes(weights: str, prepared_for: Prepare) -> None:
    spec = lora_spec(weights)
    config = prepared_for(spec).config()
    model = trainable_part(spec.model, config)(meta_model(config))
    assert spec.model.lora is not None
    adapted = AdaptedLayout.of(spec.model.lora, model_layout(config))
    parameters = dict(model.named_parameters())
    assert {name: tuple(p.shape) for name, p in parameters.items()} == adapted.shapes
    assert {name for name, p in parameters.items() if p.requires_grad} == adapted.trained
    blocks = [name for name in adapted.layers if ".layers." in name]
    assert len(adapted.layers) == len(blocks) == 2 * (4 if "phi" in weights else 7)
    total, trainable = count_parameters(spec.model, config)
    assert total == sum(p.numel() for p in parameters.values())
    assert trainable == sum(p.numel() for p in parameters.values() if p.requires_grad)


MIXTURE = DeepseekV3Config(
    **dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size"), 16),
    **dict.fromkeys(("num_hidden_layers", "num_attention_heads", "num_key_value_heads"), 2),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim"), 4),
    **dict.fromkeys(("n_routed_experts", "n_group", "topk_group", "first_k_dense_replace"), 1),
    **dict.fromkeys(("moe_intermediate_size", "v_head_dim"), 4),
)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (
            GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=16),
            r"GPT2LMHeadModel has no linear layers.*lora: null",
        ),
        (
            MambaConfig(vocab_size=16, hidden_size=8, num_hidden_layers=1),
            r"peft cannot adapt.*MambaForCausalLM.*'out_proj'.*name fewer",
        ),
        (MIXTURE, r"peft cannot adapt.*DeepseekV3.*makes something else.*name fewer"),
    ],
    ids=["conv1d", "mamba", "mixture"],
)
def test_architectures_that_are_refused(config: PretrainedConfig, told: str) -> None:
    with pytest.raises(SpecError, match=told):
        check_trainable(lora_spec().model, config)


def test_the_attention_of_a_mixture_of_experts_is_adapted() -> None:
    check_trainable(lora_spec(lora="{target_modules: [self_attn.*]}").model, MIXTURE)


def test_the_start_depends_on_seed_and_name_alone(prepared_for: Prepare) -> None:
    spec = lora_spec(UNTIED)
    prepared = prepared_for(spec)
    assert spec.model.lora is not None
    adapted = AdaptedLayout.of(spec.model.lora, model_layout(prepared.config()))
    seen = []
    with start_reader(spec.model, prepared) as reader, prepared.reader() as base:
        for layer in adapted.layers:
            shape = adapted.shapes[a_name(layer)]
            matrix = whole(reader, a_name(layer), shape)
            bound = 1 / math.sqrt(shape[1])
            assert 0.8 * bound < matrix.abs().max() <= bound
            assert abs(matrix.mean()) < bound / 2
            cuts = [0, 0, 1, shape[1] - 1, shape[1] + 2, matrix.numel()]
            parts = [reader.read(a_name(layer), "master", *cut) for cut in itertools.pairwise(cuts)]
            assert torch.equal(torch.cat(parts), matrix.flatten())
            seen.append(float(matrix[0, 0]))
            assert not whole(reader, b_name(layer), adapted.shapes[b_name(layer)]).any()
        assert len(set(seen)) == len(adapted.layers)
        for name, shape in reader.shapes.items():
            assert torch.equal(whole(reader, name, shape), whole(base, name, shape))


@pytest.mark.parametrize(
    ("written", "read", "told"),
    [
        ("{r: 3}", "{r: 4}", r"'model.*lora_A.*' has shape \[3, 18\], not the \[4, 18\]"),
        ("{r: 3}", "{r: 3, target_modules: [q_proj]}", "holds tensor 'model.*lora_A"),
        ("{r: 3, target_modules: [q_proj]}", "{r: 3}", "lacks tensor 'model.*lora_A"),
        ("{r: 3, train_embeddings: false}", "{r: 3}", "lacks tensor 'lm_head.weight'"),
        ("null", "{r: 3}", "holds tensor 'model"),
        ("{r: 3}", "null", "holds the adapter 'model.*model.lora is not set"),
    ],
)
def test_a_checkpoint_of_another_configuration_is_refused(
    written: str, read: str, told: str, prepared_for: Prepare, tmp_path: Path
) -> None:
    spec = lora_spec(UNTIED, lora=written)
    prepared = prepared_for(spec)
    engine = make_engine(spec, prepared)
    with start_reader(spec.model, prepared) as reader:
        engine.load(reader, optimizer_step=None)
    checkpoint = saved(engine, tmp_path / "saved")
    with pytest.raises(CheckpointError, match=f"{told}.*go on with the spec"):
        whole_reader(checkpoint, lora_spec(UNTIED, lora=read).model, prepared)


def test_closing_closes_both(prepared_for: Prepare) -> None:
    spec = lora_spec(UNTIED)
    with start_reader(spec.model, prepared_for(spec)) as reader:
        assert isinstance(reader, LoraReader)
        assert reader.bytes_read == 0
        reader.read("model.layers.0.mlp.up_proj.base_layer.weight", "master", 5, 25)
        assert reader.bytes_read > 0
