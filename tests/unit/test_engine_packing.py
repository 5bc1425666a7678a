"""Packed rows give the logits, and the loss, of the examples one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig

from rotescale.data import packing
from rotescale.data.encoding import IGNORE
from rotescale.data.packing import pack
from rotescale.engine import fused_loss
from rotescale.engine.base import Row, row_loss
from rotescale.engine.fused_loss import check_fusable
from rotescale.errors import SpecError
from rotescale.model.build import build_model
from rotescale.model.random_model import reduced_config
from rotescale.phases import to_row
from rotescale.spec import RandomWeights

ARCHITECTURES = ("llama-3.2-1b", "qwen2.5-1.5b", "phi-4")


def micro_model(architecture: str, attention: str, *, recomputes: bool = False) -> Any:
    """A micro model of the architecture with seeded weights."""
    weights = RandomWeights(kind="random", architecture=architecture)  # type: ignore[arg-type]
    config = AutoConfig.for_model(**reduced_config(weights, num_tokens=200))
    torch.manual_seed(0)
    model = build_model(
        config, attention=attention, dtype=torch.float32, activation_checkpointing=recomputes
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def random_examples() -> list[tuple[list[int], list[int]]]:
    """Examples of several lengths, about half of whose tokens count."""
    draw = np.random.default_rng(3)
    examples = []
    for length in (5, 12, 3, 9):
        tokens = draw.integers(1, 200, size=length).tolist()
        labels = [t if draw.random() < 0.5 else IGNORE for t in tokens]
        examples.append((tokens, [IGNORE, *labels[1:-1], tokens[-1]]))
    return examples


def packed_row(examples: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Row:
    """All examples in one row, as an engine takes it."""
    return to_row(pack(examples), torch.device("cpu"))


def widest(work: Callable[[], None], matrix: torch.Tensor) -> int:
    """The most rows of any tensor as wide as the vocabulary that ``work`` computes with.

    The matrix itself, (V, H), is none, turned round neither.
    """
    with torch.profiler.profile(record_shapes=True) as profile:
        work()
    vocab_size, hidden_size = matrix.shape
    rows = (
        shape[0]
        for event in profile.events()
        for shape in event.input_shapes or ()
        if len(shape) == 2 and shape[1] == vocab_size and shape[0] != hidden_size
    )
    return max(rows)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_logits_equal_separate_ones(architecture: str, attention: str) -> None:
    model = micro_model(architecture, attention)
    examples = random_examples()
    packed = pack(examples)
    with torch.no_grad():
        together = model(
            input_ids=torch.from_numpy(packed.tokens)[None],
            position_ids=torch.from_numpy(packed.position_ids)[None],
            use_cache=False,
        ).logits[0]
        separate = torch.cat(
            [
                model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
                for tokens, _ in examples
            ]
        )
    assert float((together - separate).abs().max()) < 1e-5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_loss_is_that_of_the_labels_built(architecture: str) -> None:
    """Fault 1 of the released code, at its place: the loss that the model is trained with."""
    model = micro_model(architecture, "sdpa")
    examples = random_examples()
    row = packed_row(examples)
    expected = 0.0
    for tokens, labels in examples:
        logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
        expected += functional.cross_entropy(
            logits[:-1], torch.tensor(labels[1:]), ignore_index=IGNORE, reduction="sum"
        ).item()
    assert row_loss(model, row).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_folded_row_has_the_loss_and_gradients_of_one_line(
    architecture: str, attention: str, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "LINE_TOKENS", 8)
    model = micro_model(architecture, attention)
    examples = random_examples() * 2
    found = []
    for how in ("flash_attention_2", attention):
        row = to_row(pack(examples), torch.device("cpu"), attention=how)
        model.zero_grad()
        loss = row_loss(model, row, fused=fused)
        loss.backward()
        found.append((len(row.tokens), loss.item(), [p.grad.clone() for p in model.parameters()]))
    (one, plain, gradients), (lines, folded, others) = found
    assert (one, lines) == (1, 4)
    assert folded == pytest.approx(plain, rel=1e-6)
    for gradient, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(other, gradient, rtol=1e-5, atol=1e-5)
    # The head sees all again.
    assert model(input_ids=torch.tensor([[1, 2]])).logits.shape[:2] == (1, 2)


def by_parts(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **told: Any
) -> tuple[torch.Tensor, None]:
    """Causal attention within the parts that it is told of, as flash attention's ``varlen`` does.

    Queries (1, heads, T, D) and keys and values of fewer heads; the result is (1, T, heads, D).
    """
    borders, longest = told["cu_seq_lens_k"].tolist(), told["max_length_k"]
    assert told["cu_seq_lens_q"] is told["cu_seq_lens_k"]
    assert longest == told["max_length_q"] == max(np.diff(borders))
    assert told["cu_seq_lens_k"].dtype == torch.int32
    parts = [
        functional.scaled_dot_product_attention(
            *(one[:, :, start:stop] for one in (query, key, value)),
            is_causal=True,
            scale=told["scaling"],
            enable_gqa=True,
        )
        for start, stop in pairwise(borders)
    ]
    return torch.cat(parts, dim=2).transpose(1, 2), None


@pytest.mark.parametrize("recomputes", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_flash_attention_is_told_where_examples_begin(architecture: str, recomputes: bool) -> None:
    """Each layer gets it, in the words of transformers; here attention on the CPU goes by it."""
    AttentionInterface.register("by_parts", by_parts)
    AttentionMaskInterface.register("by_parts", lambda *_, **__: None)
    examples = random_examples()
    found = []
    for attention, how in (("sdpa", "sdpa"), ("by_parts", "flash_attention_2")):
        model = micro_model(architecture, attention, recomputes=recomputes).train()
        row = to_row(pack(examples), torch.device("cpu"), attention=how)
        loss = row_loss(model, row)
        loss.backward()
        found.append((loss.item(), [p.grad.clone() for p in model.parameters()]))
    (plain, gradients), (by_part, others) = found
    assert by_part == pytest.approx(plain, rel=1e-5)
    for gradient, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(other, gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_fused_loss_is_the_same_and_never_has_all_logits(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = nn.LinearCrossEntropyOptions(batch_chunk_size=4, chunking_method=None)
    monkeypatch.setattr(fused_loss, "_OPTIONS", options)
    model = micro_model(architecture, "sdpa")
    matrix = model.get_output_embeddings().weight
    row = packed_row(random_examples())
    found = []
    for fused in (False, True):
        model.zero_grad()
        losses: list[torch.Tensor] = []

        def learn(fused: bool = fused, losses: list[torch.Tensor] = losses) -> None:
            losses.append(row_loss(model, row, fused=fused))
            (losses[0] * 0.5).backward()

        assert widest(learn, matrix) == (4 if fused else len(row.targets))
        [loss] = losses
        assert loss.dtype == torch.float32
        found.append((loss.item(), [p.grad.clone() for p in model.parameters()]))
    (plain, gradients), (ours, others) = found
    assert ours == pytest.approx(plain, rel=1e-6)
    for gradient, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(other, gradient, rtol=1e-5, atol=1e-6)
    # The head gives logits again.
    assert model(input_ids=torch.tensor([[1, 2]])).logits.shape == (1, 2, len(matrix))


def test_a_fused_loss_in_bf16_is_summed_in_fp32() -> None:
    model = micro_model("llama-3.2-1b", "sdpa").to(torch.bfloat16)
    row = packed_row(random_examples())
    loss = row_loss(model, row, fused=True)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(row_loss(model, row).item(), rel=5e-3)


def test_a_factor_that_bf16_cannot_hold_scales_a_fused_loss_all_the_same() -> None:
    """2/1021 is 0.3 % less in bf16: all gradients of a step would be too small alike."""
    model = micro_model("llama-3.2-1b", "sdpa").to(torch.bfloat16)
    row = packed_row(random_examples())
    matrix = model.get_output_embeddings().weight
    norms = []
    for factor in (1.0, 2 / 1021):
        model.zero_grad()
        (row_loss(model, row, fused=True) * factor).backward()
        norms.append(float(matrix.grad.float().norm()) / factor)
    assert norms[1] == pytest.approx(norms[0], rel=5e-4)


def test_a_fused_loss_is_refused_for_models_that_were_not_looked_at() -> None:
    check_fusable(AutoConfig.for_model("qwen2"))
    with pytest.raises(SpecError, match=r"engine\.fused_loss.*llama, phi3, qwen2, not 'gemma2'"):
        check_fusable(AutoConfig.for_model("gemma2"))


def test_a_filler_row_adds_no_gradient() -> None:
    model = micro_model("llama-3.2-1b", "sdpa")
    loss = row_loss(model, packed_row([]))
    loss.backward()
    assert loss.item() == 0.0
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert all(float(gradient.abs().max()) == 0.0 for gradient in gradients)
