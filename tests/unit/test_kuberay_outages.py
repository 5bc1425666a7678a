"""An API server that goes away, or answers badly, under each command: it waits, or says the truth,
and nothing is submitted twice or lost."""

from __future__ import annotations

import copy
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from api_faults import FOR_EVER, Fault
from api_server import ApiServer, api_server
from kuberay_helpers import FULL, MICRO, experiment
from launcher_command import Command, command_line

from launcher.job import PlaceUnavailableError
from launcher.kuberay.cluster import KubernetesCluster, RefusedError
from launcher.kuberay.launcher import KubeRayLauncher
from launcher.kuberay.names import job_name
from launcher.report import look
from launcher.target import Target
from rotescale.launch_spec import LaunchSpec
from rotescale.spec_file import dump_json, parse_spec

NAMESPACE = "research"
EXPERIMENT = experiment()
AWAY_SECONDS = 1.0
Object = dict[str, Any]


def place(**changes: Any) -> LaunchSpec:
    fields = copy.deepcopy(FULL)
    fields["kuberay"] |= {"context": None, "grace_seconds": 60, **changes}
    return parse_spec(LaunchSpec, fields, where="place.yaml")


LAUNCH = place()
NAME = job_name(EXPERIMENT.name, storage=LAUNCH.storage)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    with api_server() as found:
        found.namespace(NAMESPACE)
        monkeypatch.setenv("KUBECONFIG", str(found.kubeconfig(tmp_path / "kubeconfig")))
        yield found


@dataclass(frozen=True)
class Shell:
    """The launcher's command line in this process."""

    run: Command
    on: str

    def __call__(self, *arguments: str, code: int = 0) -> str:
        found, said = self.run(*arguments)
        assert found == code, said
        return said

    def submit(self, *, code: int = 0) -> str:
        return self("submit", str(MICRO), "--on", self.on, code=code)

    def state(self) -> str:
        return str(json.loads(self("status", "micro", "--json"))["state"])


@pytest.fixture
def shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Shell:
    monkeypatch.setenv("ROTESCALE_STATE", str(tmp_path / "state"))
    profile = tmp_path / "place.yaml"
    profile.write_text(dump_json(LAUNCH))

    return Shell(command_line(monkeypatch, capsys), str(profile))


def launcher(*, patience_seconds: float = 20.0) -> KubeRayLauncher:
    cluster = KubernetesCluster(
        None, NAMESPACE, patience_seconds=patience_seconds, sleep=lambda _: time.sleep(0.02)
    )
    return KubeRayLauncher(LAUNCH, NAME, cluster=cluster, sleep=lambda _: time.sleep(0.02))


def jobs(server: ApiServer) -> list[Object]:
    return server.list("rayjobs", namespace=NAMESPACE)


def maps(server: ApiServer) -> list[Object]:
    return server.list("configmaps", namespace=NAMESPACE)


def say(server: ApiServer, **status: Any) -> None:
    """What the operator writes."""
    server.set_status("rayjobs", NAME, status, namespace=NAMESPACE)


def head(server: ApiServer, log: Path) -> None:
    """The pod whose submitter has printed what stands in ``log``."""
    labels = {"rotescale/run": NAME, "ray.io/node-type": "head"}
    server.create(
        {
            **{"apiVersion": "v1", "kind": "Pod"},
            "metadata": {"name": "head", "namespace": NAMESPACE, "labels": labels},
            "spec": {"containers": [{"name": "ray-job-submitter", "image": "x"}]},
        },
        status={"phase": "Running"},
    )
    server.set_log("head", log, container="ray-job-submitter", namespace=NAMESPACE)


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


@contextmanager
def away(server: ApiServer, moment: str) -> Iterator[None]:
    """It goes away for AWAY_SECONDS at a moment, before all, or while a request such as ``POST
    /rayjobs`` is under way, which is done and whose answer nobody gets."""
    method, _, path = moment.partition(" ")
    gone = threading.Event()
    fault = Fault()
    if path:
        fault = server.faults.add(Fault(method, path, delay_seconds=0.5))

    def go() -> None:
        if path:
            wait_for(lambda: fault.hits)
        server.stop()
        gone.set()
        time.sleep(AWAY_SECONDS)
        server.start()

    thread = threading.Thread(target=go)
    thread.start()
    try:
        if not path:
            gone.wait()
        yield
    finally:
        thread.join()
    assert gone.is_set()


