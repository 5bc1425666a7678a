"""The commands about facts: list the shipped ones, generate more, check and import one's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rotescale.errors import DataError, SpecError
from rotescale.spec import Columns, ExperimentSpec, Facts, FileFacts, TrexFacts
from rotescale.spec_file import load_spec, parse_spec

if TYPE_CHECKING:
    from rotescale.facts import FactSet
    from rotescale.facts.examine import Examination, Tokenizer
    from rotescale.facts.problems import Kind

facts_app = typer.Typer(
    help="Facts: list the shipped ones, generate more, check and import your own.",
    no_args_is_help=True,
)
console = Console()

MOST_SHOWN = 100
"""Lines of the table; a file with another fault in every row would fill the terminal."""
MOST_ALIKE = 10
"""Lines about one kind of problem in one file, so that the other kinds are seen too."""
MOST_ROWS = 5
"""Rows that a line names, where one fault is in many."""

_SPEC_SUFFIXES = (".yaml", ".yml", ".json")

ColumnNames = Annotated[
    str | None,
    typer.Option(
        "--columns",
        metavar="PART=COLUMN,...",
        help="What files call subject, object, relation, distractors and old_object: "
        "subject=Person,...",
    ),
]
Prompts = Annotated[
    Path | None, typer.Option(help="YAML with the prompts of relations that are not shipped.")
]


@facts_app.command("list")
def facts_list() -> None:
    """The shipped relations, their sizes, languages and first prompts."""
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
    from rotescale.storage import make_folder, write_atomic

    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["subject", "object"])
    writer.writerows(iter_pairs(relation, num_facts=num_facts, seed=seed))
    make_folder(out.absolute().parent)
    write_atomic(out, text.getvalue().encode())
    console.print(f"{num_facts} facts of {relation}: {out}")


@facts_app.command("check")
def facts_check(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH_OR_SPEC...",
            help="CSV, TSV, JSONL or parquet files, folders like T-REx-Fiction, or experiments.",
        ),
    ],
    columns: ColumnNames = None,
    prompts: Prompts = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(metavar="FOLDER_OR_ID", help="Find also what its tokenizer cannot keep."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all problems as JSON.")] = False,
) -> None:
    """Find everything that is wrong with facts, in one go. Files are checked as one set.

    Exits with 1 where there is a problem, and with 2 where there is nothing to check.
    """
    from rotescale.facts.examine import examine

    sources = sources_of(paths, columns=columns, prompts=prompts)
    loaded = None if tokenizer is None else _load_tokenizer(tokenizer)
    found = [examine(facts, tokenizer=loaded) for facts in sources]
    if as_json:
        typer.echo(_as_json(found))
    else:
        _show(found)
    if any(examination.problems for examination in found):
        raise typer.Exit(1)


@facts_app.command("import")
def facts_import(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="PATH_OR_SPEC",
            help="A file of facts, a folder like T-REx-Fiction, or an experiment.",
        ),
    ],
    out: Annotated[Path, typer.Argument(help="The folder to write, empty or not there.")],
    columns: ColumnNames = None,
    prompts: Prompts = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Of a folder, drop what is twice, and say so.")
    ] = False,
) -> None:
    """Write any facts as rotescale's own files: a CSV per relation, and relations.yaml."""
    from rotescale.facts import load_source
    from rotescale.facts.export import RELATIONS_FILE, write_files

    (facts,) = sources_of([source], columns=columns, prompts=prompts)
    if repair and not isinstance(facts, TrexFacts):
        raise SpecError(f"--repair: {source} is no folder like T-REx-Fiction; leave it out")
    if isinstance(facts, TrexFacts):
        facts = facts.model_copy(update={"repair": facts.repair or repair})
    fact_set = load_source(facts, note=say)
    for path in write_files(fact_set, out):
        say(f"{len(fact_set.of(path.stem))} facts of {path.stem}: {path}")
    say(f"prompts: {out / RELATIONS_FILE}")


def sources_of(paths: list[Path], *, columns: str | None, prompts: Path | None) -> list[Facts]:
    """What the command line names, as a spec would name it; all plain files are one source.

    Raises SpecError for a path that is not there, and for bad columns.
    """
    for path in paths:
        if not path.exists():
            raise SpecError(f"{path}: no such file or folder; check the path")
    named = None if columns is None else parse_columns(columns)
    sources: list[Facts] = []
    files: list[str] = []
    for path in paths:
        if path.is_dir():
            sources.append(TrexFacts(source="trex", path=str(path)))
        elif path.suffix.lower() in _SPEC_SUFFIXES:
            sources.append(load_spec(ExperimentSpec, path).facts)
        else:
            files.append(str(path))
    if files:
        relations_file = None if prompts is None else str(prompts)
        sources.append(
            FileFacts(
                source="files", paths=tuple(files), columns=named, relations_file=relations_file
            )
        )
    elif named is not None or prompts is not None:
        option = "--prompts" if named is None else "--columns"
        raise SpecError(f"{option}: no file is given that it is about; leave it out")
    return sources


