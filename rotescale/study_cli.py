"""The command that runs a study, and says what has become of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from rotescale.errors import SpecError, TrainingError
from rotescale.launch_spec import LaunchSpec
from rotescale.spec_file import load_spec

if TYPE_CHECKING:
    from rotescale.facts import FactSet
    from rotescale.spec import Facts
    from rotescale.study.runner import StudyRunner
    from rotescale.study.spec import Cell

console = Console()

_STOPPED = 130
"""A shell's code for a command that was interrupted."""
_STYLES = {"finished": "green", "running": "bold", "failed": "red", "blocked": "red"}


def study(
    path: Annotated[Path, typer.Argument(metavar="STUDY", help="A study's file (YAML).")],
    on: Annotated[
        Path | None, typer.Option(help="A launch spec (YAML); default: two local workers.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Override a field of the study."),
    ] = None,
    parallel: Annotated[int, typer.Option(min=1, help="How many runs at once.")] = 1,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show the runs, what they share, and how long they take."),
    ] = False,
) -> None:
    """Run a study, or what is left of it, and collect its results in one table."""
    from rotescale.analysis.study_progress import study_progress
    from rotescale.study.plan import make_plan
    from rotescale.study.runner import StudyRunner, failures
    from rotescale.study.spec import load_study

    launch = LaunchSpec() if on is None else load_spec(LaunchSpec, on)
    _check_place(launch)
    spec, cells = load_study(path, tuple(overrides or ()))
    plan = make_plan(spec.name, cells)
    runner = StudyRunner(
        study=spec,
        plan=plan,
        launch=launch,
        launch_file=on,
        parallel=parallel,
        report=lambda name, status: console.print(
            f"{_now()} {name}: [{_STYLES.get(status, 'dim')}]{status}[/]"
        ),
    )
    sources = _check_cells(cells, runner)
    if dry_run:
        _show(runner, sources)
        return
    console.print(_plan_table(runner))
    try:
        with study_progress(runner, console=console):
            finished = runner.run()
    except KeyboardInterrupt:
        done = sum(status == "finished" for status in runner.status.values())
        console.print(
            f"stopped, with {done} of {len(plan.nodes)} runs finished; the same command goes on"
        )
        if any(runner.status[end] == "finished" for end in plan.ends):
            _collect(runner)
        raise typer.Exit(_STOPPED) from None
    _collect(runner)
    if not finished:
        lines = "\n".join(failures(runner))
        raise TrainingError(f"not all runs of the study have finished:\n{lines}")


def _check_place(launch: LaunchSpec) -> None:
    """Raise SpecError where a study's runs cannot be started from here."""
    if launch.place == "kuberay":
        raise SpecError(
            f"launch spec {launch.name}: place: kuberay starts a cluster for one run, and a study "
            "has several; start a Ray cluster, and there this command with a launch spec of "
            "place: ray and address: auto (on KubeRay: a RayCluster, and `ray job submit -- "
            "rotescale study STUDY --on LAUNCH`)"
        )


def _check_cells(cells: Sequence[Cell], runner: StudyRunner) -> dict[Facts, FactSet]:
    """Raise an error where a run would, or where runs are about different facts.

    Returns the facts of all cells.
    """
    from rotescale.evaluation.harness.tasks import check_tasks
    from rotescale.facts import load_source
    from rotescale.preparation import check_beliefs, check_enough
    from rotescale.study.earlier_runs import check_earlier_runs
    from rotescale.study.same_facts import check_same_facts, saved_facts

    sources = {facts: load_source(facts) for facts in {cell.spec.facts for cell in cells}}
    for cell in cells:
        check_beliefs(cell.spec)
        check_enough(cell.spec, sources[cell.spec.facts])
    for asked in {cell.spec.evaluation for cell in cells}:
        check_tasks(asked, allow_code=runner.launch.allow_task_code)
    finished = [name for name, status in runner.status.items() if status == "finished"]
    check_earlier_runs(runner.plan, runner.folder, finished=finished)
    left = [cell.spec for cell in cells if cell.spec.name not in finished]
    known = saved_facts(runner.folder.run(name) for name in finished)
    check_same_facts([*known, *((spec.name, sources[spec.facts]) for spec in left)])
    return sources


def _show(runner: StudyRunner, sources: Mapping[Facts, FactSet]) -> None:
    """The runs, and by the arithmetic of plans what those that are left would take."""
    from rotescale.planning.advice import duration, money
    from rotescale.study.cost import study_cost

    finished = {name for name, status in runner.status.items() if status == "finished"}
    try:
        found = study_cost(runner.plan, runner.launch, sources, finished=finished)
    except SpecError as error:
        console.print(_plan_table(runner))
        console.print(f"how long it takes is not known: {error}", highlight=False)
        return
    times = {name: duration(run.total_seconds) for name, run in found.runs.items()}
    console.print(_plan_table(runner, times))
    price = "" if found.price is None else f", {money(found.price)} by the node's price"
    console.print(
        f"in all about {duration(found.seconds)}, one run after the other{price}", highlight=False
    )
    for name, run in found.runs.items():
        if not run.fits:
            console.print(f"[red]{name} does not fit:[/] {' '.join(run.reasons)}", highlight=False)


def _now() -> str:
    return datetime.now().astimezone().strftime("%H:%M:%S")


def _plan_table(runner: StudyRunner, times: Mapping[str, str] | None = None) -> Table:
    """A line per run: where it begins, what it trains, and whether that is done.

    Names without the study's, which they all begin with. ``times``: name of a run to what it takes.
    """
    plan, start = runner.plan, f"{runner.study.name}-"
    table = Table(title=f"{runner.study.name}: {len(plan.ends)} cells, {len(plan.nodes)} runs")
    takes = () if times is None else ("takes about",)
    for heading in ("run", "goes on from", "trains", "status", *takes):
        table.add_column(heading, overflow="fold")
    for node in plan.nodes:
        phase = node.spec.phases[-1]
        trains = f"{phase.name}, {phase.length}"
        parent = (node.parent or "-").removeprefix(start)
        row = [node.name.removeprefix(start), parent, trains, runner.status[node.name]]
        table.add_row(*row, *([] if times is None else [times.get(node.name, "-")]))
    return table


def _collect(runner: StudyRunner) -> None:
    from rotescale.analysis.study_table import shared_cost, study_rows, write_table
    from rotescale.study.same_facts import check_same_facts, saved_facts

    check_same_facts(saved_facts(runner.folder.run(node.name) for node in runner.plan.nodes))
    rows = study_rows(runner.study, runner.plan, runner.folder)
    write_table(rows, runner.folder.table)
    trained, alone = shared_cost(runner.plan, runner.folder)
    console.print(
        f"trained {trained.num_tokens:,} tokens; the same cells one by one: "
        f"{alone.num_tokens:,} ({trained.num_tokens / max(1, alone.num_tokens):.2f} of it)"
    )
    console.print(f"table: {runner.folder.table}")