@pytest.mark.parametrize(
    "moment",
    ["before", "POST /rayjobs", "PATCH /configmaps"],
)
def test_submit_waits_for_a_server_that_is_away(
    server: ApiServer, shell: Shell, moment: str
) -> None:
    with away(server, moment):
        assert "micro started" in shell.submit()
    (job,) = jobs(server)
    (spec_map,) = maps(server)
    owners = [one["uid"] for one in spec_map["metadata"]["ownerReferences"]]
    assert owners == [job["metadata"]["uid"]]
    assert shell.state() == "pending"
    assert "is running already" in shell.submit()
    assert [one["metadata"]["uid"] for one in jobs(server)] == owners


@pytest.mark.parametrize("moment", ["before", "DELETE /rayjobs", "GET /pods"])
def test_cancel_waits_for_a_server_that_is_away(
    server: ApiServer, shell: Shell, moment: str
) -> None:
    shell.submit()
    with away(server, moment):
        assert f"{NAME}: stopped" in shell("cancel", "micro")
    assert jobs(server) == []
    wait_for(lambda: maps(server) == [])
    assert shell.state() == "unknown", "there is none of it, and the folder is not seen from here"


@pytest.mark.parametrize("moment", ["before", "POST /rayjobs"])
def test_resume_waits_for_a_server_that_is_away(
    server: ApiServer, shell: Shell, moment: str
) -> None:
    shell.submit()
    shell("cancel", "micro")
    with away(server, moment):
        assert "micro started" in shell("resume", "micro")
    (job,) = jobs(server)
    assert job["metadata"]["annotations"]["rotescale/spec-digest"] == EXPERIMENT.digest()
    assert "is running already" in shell("resume", "micro")


@pytest.mark.parametrize("moment", ["before", "GET /log"])
def test_logs_wait_for_a_server_that_is_away(
    server: ApiServer, shell: Shell, tmp_path: Path, moment: str
) -> None:
    shell.submit()
    log = tmp_path / "log"
    log.write_text("one\ntwo\n")
    head(server, log)
    with away(server, moment):
        assert shell("logs", "micro") == "one\ntwo\n"


