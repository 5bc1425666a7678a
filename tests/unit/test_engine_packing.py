"""Packed rows give the logits, and the loss, of the examples one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoConfig

from rotescale.data.encoding import IGNORE
from rotescale.data.packing import pack
from rotescale.engine.base import Row, row_loss
from rotescale.model.build import build_model
from rotescale.model.random_model import reduced_config
from rotescale.spec import RandomWeights

ARCHITECTURES = ("llama-3.2-1b", "qwen2.5-1.5b", "phi-4")


def micro_model(architecture: str, attention: str) -> Any:
    """A micro model of the architecture with seeded weights."""
    weights = RandomWeights(kind="random", architecture=architecture)  # type: ignore[arg-type]
    config = AutoConfig.for_model(**reduced_config(weights, num_tokens=200))
    torch.manual_seed(0)
    model = build_model(
        config, attention=attention, dtype=torch.float32, activation_checkpointing=False
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
    packed = pack(examples)
    row = Row(
        tokens=torch.from_numpy(packed.tokens)[None],
        position_ids=torch.from_numpy(packed.position_ids)[None],
        target_positions=torch.from_numpy(packed.target_positions),
        targets=torch.from_numpy(packed.targets),
    )
    expected = 0.0
    for tokens, labels in examples:
        logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
        expected += functional.cross_entropy(
            logits[:-1], torch.tensor(labels[1:]), ignore_index=IGNORE, reduction="sum"
        ).item()
    assert row_loss(model, row).item() == pytest.approx(expected, rel=1e-5)


def test_a_filler_row_adds_no_gradient() -> None:
    model = micro_model("llama-3.2-1b", "sdpa")
    packed = pack([])
    row = Row(
        tokens=torch.from_numpy(packed.tokens)[None],
        position_ids=torch.from_numpy(packed.position_ids)[None],
        target_positions=torch.from_numpy(packed.target_positions),
        targets=torch.from_numpy(packed.targets),
    )
    loss = row_loss(model, row)
    loss.backward()
    assert loss.item() == 0.0
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert all(float(gradient.abs().max()) == 0.0 for gradient in gradients)
