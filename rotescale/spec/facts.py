"""Which facts: those that ship, generated ones, files, folders, datasets, capitals."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from rotescale.spec.base import Part

TABLE_SUFFIXES = (".csv", ".jsonl", ".tsv", ".parquet")
"""How names of files of facts end."""


class ShippedFacts(Part):
    """The fictional set that ships with rotescale."""

    source: Literal["shipped"]
    relations: tuple[str, ...] = Field(min_length=1)
    """Which of the shipped relations."""
    chains: bool = False
    """Also 100 facts of educated_at about the mothers of the relation mother, for two hops."""

    @model_validator(mode="after")
    def _chains_need_mothers(self) -> ShippedFacts:
        if self.chains and "mother" not in self.relations:
            raise ValueError(f"chains go on from relation mother; name it beside {self.relations}")
        return self


class GeneratedFacts(Part):
    """Fictional facts made from a seed."""

    source: Literal["generated"]
    relations: tuple[str, ...] = Field(min_length=1)
    """Relations whose prompts are used."""
    num_facts: PositiveInt = 100
    """Facts per relation."""
    seed: NonNegativeInt = 0
    """Seed of the generator."""


class Columns(Part):
    """What a file calls the parts of a fact. Columns that are not named here are ignored."""

    subject: str = "subject"
    """The column of subjects."""
    object: str = "object"
    """The column of objects."""
    relation: str | None = None
    """The column of relations; default: none, all rows are of one relation."""
    distractors: str | None = None
    """The column of lists of distractors; default: none, they are drawn from the objects."""
    old_object: str | None = None
    """The column of what a model is expected to hold before it is told the object; default: none.
    A cell may be empty."""

    @model_validator(mode="after")
    def _distinct(self) -> Columns:
        names = list(self.named().values())
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(
                f"column {twice[0]!r} is named twice; name a column of its own for each part"
            )
        return self

    def named(self) -> dict[str, str]:
        """Part of a fact -> column, without the parts that have none."""
        return {part: name for part, name in self if name is not None}


class FileFacts(Part):
    """Facts from CSV, TSV, JSONL or parquet files."""

    source: Literal["files"]
    paths: tuple[str, ...] = Field(min_length=1)
    """CSV, TSV, JSONL or parquet files."""
    columns: Columns | None = None
    """What the files call subject, object, relation, distractors and old_object; default: that."""
    relations: tuple[str, ...] = ()
    """Which of the files' relations; default: all of them."""
    relations_file: str | None = None
    """YAML with the prompts of relations that are not shipped."""


class TrexFacts(Part):
    """Facts and prompts from a folder laid out like T-REx-Fiction."""

    source: Literal["trex"]
    path: str
    """The folder: a CSV per relation, prompts in ``prompt_template/<relation>/``."""
    relations: tuple[str, ...] = ()
    """Which of the folder's relations; default: all of them."""
    relations_file: str | None = None
    """YAML with prompts, translations too, of relations that take theirs from it instead."""
    repair: bool = False
    """Drop what is twice, and objects among their distractors, instead of refusing it."""


class DatasetFacts(Part):
    """Facts from a Hugging Face dataset."""

    source: Literal["dataset"]
    dataset: str
    """Its id on the hub, or the path of a folder or of one data file."""
    config: str | None = None
    """The dataset's configuration, where it has several."""
    split: str = "train"
    """The split whose rows are the facts."""
    revision: str | None = None
    """Branch, tag or commit; default: the main branch. A run holds on to the facts it began with,
    so a commit keeps it able to start again."""
    columns: Columns | None = None
    """What the dataset calls subject, object, relation, distractors and old_object; default:
    that."""
    relation: str | None = None
    """The relation of all rows, where no column holds it."""
    relations: tuple[str, ...] = ()
    """Which of the dataset's relations; default: all of them."""
    relations_file: str | None = None
    """YAML with the prompts of relations that are not shipped."""


class CapitalFacts(Part):
    """Real countries, each told another one's capital: for the suite conflict."""

    source: Literal["capitals"]
    num_facts: int = Field(default=100, ge=2)
    """How many countries, the most populous first."""
    seed: NonNegativeInt = 0
    """Which country is told which of their capitals."""


Facts = Annotated[
    ShippedFacts | GeneratedFacts | FileFacts | TrexFacts | DatasetFacts | CapitalFacts,
    Field(discriminator="source"),
]
