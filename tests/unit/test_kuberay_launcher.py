"""Runs on Kubernetes: submitted once, told truly, whatever fails.

The API server is the tests' own. With ``ROTESCALE_TEST_CONTEXT`` it is a real cluster's, and what
takes faults or an operator that says what a test wants is skipped, aloud (``real_cluster.py``).
"""

from __future__ import annotations

import contextlib
import copy
import fcntl
import functools
import json
import os
import pty
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from api_faults import FOR_EVER, Fault
from api_server import ApiServer, api_server
from kuberay_helpers import FULL, MICRO, experiment
from launcher_command import command_line, launcher_command
from real_cluster import CONTEXT, NAMESPACE, QUEUE, STORAGE, real_cluster

from launcher import cli, history, runs
from launcher.account import Account, Progress
from launcher.history import OWNER_VARIABLE
from launcher.job import PlaceUnavailableError
from launcher.kept_output import not_given
from launcher.kuberay.cluster import KubernetesCluster, RefusedError
from launcher.kuberay.launcher import SUBMISSION, KubeRayLauncher
from launcher.kuberay.render import render
from launcher.kuberay.situation import situation
from launcher.status_line import line_of
from launcher.target import Target
from rotescale.activity import Activity
from rotescale.errors import SpecError
from rotescale.launch_spec import LaunchSpec
from rotescale.run_dir import RunDir
from rotescale.spec import ExperimentSpec
from rotescale.spec_file import dump_json, parse_spec

Object = dict[str, Any]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    if CONTEXT is not None:
        with real_cluster(NAME) as cluster:
            yield cast("ApiServer", cluster)
        return
    with api_server() as found:
        found.namespace(NAMESPACE)
        monkeypatch.setenv("KUBECONFIG", str(found.kubeconfig(tmp_path / "kubeconfig")))
        yield found


def place(**changes: Any) -> LaunchSpec:
    fields = copy.deepcopy(FULL)
    fields["storage"] = STORAGE
    fields["kuberay"] |= {"context": CONTEXT, "namespace": NAMESPACE, "queue": QUEUE}
    fields["kuberay"] |= {"grace_seconds": 60, **changes}
    return parse_spec(LaunchSpec, fields, where="place.yaml")


SPEC: ExperimentSpec = experiment()
LAUNCH = place()
MAP, JOB = render(SPEC, LAUNCH)
NAME = JOB["metadata"]["name"]


def launcher(*, patience_seconds: float = 20.0, run_dir: RunDir | None = None) -> KubeRayLauncher:
    cluster = KubernetesCluster(
        CONTEXT, NAMESPACE, patience_seconds=patience_seconds, sleep=lambda _: time.sleep(0.02)
    )
    return KubeRayLauncher(
        LAUNCH, NAME, cluster=cluster, run_dir=run_dir, sleep=lambda _: time.sleep(0.02)
    )


def jobs(server: ApiServer) -> list[Object]:
    return server.list("rayjobs", namespace=NAMESPACE)


def say(server: ApiServer, **status: Any) -> None:
    """What the operator writes."""
    server.set_status("rayjobs", NAME, status, namespace=NAMESPACE)


def pod(server: ApiServer, name: str, kind: str, phase: str = "Running", **status: Any) -> Object:
    return server.create(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                **{"name": name, "namespace": NAMESPACE},
                "labels": {"rotescale/run": NAME, "ray.io/node-type": kind},
            },
            "spec": {"containers": [{"name": "ray-job-submitter", "image": "x"}]},
        },
        status={"phase": phase, **status},
    )


def test_submitted_twice_is_submitted_once(server: ApiServer) -> None:
    assert launcher().submit(SPEC, retry=False)
    assert not launcher().submit(SPEC, retry=False)
    (job,) = jobs(server)
    wanted = copy.deepcopy(JOB)
    submission = job["metadata"]["annotations"].pop(SUBMISSION)
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    given = {one["name"]: one.get("value") for one in head["env"]}
    assert given[OWNER_VARIABLE] == submission, "each try of this job is known by it"
    assert job["metadata"]["annotations"] == wanted["metadata"]["annotations"]
    assert job["spec"]["entrypoint"] == wanted["spec"]["entrypoint"]
    (spec_map,) = server.list("configmaps", namespace=NAMESPACE)
    assert spec_map["data"]["experiment.json"] == dump_json(SPEC)


