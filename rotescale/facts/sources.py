"""Loads, or only reads, the facts that an experiment spec names, whatever their source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rotescale.facts.capitals import load_capitals
from rotescale.facts.generate import generate
from rotescale.facts.hub import read_dataset
from rotescale.facts.load import Reading, load_shipped, read_files
from rotescale.facts.problems import Place, Report, refuse
from rotescale.facts.repair import repaired
from rotescale.facts.rows import Row
from rotescale.facts.trex import read_trex
from rotescale.facts.types import FactSet, combine
from rotescale.spec import (
    CapitalFacts,
    DatasetFacts,
    Facts,
    FileFacts,
    GeneratedFacts,
    ShippedFacts,
    TrexFacts,
)

Note = Callable[[str], object]
"""Is told what was repaired, a line at a time."""


def load_source(facts: Facts, *, note: Note = lambda _: None) -> FactSet:
    """The facts of one source, checked. Raises DataError for the first that is at fault."""
    match facts:
        case ShippedFacts():
            return load_shipped(facts.relations, chains=facts.chains)
        case GeneratedFacts():
            return combine(
                generate(relation, num_facts=facts.num_facts, seed=facts.seed)
                for relation in facts.relations
            )
        case CapitalFacts():
            return load_capitals(num_facts=facts.num_facts, seed=facts.seed)
        case FileFacts() | TrexFacts() | DatasetFacts():
            fact_set = read_source(facts, note=note).fact_set()
            return fact_set.only(facts.relations) if facts.relations else fact_set


def read_source(facts: Facts, *, report: Report = refuse, note: Note = lambda _: None) -> Reading:
    """The rows of one source, and its relations; what is wrong in a row is reported."""
    match facts:
        case FileFacts():
            return read_files(
                [Path(path) for path in facts.paths],
                relations=None if facts.relations_file is None else Path(facts.relations_file),
                columns=None if facts.columns is None else facts.columns.named(),
                report=report,
            )
        case TrexFacts():
            reading = read_trex(
                Path(facts.path),
                relations=facts.relations,
                relations_file=None if facts.relations_file is None else Path(facts.relations_file),
                report=report,
            )
            if not facts.repair:
                return reading
            rows, notes = repaired(reading.rows)
            for line in notes:
                note(f"{facts.path}, {line}")
            return replace(reading, rows=rows)
        case DatasetFacts():
            return read_dataset(facts, report=report)
        case ShippedFacts() | GeneratedFacts() | CapitalFacts():
            fact_set = load_source(facts)
            place = f"{facts.source} facts"
            rows = [
                Row(
                    *(Place(place, number), fact.relation, fact.subject, fact.object),
                    *(fact.distractors, fact.old_object),
                )
                for number, fact in enumerate(fact_set.facts, start=1)
            ]
            return Reading(rows, {relation.name: relation for relation in fact_set.relations})
