"""The commands about model editing: facts as EasyEdit's requests, and what its results say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from rotescale.errors import SpecError
from rotescale.facts import FactSet, load_source
from rotescale.facts_cli import ColumnNames, Prompts, say, sources_of
from rotescale.spec import ShippedFacts
from rotescale.storage import make_folder, write_atomic

easyedit_app = typer.Typer(
    help="Model editing with EasyEdit: requests out of facts, and its results read back.",
    no_args_is_help=True,
)
console = Console()

Sources = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="[PATH_OR_SPEC]...",
        help="Files of facts, a folder like T-REx-Fiction, or an experiment.",
    ),
]
Relations = Annotated[
    list[str] | None,
    typer.Option("--relation", help="Only these relations; without a source, of the shipped."),
]


@easyedit_app.command("export")
def easyedit_export(
    out: Annotated[Path, typer.Option(help="The JSON file to write.")],
    paths: Sources = None,
    relations: Relations = None,
    columns: ColumnNames = None,
    prompts: Prompts = None,
    facts_per_relation: Annotated[
        int | None,
        typer.Option(
            min=1, help="k facts of each relation, those that a phase draws; default: all."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of that draw: the experiment's.")] = 0,
    train_prompt: Annotated[int, typer.Option(help="Which train prompt is edited, from 0.")] = 0,
    test_prompt: Annotated[int, typer.Option(help="Which test prompt rephrases it, from 0.")] = 0,
) -> None:
    """Write facts as a list of EasyEdit's requests, one for each."""
    from rotescale.data.examples import select_facts
    from rotescale.facts.easyedit import edit_requests

    fact_set = _fact_set(paths, relations, columns=columns, prompts=prompts)
    places = select_facts(fact_set, facts_per_relation=facts_per_relation, seed=seed)
    requests = edit_requests(fact_set, places, train_prompt=train_prompt, test_prompt=test_prompt)
    make_folder(out.absolute().parent)
    write_atomic(out, json.dumps(requests, ensure_ascii=False, indent=1).encode())
    names = ", ".join(relation.name for relation in fact_set.relations)
    say(f"{len(requests)} requests of {names}: {out}")


@easyedit_app.command("import")
def easyedit_import(
    results: Annotated[
        Path,
        typer.Argument(metavar="RESULTS", help="The JSON file of metrics that EasyEdit saved."),
    ],
    paths: Sources = None,
    relations: Relations = None,
    columns: ColumnNames = None,
    prompts: Prompts = None,
    method: Annotated[str, typer.Option(help="The editor's name in the table.")] = "EasyEdit",
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Write the rows there, as `evaluate --json` does.")
    ] = None,
) -> None:
    """Show what EasyEdit reached on facts that were exported to it.

    `rotescale report RUN --easyedit METHOD=RESULTS` puts it beside a run about the same facts.
    """
    from rotescale.analysis.editing import editing_table, read_editing
    from rotescale.analysis.results import write_rows

    rows = read_editing(results, _fact_set(paths, relations, columns=columns, prompts=prompts))
    console.print(editing_table(rows, method=method))
    if json_path is not None:
        write_rows(rows, json_path)
        say(f"results: {json_path}")


def _fact_set(
    paths: list[Path] | None,
    relations: list[str] | None,
    *,
    columns: str | None,
    prompts: Path | None,
) -> FactSet:
    """The facts of one source; SpecError where there is none, or more."""
    if not paths and relations:
        return load_source(ShippedFacts(source="shipped", relations=tuple(relations)))
    found = sources_of(paths or [], columns=columns, prompts=prompts)
    if len(found) != 1:
        raise SpecError(
            f"{len(found)} sources of facts: name files, one folder or one experiment, or shipped "
            "relations with --relation"
        )
    fact_set = load_source(found[0])
    return fact_set.only(relations) if relations else fact_set
