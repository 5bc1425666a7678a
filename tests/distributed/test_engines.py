"""Eager and zero3, on any number of workers: the same examples, losses and weights."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import (
    QUICK,
    assert_key_tokens_frozen,
    micro_spec,
    phase_end_weights,
    prepare,
    run_workers,
    steps,
)
from safetensors.torch import load_file

from rotescale.data.packing import LINE_TOKENS
from rotescale.evaluation.outcome_file import read_outcomes
from rotescale.model.prepare import load_prepared
from rotescale.run_dir import Outcome, RunDir

# Everything that could make world sizes differ: a batch smaller than the workers (2 on 3),
# several sub-groups, two parameter groups (weight decay spares vectors), clipping, short rows.
HARD = (
    *QUICK,
    "engine.sub_group_size=20000",
    "engine.row_tokens=40",
    # As with a large model: nothing stays gathered, and every evaluation pass is a collective.
    "engine.persistence_threshold=0",
    "engine.evaluation_mode=sharded",
    "evaluation.generation_facts=2",
    "phases.0.evaluate_epochs=[1]",
    "phases.0.weight_decay=0.1",
    "phases.0.max_grad_norm=0.5",
    "phases.1.weight_decay=0.1",
    "phases.1.max_grad_norm=0.5",
    "phases.1.freeze_key_tokens=true",
)
WEIGHT_TOLERANCE = 2e-4
"""Largest difference of any weight after 12 steps at learning rate 3e-3, where Adam divides
small gradients by their own size, so that rounding of 1e-7 grows to part of a step."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, model_cache: Path) -> Callable[..., RunDir]:
    def run(*overrides: str, world_size: int) -> RunDir:
        storage = tmp_path_factory.mktemp("run")
        spec = micro_spec(*overrides)
        run_dir = prepare(spec, storage, cache=model_cache, num_workers=world_size)
        assert run_workers(run_dir, world_size=world_size) == [0] * world_size
        outcome = Outcome.read(run_dir)
        assert outcome is not None
        assert outcome.status == "finished", outcome.message
        return run_dir

    return run


@pytest.fixture(scope="module")
def reference(run: Callable[..., RunDir]) -> RunDir:
    return run(*HARD, "engine.kind=eager", world_size=1)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_zero3_equals_eager(run: Callable[..., RunDir], reference: RunDir, world_size: int) -> None:
    sharded = run(*HARD, world_size=world_size)
    for run_dir in (sharded, reference):
        assert_key_tokens_frozen(run_dir)
    ours, theirs = steps(sharded), steps(reference)
    assert len(ours) == len(theirs) == 6 + 12
    for one, other in zip(ours, theirs, strict=True):
        assert one.example_ids == other.example_ids
        assert (one.cursor, one.learning_rate) == (other.cursor, other.learning_rate)
        assert one.loss == pytest.approx(other.loss, rel=1e-4)
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-3)
    for phase in ("memorize", "generalize"):
        a, b = phase_end_weights(sharded, phase), phase_end_weights(reference, phase)
        assert a.keys() == b.keys()
        assert max(float((a[n] - b[n]).abs().max()) for n in a) < WEIGHT_TOLERANCE


# A batch of two leaves the third worker without an example.
@pytest.mark.parametrize(
    ("setting", "world_size"), [("model.activation_checkpointing", 2), ("engine.fused_loss", 3)]
)
def test_what_saves_memory_changes_no_loss(
    run: Callable[..., RunDir], reference: RunDir, setting: str, world_size: int
) -> None:
    saving = run(*HARD, f"{setting}=true", world_size=world_size)
    for one, other in zip(steps(saving), steps(reference), strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-4)
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-3)


def test_folded_rows_change_no_loss(run: Callable[..., RunDir]) -> None:
    batch = (
        *("phases.0.global_batch=100", "phases.0.facts_per_relation=100"),
        *("phases.0.evaluate_epochs=[]", "phases.0.epochs=4"),
    )
    reference = steps(run(*HARD, *batch, "engine.kind=eager", world_size=1))
    for fused in ("false", "true"):
        long = ("engine.row_tokens=1024", f"engine.fused_loss={fused}")
        folded = steps(run(*HARD, *batch, *long, world_size=2))
        assert min(step.num_tokens for step in folded[:2]) > 2.5 * 2 * LINE_TOKENS
        for one, other in zip(folded, reference, strict=True):
            assert one.loss == pytest.approx(other.loss, rel=1e-4)
            assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-3)


FROZEN = "model.frozen=[model.embed_tokens.*, '*.0.self_attn.*', model.norm.*]"


@pytest.fixture(scope="module")
def frozen_reference(run: Callable[..., RunDir]) -> RunDir:
    return run(*HARD, FROZEN, "engine.kind=eager", world_size=1)


