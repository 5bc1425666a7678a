"""The command that launchers run where the driver runs."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from launcher.driver_output import end_output, say
from launcher.status_line import telling
from launcher.supervisor import Supervisor, forget_failure
from rotescale.errors import SpecError
from rotescale.launch_spec import LaunchSpec
from rotescale.run_dir import RunDir
from rotescale.spec import ExperimentSpec
from rotescale.spec_file import load_spec


def supervise(
    spec_path: Annotated[
        Path, typer.Argument(metavar="SPEC", help="An experiment spec (YAML or JSON).")
    ],
    on: Annotated[
        Path | None, typer.Option(help="A launch spec; default: two local workers.")
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="On Kubernetes: KubeRay starts it again.")
    ] = False,
    tell: Annotated[
        bool, typer.Option("--tell", help="Print the run's state every 30 s, for status to find.")
    ] = False,
    retry_before: Annotated[
        str | None, typer.Option(help="Forget a failure from before this time (ISO 8601).")
    ] = None,
) -> None:
    """Run an experiment here, and start it again when it was not at fault (submit uses this)."""
    spec = load_spec(ExperimentSpec, spec_path)
    launch = LaunchSpec() if on is None else load_spec(LaunchSpec, on)
    place = () if on is None else ("--on", str(on))
    run_dir = RunDir.of(launch.storage, spec.name)
    if retry_before is not None:
        forget_failure(run_dir, before=_time(retry_before))
    supervisor = Supervisor(
        run_dir,
        (sys.executable, "-m", "rotescale.cli", "run", str(spec_path), *place),
        # Inside its cluster a run on Kubernetes is one on a Ray cluster.
        place="kuberay" if once else launch.place,
        launch=launch.name,
        budgets=None if once else launch.restarts,
        grace_seconds=launch.resize_save_seconds,
        say=lambda words: say(f"supervisor: {words}"),
    )
    with telling(run_dir) if tell else nullcontext():
        code = supervisor.run()
    end_output()
    raise typer.Exit(code)


def _time(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise SpecError(f"--retry-before {text}: no time; write it as 2026-11-27T12:00:00+00:00")
    return found
