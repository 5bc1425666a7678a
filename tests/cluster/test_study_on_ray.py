"""A study on a real Ray cluster that has room for one of its runs at a time."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import yaml
from helpers import MICRO, QUICK, ROOT
from ray_cluster import RayCluster, ray_cluster

from launcher.jobs_api import JobsApi
from rotescale.launch_spec import RayAccess
from rotescale.records import read_records
from rotescale.run_dir import RunDir

WAIT_SECONDS = 900
SEEDS = (0, 1, 2)


@pytest.fixture
def cluster() -> Iterator[RayCluster]:
    """Room for one run of two workers: they wait for a place for two seconds, then ask anew."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    variables = {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "2",
    }
    with ray_cluster(folder, num_cpus=3, **variables) as found:
        yield found
    shutil.rmtree(folder, ignore_errors=True)


def study_file(folder: Path) -> Path:
    """Three runs of one phase, none of which shares anything."""
    values: dict[str, Any] = {
        field: yaml.safe_load(text)
        for field, text in (override.split("=", 1) for override in QUICK)
        if not field.startswith("phases.")
    }
    phase = {
        **{"name": "memorize", "text": "key_token", "facts_per_relation": 12, "epochs": 4},
        **{"global_batch": 5, "learning_rate": 1e-3},
    }
    study = {
        "name": "waits",
        "experiment": str(MICRO),
        "overrides": {**values, "phases": [phase], "evaluation.held_out_facts": 0,
                      "evaluation.key_token_facts": 4},
        "axes": [{"name": "seed", "field": "seed", "values": list(SEEDS)}],
    }  # fmt: skip
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study))
    return path


def launch_file(folder: Path, cache: Path) -> Path:
    """Two workers on the cluster that the command runs on."""
    path = folder / "launch.yaml"
    spec = {"name": "here", "place": "ray", "address": "auto", "num_workers": 2}
    spec |= {"storage": str(folder / "runs"), "model_cache": str(cache)}
    path.write_text(yaml.safe_dump(spec))
    return path


def at_work(run_dir: RunDir) -> tuple[str, str]:
    """When the workers of a run of one attempt began and ended."""
    times = [event.time for event in read_records(run_dir).events]
    return min(times), max(times)


@pytest.mark.slow
@pytest.mark.timeout(WAIT_SECONDS + 300)
def test_runs_of_a_study_wait_for_room_as_any_job_does(
    cluster: RayCluster, tmp_path: Path, model_cache: Path
) -> None:
    os.environ["CLUSTER_TOKEN"] = cluster.token
    api = JobsApi(RayAccess(jobs_url=cluster.jobs_url, token_variable="CLUSTER_TOKEN"))
    study, launch = study_file(tmp_path), launch_file(tmp_path, model_cache)
    command = f"python -m rotescale.cli study {study} --on {launch} --parallel 3"
    # As `ray job submit` sends it.
    assert api.submit({"entrypoint": command, "submission_id": "study-1"})
    deadline = time.monotonic() + WAIT_SECONDS
    while (job := api.job("study-1")) is not None and job.status in ("PENDING", "RUNNING"):
        assert time.monotonic() < deadline, api.logs("study-1")
        time.sleep(1.0)
    told = api.logs("study-1")
    assert job is not None
    assert job.status == "SUCCEEDED", told
    # All were started before the first one had ended.
    statuses = re.findall(r"waits-seed\d: (running|finished|failed|blocked)", told)
    assert statuses == ["running"] * 3 + ["finished"] * 3, told
    runs = [RunDir(tmp_path / "runs" / f"waits-seed{seed}") for seed in SEEDS]
    assert [run.newest_attempt() for run in runs] == [1, 1, 1]
    spans = sorted(map(at_work, runs))
    assert all(earlier[1] <= later[0] for earlier, later in pairwise(spans))
    table = pyarrow.parquet.read_table(tmp_path / "runs" / "waits" / "results.parquet")
    assert set(table["axis_seed"].to_pylist()) == set(map(str, SEEDS))
