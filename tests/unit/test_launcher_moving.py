"""A run goes on elsewhere when its place is gone, and not by mistake while it may be at work."""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from api_faults import FOR_EVER, Fault
from api_server import ApiServer, api_server
from kuberay_helpers import FULL, MICRO, experiment
from launcher_command import Command, command_line

from launcher import history, local, moving, runs
from launcher.history import Ending
from launcher.local import JobRequest
from rotescale.launch_spec import LaunchSpec, RayAccess
from rotescale.run_dir import RunDir
from rotescale.spec_file import dump_json, parse_spec

NAMESPACE = "research"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    with api_server() as found:
        found.namespace(NAMESPACE)
        monkeypatch.setenv("KUBECONFIG", str(found.kubeconfig(tmp_path / "kubeconfig")))
        yield found


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that pods may mount: none of the container's own, such as /tmp."""
    folder = Path(tempfile.mkdtemp(prefix="rotescale-", dir="/var/tmp"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[JobRequest]:
    """What is started on this machine, in place of starting it."""
    found: list[JobRequest] = []
    monkeypatch.setattr(local, "submit", lambda request: found.append(request) or True)
    return found


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Command:
    """The launcher's command line in this process: its exit code and all that it printed."""
    monkeypatch.setenv("ROTESCALE_STATE", str(tmp_path / "state"))
    monkeypatch.setattr(moving, "LOOK_SECONDS", 0.1)
    (tmp_path / "here.yaml").write_text("name: here\n")

    return command_line(monkeypatch, capsys)


def on_kubernetes(folder: Path) -> LaunchSpec:
    fields: dict[str, Any] = copy.deepcopy(FULL)
    fields["kuberay"] |= {"context": None, "volumes": [{"claim": "all", "path": str(folder)}]}
    fields |= {"storage": str(folder / "runs"), "model_cache": str(folder / "models")}
    return parse_spec(LaunchSpec, fields, where="place.yaml")


def submitted(launch: LaunchSpec) -> RunDir:
    """A run that this machine knows to be there, and its folder."""
    runs.remember("micro", launch, time=history.now())
    run_dir = RunDir.of(launch.storage, "micro")
    Path(str(run_dir.root)).mkdir(parents=True)
    Path(str(run_dir.spec_json)).write_text(dump_json(experiment()))
    return run_dir


def test_a_cluster_that_is_gone_keeps_no_run(
    server: ApiServer, run: Command, sent: list[JobRequest], tmp_path: Path, shared: Path
) -> None:
    run_dir = submitted(on_kubernetes(shared))
    here = ("resume", "micro", "--on", str(tmp_path / "here.yaml"))
    server.stop()
    code, said = run(*here)
    assert (code, sent) == (2, [])
    assert "full (kuberay), where it was, does not say whether it is at work: the Kub" in said
    assert "add --lost" in said
    code, said = run(*here, "--lost")
    assert code == 0, said
    assert said.startswith("warning: full (kuberay), where it was, does not say")
    assert "micro started" in said
    assert [one.run_dir for one in sent] == [run_dir]
    [found] = json.loads(run("list", "--json")[1])
    assert found["place"] == "here (local)", "it is known to be there from now on"


def test_a_cluster_that_can_no_longer_be_reached_keeps_none(
    run: Command,
    sent: list[JobRequest],
    tmp_path: Path,
    shared: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    submitted(on_kubernetes(shared))
    here = ("resume", "micro", "--on", str(tmp_path / "here.yaml"))
    code, said = run(*here)
    assert (code, sent) == (2, [])
    assert "kubeconfig: " in said
    assert "add --lost" in said
    assert run(*here, "--lost")[0] == 0


def test_a_token_that_is_gone_keeps_none(
    run: Command, sent: list[JobRequest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_TOKEN", raising=False)
    access = RayAccess(jobs_url="http://localhost:1", token_variable="NO_TOKEN")
    launch = LaunchSpec(
        name="big", place="ray", address="auto", ray=access, storage=str(tmp_path / "runs")
    )
    submitted(launch)
    here = ("resume", "micro", "--on", str(tmp_path / "here.yaml"))
    code, said = run(*here)
    assert (code, sent) == (2, [])
    assert "big (ray), where it was, does not say whether it is at work: ray.token_variable" in said
    assert run(*here, "--lost")[0] == 0


def test_what_is_at_work_is_not_lost(
    server: ApiServer, run: Command, sent: list[JobRequest], tmp_path: Path, shared: Path
) -> None:
    launch = on_kubernetes(shared)
    (tmp_path / "cluster.yaml").write_text(dump_json(launch))
    assert run("submit", str(MICRO), "--on", str(tmp_path / "cluster.yaml"))[0] == 0
    run_dir = RunDir.of(launch.storage, "micro")
    here = ("resume", "micro", "--on", str(tmp_path / "here.yaml"), "--lost")
    code, said = run(*here)
    assert (code, sent) == (2, [])
    assert "it is at work at full (kuberay); end it there first" in said
    # An account that may not ask is no sign that nothing is there.
    Path(str(run_dir.root)).mkdir(parents=True)
    Path(str(run_dir.spec_json)).write_text(dump_json(experiment()))
    server.faults.add(Fault("GET", "/rayjobs", status=403, times=FOR_EVER))
    code, said = run(*here[:-1])
    assert (code, sent) == (2, [])
    assert "add --lost" in said


def test_a_place_that_only_the_folder_knows(
    run: Command, sent: list[JobRequest], tmp_path: Path
) -> None:
    """From another machine than the one that has submitted it."""
    launch = LaunchSpec(storage=str(tmp_path / "runs"))
    run_dir = submitted(launch)
    for file in (tmp_path / "state" / "runs").iterdir():
        file.unlink()
    history.begin(run_dir, place="kuberay", launch="eks", owner="a")
    here = ("resume", str(run_dir.root), "--on", str(tmp_path / "here.yaml"))
    for arguments in (here, here[:2]):
        code, said = run(*arguments)
        assert (code, sent) == (2, [])
        assert "start 1, at eks (kuberay) on " in said
        assert "and that place cannot be asked from here" in said
    assert run(*here, "--lost")[0] == 0
    assert len(sent) == 1
    # A start that has noted its end is at work no more, or leaves the run when it is started again.
    ending = Ending(number=1, time="", kind="preempted", reason="", exit_code=4, checkpoint=None)
    history.end(run_dir, ending)
    assert run(*here)[0] == 0
    assert len(sent) == 2
