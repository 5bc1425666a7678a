"""Numbers of one device that must agree: precisions, packed rows, attentions, optimizers.

A random model's losses lie near the logarithm of its vocabulary, whatever its attention sees. So
log-probabilities are compared target by target, and a row whose texts see each other stands beside
as what must not agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from rotescale.data.encoding import encode, prompt_text
from rotescale.data.packing import PackedRow, pack
from rotescale.engine.base import row_loss
from rotescale.facts import load_shipped
from rotescale.model.build import build_model
from rotescale.model.prepare import PreparedModel
from rotescale.phases import to_row

_NUM_TEXTS = 24
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_UPDATES = 20

Text = tuple[Sequence[int], Sequence[int]]
"""Tokens and labels."""
Gradients = dict[str, torch.Tensor]
"""Parameter -> its gradient, flat, float32, in host memory."""


def precisions(prepared: PreparedModel, device: torch.device) -> dict[str, Any]:
    """How far bf16 is from fp32, and fp32 from the CPU's."""
    row = pack(_texts(prepared))
    plain = _log_probabilities(model_of(prepared, device, "sdpa", "fp32"), row)
    half = _log_probabilities(model_of(prepared, device, "sdpa", "bf16"), row)
    cpu = torch.device("cpu")
    there = (
        plain if device == cpu else _log_probabilities(model_of(prepared, cpu, "sdpa", "fp32"), row)
    )
    return {
        "targets": len(plain),
        "mean_fp32": float(plain.mean()),
        "spread_fp32": float(plain.std()),
        "bf16_against_fp32": apart(half, plain),
        "fp32_against_cpu": apart(plain, there),
    }


def packing(
    prepared: PreparedModel, device: torch.device, *, attention: str, dtype: str
) -> dict[str, Any]:
    """How far texts in one row are from each alone; and where they see each other, the control."""
    texts = _texts(prepared)
    model = model_of(prepared, device, attention, dtype)
    alone = torch.cat([_log_probabilities(model, pack([text])) for text in texts])
    return {
        "targets": len(alone),
        "packed_against_alone": apart(_log_probabilities(model, pack(texts)), alone),
        "control_against_alone": apart(_log_probabilities(model, _run_on(pack(texts))), alone),
    }


def attentions(prepared: PreparedModel, device: torch.device) -> dict[str, Any]:
    """How far flash attention is from sdpa in bf16, its gradients too; the control's gradients."""
    row = pack(_texts(prepared))
    sdpa = model_of(prepared, device, "sdpa", "bf16")
    reference, gradients = _log_probabilities(sdpa, row), _gradients(sdpa, row)
    del sdpa
    flash = model_of(prepared, device, "flash_attention_2", "bf16")
    return {
        "flash_against_sdpa": apart(_log_probabilities(flash, row), reference),
        "least_cosine": least_cosine(_gradients(flash, row), gradients),
        "control_cosine": least_cosine(_gradients(flash, _run_on(row)), gradients),
    }


def fused_loss(prepared: PreparedModel, device: torch.device, *, dtype: str) -> dict[str, Any]:
    """How far the fused loss is from the plain one, text by text and in a row; its gradients."""
    # More targets than are taken at a time.
    texts = _texts(prepared)
    row = pack(texts * 3)
    model = model_of(prepared, device, "sdpa", dtype)
    gradients, peaks = [], []
    for fused in (False, False, True, True):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        gradients.append(_gradients(model, row, fused=fused))
        if device.type == "cuda":
            peaks.append(torch.cuda.max_memory_allocated(device))
    plain, fused_one = (
        torch.tensor([_loss(model, pack([text]), fused=fused) for text in texts])
        for fused in (False, True)
    )
    whole = _loss(model, row, fused=False)
    return {
        "targets": len(row.targets),
        "fused_against_plain": apart(fused_one, plain),
        "whole_row": abs(_loss(model, row, fused=True) - whole) / whole,
        # On GPUs neither need be: attention and the fused loss add up in no fixed order.
        "plain_repeated_bit_for_bit": _are_equal(*gradients[:2]),
        "fused_repeated_bit_for_bit": _are_equal(*gradients[2:]),
        "least_cosine": least_cosine(gradients[2], gradients[0]),
        "peak_bytes_plain_plain_fused_fused": peaks,
    }


def _are_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


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


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """Root of the mean squared difference, by how far the values of ``other`` lie apart.

    Of values that have nothing to do with each other it is about 1.4.
    """
    return float((one - other).square().mean().sqrt() / other.std())


def least_cosine(one: Gradients, other: Gradients) -> float:
    """Between the gradients of that parameter where it is least."""
    return min(
        float(functional.cosine_similarity(one[name].double(), other[name].double(), dim=0))
        for name in other
    )


def model_of(
    prepared: PreparedModel, device: torch.device, attention: str, dtype: str
) -> nn.Module:
    """The prepared model, whole, on the device."""
    model = build_model(
        prepared.config(), attention=attention, dtype=torch.float32, activation_checkpointing=False
    )
    reader = prepared.reader()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = reader.read(name, "master", 0, parameter.numel())
            parameter.copy_(values.view(parameter.shape))
    return model.to(device=device, dtype=_DTYPES[dtype])


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


def _run_on(row: PackedRow) -> PackedRow:
    """The row as if it were one text: its texts see each other."""
    return replace(row, position_ids=np.arange(len(row.tokens)))


def _log_probabilities(model: Any, packed: PackedRow) -> torch.Tensor:
    """Of each target, from the inputs of training: (K,) float64."""
    row = to_row(packed, model.device, attention=model.config._attn_implementation)
    with torch.no_grad():
        logits = model(
            input_ids=row.tokens, position_ids=row.position_ids, use_cache=False, **row.told()
        ).logits
    chosen = logits.flatten(0, 1)[row.target_positions].float().log_softmax(dim=-1)
    of_targets: torch.Tensor = chosen.gather(1, row.targets[:, None])[:, 0]
    return of_targets.double().cpu()


def _loss(model: Any, packed: PackedRow, *, fused: bool) -> float:
    """The mean over the row's targets."""
    row = to_row(packed, model.device, attention=model.config._attn_implementation)
    with torch.no_grad():
        return float(row_loss(model, row, fused=fused)) / len(packed.targets)


def _gradients(model: Any, packed: PackedRow, *, fused: bool = False) -> Gradients:
    model.zero_grad()
    row = to_row(packed, model.device, attention=model.config._attn_implementation)
    row_loss(model, row, fused=fused).backward()  # type: ignore[no-untyped-call]
    # In host memory, so that a peak is the backward pass's.
    return {
        name: parameter.grad.cpu().float().flatten()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
