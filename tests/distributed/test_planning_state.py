"""What a plan says of the state of training is what DeepSpeed ZeRO-3 keeps of it on each rank."""

from __future__ import annotations

import gc
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import micro_spec, run_ranks
from transformers import AutoConfig

from rotescale.engine.base import OptimizerSettings, Row
from rotescale.hardware import NodeShape
from rotescale.launch_spec import LaunchSpec
from rotescale.model.build import build_model
from rotescale.model.random_model import reduced_config
from rotescale.planning.architecture import architecture_of
from rotescale.planning.counting import count_parameters
from rotescale.planning.footprint import Placement
from rotescale.planning.workload import count_work
from rotescale.spec import EngineSpec, ModelSpec, RandomWeights
from rotescale.zero3_sizes import PAGE_BYTES

WORLD_SIZE = 2
WEIGHTS = RandomWeights(
    kind="random", hidden_size=256, intermediate_size=512, num_layers=3, vocab_size=2000
)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def engine_spec(precision: str, gradient_dtype: str) -> EngineSpec:
    """Everything is released after use, so that what stays is the state alone."""
    fields = {"precision": precision, "gradient_dtype": gradient_dtype}
    return EngineSpec.model_validate(
        fields | {"persistence_threshold": 0, "gathered_parameters": 1, "bucket_size": 50_000}
    )


def measure(precision: str, gradient_dtype: str, out: Path) -> None:
    """Bytes of all tensors of this rank after two updates."""
    from rotescale.engine.zero3 import Zero3Engine

    config = AutoConfig.for_model(**reduced_config(WEIGHTS, num_tokens=WEIGHTS.vocab_size))

    def build() -> Any:
        return build_model(
            config, attention="sdpa", dtype=DTYPES[precision], activation_checkpointing=False
        )

    engine = Zero3Engine(
        build,
        spec=engine_spec(precision, gradient_dtype),
        settings=OptimizerSettings(0.1, (0.9, 0.999), 1e-8, 1.0),
    )
    tokens = torch.arange(1, 9)
    row = Row(tokens[None], torch.arange(8)[None], torch.arange(7), tokens[1:])
    for _ in range(2):
        for master in engine._optimizer.fp32_partitioned_groups_flat:
            master.data.normal_(std=0.02)
        engine._publish_masters()
        engine.backward(row, scale=1.0, last=True)
        assert engine.step(learning_rate=1e-4) > 0
    gc.collect()
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in gc.get_objects()
        if issubclass(type(tensor), torch.Tensor) and not tensor.is_meta
    }
    (out / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(sum(storages.values())))
    engine.close()


@pytest.mark.parametrize(
    ("precision", "gradient_dtype", "each"),
    [("fp32", "fp32", 20), ("bf16", "fp32", 18), ("bf16", "bf16", 16)],
)
def test_state_is_as_large_as_is_said(
    precision: str, gradient_dtype: str, each: int, tmp_path: Path
) -> None:
    spec = micro_spec().model_copy(
        update={
            "model": ModelSpec(weights=WEIGHTS),
            "engine": engine_spec(precision, gradient_dtype),
        }
    )
    architecture = architecture_of(WEIGHTS)
    place = Placement(
        spec=spec,
        launch=LaunchSpec(),
        node=NodeShape(),
        architecture=architecture,
        count=count_parameters(spec.model, architecture),
        work=count_work(spec),
        num_workers=WORLD_SIZE,
    )
    assert place.state_bytes_per_parameter == each
    # On the CPU there is no bucket, but what the ranks write for each other.
    pages = 2 * PAGE_BYTES * WORLD_SIZE
    assert place.moments()["measuring"].buffers == pages
    expected = place.state_bytes / WORLD_SIZE
    codes = run_ranks(
        measure,
        precision,
        gradient_dtype,
        tmp_path,
        world_size=WORLD_SIZE,
        logs=tmp_path / "logs",
    )
    assert codes == [0] * WORLD_SIZE
    for rank in range(WORLD_SIZE):
        measured = json.loads((tmp_path / f"rank-{rank}.json").read_text())
        assert measured - pages == pytest.approx(expected, rel=0.03)
