"""The command that says whether a place can run experiments."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.status import Status
from rich.text import Text

from launcher.doctor import Check, asked, local_checks
from launcher.kuberay.doctor import kuberay_checks
from launcher.ray_doctor import ray_checks
from launcher.ray_here import ray_here_checks
from launcher.target import load_launch
from rotescale.launch_spec import LaunchSpec

_COLORS = {"ok": "green", "warn": "yellow", "fail": "bold red"}
_NOT_WELL = 1


def doctor(
    on: Annotated[
        Path | None, typer.Option(help="A launch spec (YAML); default: two local workers.")
    ] = None,
    with_probe: Annotated[
        bool, typer.Option("--probe", help="Also run a small job, or pod, that looks around there.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """Look whether a place can run experiments; ends with 1 where something must be mended."""
    launch = load_launch(on)
    console = Console(soft_wrap=True, highlight=False)
    found: list[Check] = []
    with Status("looking", console=Console(stderr=True)):
        for check in _checks(launch, with_probe=with_probe):
            found.append(check)
            if not as_json:
                console.print(_line(check))
    if as_json:
        print(json.dumps([asdict(check) for check in found], indent=2))
    failed = [check for check in found if check.verdict == "fail"]
    if failed:
        raise typer.Exit(_NOT_WELL)


def _checks(launch: LaunchSpec, *, with_probe: bool) -> Iterator[Check]:
    if launch.place == "kuberay":
        remedy = "log in to the cluster, and see that kubectl get rayjobs answers"
        return asked("API server", remedy, kuberay_checks(launch, with_probe=with_probe))
    if launch.ray is not None:
        remedy = "see that the dashboard's address opens, and that the token is the cluster's"
        return asked("address", remedy, ray_checks(launch, with_probe=with_probe))
    return ray_here_checks(launch) if launch.place == "ray" else local_checks(launch)


def _line(check: Check) -> Text:
    line = Text(f"{check.verdict:<5}", style=_COLORS[check.verdict])
    line.append(f"{check.name}: {check.words}", style="default")
    if check.remedy:
        line.append(f"\n      -> {check.remedy}", style="dim")
    return line
