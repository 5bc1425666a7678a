"""Facts, relations and prompts as data: the shipped set, a user's files, and a generator."""

from rotescale.facts.check import validate
from rotescale.facts.generate import generate, iter_pairs
from rotescale.facts.load import load_files, load_shipped
from rotescale.facts.prompts import load_relations, shipped_relations
from rotescale.facts.text import normalise
from rotescale.facts.types import (
    NUM_DISTRACTORS,
    SUBJECT_FIELD,
    Fact,
    FactSet,
    PromptSet,
    Relation,
    combine,
)

__all__ = [
    "NUM_DISTRACTORS",
    "SUBJECT_FIELD",
    "Fact",
    "FactSet",
    "PromptSet",
    "Relation",
    "combine",
    "generate",
    "iter_pairs",
    "load_files",
    "load_relations",
    "load_shipped",
    "normalise",
    "shipped_relations",
    "validate",
]
