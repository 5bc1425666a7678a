"""Parameters by arithmetic: as published, and name by name as transformers builds the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from planning_helpers import EXPERIMENTS, experiment
from transformers import AutoConfig

from rotescale.errors import SpecError
from rotescale.model.build import model_layout
from rotescale.model.random_model import published_config, reduced_config
from rotescale.model.trained import count_parameters as count_of_the_model
from rotescale.planning.architecture import (
    PUBLISHED,
    Architecture,
    architecture_of,
    parameter_shapes,
    published,
    read_architecture,
)
from rotescale.planning.counting import count_parameters
from rotescale.spec import HubWeights, ModelSpec, RandomWeights, WheelWeights

# Parameters on the models' pages on the Hugging Face hub, which count their safetensors files; of
# sharded models also half of "total_size" in model.safetensors.index.json, of two bytes each
# (141107412992 for Llama-3.1-70B). Llama-2-7B's index counts 4096 more numbers, the rotary
# frequencies of 32 layers, which are no parameters.
PUBLISHED_PARAMETERS = {
    "Qwen/Qwen2.5-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-1.5B-Instruct": 1_543_714_304,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen2.5-14B": 14_770_033_664,
    "Qwen/Qwen2.5-14B-Instruct": 14_770_033_664,
    "Qwen/Qwen2.5-32B": 32_763_876_352,
    "Qwen/Qwen2.5-72B": 72_706_203_648,
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.1-70B": 70_553_706_496,
    "microsoft/phi-4": 14_659_507_200,
}
FILES = [*PUBLISHED.values(), "smollm2-135m-instruct"]
WHOLE = ModelSpec(weights=WheelWeights(kind="wheel"))
MICRO = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 200,
}


def shapes_in_transformers(raw: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return model_layout(AutoConfig.for_model(**raw)).shapes


@pytest.mark.parametrize("repository", PUBLISHED_PARAMETERS)
def test_parameters_are_those_that_are_published(repository: str) -> None:
    architecture = architecture_of(HubWeights(kind="hub", repository=repository))
    assert count_parameters(WHOLE, architecture).total == PUBLISHED_PARAMETERS[repository]


def test_every_published_model_is_checked() -> None:
    assert PUBLISHED.keys() == PUBLISHED_PARAMETERS.keys()


@pytest.mark.parametrize("name", FILES)
def test_shapes_are_those_of_the_model_on_the_meta_device(name: str) -> None:
    assert parameter_shapes(published(name)) == shapes_in_transformers(published_config(name))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama-3.2-1b", {"attention_bias": True}),
        ("llama-3.2-1b", {"mlp_bias": True, "tie_word_embeddings": False}),
        ("llama-3.2-1b", {"head_dim": 20}),
        ("llama-3.2-1b", {"head_dim": None, "num_key_value_heads": None}),
        ("qwen2.5-1.5b", {"tie_word_embeddings": False}),
        ("phi-4", {"tie_word_embeddings": True}),
    ],
)
def test_biases_tying_and_head_sizes_count(name: str, changes: dict[str, Any]) -> None:
    raw = published_config(name) | {"pad_token_id": None} | MICRO
    if "head_dim" in raw:
        raw["head_dim"] = 12
    raw |= changes
    assert parameter_shapes(read_architecture(raw, name=name)) == shapes_in_transformers(raw)


@pytest.mark.parametrize("name", ["llama-3.2-1b", "qwen2.5-1.5b", "phi-4"])
@pytest.mark.parametrize("tied", [None, True, False])
def test_a_random_model_is_reduced_as_it_is_built(name: str, tied: bool | None) -> None:
    weights = RandomWeights(kind="random", architecture=name, tie_word_embeddings=tied)
    raw = reduced_config(weights, num_tokens=weights.vocab_size)
    assert parameter_shapes(architecture_of(weights)) == shapes_in_transformers(raw)


@pytest.mark.parametrize("name", ["llama-3.2-1b", "qwen2.5-1.5b", "phi-4"])
@pytest.mark.parametrize(
    "fields",
    [
        {"frozen": ("*.mlp.*",)},
        {"frozen": ("model.embed_tokens.*", "*norm*")},
        {"lora": {"r": 4}},
        {"lora": {"r": 8, "target_modules": ("down_proj", "model.layers.0.*")}},
        {"lora": {"r": 8, "train_embeddings": False}},
    ],
)
def test_what_is_trained_is_counted_as_the_run_counts_it(name: str, fields: dict[str, Any]) -> None:
    spec = ModelSpec.model_validate({"weights": {"kind": "wheel"}} | fields)
    raw = published_config(name) | {"pad_token_id": None} | MICRO
    raw.pop("head_dim", None)
    counted = count_parameters(spec, read_architecture(raw, name=name))
    assert (counted.total, counted.trainable) == count_of_the_model(
        spec, AutoConfig.for_model(**raw)
    )


@pytest.mark.parametrize(
    ("name", "rows"),
    # Qwen2.5's matrices have spare rows; the others grow to a multiple of 128.
    [("qwen2.5-7b", 152_064), ("llama-3.1-70b", 128_384), ("llama-2-7b", 32_128)],
)
def test_key_tokens_take_spare_rows_or_more(name: str, rows: int) -> None:
    assert published(name).with_key_tokens(5).vocab_size == rows
    assert published(name).with_key_tokens(0) == published(name)


def test_spare_rows_are_used_up_before_the_matrix_grows() -> None:
    spare = 151_936 - 151_665
    assert published("qwen2.5-1.5b").with_key_tokens(spare).vocab_size == 151_936
    assert published("qwen2.5-1.5b").with_key_tokens(spare + 1).vocab_size == 151_936 + 128


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_model_of_every_shipped_experiment_is_known(name: str) -> None:
    assert isinstance(architecture_of(experiment(name).model.weights), Architecture)


def test_another_model_needs_its_configuration(tmp_path: Path) -> None:
    weights = HubWeights(kind="hub", repository="who/knows")
    with pytest.raises(SpecError, match=r"who/knows.*--config"):
        architecture_of(weights)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(published_config("phi-4") | {"num_hidden_layers": 3}))
    assert architecture_of(weights, config=file).num_layers == 3


def _config(**changes: int) -> str:
    return json.dumps(published_config("llama-3.2-1b") | changes)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, r"cannot be read .*--config FILE"),
        ("{", "not JSON"),
        ("[1]", "not a model's configuration"),
        ('{"model_type": "mamba"}', r"'mamba' is not planned for, only llama, phi3, qwen2"),
        ('{"model_type": "llama", "hidden_size": 8}', r"lacks a number.*num_attention_heads"),
        ('{"model_type": "llama", "hidden_size": "x"}', "lacks a number"),
        (_config(num_hidden_layers=10**9), "num_hidden_layers is not between 1 and 10000"),
        (_config(num_attention_heads=0), "num_attention_heads is not between 1"),
        (_config(hidden_size=-8, head_dim=8), "hidden_size is not between 1"),
        (_config(vocab_size=10**300), "vocab_size is not between 1 and 9007199254740992"),
    ],
)
def test_a_configuration_that_is_no_use_says_so(
    text: str | None, told: str, tmp_path: Path
) -> None:
    file = tmp_path / "config.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(SpecError, match=told) as caught:
        architecture_of(WheelWeights(kind="wheel"), config=file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"frozen": ("nothing.*",)}, r"model\.frozen\.0: 'nothing\.\*' matches no parameter"),
        ({"frozen": ("*",)}, "nothing is left to train"),
        ({"lora": {"target_modules": ("q",)}}, r"target_modules\.0: 'q' .*q_proj"),
    ],
)
def test_what_the_model_does_not_have_is_refused(fields: dict[str, Any], told: str) -> None:
    spec = ModelSpec.model_validate({"weights": {"kind": "wheel"}} | fields)
    with pytest.raises(SpecError, match=told):
        count_parameters(spec, published("llama-3.2-1b"))
