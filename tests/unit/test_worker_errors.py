"""A rank that ends leaves its peers free: in silence only where each of them ends alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from rotescale.errors import DataError, NodeError, RotescaleError, TrainingError
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