def test_lines_that_are_followed_go_on_after_a_server_was_away(
    server: ApiServer, tmp_path: Path
) -> None:
    launcher().submit(EXPERIMENT, retry=False)
    say(server, jobDeploymentStatus="Running", jobStatus="RUNNING")
    log = tmp_path / "log"
    log.write_text("one\ntwo\n")
    head(server, log)
    found: list[str] = []

    def follow() -> None:
        for line in launcher().follow():
            found.append(line)

    following = threading.Thread(target=follow)
    following.start()
    wait_for(lambda: len(found) == 2)
    with away(server, "before"), log.open("a") as more:
        more.write("three\n")
    wait_for(lambda: len(found) == 3)
    with log.open("a") as more:
        more.write("four\n")
    wait_for(lambda: len(found) == 4)
    server.set_status("pods", "head", {"phase": "Succeeded"}, namespace=NAMESPACE)
    say(server, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    following.join(timeout=60)
    assert not following.is_alive()
    assert found == ["one", "two", "three", "four"]


def short_of_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that act wait for half a second, in place of a minute."""
    defaults = Target.launcher.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "patience_seconds", 0.5)


def test_what_stays_away_is_said_and_nothing_is_done_twice(
    server: ApiServer, shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    short_of_patience(monkeypatch)
    words = "the Kubernetes API server does not answer"
    with server.down():
        assert words in shell.submit(code=4)
        assert "no run of that name" in shell("logs", "micro", code=2), "nothing was sent"
    assert jobs(server) == []
    assert "micro started" in shell.submit()
    (job,) = jobs(server)
    with server.down():
        for command in ("cancel", "resume"):
            assert words in shell(command, "micro", code=4)
        assert words in shell("logs", "micro", "--follow")
    assert jobs(server) == [job]
    assert "is running already" in shell.submit()
    assert "stopped" in shell("cancel", "micro")


def test_a_run_that_was_started_by_a_submission_without_an_answer_is_found(
    server: ApiServer, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    short_of_patience(monkeypatch)
    # Created, and from then on there is silence.
    server.faults.add(Fault("POST", "/rayjobs", lost=True))
    looked = server.faults.add(Fault("GET", "/rayjobs"))
    silent = server.faults.add(Fault("GET", "/rayjobs", status=503, times=FOR_EVER))
    assert "may have been done: look with status" in shell.submit(code=4)
    assert looked.hits == 1
    server.faults.remove(silent)
    assert shell.state() == "pending"
    assert len(jobs(server)) == 1
    assert "is running already" in shell.submit()


ANSWERS = (409, 410, 429, 500, 504)
PASSING = (429, 500, 504)


@pytest.mark.parametrize("status", ANSWERS)
@pytest.mark.parametrize(
    "request_", ["GET /rayjobs", "POST /configmaps", "POST /rayjobs", "PATCH /configmaps"]
)
def test_submit_is_done_once_or_says_what_was_refused(
    server: ApiServer, request_: str, status: int
) -> None:
    method, path = request_.split()
    fault = server.faults.add(Fault(method, path, status=status))
    is_final = (status == 410 and method != "PATCH") or (status, method) == (409, "GET")
    if is_final:
        with pytest.raises(RefusedError, match=rf"refuses {method} .*{path}"):
            launcher().submit(EXPERIMENT, retry=False)
        started = False
    else:
        # A map that cannot be given to the job stays behind; the job is on its way.
        assert launcher().submit(EXPERIMENT, retry=False)
        started = True
    assert fault.hits == 1
    assert len(jobs(server)) == started
    assert launcher().submit(EXPERIMENT, retry=False) is not started
    assert len(jobs(server)) == 1
    assert len(maps(server)) == 1


@pytest.mark.parametrize("status", ANSWERS)
def test_cancel_ends_it_or_says_that_it_did_not(server: ApiServer, status: int) -> None:
    launcher().submit(EXPERIMENT, retry=False)
    fault = server.faults.add(Fault("DELETE", "/rayjobs", status=status))
    if status == 410:
        with pytest.raises(RefusedError, match=r"refuses DELETE .*rayjobs"):
            launcher().cancel(grace_seconds=1)
        assert launcher().look().state == "pending", "it is still there, and said to be"
    assert launcher().cancel(grace_seconds=1)
    assert fault.hits == 1
    assert jobs(server) == []
    assert not launcher().cancel(grace_seconds=1)


@pytest.mark.parametrize("status", [*PASSING, 409])
def test_a_deletion_that_is_never_done_is_not_called_one(server: ApiServer, status: int) -> None:
    launcher().submit(EXPERIMENT, retry=False)
    fault = server.faults.add(Fault("DELETE", "/rayjobs", status=status, times=FOR_EVER))
    error, words = (
        (PlaceUnavailableError, "does not answer")
        if status in PASSING
        else (RefusedError, "refuses")
    )
    with pytest.raises(error, match=words):
        launcher(patience_seconds=0.1).cancel(grace_seconds=1)
    assert fault.hits > 1
    assert launcher().look().state == "pending"


@pytest.mark.parametrize("status", ANSWERS)
def test_status_of_a_run_of_which_nothing_is_said_is_unknown(
    server: ApiServer, status: int
) -> None:
    launcher().submit(EXPERIMENT, retry=False)
    target = Target("micro", LAUNCH)
    before = look(target, launcher())
    assert before.state == "pending"
    fault = server.faults.add(Fault("GET", "/rayjobs", status=status, times=FOR_EVER))
    report = look(target, launcher(patience_seconds=0.1))
    assert fault.hits
    assert (report.state, report.progress) == ("unknown", None)
    how = "does not answer" if status in PASSING else "refuses"
    assert dict(report.layers)["place"] == how
    assert how in report.reason
    server.faults.remove(fault)
    assert look(target, launcher()) == before


@pytest.mark.parametrize("status", [409, 410])
@pytest.mark.parametrize("what", ["pods", "workloads", "events"])
def test_what_is_refused_beside_the_job_is_said_beside_it(
    server: ApiServer, what: str, status: int
) -> None:
    launcher().submit(EXPERIMENT, retry=False)
    server.faults.add(Fault("GET", f"/{what}", status=status, times=FOR_EVER))
    told = launcher().look()
    assert told.state == "pending"
    assert "refuses GET" in dict(told.layers)[what]


def test_nothing_is_watched(server: ApiServer, tmp_path: Path) -> None:
    """What an end of a watch may be (410, 504) the launcher never meets: it asks anew."""
    launcher().submit(EXPERIMENT, retry=False)
    log = tmp_path / "log"
    log.write_text("one\n")
    head(server, log)
    server.set_status("pods", "head", {"phase": "Succeeded"}, namespace=NAMESPACE)
    launcher().look()
    launcher().logs(num_lines=1)
    say(server, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    assert list(launcher().follow()) == ["one"]
    server.delete("pods", "head", namespace=NAMESPACE)
    launcher().cancel(grace_seconds=1)
    mine = [request for request in server.requests if request.user == "client"]
    assert mine
    assert not [one for one in mine if {"watch", "resourceVersion"} & one.query.keys()]
