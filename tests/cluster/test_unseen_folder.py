"""Runs whose folder only the cluster sees: told, gone on with and compared all the same.

To the launcher the storage is hidden, in a mount namespace of its own; to the cluster it is there.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import MICRO
from kuberay_laptop import NAMESPACE, SET, WAIT_SECONDS, Laptop
from launcher_shell import launch, why_nothing_is_hidden
from ray_cluster import ray_cluster

from launcher.status_line import MARK
from rotescale.run_dir import RunDir

pytestmark = [pytest.mark.slow, pytest.mark.privileged, pytest.mark.timeout(1200)]


class Far:
    """The launcher's command line where the runs' folder is not seen."""

    def __init__(self, storage: Path, environment: dict[str, str]) -> None:
        why_not = why_nothing_is_hidden()
        if why_not is not None:
            warnings.warn(f"NOT RUN, a folder that is not seen: {why_not}", stacklevel=1)
            pytest.skip(why_not)
        storage.mkdir(parents=True, exist_ok=True)
        self.storage, self.environment = storage, environment

    def __call__(self, *arguments: str, code: int = 0) -> str:
        return launch(*arguments, environment=self.environment, code=code, hidden=self.storage)

    def wait(self, what: str, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The status that first fulfils the condition."""
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            found: dict[str, Any] = json.loads(self("status", "micro", "--json"))
            if condition(found):
                return found
            assert found["state"] != "failed", found
            assert time.monotonic() < deadline, f"it did not happen: {what}; {found}"
            time.sleep(2)

    def lines_with(self, words: str) -> str:
        """The run's last lines, once these words are among them.

        What a driver shows of a run it has read from the folder, as its state is; the one may be
        there before the other.
        """
        deadline = time.monotonic() + WAIT_SECONDS
        while words not in (lines := self("logs", "micro", "--lines", "100")):
            assert time.monotonic() < deadline, lines
            time.sleep(1)
        return lines


def trains(status: dict[str, Any]) -> bool:
    progress = status["progress"] or {}
    return progress.get("stage") in ("memorize", "generalize") and bool(progress["checkpoint"])


def test_on_a_claim_of_kubernetes(laptop: Laptop) -> None:
    far = Far(laptop.shared / "runs", laptop.environment)
    laptop.slow_seconds = 1.0
    laptop.slow.touch()
    profile = laptop.profile("kuberay")
    assert "micro started" in far("submit", str(MICRO), *SET, "--on", profile)
    name = laptop.target.name
    waiting = far.wait("it is queued", lambda s: "waits for quota" in s["reason"])
    assert (waiting["progress"], waiting["age_seconds"]) == (None, None)
    laptop.player.kueue.admit(name)

    running = far.wait("it trains, as it says", trains)
    assert running["state"] == "running"
    assert running["progress"]["done"] >= 3
    assert running["progress"]["total"] > running["progress"]["done"]
    assert running["progress"]["loss"] > 0
    assert 0 <= running["age_seconds"] < 60
    assert running["memory"] is None or running["memory"]["ranks"]
    page = " ".join(far("status", "micro").split())
    assert "by the run's supervisor; its folder cannot be read from here" in page
    assert "checkpoints/attempt-0001/" in page
    assert MARK not in far.lines_with("checkpoint:")
    refused = " ".join(far("logs", "micro", "--rank", "1", code=2).split())
    [head] = laptop.player.pods(name, kind="head")
    log = laptop.run_dir.logs_dir / "attempt-0001-rank-00001.log"
    assert f"kubectl --namespace {NAMESPACE} exec {head['metadata']['name']}" in refused
    assert f"--container ray-head -- cat {log}" in refused

    assert "stopped" in far("cancel", "micro", "--grace", "60")
    again = far("diff", str(MICRO), *SET, "--on", profile, "--set", "seed=3", code=1)
    assert "results change" in again
    laptop.slow.unlink()
    assert "micro started" in far("resume", "micro")
    laptop.player.kueue.admit(name)
    done = far.wait("the end", lambda s: s["state"] == "finished")
    assert done["state"] == "finished"
    assert laptop.run_dir.newest_attempt() == 2


def test_on_the_file_system_of_a_ray_cluster(tmp_path: Path, model_cache: Path) -> None:
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    slow = tmp_path / "slow"
    slow.touch()
    fault = {"point": "step", "action": "delay", "while": str(slow), "seconds": 1.0}
    more = {"OMP_NUM_THREADS": "1", "ROTESCALE_FAULT": json.dumps(fault)}
    with ray_cluster(folder, num_cpus=3, **more) as cluster:
        place = tmp_path / "ray.yaml"
        fields = {
            **{"name": "cluster", "place": "ray", "address": "auto"},
            **{"storage": str(tmp_path / "runs"), "model_cache": str(model_cache)},
            "ray": {"jobs_url": cluster.jobs_url, "token_variable": "CLUSTER_TOKEN"},
        }
        place.write_text(yaml.safe_dump(fields))
        environment = {
            **{k: v for k, v in cluster.environment.items() if not k.startswith("RAY_")},
            **{"ROTESCALE_STATE": str(tmp_path / "state"), "CLUSTER_TOKEN": cluster.token},
        }
        far = Far(tmp_path / "runs", environment)
        assert "micro started" in far("submit", str(MICRO), *SET, "--on", str(place))
        running = far.wait("it trains, as it says", trains)
        assert (running["state"], running["progress"]["attempt"]) == ("running", 1)
        assert 0 <= running["age_seconds"] < 60
        assert MARK not in far.lines_with("checkpoint:")
        assert "on a machine of the Ray cluster" in far("logs", "micro", "--rank", "0", code=2)
        diff = ("diff", str(MICRO), *SET, "--on", str(place))
        assert "as it was started" in far(*diff)
        assert "results change" in far(*diff, "--set", "seed=3", code=1)

        assert "stopped" in far("cancel", "micro")
        stopped = far.wait("it is told how it ended", lambda s: s["state"] == "stopped")
        assert stopped["progress"]["checkpoint"]
        slow.unlink()
        assert "micro started" in far("resume", "micro")
        done = far.wait("the end", lambda s: s["state"] == "finished")
        assert done["outcome"] == "finished in attempt 2"
        assert RunDir(tmp_path / "runs" / "micro").newest_attempt() == 2
    shutil.rmtree(folder, ignore_errors=True)
