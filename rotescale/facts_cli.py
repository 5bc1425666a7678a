"""The commands about facts: list the shipped ones, generate more."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

facts_app = typer.Typer(help="Facts: list the shipped ones, generate more.", no_args_is_help=True)
console = Console()


@facts_app.command("list")
def facts_list() -> None:
    """The shipped relations, their sizes, languages and first prompts."""
    from rich.table import Table

    from rotescale.facts import load_shipped

    fact_set = load_shipped()
    table = Table("relation", "facts", "subject → object", "languages", "first train prompt")
    for relation in fact_set.relations:
        table.add_row(
            f"{relation.name} ({relation.wikidata_id})",
            str(len(fact_set.of(relation.name))),
            f"{relation.subject_type} → {relation.object_type}",
            ", ".join(relation.languages),
            relation.train_prompts[0],
        )
    console.print(table)


@facts_app.command("generate")
def facts_generate(
    relation: Annotated[str, typer.Argument(help="A shipped relation.")],
    out: Annotated[Path, typer.Argument(help="The CSV file to write.")],
    num_facts: Annotated[int, typer.Option("--num", help="How many facts.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the generator.")] = 0,
) -> None:
    """Write fictional facts, any number of them, as a CSV of subject and object."""
    import csv
    import io

    from rotescale.facts import iter_pairs
    from rotescale.storage import write_atomic

    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["subject", "object"])
    writer.writerows(iter_pairs(relation, num_facts=num_facts, seed=seed))
    write_atomic(out, text.getvalue().encode())
    console.print(f"{num_facts} facts of {relation}: {out}")
