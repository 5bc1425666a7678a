"""What a place lists is what its jobs say, however strange that is."""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher import cli, watch_cli
from launcher.job import PlaceUnavailableError
from launcher.jobs_api import Job, JobsApi
from launcher.listing import runs_at
from launcher.ray_jobs import FOLDER_KEY
from rotescale.launch_spec import LaunchSpec, RayAccess

STRANGE = [
    *("", "relative/folder", "ftp://host/x", "s3://Bad Bucket/x", "gs://b/../c", "file:///etc"),
    *("/runs/\x1b[2J/micro", "/runs/a\nb", "None"),
]


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLUSTER_TOKEN", "token")


def launch(url: str = "http://127.0.0.1:1") -> LaunchSpec:
    access = RayAccess(jobs_url=url, token_variable="CLUSTER_TOKEN")
    return LaunchSpec(place="ray", address="auto", storage="/runs", ray=access)


def jobs(*folders: str) -> list[Job]:
    return [
        Job(f"job-{n}-1", "RUNNING", "", None, {FOLDER_KEY: folder})
        for n, folder in enumerate(folders)
    ]


@pytest.mark.usefixtures("token")
def test_folders_that_can_be_none_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    good = ["/runs/b", "/other/a", "s3://bucket/runs/c", "/runs/[red]/micro"]
    monkeypatch.setattr(JobsApi, "jobs", lambda _: jobs(*STRANGE, *good, *good))
    found = [(one.experiment, one.launch.storage) for one in runs_at(launch())]
    assert found == [
        *(("a", "/other"), ("b", "/runs"), ("c", "s3://bucket/runs")),
        ("micro", "/runs/[red]"),
    ]


@pytest.mark.usefixtures("token")
def test_a_name_is_printed_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    profile = tmp_path / "place.yaml"
    profile.write_text(launch().model_dump_json(exclude_none=True))
    monkeypatch.setattr(JobsApi, "jobs", lambda _: jobs("/runs/[/x]/micro"))
    monkeypatch.setattr(sys, "argv", ["rotescale-launch", "list", "--on", str(profile)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    printed = capsys.readouterr()
    assert not stopped.value.code, printed.err
    assert "/runs/[/x]/micro" in printed.out


@pytest.fixture
def deaf() -> Iterator[str]:
    """A server that takes every connection, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.usefixtures("token")
def test_a_server_that_says_nothing_is_not_waited_for_longer_than_was_asked(deaf: str) -> None:
    began = time.monotonic()
    with pytest.raises(PlaceUnavailableError):
        runs_at(launch(deaf), patience_seconds=1.0)
    assert time.monotonic() - began < 20


@pytest.mark.usefixtures("token")
def test_a_place_that_is_away_is_asked_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def away(_: Any, method: str, path: str, **__: Any) -> None:
        asked.append(f"{method} {path}")
        raise PlaceUnavailableError("it is away")

    monkeypatch.setattr(JobsApi, "_ask", away)
    known = [watch_cli.Target(name, launch()) for name in ("a", "b", "c")]
    monkeypatch.setattr(watch_cli, "runs_at", lambda _: known)
    monkeypatch.setattr(watch_cli, "load_launch", lambda _: launch())
    watch_cli.list_runs(on=Path("place.yaml"), as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert [(one["state"], one["reason"]) for one in found] == [("unknown", "it is away")] * 3
    assert len(asked) == 1
