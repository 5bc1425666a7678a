"""A run's whole life on Kubernetes: queued, admitted, hurt in every way, moved, and complete.

The API server and the operators are the tests' own; the launcher, Ray, the driver, its workers and
their checkpoints are the real ones. What ``status`` and ``logs`` say is held to what is so, at
every stage.
"""

from __future__ import annotations

import json
import shutil
import signal
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pytest
from helpers import MICRO, prepare, run_workers, wait_until
from kuberay_laptop import (
    NAMESPACE,
    OVERRIDES,
    SET,
    WAIT_SECONDS,
    Laptop,
    count_in_order,
    kept,
    parts,
)
from launcher_shell import drivers
from player_ray import why_pods_see_each_other
from ray_cluster import ray_cluster
from recovery_helpers import assert_equal_runs, events

from launcher import history
from launcher.target import Target
from rotescale.launch_spec import LaunchSpec
from rotescale.records import read_records
from rotescale.run_dir import RunDir
from rotescale.spec import ExperimentSpec
from rotescale.spec_file import load_spec

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def stage(status: dict[str, Any]) -> str:
    return str((status["progress"] or {}).get("stage"))


def has_checkpoint(status: dict[str, Any]) -> bool:
    return bool((status["progress"] or {}).get("checkpoint"))


def undisturbed(folder: Path, cache: Path) -> RunDir:
    """The same experiment on two workers of which nothing has ever gone wrong."""
    spec = load_spec(ExperimentSpec, MICRO, OVERRIDES)
    run_dir = prepare(spec, folder, cache=cache, num_workers=2)
    assert run_workers(run_dir, world_size=2) == [0, 0]
    return run_dir


def whole_log(run_dir: RunDir, *, starts: int) -> list[str]:
    """What drivers have printed, as the folder has it, with the separators of ``logs``."""
    lines = kept(run_dir, 1)
    for number in range(2, starts + 1):
        lines += [f"--- another start: driver-{number:04d}.log", *kept(run_dir, number)]
    return lines