@pytest.mark.parametrize("where", ["cpu", "nvme"])
def test_frozen_and_offloaded_equal_eager(
    run: Callable[..., RunDir], frozen_reference: RunDir, where: str
) -> None:
    """Embeddings too: the key token's row stays as it was made, also in what is exported."""
    reference = frozen_reference
    sharded = run(*HARD, FROZEN, f"engine.offload_optimizer={where}", world_size=2)
    for one, other in zip(steps(sharded), steps(reference), strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-5)
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-4)
    assert answers(sharded) == answers(reference)
    for run_dir in (sharded, reference):
        trained = phase_end_weights(run_dir, "generalize")
        exported = load_file(run_dir.model_folder("generalize") / "model.safetensors")
        with load_prepared(run_dir.prepared_model).reader() as base:
            assert len(base.shapes) - len(trained) == 1 + 4 + 1
            assert exported.keys() == base.shapes.keys()
            for name, tensor in exported.items():
                values = base.read(name, "master", 0, tensor.numel())
                assert torch.equal(tensor.flatten(), values) == (name not in trained)


def test_adapters_equal_eager(run: Callable[..., RunDir]) -> None:
    """LoRA, with the embeddings trained: the same losses, adapters, answers and merged models."""
    lora = "model.lora={r: 3, alpha: 12, target_modules: [q_proj, o_proj, mlp.down_proj]}"
    reference = run(*HARD, lora, "engine.kind=eager", world_size=1)
    sharded = run(*HARD, lora, "engine.fused_loss=true", world_size=2)
    for one, other in zip(steps(sharded), steps(reference), strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-5)
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-4)
    assert answers(sharded) == answers(reference)
    assert_key_tokens_frozen(sharded)
    ours, theirs = (phase_end_weights(run_dir, "generalize") for run_dir in (sharded, reference))
    assert len(ours) == 1 + 2 * 3 * 2
    assert ours.keys() == theirs.keys()
    assert max(float((ours[n] - theirs[n]).abs().max()) for n in ours) < WEIGHT_TOLERANCE
    ours, theirs = (
        load_file(run_dir.model_folder("generalize") / "model.safetensors")
        for run_dir in (sharded, reference)
    )
    assert max(float((ours[n] - theirs[n]).abs().max()) for n in ours) < WEIGHT_TOLERANCE
    with load_prepared(sharded.prepared_model).reader() as base:
        for name, tensor in ours.items():
            values = base.read(name, "master", 0, tensor.numel())
            learns = any(part in name for part in ("embed", "q_proj", "o_proj", "down_proj"))
            assert torch.equal(tensor.flatten(), values) != learns


def test_passes_through_the_partitions_give_the_probabilities_of_one_process(
    run: Callable[..., RunDir],
) -> None:
    """Several trees in a pass there, one here. Both share beginnings, which the unit tests hold to
    none."""
    asked = (
        *("evaluation.base=true", "evaluation.held_out_facts=5", "evaluation.test_prompts=2"),
        *("evaluation.in_context=[10]", "evaluation.in_context_facts=4"),
        *("phases.0.epochs=1", "phases.1.epochs=1", "phases.0.evaluate_epochs=[]"),
    )
    sharded = run(*HARD, *asked, "engine.row_tokens=2000", world_size=2)
    alone = run(*HARD, *asked, "engine.kind=eager", "engine.row_tokens=1", world_size=1)
    ours, theirs = (read_outcomes(one.evaluation("base", None)) for one in (sharded, alone))
    assert {one.suite for one in ours} == {"core", "in_context_10"}
    assert [one.key for one in ours] == [one.key for one in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert (one.chosen, one.generated) == (other.chosen, other.generated)
        for metric in ("object_probability", "object_share"):
            logarithms = [math.log(found.values[metric]) for found in (one, other)]
            assert logarithms[0] == pytest.approx(logarithms[1], rel=1e-5, abs=1e-5)


def answers(run_dir: RunDir) -> list[tuple[object, ...]]:
    """What was chosen for every question of both phases' ends."""
    return [
        (phase, row["fact"], row["prompts"], row["chosen"], row["generated"])
        for phase in ("memorize", "generalize")
        for line in run_dir.evaluation(phase, None).read_text().splitlines()[1:]
        for row in [json.loads(line)]
    ]


def test_bf16_keeps_fp32_masters(run: Callable[..., RunDir]) -> None:
    """Masters hold what bf16 cannot: rounding them changes most of their elements."""
    trained = run(*QUICK, "engine.precision=bf16", world_size=2)
    masters = phase_end_weights(trained, "generalize")
    matrix = masters["model.layers.0.mlp.up_proj.weight"]
    assert (matrix != matrix.bfloat16().float()).float().mean() > 0.5
    exact = run(*QUICK, world_size=2)
    for one, other in zip(steps(trained), steps(exact), strict=True):
        assert one.example_ids == other.example_ids
        assert one.loss == pytest.approx(other.loss, rel=0.05)
    assert torch.isfinite(matrix).all()
