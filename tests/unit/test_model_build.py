"""A model built inside DeepSpeed's zero.Init is the model that transformers loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rotescale.model.sources import fetch
from rotescale.spec import RandomWeights

# zero.Init needs a process group, which would outlive the test: hence a process of its own.
_PROGRAM = """
import os, sys, tempfile
from pathlib import Path
import torch, deepspeed
from transformers import AutoModelForCausalLM
from rotescale.model.build import build_model, parameter_shapes
from rotescale.model.folder import load_config

folder, dtype = Path(sys.argv[1]), getattr(torch, sys.argv[2])
store = tempfile.mktemp()
torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
os.environ["LOCAL_RANK"] = "0"
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
deepspeed.init_distributed(dist_backend="gloo")
config = load_config(folder)
settings = {"train_batch_size": 1, "zero_optimization": {"stage": 3}}
settings["bf16"] = {"enabled": dtype == torch.bfloat16}
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
print("same model")
"""


@pytest.mark.parametrize("architecture", ["llama-3.2-1b", "phi-4"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_zero_init_builds_the_same_model(tmp_path: Path, architecture: str, dtype: str) -> None:
    fields = {"kind": "random", "hidden_size": 16, "num_heads": 2, "num_key_value_heads": 1}
    weights = RandomWeights.model_validate(fields | {"architecture": architecture})
    folder = fetch(weights, cache=tmp_path, texts=["hello"])
    result = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(folder), dtype],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert "same model" in result.stdout, result.stderr
