"""Reads folders laid out like T-REx-Fiction: a CSV per relation, and prompts in CSVs beside."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from anyascii import anyascii

from rotescale.errors import DataError
from rotescale.facts.layouts import TREX, Layout, check_columns
from rotescale.facts.load import Reading
from rotescale.facts.problems import Kind, Place, Problem, Report, refuse, text_problem
from rotescale.facts.prompts import load_relations
from rotescale.facts.rows import Row, read_rows
from rotescale.facts.tables import open_text, read_table
from rotescale.facts.text import normalise, text_fault
from rotescale.facts.types import SUBJECT_FIELD, Relation

PROMPT_FOLDER = "prompt_template"
HEAD_FIELD = "{head}"

# The kinds of prompts, as their files are called; the last may be left out.
_PROMPT_FILES = ("train", "test", "unrelated")
_PROMPTS = Layout({"prompt": "question"}, named=True, lists=None)
_Prompt = tuple[str, Place]


def legal_name(stem: str) -> str:
    """A relation's name made of a file's: each run of other characters becomes one ``_``.

    Letters of English, digits, ``_`` and ``-`` stay, and other scripts are written in those
    letters. ``_`` at either end goes, and a name that does not begin with a letter then gets ``r_``
    before it.
    """
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", anyascii(stem)).strip("_")
    return name if re.match(r"[A-Za-z]", name) else f"r_{name}"


def read_trex(
    folder: Path,
    *,
    relations: Sequence[str] = (),
    relations_file: Path | None = None,
    report: Report = refuse,
) -> Reading:
    """The facts and prompts of those relations (default: all) of the folder.

    Relations of ``relations_file`` have the prompts, and translations, that stand there. Raises
    DataError where the folder or a relation is missing, or for a fault of that file; the rest is
    reported.
    """
    given = {} if relations_file is None else load_relations(relations_file)
    files = _relation_files(folder)
    for name in relations:
        if name not in files:
            raise DataError(
                f"{folder}: holds no relation {name!r}; name one of: {', '.join(files)}"
            )
    rows: list[Row] = []
    known: dict[str, Relation] = {}
    for name in relations or files:
        rows += read_rows(files[name], relation=name, layout=TREX, report=report)
        prompts = folder / PROMPT_FOLDER / files[name].stem
        known[name] = given.get(name) or _relation(name, prompts, report=report)
    return Reading(rows, known)


def _relation_files(folder: Path) -> dict[str, Path]:
    """The CSV of each relation, by the relation's name, in the order of names."""
    if not folder.is_dir():
        raise DataError(f"{folder}: is no folder; give one that holds a CSV per relation")
    files: dict[str, Path] = {}
    for path in sorted(folder.glob("*.csv")):
        earlier = files.setdefault(legal_name(path.stem), path)
        if earlier != path:
            raise DataError(
                f"{path}: names the same relation as {earlier}, {legal_name(path.stem)!r}; "
                "rename one of them"
            )
    if not files:
        raise DataError(
            f"{folder}: holds no .csv file; give the folder with one CSV per relation, with the "
            f"columns {', '.join(TREX.columns.values())}"
        )
    return files


def _relation(name: str, folder: Path, *, report: Report) -> Relation:
    """The relation with the prompts of its folder."""
    prompts: dict[str, tuple[str, ...]] = {}
    seen: dict[str, Place] = {}
    for kind in _PROMPT_FILES:
        path = folder / f"{kind}.csv"
        prompts[kind] = ()
        if path.is_file():
            found = _distinct(_read_prompts(path, report=report), seen, report=report)
            prompts[kind] = tuple(found)
        elif kind != "unrelated":
            what = f"there is no such file, and relation {name!r} takes its {kind} prompts from it"
            remedy = f"write it, with a column question of texts that hold {HEAD_FIELD}"
            report(Problem(Kind.PROMPT, Place(str(path)), "", what, remedy))
    return Relation(
        name=name,
        wikidata_id="",
        subject_type="",
        object_type="",
        train_prompts=prompts["train"],
        test_prompts=prompts["test"],
        unrelated_prompts=prompts["unrelated"],
    )


def _read_prompts(path: Path, *, report: Report) -> list[_Prompt]:
    """The sound prompts of one file, with the subject's place spelt rotescale's way."""

    def header(columns: list[str], place: Place) -> bool:
        return check_columns(columns, _PROMPTS, place=place, report=report)

    prompts: list[_Prompt] = []
    num_rows = 0
    with open_text(path) as file:
        for line, record in read_table(file, path, delimiter=",", header=header, report=report):
            num_rows += 1
            place = Place(str(path), line)
            text = _prompt(str(record["question"]), place, report=report)
            if text is not None:
                prompts.append((text, place))
    if not num_rows:
        what, remedy = "holds no prompts", "give at least one row below the header question"
        report(Problem(Kind.PROMPT, Place(str(path)), "question", what, remedy))
    return prompts


def _prompt(text: str, place: Place, *, report: Report) -> str | None:
    """The prompt with ``{subject}`` for ``{head}``, other braces left alone; None if faulty."""
    fault = text_fault(text)
    if fault is not None:
        report(text_problem(fault, place=place, field="question"))
        return None
    number = text.count(HEAD_FIELD)
    what, remedy = f"holds {HEAD_FIELD} {number} times", "write it exactly once"
    if number == 1 and SUBJECT_FIELD in text:
        what, remedy = f"holds {SUBJECT_FIELD}, which would be filled in as well", "reword it"
    elif number == 1:
        return text.replace(HEAD_FIELD, SUBJECT_FIELD)
    report(Problem(Kind.PROMPT, place, "question", f"question {text!r} {what}", remedy))
    return None


def _distinct(prompts: Sequence[_Prompt], seen: dict[str, Place], *, report: Report) -> list[str]:
    """The prompts that are not among those seen: one that is trained on would test nothing."""
    kept = []
    for prompt, place in prompts:
        earlier = seen.setdefault(normalise(prompt), place)
        if earlier is place:
            kept.append(prompt)
            continue
        what = f"question {prompt!r} is the same as that at {earlier}"
        report(Problem(Kind.PROMPT, place, "question", what, "word it differently"))
    return kept
