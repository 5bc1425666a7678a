"""The command that says what an experiment would take on a place, before anything starts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from rotescale.launch_spec import LaunchSpec
from rotescale.planning.advice import duration, gigabytes, money
from rotescale.planning.architecture import architecture_of
from rotescale.planning.place import node_of
from rotescale.planning.plan import Plan, make_plan
from rotescale.planning.workload import count_work
from rotescale.spec import ExperimentSpec
from rotescale.spec_file import load_spec

_BAR = 28
_DOES_NOT_FIT = 1


def plan(
    spec_path: Annotated[
        Path, typer.Argument(metavar="EXPERIMENT", help="An experiment spec (YAML).")
    ],
    on: Annotated[
        Path | None, typer.Option(help="A launch spec (YAML); default: two local workers.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Override a field of the experiment."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Plan for so many workers instead of the profile's.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="The model's config.json, where it is not known here.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Say what an experiment takes on a place, before anything starts: memory, time and cost.

    Arithmetic alone: no weights are fetched. Ends with 0 where it fits, with 1 where it does not.
    """
    spec = load_spec(ExperimentSpec, spec_path, overrides or [])
    launch = LaunchSpec() if on is None else load_spec(LaunchSpec, on)
    if workers is not None:
        launch = launch.model_copy(update={"num_workers": (workers, workers)})
    made = make_plan(
        spec,
        launch,
        node_of(launch),
        architecture=architecture_of(spec.model.weights, config=config),
        work=count_work(spec),
    )
    if as_json:
        print(json.dumps(made.as_dict(), indent=2))
    else:
        Console(highlight=False).print(page(made))
    if not made.fits:
        raise typer.Exit(_DOES_NOT_FIT)


def page(made: Plan) -> RenderableType:
    """The plan for a person: what it takes, and at the end whether it fits."""
    parts = [
        _title(made),
        _model(made),
        _memory(made),
        _host(made),
        _steps(made),
        _time(made),
        _remedies(made),
        _verdict(made),
    ]
    return Group(*(Padding(part, (0, 0, 1, 0)) for part in parts if part is not None))


def _title(made: Plan) -> Text:
    workers = f"{made.num_workers} worker{'s' if made.num_workers > 1 else ''}"
    place = f"{made.num_nodes} × {made.node.name}"
    if made.on_gpu:
        place += (
            f" (8 × {made.node.gpu})" if made.node.gpus_per_node == 8 else f" ({made.node.gpu})"
        )
    least, most = made.workers
    elastic = f" of {least} to {most}" if least != most else ""
    return Text.assemble(
        (made.experiment, "bold"), f" on {made.profile}: {workers}{elastic}, {place}"
    )


def _model(made: Plan) -> Table:
    sizes = made.sizes
    table = _plain()
    table.add_row("model", f"{made.model}, {sizes.published:,} parameters{_grown(made)}")
    table.add_row("training state", "\n".join(_state(made)))
    longest = max((phase.full_save for phase in made.phases), key=lambda save: save.high)
    table.add_row(
        "checkpoint",
        f"{gigabytes(sizes.checkpoint)} full (12 B/parameter), written in {duration(longest)}; "
        f"{gigabytes(sizes.weights_checkpoint)} at a phase's end; "
        f"up to {gigabytes(sizes.disk)} of storage in all",
    )
    if sizes.offload_disk:
        table.add_row("own disk", f"{gigabytes(sizes.offload_disk)} of each node's, offloaded")
    asked, work = made.work.evaluation, made.work
    table.add_row(
        "training",
        f"{work.num_facts:,} facts of {work.num_relations} "
        f"relation{'s' if work.num_relations > 1 else ''}, "
        f"about {made.tokens:,} tokens, {made.flops:.1e} FLOPs",
    )
    table.add_row(
        "evaluation",
        f"{asked.num_questions:,} questions and {asked.num_generated:,} generated answers, "
        f"{work.measurements} times, {made.evaluation_mode}",
    )
    return table


def _state(made: Plan) -> Iterator[str]:
    sizes, number = made.sizes, made.num_workers
    each = sizes.state_per_parameter
    yield (
        f"{each} B/parameter: {gigabytes(sizes.state)} ÷ {number} = "
        f"{gigabytes(sizes.state_per_worker)} per worker"
    )
    smaller = sizes.state_with_bf16_gradients
    if made.on_gpu and smaller < sizes.state:
        yield (
            f"{each - 2} B/parameter with bf16 gradients: {gigabytes(smaller)} ÷ {number} = "
            f"{gigabytes(smaller / number)}"
        )


def _grown(made: Plan) -> str:
    sizes, said = made.sizes, []
    if sizes.total != sizes.published:
        said.append(f"{sizes.total:,} as it is trained")
    if sizes.trainable != sizes.total:
        said.append(f"{sizes.trainable:,} of them learn")
    return f" ({', '.join(said)})" if said else ""


