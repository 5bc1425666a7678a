"""How long a text a model reads, by its config, and what happens to longer ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers import QUICK, micro_spec, prepare
from transformers import AutoConfig, GPT2Config, LlamaConfig, Phi3Config, Qwen2Config

from rotescale.errors import DataError
from rotescale.model.context import context_length
from rotescale.run_dir import RunDir

ROPE = {"rope_theta": 10000.0}
SHIPPED = sorted((Path(__file__).parents[2] / "rotescale/model/architectures").glob("*.json"))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LlamaConfig(max_position_embeddings=4096), 4096),
        (GPT2Config(n_positions=1024), 1024),
        (object(), None),
        # Qwen2.5's own words on long texts: the factor beside the length as it was.
        (
            Qwen2Config(
                max_position_embeddings=32768,
                rope_parameters={
                    **{"rope_type": "yarn", "factor": 4.0, **ROPE},
                    "original_max_position_embeddings": 32768,
                },
            ),
            131072,
        ),
        (
            LlamaConfig(
                max_position_embeddings=2048,
                rope_parameters={"rope_type": "linear", "factor": 2.0, **ROPE},
            ),
            4096,
        ),
        (
            LlamaConfig(
                max_position_embeddings=2048,
                rope_parameters={"rope_type": "dynamic", "factor": 2.0, **ROPE},
            ),
            None,
        ),
        (Phi3Config(max_position_embeddings=16384), 16384),
    ],
)
def test_the_limit_follows_from_the_config(config: Any, expected: int | None) -> None:
    assert context_length(config) == expected


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_shipped_models_have_their_published_contexts(file: Path) -> None:
    config = AutoConfig.from_pretrained(file)
    assert context_length(config) == config.max_position_embeddings


def test_a_longer_example_is_refused_before_workers_start(
    tmp_path: Path, model_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = prepare(micro_spec(*QUICK), tmp_path, cache=model_cache)
    assert run_dir.resolved_json.exists()
    monkeypatch.setattr("rotescale.model.context.context_length", lambda config: 6)
    with pytest.raises(DataError, match=r"phase memorize, example \d+: \d+ tokens, .* has 6"):
        prepare(micro_spec(*QUICK), tmp_path / "other", cache=model_cache)
    assert not RunDir(tmp_path / "other" / "micro").resolved_json.exists()
