"""Loads the shipped facts, or a user's own from CSV and JSONL files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rotescale.errors import DataError
from rotescale.facts.check import unknown_relation, validate
from rotescale.facts.options import ObjectPool, check_pool
from rotescale.facts.prompts import (
    SHIPPED_DIR,
    load_relations,
    shipped_relation,
    shipped_relations,
)
from rotescale.facts.rows import Row, read_rows
from rotescale.facts.types import Fact, FactSet, Relation

__all__ = ["load_files", "load_relations", "load_shipped"]


def load_shipped(relations: Sequence[str] | None = None) -> FactSet:
    """The shipped fictional facts of those relations, in that order; default: all six.

    The distractors of a fact are the relation's 99 other objects, the hardest there are: the
    model memorized every one of them as an answer.
    """
    names = tuple(shipped_relations()) if relations is None else tuple(relations)
    for name in names:
        shipped_relation(name)
        if names.count(name) > 1:
            raise DataError(f"relation {name!r} is asked for twice in {names}; name it once")
    return load_files([SHIPPED_DIR / f"{name}.csv" for name in names])


def load_files(
    paths: Sequence[Path], *, relations: Mapping[str, Relation] | Path | None = None
) -> FactSet:
    """The facts of CSV and JSONL files, in order, checked.

    A row has ``subject`` and ``object``; ``relation`` may be left to the file's name (or to
    ``relations``, if it has only one), and ``distractors`` (a JSON list) to the relation's other
    objects. Prompts come from ``relations``, which may be a YAML file; else from the shipped ones.
    """
    given = load_relations(relations) if isinstance(relations, Path) else dict(relations or {})
    known = {**shipped_relations(), **given}
    rows: list[Row] = []
    names: list[str] = []
    for path in map(Path, paths):
        default = _relation_of_file(path, known=known, given=given)
        for row in read_rows(path):
            name = row.relation if row.relation is not None else default
            if name not in known:
                raise DataError(unknown_relation(name, set(known), where=row.where))
            rows.append(row)
            names.append(name)
        if not rows or rows[-1].path != path:
            raise DataError(f"facts file {path} holds no facts; give at least one row, or drop it")
    fact_set = FactSet(
        relations=tuple(known[name] for name in dict.fromkeys(names)),
        facts=_with_distractors(rows, names),
    )
    validate(fact_set, where=lambda index: rows[index].where)
    return fact_set


def _relation_of_file(
    path: Path, *, known: Mapping[str, Relation], given: Mapping[str, Relation]
) -> str:
    """The relation of rows that name none."""
    if path.stem not in known and len(given) == 1:
        return next(iter(given))
    return path.stem


def _with_distractors(rows: Sequence[Row], names: Sequence[str]) -> tuple[Fact, ...]:
    """The rows as facts; a relation that gives no distractors draws them from its own objects."""
    of_relation: dict[str, list[Row]] = {}
    for row, name in zip(rows, names, strict=True):
        of_relation.setdefault(name, []).append(row)
    pools = {name: _pool(name, members) for name, members in of_relation.items()}
    facts = []
    for row, name in zip(rows, names, strict=True):
        distractors = row.distractors
        if distractors is None:
            distractors = pools[name].distractors(name, row.subject, gold=row.object)
        facts.append(Fact(name, row.subject, row.object, distractors))
    return tuple(facts)


def _pool(name: str, rows: Sequence[Row]) -> ObjectPool:
    """The objects that a relation's facts draw from; empty where its rows give distractors."""
    without = [row for row in rows if row.distractors is None]
    if not without:
        return ObjectPool(())
    if len(without) < len(rows):
        raise DataError(
            f"{without[0].where}: no distractors, but other rows of relation {name!r} have them; "
            "give them in all of its rows or in none"
        )
    check_pool(name, [(row.object, row.where) for row in rows])
    return ObjectPool(row.object for row in rows)
