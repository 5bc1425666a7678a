"""Rows that a phase freezes stay bit for bit what they were, and count in no gradient norm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import micro_spec
from lora_helpers import QWEN, UNTIED, lora_spec, prepared_model

from rotescale.composition import make_engine
from rotescale.engine.base import Engine, OptimizerSettings, Row
from rotescale.engine.frozen_rows import ranges_in
from rotescale.model.prepare import PreparedModel
from rotescale.model.trained import start_reader
from rotescale.spec import ExperimentSpec
from rotescale.tensors import PARTS, TensorSlice, partition


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_ranks_find_each_element_of_the_rows_once(world_size: int) -> None:
    shape, rows = (7, 3), (5, 1, 2)
    found: list[int] = []
    for rank in range(world_size):
        start, stop = partition(21, rank=rank, world_size=world_size)
        for first, last in ranges_in(TensorSlice("m", shape, start, stop), rows):
            found += range(start + first, start + last)
    assert found == [3, 4, 5, 6, 7, 8, 15, 16, 17]


def test_a_vector_has_rows_of_one_element() -> None:
    assert ranges_in(TensorSlice("bias", (9,), 4, 9), (3, 4, 8)) == [(0, 1), (4, 5)]


def settings(frozen_rows: dict[str, tuple[int, ...]]) -> OptimizerSettings:
    """Weight decay, which moves a row without any gradient, and a norm that is not clipped."""
    return OptimizerSettings(0.1, (0.9, 0.99), 1e-8, None, frozen_rows)


def a_row(prepared: PreparedModel) -> Row:
    """A text with two key tokens, one of which is also predicted."""
    tokens = torch.arange(3, 15)[None]
    tokens[0, [2, 6]] = torch.tensor(
        [prepared.key_token_ids[name][0] for name in ("mother", "relation19")]
    )
    targets = torch.arange(11)
    return Row(tokens, torch.arange(12)[None], targets, tokens[0, 1:])


def loaded(spec: ExperimentSpec, prepared: PreparedModel) -> Engine:
    engine = make_engine(spec, prepared)
    with start_reader(spec.model, prepared) as reader:
        engine.load(reader, optimizer_step=None)
    return engine


def tensors(engine: Engine) -> dict[tuple[str, str], torch.Tensor]:
    """Copies of masters and moments, by name and part."""
    return {
        (piece.name, part): values.clone().view(piece.shape)
        for piece, part, values in engine.state(PARTS)
    }


@pytest.mark.parametrize(
    ("spec", "matrices"),
    [
        (micro_spec("engine.kind=eager", QWEN), ["model.embed_tokens.weight"]),
        (
            micro_spec("engine.kind=eager", UNTIED),
            ["model.embed_tokens.weight", "lm_head.weight"],
        ),
        (lora_spec(UNTIED), ["model.embed_tokens.weight", "lm_head.weight"]),
    ],
    ids=["tied", "untied", "lora"],
)
def test_frozen_rows_do_not_change_by_a_bit(
    spec: ExperimentSpec, matrices: list[str], tmp_path: Path, model_cache: Path
) -> None:
    prepared = prepared_model(spec, out=tmp_path / "prepared", cache=model_cache)
    rows = prepared.key_rows()
    assert list(rows) == matrices
    key_rows = list(rows[matrices[0]])
    assert len(key_rows) == 21
    engine = loaded(spec, prepared)
    engine.configure(settings(rows))
    before = tensors(engine)
    for _ in range(3):
        engine.backward(a_row(prepared), scale=1.0, last=True)
        engine.step(learning_rate=1e-2)
    after = tensors(engine)
    for name in matrices:
        assert torch.equal(after[name, "master"][key_rows], before[name, "master"][key_rows])
        assert not after[name, "exp_avg"][key_rows].any()
        assert not after[name, "exp_avg_sq"][key_rows].any()
        others = [row for row in range(len(before[name, "master"])) if row not in key_rows]
        changed = (after[name, "master"] != before[name, "master"])[others]
        assert changed.any(dim=1).all(), "weight decay moves every other row"
    with engine.evaluation_model("replicated") as model:
        computed: Any = dict(model.named_parameters())
        for name in matrices:
            assert torch.equal(computed[name], after[name, "master"])
    engine.configure(settings({}))
    engine.backward(a_row(prepared), scale=1.0, last=True)
    engine.step(learning_rate=1e-2)
    for name, value in tensors(engine).items():
        if name[0] in matrices and name[1] == "master":
            assert (value[key_rows] != before[name][key_rows]).any(dim=1).all()


def test_frozen_rows_have_no_part_in_the_norm(tmp_path: Path, model_cache: Path) -> None:
    spec = micro_spec("engine.kind=eager", UNTIED)
    prepared = prepared_model(spec, out=tmp_path / "prepared", cache=model_cache)
    engine = loaded(spec, prepared)
    engine.configure(settings({}))
    row = a_row(prepared)
    engine.backward(row, scale=1.0, last=False)
    gradients = {name: p.grad.clone() for name, p in engine._masters.items()}  # type: ignore[attr-defined]
    everything = engine.step(learning_rate=0.0)
    engine.configure(settings(prepared.key_rows()))
    engine.backward(row, scale=1.0, last=True)
    trained = engine.step(learning_rate=0.0)
    hidden = sum(
        float(gradients[name][list(own)].square().sum())
        for name, own in prepared.key_rows().items()
    )
    assert hidden > 0
    assert trained**2 == pytest.approx(everything**2 - hidden, rel=1e-4)


def test_rows_of_a_frozen_matrix_need_nothing(tmp_path: Path, model_cache: Path) -> None:
    spec = lora_spec(UNTIED, lora="{r: 3, train_embeddings: false}")
    prepared = prepared_model(spec, out=tmp_path / "prepared", cache=model_cache)
    engine = loaded(spec, prepared)
    engine.configure(settings(prepared.key_rows()))
    engine.backward(a_row(prepared), scale=1.0, last=True)
    assert engine.step(learning_rate=1e-2) > 0
    with engine.evaluation_model("replicated") as model, prepared.reader() as base:
        matrix = dict(model.named_parameters())["model.embed_tokens.weight"]
        start = base.read("model.embed_tokens.weight", "master", 0, matrix.numel())
        assert torch.equal(matrix.flatten(), start)
