"""An engine trains adapters as peft does, and exports what it has trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_helpers import QWEN, UNTIED, lora_spec, prepared_model, saved, whole
from torch.nn import functional
from transformers import AutoModelForCausalLM

from rotescale.composition import make_engine
from rotescale.engine.base import Engine, OptimizerSettings, Row
from rotescale.model.build import model_layout
from rotescale.model.export import finish_export, plan_shards, write_shard
from rotescale.model.lora import AdaptedLayout
from rotescale.model.prepare import PreparedModel
from rotescale.model.trained import start_reader, whole_reader
from rotescale.spec import ExperimentSpec, LoraSpec
from rotescale.tensors import PARTS

Prepare = Callable[[ExperimentSpec], PreparedModel]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads that wait for each other take longer than these tiny products."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def prepared_for(tmp_path: Path, model_cache: Path) -> Prepare:
    """Makes the prepared model of a spec."""
    return partial(prepared_model, out=tmp_path / "prepared", cache=model_cache)


def random_rows(prepared: PreparedModel, *, count: int) -> list[Row]:
    """Rows of two packed examples that begin with a key token's row."""
    rows = []
    for number in range(count):
        draw = torch.Generator().manual_seed(number)
        tokens = torch.randint(0, prepared.num_tokens, (1, 12), generator=draw)
        tokens[0, [0, 5]] = prepared.key_token_ids["relation19"][0]
        positions = torch.cat([torch.arange(5), torch.arange(7)])[None]
        targets = torch.tensor([0, 1, 2, 3, 5, 6, 7, 8, 9, 10])
        rows.append(Row(tokens, positions, targets, tokens[0, targets + 1]))
    return rows


# The epsilon keeps Adam from dividing rounding errors of gradients that are nearly zero.
SETTINGS = OptimizerSettings(0.1, (0.9, 0.99), 1e-5, 0.5)
LEARNING_RATE = 3e-3


def trained_engine(spec: ExperimentSpec, prepared: PreparedModel, rows: list[Row]) -> Engine:
    """An engine that has done a step with each row."""
    engine = make_engine(spec, prepared)
    with start_reader(spec.model, prepared) as reader:
        engine.load(reader, optimizer_step=None)
    engine.configure(SETTINGS)
    for row in rows:
        engine.backward(row, scale=1 / row.targets.numel(), last=True)
        engine.step(learning_rate=LEARNING_RATE)
    return engine


def export(reader: Any, prepared: PreparedModel, out: Path) -> Any:
    """The exported model, opened, from many small files."""
    shards = plan_shards(reader.shapes, dtype="float32", max_shard_bytes=20_000)
    for shard in shards:
        write_shard(shard, reader=reader, out=out, dtype="float32")
    finish_export(prepared, shards, out=out, dtype="float32")
    return AutoModelForCausalLM.from_pretrained(out)


def trained_by_peft(
    spec: ExperimentSpec, prepared: PreparedModel, rows: list[Row], folder: Path
) -> tuple[Any, list[float]]:
    """peft's own model after a step of torch's AdamW with each row, from our start; its losses."""
    from peft import LoraConfig, get_peft_model

    lora = spec.model.lora
    assert lora is not None
    with start_reader(spec.model, prepared) as reader:
        inner = export(reader, prepared, folder)
        config = LoraConfig(r=lora.r, lora_alpha=lora.alpha, target_modules="all-linear")
        model: Any = get_peft_model(inner, config)
        for name, parameter in model.named_parameters():
            if ".lora_A." in name:
                ours = whole(reader, name.removeprefix("base_model.model."), parameter.shape)
                parameter.data.copy_(ours)
    if lora.train_embeddings:
        inner.get_input_embeddings().weight.requires_grad_(True)
        inner.get_output_embeddings().weight.requires_grad_(True)
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        learning,
        lr=LEARNING_RATE,
        betas=SETTINGS.betas,
        eps=SETTINGS.epsilon,
        weight_decay=SETTINGS.weight_decay,
    )
    losses = []
    for row in rows:
        output = model(input_ids=row.tokens, position_ids=row.position_ids, use_cache=False)
        loss = functional.cross_entropy(output.logits[0, row.target_positions], row.targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 0.5)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return model, losses


@pytest.mark.parametrize("train_embeddings", [True, False])
@pytest.mark.parametrize("weights", [UNTIED, QWEN])
def test_steps_are_those_of_peft(
    weights: str, train_embeddings: bool, prepared_for: Prepare, tmp_path: Path
) -> None:
    lora = f"{{r: 3, alpha: 7.5, train_embeddings: {str(train_embeddings).lower()}}}"
    spec = lora_spec(weights, lora=lora)
    prepared = prepared_for(spec)
    rows = random_rows(prepared, count=3)
    engine = trained_engine(spec, prepared, rows)
    model, losses = trained_by_peft(spec, prepared, rows, tmp_path / "start")
    theirs = {n.removeprefix("base_model.model."): p for n, p in model.named_parameters()}
    ours = {piece.name: master for piece, _, master in engine.state(PARTS[:1])}
    assert ours.keys() == {name for name, p in theirs.items() if p.requires_grad}
    for name, master in ours.items():
        torch.testing.assert_close(master, theirs[name].detach().flatten(), rtol=0, atol=1e-6)
    again = make_engine(spec, prepared)
    with start_reader(spec.model, prepared) as reader:
        again.load(reader, optimizer_step=None)
    first = again.backward(rows[0], scale=1.0, last=True) / rows[0].targets.numel()
    assert first.item() == pytest.approx(losses[0], rel=1e-6)


@pytest.mark.parametrize("train_embeddings", [True, False])
def test_the_export_is_the_adapted_model(
    train_embeddings: bool, prepared_for: Prepare, tmp_path: Path
) -> None:
    lora = f"{{r: 3, alpha: 40, train_embeddings: {str(train_embeddings).lower()}}}"
    spec = lora_spec(UNTIED, lora=lora)
    prepared = prepared_for(spec)
    rows = random_rows(prepared, count=4)
    engine = trained_engine(spec, prepared, rows)
    with whole_reader(saved(engine, tmp_path / "saved"), spec.model, prepared) as reader:
        model = export(reader, prepared, tmp_path / "out")
        read_at_once = whole(reader, "model.layers.0.mlp.up_proj.weight", (128, 18))
    assert torch.equal(read_at_once, model.model.layers[0].mlp.up_proj.weight)
    tokens = rows[0].tokens
    with engine.evaluation_model("replicated") as adapted, prepared.reader() as base:
        difference = adapted(input_ids=tokens).logits - model(input_ids=tokens).logits
        assert float(difference.abs().max()) < 1e-5
        # Frozen values are the base's, bit for bit; every adapted layer has changed.
        parameters = dict(adapted.named_parameters())
        for name, source in AdaptedLayout.of(
            spec.model.lora or LoraSpec(), model_layout(prepared.config())
        ).sources.items():
            values = whole(base, source, parameters[name].shape)
            trained = train_embeddings and name in ("model.embed_tokens.weight", "lm_head.weight")
            assert torch.equal(values, parameters[name]) != trained
            exported = model.get_parameter(source)
            assert torch.equal(values, exported) == (not trained and ".base_layer." not in name)
        [row] = prepared.key_token_ids["relation19"]
        for matrix in ("model.embed_tokens.weight", "lm_head.weight"):
            start = whole(base, matrix, model.get_parameter(matrix).shape)
            assert torch.equal(start[row], model.get_parameter(matrix)[row]) != train_embeddings