@pytest.mark.parametrize("preempted", [False, True], ids=["left its quota", "preempted"])
def test_hurt_in_every_way_and_complete(
    laptop: Laptop, tmp_path: Path, model_cache: Path, preempted: bool
) -> None:
    attempts, starts = 2, 1
    name = laptop.submit()
    assert "is running already" in laptop(
        "submit", str(MICRO), *SET, "--on", laptop.profile("kuberay")
    )
    with laptop.following() as following:
        waiting = laptop.wait("it is queued", lambda s: "waits for quota" in s["reason"])
        assert (waiting["state"], waiting["progress"]) == ("pending", None)
        assert waiting["layers"]["queue"] == "research: waits"
        assert laptop.player.pods(name) == []
        assert laptop.logs() == [f"{laptop.run_dir.root}: nothing was printed yet"]

        laptop.player.kueue.admit(name)
        running = laptop.wait("a checkpoint of phase 1", has_checkpoint)
        assert (running["state"], stage(running)) == ("running", "memorize")
        assert running["layers"]["queue"] == "research: admitted"
        assert running["layers"]["pods"] == "head: 1 Running; worker: 2 Running"
        assert running["layers"]["RayJob"] == f"{name}: Running"

        # A worker's pod goes with its processes: recovered inside the job.
        before = len(kept(laptop.run_dir, 1))
        laptop.player.delete_pod(laptop.player.pods(name, kind="worker")[0])
        laptop.wait("a second attempt", lambda s: s["progress"]["attempt"] == 2)
        again = laptop.wait("it trains again", lambda s: s["progress"]["attempt"] == 2)
        assert again["state"] == "running"
        assert laptop.run_dir.launch_numbers() == [1], "the driver was not started again"
        shown = laptop.logs()
        assert len(parts(shown)) == 1, "the same driver goes on"
        seen = [count_in_order(shown, laptop.run_dir, 1)]
        assert seen[0] >= before > 0

        if preempted:
            # Another workload takes its quota in phase 1: all goes, and comes back with the quota.
            laptop.player.kueue.preempt(name)
            out = laptop.wait("it is out", lambda s: s["layers"]["RayJob"].endswith("Suspended"))
            assert out["state"] == "pending"
            assert "quota" in out["reason"]
            wait_until(lambda: not laptop.player.pods(name), timeout_seconds=WAIT_SECONDS)
            assert laptop.logs() == whole_log(laptop.run_dir, starts=1), "the folder keeps them"
            laptop.player.kueue.admit(name)
            attempts, starts = 3, 2
            back = laptop.wait("a third attempt", lambda s: s["progress"]["attempt"] == 3)
            assert (back["state"], stage(back)) == ("running", "memorize")
            assert back["layers"]["queue"] == "research: admitted"
            seen.append(count_in_order(laptop.logs(), laptop.run_dir, 2))

        # The driver is killed in phase 2: the RayJob is tried again, on another cluster, which
        # has to wait for nodes.
        laptop.wait("phase 2", lambda s: stage(s) == "generalize" and s["progress"]["done"] >= 4)
        laptop.player.nodes.unschedulable = "0/3 nodes are available: 3 Insufficient cpu."
        laptop.kill_driver()
        retrying = laptop.wait(
            "another try", lambda s: "1 of 3 attempts failed" in s["layers"]["RayJob"]
        )
        assert retrying["state"] in ("pending", "running")
        (ending,) = retrying["restarts"]
        assert (ending["kind"], ending["exit_code"]) == ("infrastructure", -signal.SIGKILL)
        without = laptop.wait("it has no node", lambda s: "has no node" in s["reason"])
        assert without["state"] == "pending"
        assert laptop.logs() == whole_log(laptop.run_dir, starts=starts)
        laptop.player.nodes.unschedulable = None
        attempts, starts = attempts + 1, starts + 1
        resumed = laptop.wait("phase 2 again", lambda s: s["progress"]["attempt"] == attempts)
        assert "generalize" in resumed["progress"]["checkpoint"]

        laptop.slow.unlink()
        done = laptop.wait("the end", lambda s: s["state"] == "finished")
        assert following.process.wait(WAIT_SECONDS) == 0
    assert done["outcome"] == f"finished in attempt {attempts}"
    assert laptop.run_dir.launch_numbers() == list(range(1, starts + 1))
    laptop.wait("its pods are gone", lambda s: "pods" not in s["layers"])
    # What was printed is still there: it lies in the run's folder.
    assert "results:" in laptop("logs", "micro", "--lines", "500")
    assert laptop.logs() == whole_log(laptop.run_dir, starts=starts)
    # Whoever has followed it has had a part for each head, and no line twice or out of order.
    told = parts(following.lines())
    assert len(told) == starts
    for number, lines in enumerate(told, start=1):
        count = count_in_order(lines, laptop.run_dir, number)
        assert count >= (seen[number - 1] if number <= len(seen) else 1)
    assert_equal_runs(laptop.run_dir, undisturbed(tmp_path, model_cache))
    steps = [(row.phase, row.step) for row in read_records(laptop.run_dir).steps]
    assert len(steps) == len(set(steps))


def test_preempted_by_the_queue_and_finished_here(
    laptop: Laptop, tmp_path: Path, model_cache: Path
) -> None:
    name = laptop.submit()
    laptop.wait("it is queued", lambda s: "waits for quota" in s["reason"])
    laptop.player.kueue.admit(name)
    laptop.wait("a checkpoint", has_checkpoint)
    laptop.player.kueue.preempt(name)
    out = laptop.wait("it is out", lambda s: s["layers"]["RayJob"].endswith("Suspended"))
    assert out["state"] == "pending"
    assert "taken out of the queue's quota" in out["reason"] or "waits for quota" in out["reason"]
    laptop.player.kueue.admit(name)
    laptop.wait("it trains again", lambda s: s["progress"]["attempt"] >= 2)
    back = laptop.wait("it says so", lambda s: s["state"] == "running")
    assert back["layers"]["queue"] == "research: admitted"

    # Begun on Kubernetes, finished on this machine.
    local = laptop.profile("local")
    laptop("resume", "micro", "--on", local, code=2)
    assert "stopped" in laptop("cancel", "micro", "--grace", "60")
    gone = laptop.status()
    assert gone["layers"] == {"RayJob": "none"}
    laptop.slow.unlink()
    assert "micro started" in laptop("resume", "micro", "--on", local)
    laptop.wait("the end", lambda s: s["state"] == "finished")
    assert_equal_runs(laptop.run_dir, undisturbed(tmp_path, model_cache))