def _memory(made: Plan) -> Table:
    """A row per part, a column per moment, and a bar of the moment that takes most."""
    fullest = max(made.device, key=lambda name: made.device[name].total)
    limit = made.node.gpu_bytes if made.on_gpu else made.node.host_bytes // made.num_workers
    where = f"one {made.node.gpu}" if made.on_gpu else "one worker"
    table = Table(title=f"memory of {where}, GB", title_justify="left", box=None, padding=(0, 1))
    table.add_column("part")
    for name in made.device:
        table.add_column(name, justify="right", style="bold" if name == fullest else "")
    table.add_column(f"{fullest}, of {gigabytes(limit)}")
    rows = zip(*(moment.parts() for moment in made.device.values()), strict=True)
    for row in rows:
        size = dict(row)
        values = [value for _, value in row]
        name = next(iter(size))
        bar = dict(made.device[fullest].parts())[name]
        table.add_row(name, *(_number(value) for value in values), _bar(bar, limit))
    totals = [moment.total for moment in made.device.values()]
    table.add_section()
    style = "red" if made.device[fullest].total > limit else "green"
    table.add_row(
        "all", *(_number(value) for value in totals), Text(_bar(max(totals), limit), style)
    )
    return table


def _host(made: Plan) -> Text:
    parts = ", ".join(f"{name} {gigabytes(size)}" for name, size in made.host.parts() if size)
    return Text(
        f"host memory of a node: {gigabytes(made.host.total)} of "
        f"{gigabytes(made.node.host_bytes)} ({parts})"
    )


def _steps(made: Plan) -> Table:
    table = Table(box=None, padding=(0, 1))
    for heading in ("phase", "steps", "batch", "one step", "computes", "communicates", "of it"):
        table.add_column(heading, justify="left" if heading == "phase" else "right")
    for phase, work in zip(made.phases, made.work.phases, strict=True):
        step = phase.step
        table.add_row(
            phase.name,
            f"{work.steps:,}",
            f"{work.global_batch:,}",
            duration(step.total),
            duration(step.compute),
            duration(step.communication) if made.num_workers > 1 else "-",
            f"{step.communication_share:.0%}" if made.num_workers > 1 else "-",
        )
    return table


def _time(made: Plan) -> Table:
    table = Table(box=None, padding=(0, 1))
    table.add_column("time")
    table.add_column("", justify="right")
    table.add_column("")
    total = made.total_seconds
    for name, part in made.seconds.items():
        table.add_row(name, duration(part), _bar(part.middle, total.middle))
    table.add_row("in all", Text(duration(total), "bold"))
    if made.cost is not None:
        table.add_row("cost", Text(money(made.cost), "bold"))
    return table


def _remedies(made: Plan) -> Table | None:
    if not made.remedies:
        return None
    where = made.node.gpu if made.on_gpu else "worker"
    table = Table(box=None, padding=(0, 1))
    table.add_column("to fit on less", overflow="fold")
    table.add_column(f"each {where} on as many", justify="right")
    table.add_column("fits from", justify="right")
    smallest = "never" if made.smallest is None else str(made.smallest)
    table.add_row("as it is", gigabytes(made.device_peak), smallest)
    for remedy in made.remedies:
        setting = remedy.setting + ("  (changes results)" if remedy.changes_results else "")
        lacks = f" (lacks {' and '.join(remedy.lacks)})" if remedy.lacks else ""
        fits_from = "never" if remedy.smallest is None else str(remedy.smallest)
        table.add_row(setting, gigabytes(remedy.device_peak) + lacks, fits_from)
    return table


def _verdict(made: Plan) -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column()
    table.add_column(overflow="fold")
    word = Text("It fits.", "bold green") if made.fits else Text("It does not fit.", "bold red")
    table.add_row("", word)
    for line in made.reasons:
        table.add_row("", line)
    for note in _notes(made):
        table.add_row("-", note)
    return table


def _notes(made: Plan) -> Iterator[str]:
    yield from made.notes
    if made.on_gpu and made.cost is None:
        yield "The profile names no price; with node.price_per_hour the plan tells the cost."
    yield "All of this is arithmetic; none has been compared with a GPU yet (docs/planning.md)."


def _plain() -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    return table


def _number(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f}" if num_bytes >= 5e7 or not num_bytes else "<0.1"


def _bar(size: float, limit: float) -> str:
    """As much of the bar as ``size`` is of ``limit``, with what is beyond it marked."""
    filled = round(_BAR * size / limit)
    if filled > _BAR:
        return "█" * _BAR + "▶"
    return "█" * filled or ("▏" if size else "")
