"""Loads the shipped facts, or a user's own from CSV, TSV, JSONL and parquet files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rotescale.errors import DataError
from rotescale.facts.check import by_relation, check_rows, rows_of_known_relations
from rotescale.facts.layouts import layout_of
from rotescale.facts.options import ObjectPool
from rotescale.facts.problems import Report, refuse
from rotescale.facts.prompts import (
    SHIPPED_DIR,
    load_relations,
    shipped_relation,
    shipped_relations,
)
from rotescale.facts.rows import Row, read_rows
from rotescale.facts.types import Fact, FactSet, Relation

__all__ = ["load_files", "load_relations", "load_shipped"]

Relations = Mapping[str, Relation] | Path | None


@dataclass(frozen=True, slots=True)
class Reading:
    """What a source gives: rows of sound texts, and the relations that have prompts."""

    rows: Sequence[Row]
    relations: Mapping[str, Relation]

    def check(self, *, report: Report = refuse) -> list[Row]:
        """Report every fault of and between the rows; returns those of known relations."""
        rows = rows_of_known_relations(self.rows, self.relations, report=report)
        check_rows(self.rows, report=report)
        return rows

    def fact_set(self) -> FactSet:
        """The rows as facts. Raises DataError for the first that is at fault."""
        rows = self.check()
        if not rows:
            raise DataError("there are no facts; give at least one row of subject and object")
        names = dict.fromkeys(row.relation for row in rows)
        return FactSet(
            relations=tuple(self.relations[name] for name in names),
            facts=_with_distractors(rows),
        )


def load_shipped(relations: Sequence[str] | None = None, *, chains: bool = False) -> FactSet:
    """The shipped fictional facts of those relations, in that order; default: all six.

    ``chains`` adds the facts that go on from an object: educated_at of the mothers.

    The distractors of a fact are the relation's 99 other objects, the hardest there are: the
    model memorized every one of them as an answer.
    """
    names = tuple(shipped_relations()) if relations is None else tuple(relations)
    for name in names:
        shipped_relation(name)
        if names.count(name) > 1:
            raise DataError(f"relation {name!r} is asked for twice in {names}; name it once")
    paths = [SHIPPED_DIR / f"{name}.csv" for name in names]
    if chains:
        paths.append(SHIPPED_DIR / "chains" / "educated_at.csv")
    return load_files(paths)


def load_files(
    paths: Sequence[Path],
    *,
    relations: Relations = None,
    columns: Mapping[str, str] | None = None,
) -> FactSet:
    """The facts of CSV, TSV, JSONL and parquet files, in order, checked.

    A row has ``subject`` and ``object``; ``relation`` may be left to the file's name (or to
    ``relations``, if it has only one), and ``distractors`` (a JSON list) to the relation's other
    objects. ``old_object`` is what a model is expected to hold before; it stands among distractors
    that are given, and is put among those that are drawn. ``columns`` maps these five to the files'
    own names. Prompts come from ``relations``, which may be a YAML file; else from the shipped
    ones. Raises DataError for the first fault.
    """
    return read_files(paths, relations=relations, columns=columns).fact_set()


def read_files(
    paths: Sequence[Path],
    *,
    relations: Relations = None,
    columns: Mapping[str, str] | None = None,
    report: Report = refuse,
) -> Reading:
    """The rows of the files, as ``load_files`` takes them; what is wrong in a row is reported."""
    known, given = known_relations(relations)
    layout = layout_of(columns)
    rows: list[Row] = []
    for path in map(Path, paths):
        default = path.stem
        if path.stem not in known and len(given) == 1:
            default = next(iter(given))
        rows += read_rows(path, relation=default, layout=layout, report=report)
    return Reading(rows, known)


def known_relations(relations: Relations) -> tuple[dict[str, Relation], dict[str, Relation]]:
    """All relations that have prompts, and those among them that were given."""
    given = load_relations(relations) if isinstance(relations, Path) else dict(relations or {})
    return {**shipped_relations(), **given}, given


def _with_distractors(rows: Sequence[Row]) -> tuple[Fact, ...]:
    """The rows as facts; a relation that gives no distractors draws them from its own objects."""
    pools = {
        name: ObjectPool(row.object for row in members)
        for name, members in by_relation(rows).items()
        if members[0].distractors is None
    }
    facts = []
    for row in rows:
        distractors = row.distractors
        if distractors is None:
            pool = pools[row.relation]
            distractors = pool.distractors(
                row.relation, row.subject, gold=row.object, old_object=row.old_object
            )
        facts.append(Fact(row.relation, row.subject, row.object, distractors, row.old_object))
    return tuple(facts)
