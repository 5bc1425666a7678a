"""Fixtures of the tests that start workers: a run with every stage, and how it ends undisturbed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import micro_spec, prepare, run_workers
from recovery_helpers import SAVING

from rotescale.run_dir import RunDir


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory, model_cache: Path) -> Callable[..., RunDir]:
    """Prepares a run of the tests of recovery, with further overrides."""

    def start(*overrides: str) -> RunDir:
        storage = tmp_path_factory.mktemp("run")
        return prepare(micro_spec(*SAVING, *overrides), storage, cache=model_cache, num_workers=2)

    return start


@pytest.fixture(scope="session")
def undisturbed(start: Callable[..., RunDir]) -> RunDir:
    """That run on two workers, of which nothing has ever gone wrong."""
    run_dir = start()
    assert run_workers(run_dir, world_size=2) == [0, 0]
    return run_dir