def test_pods_that_outlive_their_quota_leave_the_run_to_the_next(
    laptop: Laptop, tmp_path: Path, model_cache: Path
) -> None:
    # As on a node that has lost the control plane: what it runs goes on, unseen, for a while.
    laptop.player.nodes.overlap_seconds = 2 * WAIT_SECONDS
    # So slow that it does not end before it is followed.
    laptop.slow_seconds = 1.0
    name = laptop.submit()
    laptop.player.kueue.admit(name)
    laptop.wait("a checkpoint", has_checkpoint)
    laptop.player.kueue.preempt(name)
    laptop.wait("it is out", lambda s: s["layers"]["RayJob"].endswith("Suspended"))
    (old,) = drivers(str(laptop.player.folder))
    before = max(trained(laptop.run_dir, attempt=1))
    wait_until(
        lambda: max(trained(laptop.run_dir, attempt=1)) > before, timeout_seconds=WAIT_SECONDS
    )
    assert laptop.status()["state"] == "pending", "no pod of it is there, and it trains"

    laptop.player.kueue.admit(name)
    laptop.wait("the old one leaves", lambda s: events(laptop.run_dir, "superseded"))
    wait_until(lambda: old not in drivers(str(laptop.player.folder)), timeout_seconds=WAIT_SECONDS)
    laptop.wait("its supervisor leaves too", lambda s: history.endings(laptop.run_dir))
    (ending,) = history.endings(laptop.run_dir)
    assert (ending.number, ending.kind) == (1, "superseded")
    laptop.slow.unlink()
    done = laptop.wait("the end", lambda s: s["state"] == "finished")
    assert done["outcome"] == "finished in attempt 2"
    assert [one.attempt for one in events(laptop.run_dir, "superseded")] == [1]
    assert_equal_runs(laptop.run_dir, undisturbed(tmp_path, model_cache))


@pytest.mark.privileged
def test_pods_that_are_taken_away_save_first(
    laptop: Laptop, tmp_path: Path, model_cache: Path
) -> None:
    why_not = why_pods_see_each_other()
    if why_not is not None:
        warnings.warn(f"NOT RUN, preStop hooks: {why_not}", stacklevel=1)
        pytest.skip(why_not)
    laptop.player.nodes.keeps_grace = True
    # So slow that it does not end while its pods go, and nothing is saved but on their account.
    laptop.slow_seconds = 3.0
    name = laptop.submit("--set", "checkpoints.every_steps=1000")
    laptop.player.kueue.admit(name)
    seen = laptop.wait("it trains", lambda s: (s["progress"] or {}).get("done", 0) >= 2)
    assert not has_checkpoint(seen)
    first = seen["progress"]["done"]
    laptop.player.kueue.preempt(name)
    laptop.wait("it is out", lambda s: s["layers"]["RayJob"].endswith("Suspended"))
    wait_until(lambda: not laptop.player.pods(name), timeout_seconds=WAIT_SECONDS)
    assert [event.attempt for event in events(laptop.run_dir, "preemption")] == [1]

    laptop.player.kueue.admit(name)
    laptop.wait("it trains again", lambda s: trained(laptop.run_dir, attempt=2))
    second = trained(laptop.run_dir, attempt=2)[0]
    assert "stopped" in laptop("cancel", "micro", "--grace", "60")
    wait_until(lambda: not laptop.player.pods(name), timeout_seconds=WAIT_SECONDS)

    laptop.slow.unlink()
    assert "micro started" in laptop("resume", "micro", "--on", laptop.profile("local"))
    laptop.wait("the end", lambda s: s["state"] == "finished")
    went_on = [event.message.split() for event in events(laptop.run_dir, "resumed")]
    assert [words[:-1] for words in went_on] == [["memorize:", "going", "on", "after", "step"]] * 2
    assert first <= int(went_on[0][-1]) < second <= int(went_on[1][-1])
    told = {one["reason"] for one in laptop.server.list("events", namespace=NAMESPACE)}
    assert "Killing" in told
    assert "FailedPreStopHook" not in told
    assert_equal_runs(laptop.run_dir, undisturbed(tmp_path, model_cache))


