"""Workers of one machine share its cores, and a run that goes on keeps its threads."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import QUICK, micro_spec

from rotescale import driver
from rotescale.launch_spec import LaunchSpec
from rotescale.preparation import prepare_run
from rotescale.records import read_records
from rotescale.run_dir import Outcome


@pytest.mark.slow
def test_workers_have_as_many_threads_as_they_have_cores(
    tmp_path: Path, model_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = micro_spec(*QUICK, "checkpoints.export=none")
    launch = LaunchSpec(storage=str(tmp_path / "runs"), model_cache=str(model_cache))
    for cores in (7, 16):
        monkeypatch.setattr("rotescale.devices.cpu_cores", lambda cores=cores: cores)
        run_dir = prepare_run(spec, launch)
        driver.train(run_dir, launch)
        Outcome.clear(run_dir)
    workers = [event for event in read_records(run_dir).events if event.name == "worker"]
    assert [(event.attempt, event.details["threads"]) for event in workers] == [
        *((1, 3), (1, 3)),
        *((2, 3), (2, 3)),
    ]
