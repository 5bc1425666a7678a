"""A rank that ends leaves its peers free: in silence only where each of them ends alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import QUICK, micro_spec, prepare

from rotescale import driver
from rotescale.errors import DataError, NodeError, RotescaleError, TrainingError
from rotescale.launch_spec import LaunchSpec
from rotescale.run_dir import Outcome, RunDir
from rotescale.storage import make_folder
from rotescale.worker import _leaves_quietly


@pytest.mark.parametrize(
    ("error", "is_quiet", "outcome"),
    [
        (TrainingError("the loss is nan", is_agreed=True), True, "TrainingError"),
        # Seen by the rank that asked the question; its peers wait to gather the answers.
        (TrainingError("a log-probability is not finite"), False, "TrainingError"),
        (DataError("a shard is damaged"), False, "DataError"),
        (NodeError("the node is slow"), False, None),
    ],
)
def test_only_what_all_ranks_have_agreed_on_ends_one_in_silence(
    error: RotescaleError, is_quiet: bool, outcome: str | None, tmp_path: Path
) -> None:
    run_dir = RunDir(tmp_path)
    make_folder(run_dir.logs_dir)
    assert _leaves_quietly(run_dir, error, attempt=0) == is_quiet
    found = Outcome.read(run_dir)
    assert (None if found is None else found.error) == outcome


def test_an_example_that_is_longer_than_the_models_context_ends_the_run(
    tmp_path: Path, model_cache: Path
) -> None:
    """Before anything is trained: with rotary positions it would be read badly, in silence."""
    spec = micro_spec(*QUICK, "engine.kind=eager", "evaluation.base=false")
    run_dir = prepare(spec, tmp_path, cache=model_cache)
    set_context(run_dir, 6)
    with pytest.raises(DataError, match=r"phase memorize: example \(fact, prompt\) \(\d+, -1\)"):
        driver.train(run_dir, LaunchSpec(), engine="eager")
    outcome = Outcome.read(run_dir)
    assert outcome is not None
    assert "tokens, and the model's context has 6 (max_position_embeddings)" in outcome.message


def set_context(run_dir: RunDir, tokens: int) -> None:
    """As if the model had been published with so short a one."""
    file = run_dir.prepared_model / "config.json"
    assert isinstance(file, Path)
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"max_position_embeddings": tokens}))
