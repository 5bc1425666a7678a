"""What engine/zero3.py relies on in DeepSpeed without a promise; a failure says what has moved."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import run_ranks
from transformers import AutoConfig
from typer.testing import CliRunner

from rotescale import zero3_sizes
from rotescale.cli import app
from rotescale.engine.base import OptimizerSettings, Row
from rotescale.errors import CheckpointError
from rotescale.model.build import build_model
from rotescale.model.frozen import freeze
from rotescale.model.random_model import reduced_config
from rotescale.planning.architecture import architecture_of, layer_parameters
from rotescale.spec import EngineSpec, RandomWeights

WORLD_SIZE = 2
TIMEOUT = timedelta(seconds=1234)
FROZEN = "model.layers.0.self_attn.q_proj.weight"
MATRIX, VECTOR = "model.layers.1.mlp.up_proj.weight", "model.norm.weight"

Check = tuple[str, Callable[[], bool]]


def build() -> Any:
    weights = RandomWeights(kind="random")
    config = AutoConfig.for_model(**reduced_config(weights, num_tokens=200))
    model = build_model(
        config, attention="sdpa", dtype=torch.float32, activation_checkpointing=False
    )
    return freeze(model, frozenset({FROZEN}))


def make_engine(**fields: object) -> Any:
    from rotescale.engine.zero3 import Zero3Engine

    # As with a model whose layers are larger than the smallest bucket, and than what is kept.
    zero3_sizes._LEAST, zero3_sizes.KEPT = 1000, 100
    return Zero3Engine(
        build,
        spec=EngineSpec.model_validate({"sub_group_size": 5000} | fields),
        settings=OptimizerSettings(0.1, (0.9, 0.999), 1e-8, 1.0),
        timeout_seconds=TIMEOUT.total_seconds(),
    )


def one_step(engine: Any) -> float:
    for parameter in engine._optimizer.fp32_partitioned_groups_flat:
        parameter.data.normal_(std=0.1)
    engine._parameters[FROZEN].ds_tensor.data.normal_(std=0.1)
    engine._publish_masters()
    tokens = torch.arange(1, 9)
    row = Row(tokens[None], torch.arange(8)[None], torch.arange(7), tokens[1:])
    engine.backward(row, scale=1.0, last=True)
    norm: float = engine.step(learning_rate=1e-3)
    return norm


def static_checks() -> Iterator[Check]:
    import deepspeed
    from deepspeed.runtime.zero import partition_parameters
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3 as Stage3

    yield (
        "deepspeed.ops.__compatible_ops__ is a dict with the key deepspeed_shm_comm",
        lambda: "deepspeed_shm_comm" in deepspeed.ops.__compatible_ops__,
    )
    yield (
        "zero.Init broadcasts by deepspeed.comm.broadcast, which the engine leaves out",
        lambda: partition_parameters.dist.broadcast is deepspeed.comm.broadcast,
    )
    yield "ZeroParamStatus.AVAILABLE", lambda: ZeroParamStatus.AVAILABLE is not None
    yield (
        "_get_fp32_opt_state_partition(param, release_swap_buffers, optim_state_key=None)",
        lambda: (
            list(inspect.signature(Stage3._get_fp32_opt_state_partition).parameters)
            == ["self", "param", "release_swap_buffers", "optim_state_key"]
        ),
    )


def live_checks(engine: Any, *, offload: str, norm: float) -> Iterator[Check]:
    from rotescale.engine.zero3 import largest_layer

    inner = engine._optimizer
    flats, lows = inner.fp32_partitioned_groups_flat, inner.fp16_partitioned_groups_flat
    parameters = engine._parameters
    matrix, frozen = parameters[MATRIX], parameters[FROZEN]

    def same_memory(one: torch.Tensor, other: torch.Tensor) -> bool:
        return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()

    def owner(view: torch.Tensor, of: Callable[[torch.Tensor], torch.Tensor]) -> bool:
        return any(same_memory(view, of(flat)) for flat in flats)

    group: Any = torch.distributed.distributed_c10d._get_default_group()
    yield (
        "init_distributed(timeout=) is how long the process group waits, not DeepSpeed's 10 min",
        lambda: group._get_backend(torch.device("cpu")).options._timeout == TIMEOUT,
    )
    yield (
        "get_global_grad_norm() after step()",
        lambda: norm > 0.0,
    )
    yield "several sub-groups, one flat tensor of each kind", lambda: 1 < len(flats) == len(lows)
    yield "masters are float32", lambda: all(flat.dtype == torch.float32 for flat in flats)
    yield (
        "optimizer.optimizer is torch's AdamW, which compiles nothing",
        lambda: type(inner.optimizer) is torch.optim.AdamW,
    )
    yield (
        "optimizer.state is keyed by the flat masters and holds step, exp_avg, exp_avg_sq",
        lambda: all(
            inner.optimizer.state[flat].keys() == {"step", "exp_avg", "exp_avg_sq"}
            for flat in flats
        ),
    )
    yield (
        "a local master is a view of a flat one",
        lambda: owner(engine._partition(MATRIX, "master"), lambda flat: flat),
    )
    yield (
        "a local moment is a view of the optimizer's state",
        lambda: owner(
            engine._partition(MATRIX, "exp_avg_sq"),
            lambda flat: inner.optimizer.state[flat]["exp_avg_sq"],
        ),
    )
    yield (
        "ds_tensor is a view of a flat low-precision group",
        lambda: any(same_memory(matrix.ds_tensor, low) for low in lows),
    )
    yield (
        "step() copies masters into parameters",
        lambda: torch.equal(engine._partition(MATRIX, "master"), matrix.ds_tensor),
    )
    yield (
        "ds_shape, ds_numel and the rule of ceil(numel / world size)",
        lambda: all(
            torch.Size(p.ds_shape).numel() == p.ds_numel
            and p.ds_tensor.numel() == -(-p.ds_numel // WORLD_SIZE)
            for p in parameters.values()
        ),
    )
    yield "ds_status", lambda: all(hasattr(p, "ds_status") for p in parameters.values())
    yield (
        "small parameters persist, large ones do not",
        lambda: parameters[VECTOR].ds_persist and not matrix.ds_persist,
    )
    yield (
        "the largest layer is as large as the plan counts it",
        lambda: (
            largest_layer(engine._engine.module)
            == layer_parameters(architecture_of(RandomWeights(kind="random")))
        ),
    )
    yield (
        "buffers are as large as the largest layer wants them",
        lambda: inner.reduce_bucket_size == largest_layer(engine._engine.module),
    )
    if offload == "nvme":
        yield (
            "masters and moments that were moved into files stay there",
            lambda: (
                Path("/proc/self/maps").read_text().count("/offload/offload-")
                >= len(flats) + 2 * len(inner.optimizer.state)
            ),
        )
    yield "clip_grad is read at each step", lambda: inner.clip_grad == 1.0
    yield (
        "param_groups keep their names",
        lambda: [group["name"] for group in inner.param_groups] == ["matrices", "vectors"],
    )
    yield (
        "a frozen parameter is partitioned, and in no optimizer group",
        lambda: (
            frozen.ds_tensor.numel() == frozen.ds_numel // WORLD_SIZE
            and sum(flat.numel() for flat in flats)
            == sum(p.ds_tensor.numel() for p in parameters.values() if p is not frozen)
        ),
    )
    yield (
        "offloaded masters are on the CPU, and apart from the parameters",
        lambda: (
            inner.offload_optimizer == (offload != "none")
            and (not inner.offload_optimizer or all(flat.device.type == "cpu" for flat in flats))
            and (
                not inner.offload_optimizer
                or not any(same_memory(f, low) for f, low in zip(flats, lows, strict=True))
            )
        ),
    )


def examine(offload: str, out: Path) -> None:
    """Collective: run an engine for a step; write what does not hold."""
    engine = make_engine(offload_optimizer=offload, persistence_threshold=100)
    norm = one_step(engine)
    broken = []
    for what, holds in [*static_checks(), *live_checks(engine, offload=offload, norm=norm)]:
        try:
            if not holds():
                broken.append(what)
        except (AttributeError, KeyError, TypeError, RuntimeError) as error:
            broken.append(f"{what}: {error!r}")
    (out / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(broken))
    engine._engine.save_checkpoint(str(out / "deepspeed"), tag="step-1")
    engine.close()


def what_stays(gathered: int, out: Path) -> None:
    """Collective: write which parameters are whole after a step."""
    engine = make_engine(gathered_parameters=gathered)
    one_step(engine)
    whole = [name for name, p in engine._parameters.items() if p.ds_status.name == "AVAILABLE"]
    (out / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(whole))
    engine.close()


@pytest.mark.parametrize("lacking", [0, 1])
def test_a_model_that_may_be_whole_in_backward_stays_so(lacking: int, tmp_path: Path) -> None:
    sizes = {name: parameter.numel() for name, parameter in build().named_parameters()}
    gathered = 2 * sum(sizes.values()) - lacking
    codes = run_ranks(what_stays, gathered, tmp_path, world_size=WORLD_SIZE, logs=tmp_path / "logs")
    assert codes == [0] * WORLD_SIZE
    expected = {name for name, size in sizes.items() if size <= 100 or not lacking}
    for rank in range(WORLD_SIZE):
        assert set(json.loads((tmp_path / f"rank-{rank}.json").read_text())) == expected


@pytest.mark.parametrize("offload", ["none", "cpu", "nvme"])
def test_deepspeed_is_as_the_engine_expects(offload: str, tmp_path: Path) -> None:
    codes = run_ranks(examine, offload, tmp_path, world_size=WORLD_SIZE, logs=tmp_path / "logs")
    assert codes == [0] * WORLD_SIZE
    for rank in range(WORLD_SIZE):
        broken = json.loads((tmp_path / f"rank-{rank}.json").read_text())
        assert not broken, "\n".join(broken)
    # What DeepSpeed itself has saved is told apart from a run, and the way out named.
    for folder in ("deepspeed", "deepspeed/step-1"):
        for command in ("list", "verify"):
            arguments = ["checkpoint", command, str(tmp_path / folder)]
            with pytest.raises(CheckpointError, match="saved by DeepSpeed's own engine"):
                CliRunner().invoke(app, arguments, catch_exceptions=False)
