"""A model built inside DeepSpeed's zero.Init is the model that transformers loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import run_ranks

from rotescale.model.sources import fetch
from rotescale.spec import RandomWeights


def build_and_compare(folder: Path, dtype: torch.dtype) -> None:
    """Collective: every rank calls this, in a process of its own, which has a process group."""
    import deepspeed
    from transformers import AutoModelForCausalLM

    from rotescale.model.build import build_model, parameter_shapes
    from rotescale.model.folder import load_config

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo")
    config = load_config(folder)
    settings = {
        "train_batch_size": 1,
        "zero_optimization": {"stage": 3},
        "bf16": {"enabled": dtype == torch.bfloat16},
    }
    arange = torch.arange
    with deepspeed.zero.Init(config_dict_or_path=settings):
        model = build_model(config, attention="sdpa", dtype=dtype, activation_checkpointing=False)
    assert torch.arange is arange
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    shapes = {name: tuple(parameter.ds_shape) for name, parameter in model.named_parameters()}
    assert shapes == parameter_shapes(config), shapes
    assert {parameter.ds_tensor.dtype for parameter in model.parameters()} == {dtype}
    expected = dict(loaded.named_buffers())
    actual = dict(model.named_buffers())
    assert actual.keys() == expected.keys()
    for name, buffer in actual.items():
        assert buffer.dtype == expected[name].dtype, (name, buffer.dtype)
        assert torch.equal(buffer, expected[name]), name
    (folder / "compared").touch()


@pytest.mark.parametrize("architecture", ["llama-3.2-1b", "phi-4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_zero_init_builds_the_same_model(
    tmp_path: Path, architecture: str, dtype: torch.dtype
) -> None:
    fields = {"kind": "random", "hidden_size": 16, "num_heads": 2, "num_key_value_heads": 1}
    weights = RandomWeights.model_validate(fields | {"architecture": architecture})
    folder = fetch(weights, cache=tmp_path, texts=["hello"])
    assert run_ranks(build_and_compare, folder, dtype, world_size=1, logs=tmp_path / "logs") == [0]
    assert (folder / "compared").exists()
