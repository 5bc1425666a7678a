"""What is noted of a submission is enough to go on with it where its folder cannot be seen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kuberay_helpers import MICRO, experiment
from launcher_command import launcher_command

from launcher import runs
from launcher.kuberay.names import job_name
from rotescale.errors import SpecError
from rotescale.launch_spec import LaunchSpec, StageLimits
from rotescale.run_dir import RunDir
from rotescale.spec_file import dump_json, parse_spec

TIME = "2026-11-27T12:00:00+00:00"
FIELDS: dict[str, Any] = {
    "place": "ray",
    "address": "auto",
    "storage": "/nowhere/runs",
    "ray": {"jobs_url": "https://ray.example.com", "token_variable": "RAY_CLUSTER_TOKEN"},
}
LAUNCH = parse_spec(LaunchSpec, FIELDS, where="place.yaml")
NAME = job_name("micro", storage=LAUNCH.storage)
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ROTESCALE_STATE", str(tmp_path / "state"))
    return tmp_path / "state" / "runs" / f"{NAME}.json"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], state: Path) -> Run:
    def call(*arguments: str) -> tuple[int, str]:
        code = launcher_command(monkeypatch, *arguments)
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return call


def test_the_experiment_that_was_started_is_noted_and_a_second_submission_changes_nothing(
    state: Path,
) -> None:
    assert runs.started_spec(NAME) is None
    runs.remember("micro", LAUNCH, time=TIME)
    assert runs.started_spec(NAME) is None, "it was at work already, with who knows what"
    runs.remember("micro", LAUNCH, time=TIME, started=experiment("seed=4"))
    assert runs.started_spec(NAME) == experiment("seed=4")
    runs.remember("micro", LAUNCH, time=TIME)
    assert runs.started_spec(NAME) == experiment("seed=4")
    assert [one.name for one in runs.submissions()] == [NAME]
    assert state.parent.stat().st_mode & 0o077 == 0


def test_a_note_of_before_is_read(state: Path) -> None:
    runs.remember("micro", LAUNCH, time=TIME)
    fields = json.loads(state.read_text())
    del fields["spec"]
    state.write_text(json.dumps(fields))
    assert runs.started_spec(NAME) is None
    assert runs.find("micro") is not None


def test_an_experiment_of_another_version_is_named(state: Path) -> None:
    runs.remember("micro", LAUNCH, time=TIME, started=experiment())
    fields = json.loads(state.read_text())
    fields["spec"]["sead"] = 1
    state.write_text(json.dumps(fields))
    with pytest.raises(SpecError, match=r"sead: unknown key"):
        runs.started_spec(NAME)
    assert runs.find("micro") is not None, "the run is found all the same"


def test_diff_needs_no_folder(run: Run, tmp_path: Path) -> None:
    profile = tmp_path / "place.yaml"
    profile.write_text(dump_json(LAUNCH))
    diff = ("diff", str(MICRO), "--on", str(profile))
    code, said = run(*diff)
    assert (code, "nothing to compare" in said) == (2, True)
    runs.remember("micro", LAUNCH, time=TIME, started=experiment())
    assert run(*diff) == (0, f"{MICRO}: as it was started\n")
    code, said = run(*diff, "--set", "seed=3")
    assert code == 1
    assert '+  "seed": 3,' in said.splitlines()
    assert "results change" in said


def test_diff_compares_the_launch_spec_with_the_one_that_was_noted(
    run: Run, tmp_path: Path
) -> None:
    profile = tmp_path / "place.yaml"
    runs.remember("micro", LAUNCH, time=TIME, started=experiment())
    changed = LAUNCH.model_copy(update={"num_workers": (4, 4)})
    profile.write_text(dump_json(changed))
    # That it was at work already, when it was submitted with these, has changed nothing there.
    runs.remember("micro", changed, time=TIME)
    code, said = run("diff", str(MICRO), "--on", str(profile))
    assert code == 1
    assert "--- as it was started" in said
    assert [line.strip("+ ,") for line in said.splitlines() if line.startswith("+  ")] == ["4", "4"]
    assert "no result changes" in said


def test_diff_compares_the_launch_spec_with_the_one_in_the_folder(run: Run, tmp_path: Path) -> None:
    storage = str(tmp_path / "runs")
    prepared = LaunchSpec(storage=storage).sharing(6)
    run_dir = RunDir.of(storage, "micro")
    run_dir.root.mkdir(parents=True)
    run_dir.spec_json.write_text(dump_json(experiment()))
    run_dir.launch_json.write_text(dump_json(prepared))
    # This is not what the newest driver was given.
    older = LaunchSpec(storage=storage, num_workers=(8, 8))
    runs.remember("micro", older, time=TIME, started=experiment())
    profile = tmp_path / "place.yaml"
    diff = ("diff", str(MICRO), "--on", str(profile))
    profile.write_text(dump_json(LaunchSpec(storage=storage)))
    assert run(*diff) == (0, f"{MICRO}: as it was started\n"), "auto is the cores that it has"
    limits = StageLimits(step_seconds=77)
    profile.write_text(dump_json(LaunchSpec(storage=storage, limits=limits)))
    code, said = run(*diff)
    assert code == 1
    assert f"--- {run_dir.launch_json}" in said
    assert '+    "step_seconds": 77.0,' in said.splitlines()
    assert "num_workers" not in said


def test_what_is_unknown_is_not_resumed(run: Run) -> None:
    runs.remember("micro", LAUNCH, time=TIME)
    code, said = run("resume", "micro")
    assert (code, "submit its spec with --on" in said) == (2, True)
