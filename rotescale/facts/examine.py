"""Finds everything that is wrong with facts in one go, instead of refusing the first fault."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rotescale.facts.check import check_beginnings, check_num_options
from rotescale.facts.problems import Kind, Problem, Report
from rotescale.facts.rows import Row
from rotescale.facts.sources import read_source
from rotescale.facts.text import shown
from rotescale.spec import Facts

_BATCH_TEXTS = 1_000


class Tokenizer(Protocol):
    """What is asked of a tokenizer, as those of transformers answer it."""

    unk_token_id: int | None

    def __call__(self, text: Sequence[str], *, add_special_tokens: bool) -> Mapping[str, Any]: ...

    def batch_decode(
        self, sequences: Sequence[Sequence[int]], *, clean_up_tokenization_spaces: bool
    ) -> Sequence[str]: ...


@dataclass(frozen=True, slots=True)
class Examination:
    """What was found: all problems, by file and row, and how many rows could be read."""

    problems: tuple[Problem, ...]
    num_rows: int

    def counts(self) -> dict[str, int]:
        """Problems of each kind, the most frequent first."""
        found = Counter(problem.kind.value for problem in self.problems)
        return dict(found.most_common())


def examine(facts: Facts, *, tokenizer: Tokenizer | None = None) -> Examination:
    """Every problem of the facts of one source, and of its names with the tokenizer.

    Raises DataError where there is nothing to examine: a file, folder or dataset that cannot be
    read at all, or a relations file at fault.
    """
    problems: list[Problem] = []
    reading = read_source(facts, report=problems.append)
    reading.check(report=problems.append)
    check_num_options(reading.rows, report=problems.append)
    check_beginnings(reading.rows, report=problems.append)
    if tokenizer is not None:
        check_tokens(reading.rows, tokenizer, report=problems.append)
    files = {problem.place.file: None for problem in problems}
    order = {file: index for index, file in enumerate(files)}
    problems.sort(key=lambda problem: (order[problem.place.file], problem.place.row or 0))
    return Examination(tuple(problems), num_rows=len(reading.rows))


def check_tokens(rows: Sequence[Row], tokenizer: Tokenizer, *, report: Report) -> None:
    """Report names that the tokenizer cannot give back, each at the first row that has it."""
    places: dict[str, tuple[Row, str]] = {}
    for row in rows:
        places.setdefault(row.subject, (row, "subject"))
        places.setdefault(row.object, (row, "object"))
        if row.old_object is not None:
            places.setdefault(row.old_object, (row, "old_object"))
        for number, distractor in enumerate(row.distractors or (), start=1):
            places.setdefault(distractor, (row, f"distractor {number}"))
    texts = list(places)
    for start in range(0, len(texts), _BATCH_TEXTS):
        names = texts[start : start + _BATCH_TEXTS]
        encoded = tokenizer(names, add_special_tokens=False)["input_ids"]
        decoded = tokenizer.batch_decode(encoded, clean_up_tokenization_spaces=False)
        for name, ids, text in zip(names, encoded, decoded, strict=True):
            row, field = places[name]
            what = ""
            if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
                what = "has characters that the tokenizer does not know"
            elif text != name:
                what = f"comes back from the tokenizer as {shown(text)}"
            if what:
                what = f"{field} {shown(name)} {what}"
                remedy = "spell it otherwise, or use a model whose tokenizer keeps it"
                report(Problem(Kind.TOKENIZER, row.place, field, what, remedy))
