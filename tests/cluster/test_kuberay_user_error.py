"""A user error on Kubernetes: KubeRay tries again, and each try ends at once with what was said."""

from __future__ import annotations

import shutil

import pytest
from helpers import MICRO
from kuberay_laptop import Laptop

from launcher import history

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_what_is_wrong_with_a_spec_is_found_once_and_told_by_every_try(laptop: Laptop) -> None:
    laptop.player.kueue.admit(laptop.target.name)
    # Found by the driver's preparation, when it has the model and before there are workers.
    name = laptop.submit("--set", "model.frozen=[no-such-part.*]")
    models = laptop.shared / "models"
    laptop.wait("the driver has ended", lambda _: history.endings(laptop.run_dir))
    assert models.exists()
    shutil.rmtree(models)
    retrying = laptop.wait("another try", lambda s: "attempts failed" in s["layers"]["RayJob"])
    assert retrying["state"] in ("pending", "running")

    failed = laptop.wait("no try is left", lambda s: s["state"] not in ("pending", "running"))
    assert failed["state"] == "failed"
    assert failed["layers"]["RayJob"] == f"{name}: Failed, 3 of 3 attempts failed"
    assert "exit code 2" in failed["reason"]
    assert "not started again: start 1 of this submission met a user error" in failed["reason"]
    assert "no-such-part.*" in failed["reason"]
    (ending,) = history.endings(laptop.run_dir)
    assert (ending.number, ending.kind, ending.exit_code) == (1, "user", 2)
    assert laptop.run_dir.launch_numbers() == [1], "two tries have started no driver"
    assert not models.exists(), "and have fetched no model"
    assert "no-such-part.*" in laptop("logs", "micro")

    # The next submission is somebody's wish, and is tried.
    laptop.slow.unlink()
    epochs = ("phases.memorize.epochs=1", "phases.generalize.epochs=1", "evaluation.base=false")
    mended = [part for override in epochs for part in ("--set", override)]
    profile = laptop.profile("kuberay")
    assert "micro started" in laptop("submit", str(MICRO), *mended, "--on", profile)
    done = laptop.wait("the end", lambda s: s["state"] == "finished")
    assert done["outcome"] == "finished in attempt 1"
    laptop.wait("its end is noted", lambda _: len(history.endings(laptop.run_dir)) == 2)
    assert [one.kind for one in history.endings(laptop.run_dir)] == ["user", "finished"]
