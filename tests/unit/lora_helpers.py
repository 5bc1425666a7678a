"""What tests of LoRA share: a micro model, its spec, and reading whole tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from checkpoint_helpers import header
from helpers import micro_spec

from rotescale.checkpoint.slices import CheckpointReader
from rotescale.checkpoint.writer import publish, write_rank_file
from rotescale.engine.base import Engine
from rotescale.model.export import RangeReader
from rotescale.model.prepare import PreparedModel, prepare
from rotescale.model.sources import fetch
from rotescale.spec import ExperimentSpec
from rotescale.tensors import PARTS

UNTIED = "model.weights={kind: random, hidden_size: 18, num_heads: 3, num_key_value_heads: 1, "
UNTIED += "tie_word_embeddings: false}"
QWEN = "model.weights={kind: random, architecture: qwen2.5-1.5b}"


def lora_spec(*overrides: str, lora: str = "{r: 3, alpha: 7.5}") -> ExperimentSpec:
    """The micro experiment with adapters, for the eager engine."""
    return micro_spec("engine.kind=eager", f"model.lora={lora}", *overrides)


def prepared_model(spec: ExperimentSpec, *, out: Path, cache: Path) -> PreparedModel:
    """The spec's model with more key tokens than the padding of its vocabulary has room for."""
    texts = ["Gene Finley is the mother of Cody Ross."]
    base = fetch(spec.model.weights, cache=cache, texts=texts)
    relations = ["mother", *(f"relation{number}" for number in range(20))]
    return prepare(spec.model, base=base, relations=relations, seed=spec.seed, out=out)


def whole(reader: RangeReader, name: str, shape: Sequence[int]) -> torch.Tensor:
    """The whole tensor, from a single read."""
    return reader.read(name, "master", 0, math.prod(shape)).view(*shape)


def saved(engine: Engine, directory: Path) -> CheckpointReader:
    """A full checkpoint of the engine, published in ``directory``."""
    write_rank_file(directory, rank=0, world_size=1, slices=engine.state(PARTS))
    return CheckpointReader(directory, publish(directory, header=header(world_size=1)))