def facts_named(
    paths: list[Path], *, columns: str | None = None, prompts: Path | None = None
) -> FactSet | None:
    """The facts of what ``sources_of`` takes, in one set; None where nothing is named."""
    from rotescale.facts import combine, load_source

    if not paths:
        return None
    return combine(map(load_source, sources_of(paths, columns=columns, prompts=prompts)))


def parse_columns(text: str) -> Columns:
    """The columns of ``subject=Person,object=Mother``."""
    pairs = [part.partition("=") for part in text.split(",")]
    wrong = [part for part, separator, _ in pairs if not separator]
    parts = [part.strip() for part, _, _ in pairs]
    twice = [part for part in parts if parts.count(part) > 1]
    if wrong or twice:
        raise SpecError(
            f"--columns {text!r}: {(wrong or twice)[0]!r} is {'no pair' if wrong else 'twice'}; "
            "write it as subject=Person,object=Mother"
        )
    values = {part.strip(): column for part, _, column in pairs}
    return parse_spec(Columns, values, where="--columns")


def _load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of a model folder, or of a repository of the hub."""
    loaded: Tokenizer
    try:
        # transformers takes seconds to import, and is installed with rotescale[train] only.
        from transformers import AutoTokenizer

        from rotescale.model.folder import load_tokenizer
    except ImportError as error:
        raise DataError(
            "--tokenizer: transformers is not installed; install rotescale[train]"
        ) from error
    if Path(name).is_dir():
        loaded = load_tokenizer(Path(name))
        return loaded
    try:
        loaded = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"--tokenizer {name}: cannot be loaded ({reason[:300]}); give a model's folder, or "
            "an id of the hub and a network"
        ) from error
    return loaded


def _as_json(found: list[Examination]) -> str:
    problems = [
        {
            "file": problem.place.file,
            "row": problem.place.row,
            "field": problem.field or None,
            "kind": problem.kind.value,
            "problem": problem.what,
            "remedy": problem.remedy,
        }
        for examination in found
        for problem in examination.problems
    ]
    counts = _counts(found)
    num_rows = sum(examination.num_rows for examination in found)
    return json.dumps({"rows": num_rows, "counts": counts, "problems": problems}, indent=1)


def _counts(found: list[Examination]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for examination in found:
        for kind, number in examination.counts().items():
            counts[kind] = counts.get(kind, 0) + number
    return counts


def _show(found: list[Examination]) -> None:
    """A table of the problems, equal ones of a file in one line, and how many of each kind."""
    problems = [problem for examination in found for problem in examination.problems]
    num_rows = sum(examination.num_rows for examination in found)
    if not problems:
        say(f"{num_rows} rows: no problems")
        return
    rows_of: dict[tuple[str, Kind, str, str, str], list[int]] = {}
    for problem in problems:
        key = (problem.place.file, problem.kind, problem.field, problem.what, problem.remedy)
        rows = rows_of.setdefault(key, [])
        if problem.place.row is not None:
            rows.append(problem.place.row)
    table = Table("file", "rows", "field", "problem", "remedy")
    alike: dict[tuple[str, Kind], int] = {}
    for (file, kind, field, what, remedy), rows in rows_of.items():
        alike[file, kind] = alike.get((file, kind), 0) + 1
        if alike[file, kind] > MOST_ALIKE or table.row_count == MOST_SHOWN:
            continue
        shown = ", ".join(map(str, rows[:MOST_ROWS]))
        if len(rows) > MOST_ROWS:
            shown += f" and {len(rows) - MOST_ROWS} more"
        table.add_row(*(Text(cell, overflow="fold") for cell in (file, shown, field, what, remedy)))
    console.print(table)
    if left := len(rows_of) - table.row_count:
        say(f"and {left} more lines of these kinds; --json lists every problem")
    for name, number in _counts(found).items():
        say(f"{number:>8} {name}")
    say(f"{len(problems)} problems; {num_rows} rows could be read")


def say(line: str) -> None:
    """Print the line as it is: names of files and relations may hold what rich would style."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)
