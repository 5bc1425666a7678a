"""The command line on a run at a URL: the same words, the same files, the same numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import MICRO, QUICK
from object_stores import BUCKET
from typer.testing import CliRunner

from launcher.cli import app as launcher_app
from rotescale.checkpoint.attempts import newest
from rotescale.cli import app
from rotescale.errors import CheckpointError, SpecError
from rotescale.object_store import RemotePath
from rotescale.run_dir import RunDir
from rotescale.storage import write_atomic

SETTINGS = [
    part
    for override in (*QUICK, "engine.kind=eager", "checkpoints.every_steps=4")
    for part in ("--set", override)
]


def call(*arguments: object, of: object = app) -> str:
    """What a command prints; our errors are raised."""
    done = CliRunner().invoke(of, [str(argument) for argument in arguments])  # type: ignore[arg-type]
    if done.exception is not None:
        raise done.exception
    return done.output


def test_a_run_at_a_url_from_start_to_tools(
    remote: RemotePath, model_cache: Path, tmp_path: Path
) -> None:
    places = {"there": str(remote), "here": str(tmp_path / "runs")}
    for name, storage in places.items():
        launch = tmp_path / f"{name}.yaml"
        launch.write_text(f"storage: {storage}\nmodel_cache: {model_cache}\n")
        call("run", MICRO, "--on", launch, *SETTINGS)
    there, here = (RunDir.of(storage, "micro") for storage in places.values())
    url = str(there.root)
    assert there.results_json.read_bytes() == here.results_json.read_bytes()
    assert there.results_png.read_bytes().startswith(b"\x89PNG")
    assert "is finished" in call("run", MICRO, "--on", tmp_path / "there.yaml", *SETTINGS)

    assert "end of phase, newest" in call("checkpoint", "list", url)
    assert "checkpoints/attempt-0001/02-generalize" in call("checkpoint", "verify", url)
    call("checkpoint", "export", url, tmp_path / "out", "--dtype", "bfloat16")
    call("checkpoint", "export", url, remote / "out", "--dtype", "bfloat16")
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert {path.name: path.read_bytes() for path in (remote / "out").iterdir()} == files
    with pytest.raises(SpecError, match="exists already"):
        call("checkpoint", "export", url, remote / "out")

    told = call("status", url, of=launcher_app)
    for line in ("finished in attempt 1", "generalize", "checkpoints/attempt-0001/02-generalize"):
        assert line in told
    with pytest.raises(SpecError, match="no such run"):
        call("status", f"{url}-other", of=launcher_app)

    rows = tmp_path / "rows.json"
    call("evaluate", there.model_folder("generalize"), "--json", rows)
    again = json.loads(rows.read_text())
    measured = [r for r in json.loads(there.results_json.read_text()) if r["stage"] == "generalize"]
    assert [r["value"] for r in again] == pytest.approx([r["value"] for r in measured], abs=1e-5)

    found = newest(there, 1)
    assert found is not None
    file = found.directory / found.manifest.files[0].name
    write_atomic(file, file.read_bytes()[:-1] + b"\xff")
    with pytest.raises(CheckpointError, match="its bytes have changed"):
        call("checkpoint", "verify", url)


def test_a_submitted_run_prints_to_this_machine(
    remote: RemotePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    launch = tmp_path / "launch.yaml"
    launch.write_text(f"storage: {remote}\n")
    told = call("submit", MICRO, "--on", launch, "--dry-run", of=launcher_app)
    log = tmp_path / "node" / "runs" / f"s3-{BUCKET}" / remote.key / "micro" / "logs" / "driver.log"
    assert f">> {log}" in told
