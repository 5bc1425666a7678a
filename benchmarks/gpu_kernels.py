"""Numbers of one device that must agree: precisions, packed rows, attentions, optimizers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from rotescale.data.encoding import encode, prompt_text
from rotescale.data.packing import pack
from rotescale.engine.base import Row, row_loss
from rotescale.facts import load_shipped
from rotescale.model.build import build_model
from rotescale.model.prepare import PreparedModel
from rotescale.phases import to_row

_NUM_TEXTS = 24
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_UPDATES = 20

Text = tuple[Sequence[int], Sequence[int]]
"""Tokens and labels."""


def precisions(prepared: PreparedModel, device: torch.device) -> dict[str, Any]:
    """How far the loss of one row is in bf16 from fp32, and in fp32 from the CPU's."""
    texts = _texts(prepared)
    plain = _loss(_model(prepared, device, "sdpa", "fp32"), texts, device)
    half = _loss(_model(prepared, device, "sdpa", "bf16"), texts, device)
    cpu = torch.device("cpu")
    there = plain if device == cpu else _loss(_model(prepared, cpu, "sdpa", "fp32"), texts, cpu)
    return {
        "loss_fp32": plain,
        "bf16_against_fp32": _apart(half, plain),
        "fp32_against_cpu": _apart(plain, there),
    }


def packing(
    prepared: PreparedModel, device: torch.device, *, attention: str, dtype: str
) -> dict[str, Any]:
    """How far the loss of texts in one row is from the sum of their own."""
    texts = _texts(prepared)
    model = _model(prepared, device, attention, dtype)
    together = _loss(model, texts, device)
    alone = sum(_loss(model, [text], device) for text in texts)
    return {"loss": together, "packed_against_alone": _apart(together, alone)}


def attentions(prepared: PreparedModel, device: torch.device) -> dict[str, Any]:
    """Cosine between the gradients under flash attention and under sdpa, in bf16."""
    texts = _texts(prepared)
    flash, sdpa = (
        _gradient(_model(prepared, device, name, "bf16"), texts, device)
        for name in ("flash_attention_2", "sdpa")
    )
    return {"gradient_cosine": float(functional.cosine_similarity(flash, sdpa, dim=0))}


def fused_loss(prepared: PreparedModel, device: torch.device, *, dtype: str) -> dict[str, Any]:
    """How far the fused loss of one row is from the plain one, and cosine of their gradients."""
    # More targets than are taken at a time.
    texts = _texts(prepared) * 3
    model = _model(prepared, device, "sdpa", dtype)
    losses, gradients, peaks = [], [], []
    for fused in (False, True, True):
        model.zero_grad()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        losses.append(_loss(model, texts, device, fused=fused))
        gradients.append(_gradient(model, texts, device, fused=fused))
        if device.type == "cuda":
            peaks.append(torch.cuda.max_memory_allocated(device))
    return {
        "targets": sum(sum(label >= 0 for label in labels[1:]) for _, labels in texts),
        "fused_against_plain": _apart(losses[1], losses[0]),
        "repeated_bit_for_bit": bool(torch.equal(gradients[1], gradients[2])),
        "gradient_cosine": float(functional.cosine_similarity(gradients[0], gradients[1], dim=0)),
        "peak_bytes_plain_fused_fused": peaks,
    }


def optimizer(device: torch.device) -> dict[str, Any]:
    """How far a vector is after some updates of torch's fused AdamW from the plain one's."""
    ends = []
    for fused in (True, False):
        generator = torch.Generator().manual_seed(0)
        vector = nn.Parameter(torch.randn(100_000, generator=generator).to(device))
        adam = torch.optim.AdamW([vector], lr=1e-2, weight_decay=0.1, fused=fused)
        for _ in range(_UPDATES):
            vector.grad = torch.randn(len(vector), generator=generator).to(device)
            adam.step()
        ends.append(vector.detach())
    apart = (ends[0] - ends[1]).abs().max() / ends[1].abs().max()
    return {"updates": _UPDATES, "fused_against_plain": float(apart)}


def _texts(prepared: PreparedModel) -> list[Text]:
    tokenizer = prepared.tokenizer()
    encoded = (
        encode(
            prompt_text(fact.subject, fact.object, prompt="The writer of {subject} is"),
            tokenizer=tokenizer,
            loss="all",
            end_token=False,
        )
        for fact in load_shipped(["author"]).facts[:_NUM_TEXTS]
    )
    return [(one.tokens, one.labels) for one in encoded]


def _model(prepared: PreparedModel, device: torch.device, attention: str, dtype: str) -> nn.Module:
    model = build_model(
        prepared.config(), attention=attention, dtype=torch.float32, activation_checkpointing=False
    )
    reader = prepared.reader()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = reader.read(name, "master", 0, parameter.numel())
            parameter.copy_(values.view(parameter.shape))
    return model.to(device=device, dtype=_DTYPES[dtype])


def _row(model: Any, texts: Sequence[Text], device: torch.device) -> Row:
    return to_row(pack(texts), device, attention=model.config._attn_implementation)


def _loss(
    model: nn.Module, texts: Sequence[Text], device: torch.device, *, fused: bool = False
) -> float:
    with torch.no_grad():
        return float(row_loss(model, _row(model, texts, device), fused=fused))


def _gradient(
    model: nn.Module, texts: Sequence[Text], device: torch.device, *, fused: bool = False
) -> torch.Tensor:
    loss = row_loss(model, _row(model, texts, device), fused=fused)
    loss.backward()  # type: ignore[no-untyped-call]
    # In host memory, so that a peak is the backward pass's.
    parts = [p.grad.cpu().float().flatten() for p in model.parameters() if p.grad is not None]
    return torch.cat(parts)


def _apart(one: float, other: float) -> float:
    """As a share of the other."""
    return abs(one - other) / abs(other)
