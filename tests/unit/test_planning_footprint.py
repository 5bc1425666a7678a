"""Memory by part: the hand calculation, what autograd keeps, and what makes it less."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoint_helpers import header
from planning_helpers import HUB_EXPERIMENTS, cpus, gpus, place
from transformers import AutoConfig

from rotescale.checkpoint.writer import publish, write_rank_file
from rotescale.engine.base import Row, row_loss
from rotescale.model.build import build_model
from rotescale.model.random_model import reduced_config
from rotescale.planning.activations import layer_activation_bytes
from rotescale.planning.architecture import (
    architecture_of,
    parameter_shapes,
)
from rotescale.planning.counting import count_parameters
from rotescale.planning.footprint import Placement
from rotescale.run_dir import CheckpointKind
from rotescale.spec import ModelSpec, RandomWeights
from rotescale.tensors import PARTS, TensorSlice, partition

GB = 1e9
LARGE = "llama-3.1-70b"
BF16_GRADIENTS = "engine.gradient_dtype=bf16"


def test_70b_on_four_nodes_is_what_the_hand_calculation_gives() -> None:
    """16 B/parameter = 1.12 TB over 32 GPUs = 35 GB each; a full checkpoint is 0.85 TB."""
    by_hand = 70e9 * 16
    on_four = place(LARGE, gpus(32), BF16_GRADIENTS)
    assert on_four.num_nodes == 4
    assert on_four.state_bytes_per_parameter == 16
    assert on_four.state_bytes == pytest.approx(by_hand, rel=0.01)
    assert on_four.state_bytes / 32 / GB == pytest.approx(35.3, abs=0.05)
    moment = on_four.moments()["training"]
    parts = moment.weights + moment.gradients + moment.optimizer
    assert parts == pytest.approx(on_four.state_bytes / 32, rel=1e-6)


def test_gradients_in_fp32_are_two_bytes_more() -> None:
    one, other = place(LARGE, gpus(32), BF16_GRADIENTS), place(LARGE, gpus(32))
    assert other.state_bytes_per_parameter == 18
    assert other.state_bytes - one.state_bytes == 2 * other.count.trainable


def test_zero_partitions_all_of_the_state() -> None:
    for moment in ("training", "update", "measuring"):
        one = place(LARGE, gpus(8)).moments()[moment]
        four = place(LARGE, gpus(32)).moments()[moment]
        for part in ("weights", "gradients", "optimizer"):
            assert getattr(one, part) == pytest.approx(4 * getattr(four, part), rel=1e-6)


@pytest.mark.parametrize("name", HUB_EXPERIMENTS)
def test_a_gpu_holds_less_with_more_workers(name: str) -> None:
    """At each moment; but for an evaluation, where a whole copy may begin to fit."""
    placed = [place(name, gpus(number)) for number in (2, 4, 8, 16, 32, 64, 128)]
    for moment in ("training", "update"):
        totals = [one.moments()[moment].total for one in placed]
        assert totals == sorted(totals, reverse=True)
        assert len(set(totals)) == len(totals)
    for mode in ("replicated", "sharded"):
        alike = [one for one in placed if one.evaluation_mode == mode]
        totals = [one.moments()["measuring"].total for one in alike]
        assert totals == sorted(totals, reverse=True)


@pytest.mark.parametrize("name", HUB_EXPERIMENTS)
@pytest.mark.parametrize(
    "setting",
    [
        BF16_GRADIENTS,
        "engine.offload_optimizer=cpu",
        "model.lora={r: 8}",
        "model.frozen=['*.mlp.*']",
    ],
)
def test_what_is_meant_to_save_memory_saves_it(name: str, setting: str) -> None:
    plain, saving = place(name, gpus(8)).moments(), place(name, gpus(8), setting).moments()
    for moment in ("training", "update"):
        assert saving[moment].total < plain[moment].total


def test_fewer_gathered_parameters_save_down_to_the_largest_matrix() -> None:
    fewer = "engine.gathered_parameters=100000000"
    one = place("qwen2.5-7b", gpus(8), fewer)
    largest = 3584 * 152_064
    assert one.moments()["training"].gathered == pytest.approx(2 * (largest + 1e8), rel=0.01)
    assert place("qwen2.5-7b", gpus(8)).moments()["training"].gathered > 1.8 * 2 * largest


def test_offloaded_state_lies_in_host_memory_instead() -> None:
    plain, offloaded = (
        place(LARGE, gpus(32)),
        place(LARGE, gpus(32), "engine.offload_optimizer=cpu"),
    )
    moment = offloaded.moments()["training"]
    assert (moment.gradients, moment.optimizer) == (0, 0)
    moved = 12 * offloaded.count.trainable // offloaded.num_nodes
    assert offloaded.host().offloaded > moved
    assert offloaded.host().total > plain.host().total + moved
    on_disk = place(LARGE, gpus(32), "engine.offload_optimizer=nvme")
    assert on_disk.moments() == offloaded.moments()
    assert on_disk.offload_disk_bytes == pytest.approx(moved)
    assert offloaded.offload_disk_bytes == plain.offload_disk_bytes == 0
    # Masters pass through memory; moments and pinned copies of gradients do not.
    assert on_disk.host().offloaded < 0.6 * offloaded.host().offloaded


def test_the_snapshot_is_a_nodes_share_of_a_checkpoint() -> None:
    """On the CPU as large as its slices; pinned for a GPU, rounded up to a power of two."""
    small = place("smollm2-135m-demo", cpus(2))
    assert small.host().snapshot == pytest.approx(12 * small.count.trainable, rel=1e-6)
    large = place(LARGE, gpus(32))
    share = 12 * large.count.trainable / 32
    assert share < large.host().snapshot / 8 < 2 * share
    assert (large.host().snapshot // 8).bit_count() == 1


def test_a_larger_batch_fills_longer_rows_up_to_their_budget() -> None:
    placed = [
        place("qwen2.5-7b", gpus(8), f"phases.0.global_batch={batch}") for batch in (8, 64, 256)
    ]
    memorize, generalize = placed[0].work.phases
    assert [one.row_tokens for one in placed] == [
        max(memorize.longest, generalize.longest),
        8 * memorize.longest,
        32 * memorize.longest,
    ]
    logits = [one.moments()["training"].logits for one in placed]
    assert logits == sorted(logits)
    assert len(set(logits)) == 3
    budget = place("qwen2.5-7b", gpus(8), "phases.0.global_batch=256", "engine.row_tokens=100")
    assert budget.row_tokens == 100


def test_the_evaluation_mode_is_decided_by_what_fits() -> None:
    assert place("qwen2.5-7b", gpus(8)).evaluation_mode == "replicated"
    assert place(LARGE, gpus(32)).evaluation_mode == "sharded"
    asked = place("qwen2.5-7b", gpus(8), "engine.evaluation_mode=sharded")
    assert asked.evaluation_mode == "sharded"
    whole = place("qwen2.5-7b", gpus(8)).moments()["measuring"]
    assert whole.gathered > 2 * 7.6 * GB > asked.moments()["measuring"].gathered


def test_one_worker_gathers_nothing() -> None:
    assert place("qwen2.5-1.5b", gpus(1)).moments()["training"].gathered == 0


def test_workers_of_one_machine_share_its_memory() -> None:
    two, one = place("smollm2-135m-demo", cpus(2)), place("smollm2-135m-demo", cpus(1))
    assert two.host().training == 2 * two.device_peak
    assert two.num_nodes == 1
    assert two.fits()
    assert one.fits()
    assert not place("smollm2-135m-demo", cpus(2, host_memory_gib=4)).fits()


def test_the_reference_engine_is_one_process() -> None:
    eager = place("micro", cpus(1), "engine.kind=eager").moments()["training"]
    assert (eager.gathered, eager.weights) == (0, 4 * place("micro", cpus(1)).count.total)


def test_a_gpu_is_never_wholly_ours() -> None:
    moment = place("qwen2.5-1.5b", gpus(8)).moments()["training"]
    assert moment.system > 2 << 30
    assert place("smollm2-135m-demo", cpus(2)).moments()["training"].system == 0


@pytest.mark.parametrize(("kind", "each"), [("full", 12), ("weights", 4)])
def test_checkpoints_are_as_large_as_is_said(
    kind: CheckpointKind, each: int, tmp_path: Path
) -> None:
    """Of a model of some million parameters, written by three ranks: within 1 %."""
    weights = RandomWeights(
        kind="random", hidden_size=256, intermediate_size=512, vocab_size=8192, num_layers=4
    )
    architecture = architecture_of(weights)
    counted = count_parameters(ModelSpec(weights=weights), architecture)
    for rank in range(3):
        slices = []
        for part in PARTS if kind == "full" else PARTS[:1]:
            for name, shape in parameter_shapes(architecture).items():
                start, stop = partition(math.prod(shape), rank=rank, world_size=3)
                slices.append(
                    (TensorSlice(name, shape, start, stop), part, torch.rand(stop - start))
                )
        write_rank_file(tmp_path, rank=rank, world_size=3, slices=slices)
    publish(tmp_path, header=header(kind=kind, world_size=3), timeout_seconds=0)
    written = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert written == pytest.approx(each * counted.trainable, rel=0.01)


def saved_bytes(compute: Callable[[], torch.Tensor], parameters: set[int]) -> int:
    """Bytes that autograd keeps for the backward pass of ``compute``, each storage once."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = compute()
    assert loss.requires_grad
    return sum(kept.values())