def test_the_same_on_all_three_places(laptop: Laptop, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    runs: dict[str, RunDir] = {}
    with ray_cluster(folder, num_cpus=3, OMP_NUM_THREADS="1") as cluster:
        laptop.environment["CLUSTER_TOKEN"] = cluster.token
        monkeypatch.setenv("CLUSTER_TOKEN", cluster.token)
        access = {"jobs_url": cluster.jobs_url, "token_variable": "CLUSTER_TOKEN"}
        fields: dict[str, dict[str, Any]] = {
            "local": {},
            "ray": {"address": "auto", "ray": access},
            "kuberay": {},
        }
        # One after the other, since they share two cores.
        for place, more in fields.items():
            profile = laptop.profile(place, storage=f"{place}-runs", **more)
            target = Target("micro", load_spec(LaunchSpec, Path(profile)))
            laptop.player.kueue.admit(target.name)
            assert "micro started" in laptop("submit", str(MICRO), *SET, "--on", profile)
            laptop.wait(f"the end at {place}", lambda s: s["state"] == "finished", target=target)
            runs[place] = target.run_dir
    shutil.rmtree(folder, ignore_errors=True)
    for place in ("ray", "kuberay"):
        assert_equal_runs(runs[place], runs["local"])
        # Where the profile names no node, a run here alone knows that a whole copy of the model
        # fits; the others ask through the partitions, in other passes.
        assert measured(runs[place]) == pytest.approx(measured(runs["local"]), rel=1e-5)


def test_begun_here_and_finished_on_kubernetes(
    laptop: Laptop, tmp_path: Path, model_cache: Path
) -> None:
    laptop.slow.touch()
    fault = {"point": "step", "action": "delay", "while": str(laptop.slow)}
    laptop.environment["ROTESCALE_FAULT"] = json.dumps(fault)
    here = laptop.profile("local")
    target = Target("micro", load_spec(LaunchSpec, Path(here)))
    assert "micro started" in laptop("submit", str(MICRO), *SET, "--on", here)
    laptop.wait("a checkpoint", has_checkpoint, target=target)
    assert "stopped" in laptop("cancel", "micro", "--grace", "60")
    begun = laptop.status(target)
    assert (begun["state"], begun["progress"]["attempt"]) == ("stopped", 1)
    laptop.slow.unlink()
    laptop.player.kueue.admit(laptop.target.name)
    assert "micro started" in laptop("resume", "micro", "--on", laptop.profile("kuberay"))
    done = laptop.wait("the end", lambda s: s["state"] == "finished")
    assert done["outcome"] == "finished in attempt 2"
    assert_equal_runs(laptop.run_dir, undisturbed(tmp_path, model_cache))


def test_a_cluster_that_comes_back_leaves_a_run_that_was_moved(
    laptop: Laptop, tmp_path: Path, model_cache: Path
) -> None:
    # So slow that it is left long before it ends elsewhere.
    laptop.slow_seconds = 5.0
    name = laptop.submit()
    laptop.player.kueue.admit(name)
    laptop.wait("a checkpoint", has_checkpoint)
    fault = {"point": "step", "action": "delay", "while": str(laptop.slow), "seconds": 5.0}
    laptop.environment["ROTESCALE_FAULT"] = json.dumps(fault)
    local = laptop.profile("local")
    here = Target("micro", load_spec(LaunchSpec, Path(local)))
    resume = ("resume", "micro", "--on", local)
    with laptop.server.down():
        assert "add --lost" in laptop(*resume, code=2)
        assert "micro started" in laptop(*resume, "--lost")
    laptop.wait("it is left there", lambda s: history.endings(laptop.run_dir))
    (left,) = history.endings(laptop.run_dir)
    assert (left.number, left.kind) == (1, "superseded"), left
    moved = laptop.wait("no retry", lambda s: s["layers"]["RayJob"] == f"{name}: Complete")
    assert moved["state"] == "unknown", "the job says SUCCEEDED, and the run is elsewhere"
    assert "start 2, at local (local) on " in moved["reason"]
    laptop.slow.unlink()
    done = laptop.wait("the end here", lambda s: s["state"] == "finished", target=here)
    assert done["outcome"] == "finished in attempt 2"
    assert laptop.run_dir.launch_numbers() == [1, 2]
    assert_equal_runs(laptop.run_dir, undisturbed(tmp_path, model_cache))


def trained(run_dir: RunDir, *, attempt: int) -> list[int]:
    """The steps that the attempt has done, as far as no later one has done them again."""
    return [row.step for row in read_records(run_dir).steps if row.attempt == attempt]


def measured(run_dir: RunDir) -> dict[Any, float]:
    return {row.key: row.value for row in read_records(run_dir).evaluations}
