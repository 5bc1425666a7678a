"""The commands that look at runs, and the one that ends them."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.measure import Measurement
from rich.table import Table

from launcher import runs
from launcher.account import Account
from launcher.job import ALIVE, PlaceUnavailableError, Situation
from launcher.kept_output import kept_lines
from launcher.listing import runs_at
from launcher.patience import LOOK_SECONDS
from launcher.report import PLACE_AWAY, RunReport, look
from launcher.status_page import page, short
from launcher.target import Target, find_target, load_launch
from launcher.worker_logs import follow_worker, worker_lines
from rotescale.errors import RotescaleError, SpecError
from rotescale.launch_spec import LaunchSpec

console = Console(soft_wrap=True, highlight=False, markup=False)

Run = Annotated[
    str, typer.Argument(metavar="RUN", help="Name, experiment, folder or URL of a run.")
]
On = Annotated[
    Path | None, typer.Option(help="Its place (a launch spec); default: where it was submitted.")
]
_WATCH_SECONDS = 2.0
_ANY_WIDTH = 10_000


def status(
    run: Run,
    on: On = None,
    watch: Annotated[bool, typer.Option("--watch", help="Look again until it ends.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print all of it as JSON.")] = False,
) -> None:
    """How far a run is, and why it waits or has failed: its place, its folder, on one screen."""
    target = find_target(run, on)
    if as_json:
        print(json.dumps(_look(target).as_dict(), indent=2))
        return
    if not watch:
        console.print(page(_look(target)))
        return
    report = _look(target)
    with Live(page(report), console=console, refresh_per_second=2) as live:
        while report.state in ("pending", "running", "unknown"):
            time.sleep(_WATCH_SECONDS)
            report = _look(target)
            live.update(page(report))


def list_runs(
    on: Annotated[
        Path | None, typer.Option(help="All runs of this place (a launch spec), whosever.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """The runs that were submitted from this machine, or that a place has, and how they are."""
    if on is not None:
        launch = load_launch(on)
        known = [(target, str(target.run_dir.root)) for target in runs_at(launch)]
        nothing, last = f"{launch.name} ({launch.place}) has no run", "folder"
    else:
        known = [(Target(one.experiment, one.launch), one.time) for one in runs.submissions()]
        nothing, last = "nothing was submitted from this machine", "submitted"
    reports = _look_at_all([target for target, _ in known])
    if as_json:
        print(json.dumps([report.as_dict() for report in reports], indent=2))
        return
    if not known:
        console.print(nothing)
        return
    table = Table("run", "place", "state", "progress", last, box=None, pad_edge=False)
    for (target, words), report in zip(known, reports, strict=True):
        table.add_row(target.name, report.place, report.state, short(report), words)
    plain = Console(highlight=False, markup=False)
    # As wide as it is: a name or a folder that is cut short is of no use.
    unbounded = plain.options.update_width(_ANY_WIDTH)
    plain.width = max(plain.width, Measurement.get(plain, unbounded, table).maximum)
    plain.print(table)


def logs(
    run: Run,
    on: On = None,
    num_lines: Annotated[int, typer.Option("--lines", min=1, help="How many, from the end.")] = 50,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the run has ended.")
    ] = False,
    rank: Annotated[
        int | None, typer.Option(min=0, help="Of this worker, in place of the driver.")
    ] = None,
    attempt: Annotated[
        int | None, typer.Option(min=1, help="Of this attempt's worker; default: the newest.")
    ] = None,
) -> None:
    """What the driver, or a worker, has printed; from its place, or else from the run's folder."""
    if attempt is not None and rank is None:
        raise SpecError(
            f"--attempt {attempt}: whose? It is of a worker's log; add --rank, or leave it out: "
            "the driver's lines are of all attempts"
        )
    target = find_target(run, on)
    if rank is not None and follow:
        for line in follow_worker(target, rank=rank, attempt=attempt, is_alive=_is_alive):
            print(line, flush=True)
        return
    if rank is not None:
        lines = worker_lines(target, rank=rank, attempt=attempt)[-num_lines:]
    elif follow:
        _follow(target)
        return
    else:
        lines = _driver_lines(target, num_lines=num_lines)
    for line in lines:
        print(line)
    if not lines:
        console.print(f"{target.run_dir.root}: nothing was printed yet")


def cancel(
    run: Run,
    on: On = None,
    grace_seconds: Annotated[
        float | None,
        typer.Option(
            "--grace",
            min=0,
            help="Seconds to wait for the end; default: what the place allows. A save has "
            "resize_save_seconds of the launch spec (kuberay.grace_seconds on Kubernetes), however "
            "long this is; on this machine fewer seconds here cut it.",
        ),
    ] = None,
) -> None:
    """Stop a run, after a checkpoint; submit it again, or resume it, to go on from there."""
    target = find_target(run, on)
    stopped = target.launcher().cancel(grace_seconds=grace_seconds)
    console.print(f"{target.name}: {'stopped' if stopped else 'nothing of it is at work'}")


def _look_at_all(targets: Sequence[Target]) -> list[RunReport]:
    """Each of them; a place that does not answer is asked once, and not for every run of its."""
    away: list[tuple[LaunchSpec, str]] = []
    reports = []
    for target in targets:
        silent = next((why for place, why in away if _same_place(place, target.launch)), None)
        report = _look(target, silent=silent)
        if silent is None and PLACE_AWAY in report.layers:
            away.append((target.launch, report.reason))
        reports.append(report)
    return reports


def _same_place(one: LaunchSpec, other: LaunchSpec) -> bool:
    return (one.place, one.ray, one.kuberay) == (other.place, other.ray, other.kuberay)


def _look(target: Target, *, silent: str | None = None) -> RunReport:
    """What is known of it. ``silent``: why its place is not asked."""
    if silent is not None:
        return look(target, _Silent(silent))
    try:
        launcher = target.launcher(patience_seconds=LOOK_SECONDS)
    except SpecError as error:
        # Such as a token that is not there: the run's folder can be read all the same.
        return look(target, _Silent(str(error)))
    return look(target, launcher)


def _is_alive(target: Target) -> bool:
    """Whether the run may go on, as far as can be told: a place that is away says nothing."""
    report = _look(target)
    return report.state in ALIVE or PLACE_AWAY in report.layers


class _Silent:
    """In place of a launcher that cannot be asked."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def look(self) -> Situation:
        return Situation("unknown", self._reason, (("place", "cannot be asked"),))

    def account(self) -> Account | None:
        return None


def _follow(target: Target) -> None:
    """Lines as they come; where the place has none any more, what the folder has kept."""
    printed = False
    try:
        for line in target.launcher().follow():
            print(line, flush=True)
            printed = True
    except PlaceUnavailableError as error:
        console.print(str(error))
    if not printed:
        for line in kept_lines(target.run_dir):
            print(line)


def _driver_lines(target: Target, *, num_lines: int) -> list[str]:
    try:
        lines = target.launcher().logs(num_lines=num_lines)
    except RotescaleError as error:
        console.print(str(error))
        lines = []
    return lines or list(kept_lines(target.run_dir))[-num_lines:]