def kept_by_a_model(weights: RandomWeights, tokens: int, *, precision: str, attention: str) -> int:
    raw = reduced_config(weights, num_tokens=weights.vocab_size)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    model = build_model(
        AutoConfig.for_model(**raw),
        attention=attention,
        dtype=dtype,
        activation_checkpointing=False,
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    # A few examples side by side, and one target, so that logits weigh next to nothing.
    positions = torch.arange(tokens)[None] % 16
    row = Row(torch.ones(1, tokens, dtype=torch.int64), positions, *torch.tensor([[3], [5]]))
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    return saved_bytes(lambda: row_loss(model, row), own)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["llama-3.2-1b", "qwen2.5-1.5b", "phi-4"])
def test_activations_are_what_autograd_keeps(name: str, precision: str, attention: str) -> None:
    """Of one layer: what three layers keep less what one keeps, halved."""
    shape = {"hidden_size": 64, "num_heads": 4, "num_key_value_heads": 2, "vocab_size": 300}
    deep, shallow = (
        RandomWeights(
            kind="random", architecture=name, num_layers=layers, intermediate_size=224, **shape
        )
        for layers in (3, 1)
    )
    tokens = 192
    kept = (
        kept_by_a_model(deep, tokens, precision=precision, attention=attention)
        - kept_by_a_model(shallow, tokens, precision=precision, attention=attention)
    ) / 2
    expected = layer_activation_bytes(
        architecture_of(deep),
        tokens,
        precision={"fp32": 4, "bf16": 2}[precision],
        attention=attention,
    )
    assert expected == pytest.approx(kept, rel=0.1)


def test_activation_checkpointing_keeps_inputs_and_one_layer() -> None:
    long = "phases.0.global_batch=4096"
    plain = place("qwen2.5-1.5b", gpus(2), long)
    saving = place("qwen2.5-1.5b", gpus(2), long, "model.activation_checkpointing=true")
    before = plain.moments()["training"].activations
    after = saving.moments()["training"].activations
    assert plain.architecture.num_layers == 28
    assert before / 28 < after < before / 4


def test_on_another_number_of_workers_nothing_else_changes() -> None:
    one = place(LARGE, gpus(32))
    assert one.on(64) == replace(one, num_workers=64)
    assert isinstance(one.on(64), Placement)