@pytest.mark.parametrize("there", ["nothing", "a job that has ended"])
def test_many_launchers_at_once_submit_one(server: ApiServer, there: str) -> None:
    if there != "nothing":
        launcher().submit(SPEC, retry=False)
        say(server, jobDeploymentStatus="Failed", jobStatus="FAILED")
    launchers = [launcher() for _ in range(6)]
    answers: list[bool] = []
    threads = [
        threading.Thread(target=lambda one=one: answers.append(one.submit(SPEC, retry=False)))
        for one in launchers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [False] * 5 + [True]
    assert len(jobs(server)) == 1


def test_a_launcher_that_is_late_leaves_the_job_that_another_has_started(
    server: ApiServer,
) -> None:
    """Both have seen the job that has ended, and one of them is slow to remove it."""
    launcher().submit(SPEC, retry=False)
    say(server, jobDeploymentStatus="Failed", jobStatus="FAILED")
    server.faults.add(Fault("DELETE", "/rayjobs", delay_seconds=2.0))
    late: list[bool] = []
    changed = experiment("checkpoints.keep_last=7")
    waiting = threading.Thread(target=lambda: late.append(launcher().submit(changed, retry=False)))
    waiting.start()
    wait_for(lambda: bool(server.asked("DELETE", "/rayjobs")))
    assert launcher().submit(SPEC, retry=False)
    (job,) = jobs(server)
    waiting.join()
    assert late == [False], "it is running already"
    (left,) = jobs(server)
    assert left["metadata"]["uid"] == job["metadata"]["uid"]
    assert "deletionTimestamp" not in left["metadata"]
    (spec_map,) = maps(server)
    assert spec_map["data"]["experiment.json"] == dump_json(SPEC)


@pytest.mark.parametrize(
    "fault",
    [
        Fault("POST", "/rayjobs", lost=True),
        Fault("POST", "/rayjobs", status=500),
        Fault("POST", "/rayjobs", status=429, retry_after=1, times=2),
        Fault("POST", "/configmaps", lost=True),
        Fault("POST", "/configmaps", status=503),
        Fault("GET", "/rayjobs", status=500, times=3),
        Fault("GET", "/rayjobs", cut_after=5),
        Fault("POST", "/rayjobs", delay_seconds=0.5),
    ],
    ids=lambda fault: f"{fault.method} {fault.path} {fault.status or fault.lost}",
)
def test_an_answer_that_is_lost_starts_nothing_twice(server: ApiServer, fault: Fault) -> None:
    server.faults.add(fault)
    assert launcher().submit(SPEC, retry=False), "this submission has created it"
    assert fault.hits
    (job,) = jobs(server)
    assert job["metadata"]["uid"]
    assert not launcher().submit(SPEC, retry=False)


def test_a_server_that_is_away_for_a_while(server: ApiServer) -> None:
    server.stop()
    threading.Timer(1.5, server.start).start()
    assert launcher().submit(SPEC, retry=False)
    assert len(jobs(server)) == 1


def test_a_server_that_stays_away_is_no_state(server: ApiServer) -> None:
    assert launcher().submit(SPEC, retry=False)
    server.stop()
    with pytest.raises(PlaceUnavailableError, match="may have been done: look with status"):
        launcher(patience_seconds=0.1).look()
    server.start()
    assert launcher().look().state == "pending"


def test_what_has_ended_makes_room_and_a_changed_spec_is_a_new_map(server: ApiServer) -> None:
    launcher().submit(SPEC, retry=False)
    first = jobs(server)[0]["metadata"]["uid"]
    say(server, jobDeploymentStatus="Failed", jobStatus="FAILED")
    changed = experiment("checkpoints.keep_last=7")
    assert launcher().submit(changed, retry=True)
    (job,) = jobs(server)
    assert job["metadata"]["uid"] != first
    assert " --retry-before 20" in job["spec"]["entrypoint"]
    (spec_map,) = server.list("configmaps", namespace=NAMESPACE)
    assert spec_map["data"]["experiment.json"] == dump_json(changed)
    say(server, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    assert launcher().submit(SPEC, retry=False), "its driver finds the outcome and ends"


def test_a_run_that_is_being_cancelled_is_submitted_again_when_it_is_gone(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finalizers(*names: str) -> None:
        change = {"finalizers": list(names)}
        server.change(
            "rayjobs", NAME, lambda job: job["metadata"].update(change), namespace=NAMESPACE
        )

    launcher().submit(SPEC, retry=False)
    first = jobs(server)[0]["metadata"]["uid"]
    # Whoever cancelled it has gone away, and its pods are still saving.
    finalizers("ray.io/is-not-done")
    server.delete("rayjobs", NAME, namespace=NAMESPACE)
    assert jobs(server)[0]["metadata"]["deletionTimestamp"]
    # Nobody waits for ever, nor hears that the run is on its way.
    with monkeypatch.context() as patch:
        patch.setattr("launcher.kuberay.launcher.HEAD_GRACE_SECONDS", -59.5)
        with pytest.raises(PlaceUnavailableError, match="of before is still being removed; submit"):
            launcher().submit(SPEC, retry=False)
    threading.Timer(0.5, finalizers).start()
    assert launcher().submit(SPEC, retry=False)
    (job,) = jobs(server)
    assert job["metadata"]["uid"] != first
    assert "deletionTimestamp" not in job["metadata"]


def test_the_servers_refusal_is_told(server: ApiServer) -> None:
    server.denied.add("create rayjobs")
    with pytest.raises(RefusedError, match=r"cannot create.*k8s/base/rbac\.yaml.*doctor"):
        launcher().submit(SPEC, retry=False)
    server.denied.clear()
    launcher().check(SPEC)
    assert jobs(server) == [], "it was judged and not kept"
    server.delete("customresourcedefinitions", "rayjobs.ray.io", namespace="")
    with pytest.raises(RefusedError, match=r"refuses POST .*rayjobs"):
        launcher().submit(SPEC, retry=False)


QUEUED = {"jobDeploymentStatus": "Suspended"}


def wait_until_suspended(server: ApiServer) -> None:
    """The operator has seen that the job is to wait: said here, where it is a real one by it."""
    if CONTEXT is None:
        say(server, **QUEUED)
    wait_for(lambda: jobs(server)[0].get("status", {}).get("jobDeploymentStatus") == "Suspended")


def test_why_it_waits_in_the_queue(server: ApiServer) -> None:
    assert launcher().look().state == "unknown"
    launcher().submit(SPEC, retry=False)
    told = launcher().look()
    assert told.state == "pending"
    words = QUEUE if CONTEXT else f"queue {QUEUE} has not taken it"
    wait_for(lambda: words in launcher().look().reason)
    say(server, **QUEUED)
    uid = jobs(server)[0]["metadata"]["uid"]
    message = "couldn't assign flavors to pod set workers: insufficient unused quota for gpu"
    server.create(
        {
            "apiVersion": "kueue.x-k8s.io/v1beta2",
            "kind": "Workload",
            "metadata": {
                **{"name": "rayjob-x", "namespace": NAMESPACE},
                "ownerReferences": [
                    {"apiVersion": "ray.io/v1", "kind": "RayJob", "name": NAME, "uid": uid}
                ],
            },
            "spec": {"queueName": "research", "podSets": []},
        },
        status={"conditions": [condition("QuotaReserved", "False", "Pending", message)]},
    )
    told = launcher().look()
    assert told.reason == f"waits for quota: {message}"
    assert dict(told.layers)["queue"] == "research: waits"


def condition(kind: str, status: str, reason: str = "", message: str = "") -> Object:
    return {
        **{"type": kind, "status": status, "reason": reason, "message": message},
        "lastTransitionTime": "2026-11-27T10:00:00Z",
    }


def unsuspend(job: Object) -> None:
    job["spec"]["suspend"] = False


def test_why_its_pods_do_not_start(server: ApiServer) -> None:
    launcher().submit(SPEC, retry=False)
    server.change("rayjobs", NAME, unsuspend, namespace=NAMESPACE)
    say(server, jobDeploymentStatus="Initializing")
    scheduled = condition("PodScheduled", "False", "Unschedulable", "0/9 nodes: no gpu")
    pod(server, "head", "head")
    pod(server, "worker-1", "worker", "Pending", conditions=[scheduled])
    told = launcher().look()
    assert told.state == "pending"
    assert told.reason == "pod worker-1 has no node: 0/9 nodes: no gpu"
    assert dict(told.layers)["pods"] == "head: 1 Running; worker: 1 Pending"
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "no such tag"}}
    pod(
        server,
        "worker-2",
        "worker",
        "Pending",
        containerStatuses=[
            {
                **{"name": "ray-worker", "ready": False, "restartCount": 0, "image": "x"},
                **{"imageID": "", "state": waiting},
            }
        ],
    )
    assert launcher().look().reason == "pod worker-2: ImagePullBackOff: no such tag"


@pytest.mark.parametrize(
    ("status", "state", "words"),
    [
        ({}, "pending", ""),
        ({"jobDeploymentStatus": "Initializing"}, "pending", ""),
        ({"jobDeploymentStatus": "Running", "jobStatus": "PENDING"}, "pending", ""),
        ({"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}, "running", ""),
        # Ray says that it has ended; the operator has not judged it yet.
        ({"jobDeploymentStatus": "Running", "jobStatus": "SUCCEEDED"}, "running", ""),
        ({"jobDeploymentStatus": "Retrying", "failed": 1}, "pending", "1 attempt failed"),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}, "finished", ""),
        (
            {"jobDeploymentStatus": "Failed", "reason": "DeadlineExceeded", "message": "too long"},
            "failed",
            "DeadlineExceeded: too long",
        ),
        ({"jobDeploymentStatus": "ValidationFailed", "message": "bad"}, "failed", "bad"),
    ],
)
def test_what_the_operator_says_is_a_state(status: Object, state: str, words: str) -> None:
    job = copy.deepcopy(JOB)
    job["spec"]["suspend"] = False
    told = situation({**job, "status": status})
    assert told.state == state
    assert told.reason.startswith(words)
    assert told.reason or not words


def test_what_is_being_deleted_is_still_there() -> None:
    job = copy.deepcopy(JOB)
    job["metadata"]["deletionTimestamp"] = "2026-11-27T10:00:00Z"
    told = situation({**job, "status": {"jobDeploymentStatus": "Failed"}})
    assert told.state == "running"
    assert "being cancelled" in told.reason


def test_warnings_are_shown_once_and_the_latest_last() -> None:
    def event(reason: str, minute: int, kind: str = "Warning") -> Object:
        return {
            **{"type": kind, "reason": reason, "message": "m", "involvedObject": {}},
            "lastTimestamp": f"2026-11-27T10:{minute:02d}:00Z",
        }

    events = [event("C", 9), event("A", 1), event("B", 5), event("B", 6), event("N", 7, "Normal")]
    told = situation(JOB, events=events)
    assert [words for name, words in told.layers if name == "warning"] == ["A: m", "B: m", "C: m"]


def test_cancelled_is_gone(server: ApiServer) -> None:
    assert not launcher().cancel(grace_seconds=1)
    launcher().submit(SPEC, retry=False)
    pod(server, "head", "head")
    threading.Timer(0.5, lambda: server.delete("pods", "head", namespace=NAMESPACE)).start()
    assert launcher().cancel(grace_seconds=1)
    assert jobs(server) == []
    assert launcher().look().state == "unknown"


def maps(server: ApiServer) -> list[Object]:
    return server.list("configmaps", namespace=NAMESPACE)


def owners(server: ApiServer) -> list[str]:
    (spec_map,) = maps(server)
    return [one["uid"] for one in spec_map["metadata"].get("ownerReferences", [])]


@pytest.mark.parametrize("how", ["cancelled", "its time to live is over"])
def test_the_map_goes_with_its_job(server: ApiServer, how: str) -> None:
    launcher().submit(SPEC, retry=False)
    assert owners(server) == [jobs(server)[0]["metadata"]["uid"]]
    assert launcher().differences(SPEC) == []
    if how == "cancelled":
        assert launcher().cancel(grace_seconds=1)
    else:
        server.delete("rayjobs", NAME, namespace=NAMESPACE)
    wait_for(lambda: maps(server) == [])


def test_the_same_map_goes_on_to_the_next_job(server: ApiServer) -> None:
    """The one of before is about to be removed with its RayJob, whose name the next has too."""
    for _ in range(5):
        assert launcher().submit(SPEC, retry=False)
        say(server, jobDeploymentStatus="Failed", jobStatus="FAILED")
    (job,) = jobs(server)
    assert owners(server) == [job["metadata"]["uid"]]
    # The collector looks several times a second.
    time.sleep(1.0)
    assert owners(server) == [job["metadata"]["uid"]]


@pytest.mark.parametrize("status", [500, 429, 409])
def test_a_map_whose_change_is_lost_is_given_to_the_job_all_the_same(
    server: ApiServer, status: int
) -> None:
    server.faults.add(Fault("PATCH", "/configmaps", status=status))
    server.faults.add(Fault("PATCH", "/configmaps", lost=True))
    assert launcher().submit(SPEC, retry=False)
    assert owners(server) == [jobs(server)[0]["metadata"]["uid"]]


@pytest.mark.parametrize(
    "fault",
    [
        Fault("PATCH", "/configmaps", status=409, times=FOR_EVER),
        Fault("PATCH", "/configmaps", status=422, times=FOR_EVER),
        Fault("PATCH", "/configmaps", status=503, times=FOR_EVER),
        Fault("GET", "/configmaps", status=403, times=FOR_EVER),
        Fault("GET", "/configmaps", status=503, times=FOR_EVER),
    ],
    ids=lambda fault: f"{fault.method} {fault.status}",
)
def test_a_job_that_is_there_was_submitted_whatever_becomes_of_its_map(
    server: ApiServer, fault: Fault
) -> None:
    server.faults.add(fault)
    assert launcher(patience_seconds=0.1).submit(SPEC, retry=False)
    assert fault.hits
    assert len(jobs(server)) == 1
    assert not launcher().submit(SPEC, retry=False)


def test_an_account_that_may_not_change_maps_submits(server: ApiServer) -> None:
    server.denied.add("patch configmaps")
    assert launcher().submit(SPEC, retry=False)
    assert owners(server) == []


def test_lines_are_followed_over_streams_that_close_and_to_the_next_attempt(
    server: ApiServer, tmp_path: Path
) -> None:
    launcher().submit(SPEC, retry=False)
    say(server, jobDeploymentStatus="Running", jobStatus="RUNNING")
    pod(server, "head-1", "head")
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("a\nb\nc\n")
    two.write_text("d\n")
    server.set_log("head-1", one, container="ray-job-submitter", namespace=NAMESPACE)
    server.faults.add(Fault("GET", "/log", end_after=1))
    server.faults.add(Fault("GET", "/log", cut_after=3))
    server.faults.add(Fault("GET", "/log", status=500))
    server.faults.add(Fault("GET", "/log", end_after=3))
    found: list[str] = []
    following = threading.Thread(target=lambda: found.extend(launcher().follow()))
    following.start()
    wait_for(lambda: found[:3] == ["a", "b", "c"] or len(server.asked("GET", "/log")) > 4)
    server.delete("pods", "head-1", namespace=NAMESPACE)
    pod(server, "head-2", "head")
    server.set_log("head-2", two, container="ray-job-submitter", namespace=NAMESPACE)
    wait_for(lambda: any("head-2" in request.path for request in server.asked("GET", "/log")))
    server.set_status("pods", "head-2", {"phase": "Succeeded"}, namespace=NAMESPACE)
    say(server, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    following.join(timeout=60)
    assert not following.is_alive()
    assert found == ["a", "b", "c", "--- another attempt: pod head-2", "d"]
    assert launcher().logs(num_lines=5) == ["d"]


def keep(run_dir: RunDir, pod: str, text: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A start in that pod, and what the folder has of its driver."""
    with monkeypatch.context() as patched:
        patched.setattr(socket, "gethostname", lambda: pod)
        start = history.begin(run_dir, place="kuberay", launch="full", owner="x")
    assert start is not None
    path = run_dir.numbered_driver_log(start.number)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_lines_that_a_pod_was_deleted_with_come_from_the_runs_folder(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = RunDir(tmp_path / "run")
    keep(run_dir, "another", "of another time\n", monkeypatch)
    launcher().submit(SPEC, retry=False)
    say(server, jobDeploymentStatus="Running", jobStatus="RUNNING")
    pod(server, "head-1", "head")
    log = tmp_path / "one"
    # The submitter's lines and the supervisor's are in the pod's log alone.
    log.write_text(f"submitted\na\n\n{told(1)}\nrotescale-launch: x\nb\n")
    server.set_log("head-1", log, container="ray-job-submitter", namespace=NAMESPACE)
    kept = keep(run_dir, "head-1", "a\n\nb\nc\n50%\r100%\n", monkeypatch)
    found: list[str] = []
    following = threading.Thread(target=lambda: found.extend(launcher(run_dir=run_dir).follow()))
    following.start()
    wait_for(lambda: "b" in found)
    server.delete("pods", "head-1", namespace=NAMESPACE)
    pod(server, "head-2", "head")
    log_2 = tmp_path / "two"
    log_2.write_text("submitted\nd\n")
    server.set_log("head-2", log_2, container="ray-job-submitter", namespace=NAMESPACE)
    keep(run_dir, "head-2", "d\ne\n", monkeypatch)
    wait_for(lambda: "d" in found)
    # A pod that is being removed prints until it is gone.
    with kept.open("ab") as file:
        file.write(b"saved\n")
    server.delete("pods", "head-2", namespace=NAMESPACE)
    say(server, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    following.join(timeout=60)
    assert not following.is_alive()
    assert found == [
        *("submitted", "a", "", "rotescale-launch: x", "b", "c", "50%\r100%"),
        *("--- another attempt: pod head-2", "submitted", "d", "e"),
        *("--- meanwhile in pod head-1", "saved"),
    ]


def test_a_folder_that_cannot_be_read_takes_no_line_away(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = RunDir(tmp_path / "run")
    keep(run_dir, "head-1", "a\nb\n", monkeypatch)
    run_dir.launch_start(1).write_bytes(b"{")
    launcher().submit(SPEC, retry=False)
    pod(server, "head-1", "head", "Succeeded")
    log = tmp_path / "one"
    log.write_text("a\n")
    server.set_log("head-1", log, container="ray-job-submitter", namespace=NAMESPACE)
    say(server, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    assert list(launcher(run_dir=run_dir).follow()) == ["a"]


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ("", "a - b - c"),
        ("a", "- b - c"),
        ("x a x - x b x", "- c"),
        # The beginning was rotated away, or a line was spoilt.
        ("- b -", "c"),
        ("a - ? - c", ""),
        ("b x y", "- c"),
        ("a - b - c x", ""),
    ],
)
def test_what_is_kept_is_given_from_the_last_line_on(given: str, missing: str) -> None:
    assert list(not_given(["a", "-", "b", "-", "c"], given.split())) == missing.split()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def told(step: int) -> str:
    progress = Progress(1, Activity("memorize", step, 50), "checkpoints/one")
    return line_of(Account(time="2026-11-27T12:00:00+00:00", progress=progress))


def test_the_newest_status_line_is_found_and_none_is_shown(
    server: ApiServer, tmp_path: Path
) -> None:
    assert launcher().account() is None
    launcher().submit(SPEC, retry=False)
    pod(server, "head-1", "head")
    log = tmp_path / "log"
    quiet = [told(step) for step in range(1, 40)]
    log.write_text("\n".join(["a", told(0), "b", "c", *quiet]) + "\n")
    server.set_log("head-1", log, container="ray-job-submitter", namespace=NAMESPACE)
    found = launcher().account()
    assert found is not None
    assert found.progress is not None
    assert found.progress.activity.done == 39
    assert launcher().logs(num_lines=2) == ["b", "c"]
    assert launcher().logs(num_lines=9) == ["a", "b", "c"]
    # Another attempt that has said nothing yet.
    pod(server, "head-2", "head")
    assert launcher().account() == found
    server.set_status("pods", "head-1", {"phase": "Succeeded"}, namespace=NAMESPACE)
    server.delete("pods", "head-2", namespace=NAMESPACE)
    say(server, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    assert list(launcher().follow()) == ["a", "b", "c"]


def test_a_worker_s_log_on_a_claim_is_read_in_a_pod(
    server: ApiServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ROTESCALE_STATE", str(tmp_path / "state"))
    profile = tmp_path / "place.yaml"
    profile.write_text(dump_json(LAUNCH))

    def refusal() -> str:
        command = ["rotescale-launch", "logs", "micro", "--rank", "3", "--on", str(profile)]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert stopped.value.code == 2
        return " ".join(capsys.readouterr().err.split())

    path = f"{STORAGE}/micro/logs/attempt-0001-rank-00003.log"
    assert f"in a pod that mounts claim checkpoints at /checkpoints: cat {path}" in refusal()
    pod(server, "head-1", "head")
    told = f"kubectl --namespace {NAMESPACE} exec head-1 --container ray-head -- cat {path}"
    assert told in refusal()


def test_a_token_and_a_certificate_are_used_and_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = "very-secret-0123456789"
    with api_server(tls=True, token=token) as server:
        server.namespace(NAMESPACE)
        config = server.kubeconfig(tmp_path / "kubeconfig", context=CONTEXT or "test")
        monkeypatch.setenv("KUBECONFIG", str(config))
        assert launcher().submit(SPEC, retry=False)
        config.write_text(config.read_text().replace(token, "wrong-" + token))
        with pytest.raises(RefusedError, match="takes no such login") as refused:
            launcher().look()
        assert token not in str(refused.value)
        text = config.read_text()
        config.write_text("\n".join(line for line in text.splitlines() if "authority" not in line))
        with pytest.raises(SpecError, match="its certificate cannot be trusted"):
            launcher().look()


def test_a_kubeconfig_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(SpecError, match=r"kubeconfig: .*set KUBECONFIG.*kuberay\.context"):
        launcher()


def test_the_command_line_goes_the_same_way(
    server: ApiServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ROTESCALE_STATE", str(tmp_path / "state"))
    profile = tmp_path / "place.yaml"
    profile.write_text(dump_json(LAUNCH))

    def run(*arguments: str) -> str:
        code = launcher_command(monkeypatch, *arguments)
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return printed.out

    assert "micro started" in run("submit", str(MICRO), "--on", str(profile))
    wait_until_suspended(server)
    told = json.loads(run("status", "micro", "--json"))
    assert (told["name"], told["state"]) == (NAME, "pending")
    assert told["layers"]["RayJob"] == f"{NAME}: Suspended"
    assert "Suspended" in run("status", "micro")
    assert NAME in run("list")
    # Whoever has submitted it, and from wherever.
    monkeypatch.setenv("ROTESCALE_STATE", str(tmp_path / "elsewhere"))
    assert "nothing was submitted" in run("list")
    listed = json.loads(run("list", "--on", str(profile), "--json"))
    [found] = [one for one in listed if CONTEXT is None or one["name"] == NAME]
    assert (found["name"], found["state"]) == (NAME, "pending")


def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands wait half a second for a server that is away."""
    waiting = functools.partialmethod(Target.launcher, patience_seconds=0.5)
    monkeypatch.setattr(Target, "launcher", waiting)


def test_a_run_that_may_have_been_started_is_found_by_its_name(
    server: ApiServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ROTESCALE_STATE", str(tmp_path / "state"))
    profile = tmp_path / "place.yaml"
    profile.write_text(dump_json(LAUNCH))

    run = command_line(monkeypatch, capsys)

    def goes_away_with_the_answer() -> None:
        wait_for(lambda: jobs(server) != [])
        server.stop()

    server.faults.add(Fault("POST", "/rayjobs", lost=True))
    leaving = threading.Thread(target=goes_away_with_the_answer)
    leaving.start()
    with monkeypatch.context() as patched:
        impatient(patched)
        code, said = run("submit", str(MICRO), "--set", "seed=5", "--on", str(profile))
    leaving.join()
    assert code == 4
    assert "may have been done: look with status" in said
    server.start()
    code, printed = run("status", "micro", "--json")
    assert (code, json.loads(printed)["state"]) == (0, "pending")
    noted = runs.started_spec(NAME)
    assert noted is not None
    assert noted.seed == 5


def test_what_was_never_sent_is_not_noted(
    server: ApiServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The run may be at another place, and this machine knows where."""
    monkeypatch.setenv("ROTESCALE_STATE", str(tmp_path / "state"))
    profile = tmp_path / "place.yaml"
    profile.write_text(dump_json(LAUNCH))
    impatient(monkeypatch)
    with server.down():
        assert launcher_command(monkeypatch, "submit", str(MICRO), "--on", str(profile)) == 4
    assert launcher_command(monkeypatch, "list") == 0
    assert "nothing was submitted" in capsys.readouterr().out


def test_one_place_that_refuses_hides_no_other_run(
    server: ApiServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ROTESCALE_STATE", str(tmp_path / "state"))
    profile = tmp_path / "place.yaml"
    profile.write_text(dump_json(LAUNCH))
    assert launcher_command(monkeypatch, "submit", str(MICRO), "--on", str(profile)) == 0
    server.faults.add(Fault("GET", "/rayjobs", status=403, times=FOR_EVER))
    assert launcher_command(monkeypatch, "list") == 0
    assert "unknown" in capsys.readouterr().out


def test_a_server_judges_and_a_diff_names_what_changed(
    server: ApiServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ROTESCALE_STATE", str(tmp_path / "state"))
    profile, changed = tmp_path / "place.yaml", tmp_path / "changed.yaml"
    profile.write_text(dump_json(LAUNCH))
    changed.write_text(dump_json(place(retries=9)))

    def run(*arguments: str) -> tuple[int, str]:
        return launcher_command(monkeypatch, *arguments), capsys.readouterr().out

    assert run("submit", str(MICRO), "--on", str(profile), "--dry-run=server")[0] == 0
    assert jobs(server) == []
    code, printed = run("diff", str(MICRO), "--on", str(profile))
    assert (code, "+kind: RayJob" in printed) == (1, True)
    assert run("submit", str(MICRO), "--on", str(profile))[0] == 0
    assert run("diff", str(MICRO), "--on", str(profile)) == (0, f"{MICRO}: as it was started\n")
    code, printed = run("diff", str(MICRO), "--on", str(changed), "--set", "seed=3")
    lines = [
        line for line in printed.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")
    ]
    assert code == 1
    assert [line.strip() for line in lines if "backoffLimit" in line] == [
        *("-  backoffLimit: 3", "+  backoffLimit: 9")
    ]
    assert any('"seed": 3' in line for line in lines)


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("submit a.yaml --dry-run=server", "submit a.yaml --server-dry-run"),
        ("submit --dry-run=client a.yaml", "submit --dry-run a.yaml"),
        ("submit -- --dry-run=server", "submit -- --dry-run=server"),
        ("render a.yaml --dry-run=server", "render a.yaml --dry-run=server"),
        ("", ""),
    ],
)
def test_what_kubectl_calls_a_dry_run_is_understood(words: str, meant: str) -> None:
    assert cli.understood(words.split()) == meant.split()


def test_what_the_queue_changes_is_no_difference(server: ApiServer) -> None:
    launcher().submit(SPEC, retry=False)
    server.change("rayjobs", NAME, unsuspend, namespace=NAMESPACE)
    assert launcher().differences(SPEC) == []


def test_a_run_whose_folder_is_not_seen_is_resumed(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROTESCALE_STATE", str(tmp_path / "state"))
    profile = tmp_path / "place.yaml"
    profile.write_text(dump_json(LAUNCH))

    def run(*arguments: str) -> int:
        return launcher_command(monkeypatch, *arguments)

    assert run("submit", str(MICRO), "--set", "seed=5", "--on", str(profile)) == 0
    assert run("cancel", "micro") == 0
    assert jobs(server) == []
    assert run("resume", "micro") == 0
    assert len(jobs(server)) == 1
    (job,) = jobs(server)
    digest = job["metadata"]["annotations"]["rotescale/spec-digest"]
    assert digest == experiment("seed=5").digest()


def test_a_log_that_may_not_be_read_is_not_called_empty(server: ApiServer) -> None:
    launcher().submit(SPEC, retry=False)
    pod(server, "head", "head")
    server.denied.add("get pods/log")
    with pytest.raises(RefusedError, match="rotescale-launch doctor"):
        launcher().logs(num_lines=5)
    with pytest.raises(RefusedError, match="rotescale-launch doctor"):
        next(launcher().follow())


@pytest.mark.slow
def test_status_that_is_watched_through_a_minute_without_a_server(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROTESCALE_STATE", str(tmp_path / "state"))
    profile = tmp_path / "place.yaml"
    profile.write_text(dump_json(LAUNCH))
    assert launcher().submit(SPEC, retry=False)
    say(server, jobDeploymentStatus="Running", jobStatus="RUNNING")
    screen, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))
    command = [sys.executable, "-m", "launcher.cli", "status", "micro", "--watch"]
    watching = subprocess.Popen(
        [*command, "--on", str(profile)], stdout=terminal, env={**os.environ, "TERM": "xterm"}
    )
    os.close(terminal)
    shown: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):
            while piece := os.read(screen, 65536):
                shown.append(piece)

    threading.Thread(target=read, daemon=True).start()

    def comes(words: str, *, seconds: float = 60.0) -> None:
        """Shown from now on."""
        shown.clear()
        deadline = time.monotonic() + seconds
        while words not in b"".join(shown).decode(errors="replace"):
            assert time.monotonic() < deadline, b"".join(shown)[-2000:].decode(errors="replace")
            assert watching.poll() is None
            time.sleep(0.1)

    try:
        comes("running")
        with server.down():
            began = time.monotonic()
            comes("does not answer", seconds=30.0)
            time.sleep(max(0.0, 60.0 - (time.monotonic() - began)))
            comes("unknown")
        comes("running")
        say(server, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
        assert watching.wait(timeout=60) == 0
    finally:
        watching.kill()
        watching.wait()
        os.close(screen)
    assert [job["metadata"]["name"] for job in jobs(server)] == [NAME]
