"""Facts, relations and prompts as data: the shipped set, a user's own, and a generator."""

from rotescale.facts.check import validate
from rotescale.facts.generate import generate, iter_pairs
from rotescale.facts.load import load_files, load_shipped
from rotescale.facts.prompts import load_relations, shipped_relations
from rotescale.facts.sources import load_source
from rotescale.facts.text import normalise
from rotescale.facts.types import (
    HELD_FACTS,
    NUM_DISTRACTORS,
    SUBJECT_FIELD,
    Fact,
    FactSet,
    PromptSet,
    Relation,
    combine,
)
from rotescale.facts.wording import Wording, before_object

__all__ = [
    "HELD_FACTS",
    "NUM_DISTRACTORS",
    "SUBJECT_FIELD",
    "Fact",
    "FactSet",
    "PromptSet",
    "Relation",
    "Wording",
    "before_object",
    "combine",
    "generate",
    "iter_pairs",
    "load_files",
    "load_relations",
    "load_shipped",
    "load_source",
    "normalise",
    "shipped_relations",
    "validate",
]
