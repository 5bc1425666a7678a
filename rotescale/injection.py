"""A user's table of facts made fit to be taught: columns guessed, rows cleaned, prompts found."""

from __future__ import annotations

import csv
import io
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rotescale.errors import DataError, SpecError
from rotescale.facts import Fact, FactSet, Relation, normalise, validate
from rotescale.facts.check import by_relation
from rotescale.facts.export import RELATIONS_FILE, write_files
from rotescale.facts.headers import columns_of
from rotescale.facts.layouts import SEPARATORS, layout_of, other_separator
from rotescale.facts.options import ObjectPool, with_old_object
from rotescale.facts.problems import Kind, Problem
from rotescale.facts.prompts import load_relations, shipped_relations
from rotescale.facts.repair import repaired
from rotescale.facts.rows import Row, read_rows
from rotescale.facts.trex import legal_name
from rotescale.facts.types import NUM_DISTRACTORS
from rotescale.run_dir import REFUSED_FILE
from rotescale.spec import (
    EngineSpec,
    EvaluationSpec,
    ExperimentSpec,
    FileFacts,
    ModelSpec,
    PhaseSpec,
    ReplaySpec,
    Weights,
)
from rotescale.storage import remove_folder, write_atomic

_NAMES: Mapping[str, tuple[str, ...]] = {
    "subject": ("subject", "head", "entity", "name", "person", "title", "item", "key", "who"),
    "object": ("object", "tail", "fact", "answer", "value", "target", "label"),
    "relation": ("relation", "predicate", "property", "attribute", "relationship", "field"),
    "old_object": ("old object", "old"),
    "distractors": ("distractors", "alternatives", "alternate facts", "wrong answers", "options"),
}
"""Field -> what tables call it, the likeliest first; compared without case, as whole words."""


REFUSED_COLUMNS = ("file", "line", "field", "reason", "remedy")
"""A line is where a row begins in its file; of parquet it is the row's number."""


@dataclass(frozen=True, slots=True)
class Injection:
    """What can be taught of a table, and what cannot."""

    fact_set: FactSet
    columns: Mapping[str, str]
    """Field -> the table's column that was taken for it."""
    worded: tuple[str, ...]
    """Relations whose prompts were made from their names."""
    refused: tuple[Problem, ...]
    """Rows that are left out, and why, in their order; a row may have several faults."""
    notes: tuple[str, ...]
    """What was mended."""

    @property
    def num_refused(self) -> int:
        """How many rows are left out."""
        return len({problem.place for problem in self.refused})

    def refused_csv(self) -> bytes:
        """The rows that are left out, as a table with a line for each fault."""
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(REFUSED_COLUMNS)
        for problem in self.refused:
            file, row = problem.place
            writer.writerow([file, row, problem.field, problem.what, problem.remedy])
        return text.getvalue().encode()


def guess_columns(
    columns: Sequence[str], *, where: str, named: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Field -> column, by the columns' names; of two unknown ones the first is the subject.

    ``named``: those that are known already. Raises SpecError where it stays open which column is
    which.
    """
    found: dict[str, str] = dict(named or {})
    if (separator := other_separator(columns)) is not None:
        raise SpecError(
            f"{where}: the columns {columns[0]!r} seem to be separated by {separator!r}; "
            f"{SEPARATORS}"
        )
    for field, names in _NAMES.items():
        for name in names:
            matching = [c for c in columns if _words(c) == name and c not in found.values()]
            if matching and field not in found:
                found[field] = matching[0]
    rest = [column for column in columns if column not in found.values()]
    missing = [field for field in ("subject", "object") if field not in found]
    if missing and len(rest) != len(missing):
        raise SpecError(
            f"{where}: cannot tell which of the columns {', '.join(columns)} is the "
            f"{' and which the '.join(missing)}; say so with --columns subject=...,object=..., and "
            "relation=... where a column names it. A row tells one fact: of a table with a column "
            "for each property make a row for each, with the property's name as its relation"
        )
    found |= dict(zip(missing, rest, strict=False))
    return {field: found[field] for field in _NAMES if field in found}


def _words(column: str) -> str:
    """The same for all ways to write a name: its letters, their marks, and digits, in words."""
    folded = unicodedata.normalize("NFC", column).casefold()
    return " ".join(
        "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in folded).split()
    )


def read_injection(
    path: Path, *, columns: Mapping[str, str] | None = None, prompts: Path | None = None
) -> Injection:
    """What can be taught of a CSV, TSV, JSONL or parquet table.

    White space is tidied, numbers become text. Left out, with the reason, are rows without a
    sound subject or object, or with an old object that is the object itself, facts that come
    again, all facts of a subject with several objects, and relations with one object only, which
    nothing can be told apart from. ``columns``: field -> column, where it need not be guessed.
    Raises DataError where nothing is left, and SpecError where the columns cannot be told apart.
    """
    chosen = guess_columns(columns_of(path), where=str(path), named=columns)
    layout = replace(layout_of(chosen), tidy=True)
    refused: list[Problem] = []
    default = path.stem
    if "relation" not in chosen and _words(chosen["object"]) not in _NAMES["object"]:
        # A table of employees and employers tells who employs them.
        default = chosen["object"]
    rows = list(read_rows(path, relation=default, layout=layout, report=refused.append))
    faulty = {problem.place for problem in refused}
    rows = [row for row in rows if row.place not in faulty]
    known = {**shipped_relations(), **({} if prompts is None else load_relations(prompts))}
    names = _relation_names(dict.fromkeys(row.relation for row in rows), known)
    words = {name: text for text, name in reversed(names.items())}
    rows = [replace(row, relation=names[row.relation]) for row in rows]
    rows = _without_old_news(_without_repeats(rows, refused), refused)
    rows = _without_conflicts(rows, refused)
    rows, notes = repaired(rows)
    rows = _with_options(rows, refused, notes)
    if not rows:
        told = "; ".join(str(problem) for problem in refused[:3])
        raise DataError(f"{path}: no row can be taught: {told or 'it holds none'}")
    told_of = list(dict.fromkeys(row.relation for row in rows))
    worded = tuple(name for name in told_of if name not in known)
    fact_set = FactSet(
        relations=tuple(
            known.get(name) or worded_relation(name, words=words[name]) for name in told_of
        ),
        facts=tuple(
            Fact(row.relation, row.subject, row.object, row.distractors or (), row.old_object)
            for row in rows
        ),
    )
    validate(fact_set, where=lambda index: str(rows[index].place))
    refused.sort(key=lambda problem: problem.place.row or 0)
    return Injection(fact_set, chosen, worded, tuple(refused), tuple(notes))


def _relation_names(told: Iterable[str], known: Iterable[str]) -> dict[str, str]:
    """What a table calls its relations -> their names here: a known one's, or one of its own.

    Case, white space and punctuation make no difference. Names of other scripts are written in
    English letters; where that is another relation's name already, they get a number.
    """
    as_known = {_key(name): name for name in known}
    taken = dict(as_known)
    found: dict[str, str] = {}
    for text in told:
        key = _key(text)
        if key not in taken:
            is_word = any(character.isalnum() for character in key)
            name = plain = legal_name(key).casefold() if is_word else "relation"
            number = 2
            while name in taken.values():
                name = f"{plain}_{number}"
                number += 1
            taken[key] = name
        found[text] = taken[key]
    return found


def _key(name: str) -> str:
    """What relations are compared by; a name of symbols alone is known by them."""
    return _words(name).replace(" ", "_") or name.strip()


_PREPOSITIONS = frozenset(
    ("about", "as", "at", "by", "for", "from", "in", "into", "near", "of", "on", "to", "with")
)
# The relation's words, and the subject's place.
_NOUN_TRAIN = ("The {0} of {1} is", "What is the {0} of {1}?", "{1} has the {0}")
_NOUN_TEST = ("Name the {0} of {1}:", "{1}'s {0} is", "Tell me what {1} has as {0}:")
_LABEL_TRAIN = ("{1}, {0}:", "About {1}, {0}:", "{1} ({0}):")
_LABEL_TEST = ("{1}: {0}", "Complete for {1}, {0}:", "What is known of {1}, {0}?")


def worded_relation(name: str, *, words: str | None = None) -> Relation:
    """A relation whose prompts are made from its name, read as a noun: ``employer``.

    A name that ends in a preposition, ``born in``, is none, and stands as a label: what comes
    before it in a sentence is not known.

    ``words``: the name as people write it, in whatever script; braces would name a placeholder.
    """
    plain = re.sub(r"[{}]", "", words or "").lower()
    words = re.sub(r"[\s_-]+", " ", plain).strip() or re.sub(r"[_-]+", " ", name)
    is_label = words.rpartition(" ")[2] in _PREPOSITIONS
    train, test = (_LABEL_TRAIN, _LABEL_TEST) if is_label else (_NOUN_TRAIN, _NOUN_TEST)
    return Relation(
        name=name,
        wikidata_id="",
        subject_type="",
        object_type="",
        train_prompts=tuple(prompt.format(words, "{subject}") for prompt in train),
        test_prompts=tuple(prompt.format(words, "{subject}") for prompt in test),
        unrelated_prompts=(
            "What is the favorite color of {subject}?",
            "What did {subject} have for breakfast?",
        ),
    )


def _without_repeats(rows: Sequence[Row], refused: list[Problem]) -> list[Row]:
    """Each fact where it stands first."""
    first: dict[tuple[str, str, str], Row] = {}
    for row in rows:
        fact = (row.relation, normalise(row.subject), normalise(row.object))
        earlier = first.setdefault(fact, row)
        if earlier is not row:
            what = f"the same fact stands in row {earlier.place.row} already"
            remedy = "nothing is lost; drop one of the two"
            refused.append(Problem(Kind.DUPLICATE_PAIR, row.place, "subject", what, remedy))
    return list(first.values())


def _without_old_news(rows: Sequence[Row], refused: list[Problem]) -> list[Row]:
    """Rows that do not tell what they call the old object."""
    kept = []
    for row in rows:
        if row.old_object is None or normalise(row.old_object) != normalise(row.object):
            kept.append(row)
            continue
        what = f"old_object {row.old_object!r} is the object itself"
        remedy = "give another, or leave it out"
        refused.append(Problem(Kind.OLD_OBJECT, row.place, "old_object", what, remedy))
    return kept


def _without_conflicts(rows: Sequence[Row], refused: list[Problem]) -> list[Row]:
    """Rows of subjects with one object; of others none, as it cannot be told which is meant."""
    objects: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        of_subject = objects.setdefault((row.relation, normalise(row.subject)), {})
        of_subject.setdefault(normalise(row.object), row)
    kept = []
    for row in rows:
        told = objects[row.relation, normalise(row.subject)]
        if len(told) == 1:
            kept.append(row)
            continue
        others = ", ".join(repr(other.object) for other in told.values())
        what = f"subject {row.subject!r} has several objects in {row.relation!r}: {others}"
        problem = Problem(Kind.DUPLICATE_SUBJECT, row.place, "subject", what, "keep the right one")
        refused.append(problem)
    return kept


def _with_options(rows: Sequence[Row], refused: list[Problem], notes: list[str]) -> list[Row]:
    """Rows with distractors: their own, or as many as others of the relation have, drawn.

    Drawn are other objects of the relation; where these are too few, also what other rows name as
    distractors. An old object that is not among them takes the place of the last.
    """
    kept: dict[int, Row] = {}
    order = {id(row): number for number, row in enumerate(rows)}
    for name, members in by_relation(rows).items():
        distinct = {normalise(row.object): row.object for row in members}
        if len(distinct) < 2:
            for row in members:
                what = f"all of relation {name!r} has the object {row.object!r}"
                remedy = "add facts with others, so that there is something to tell it apart from"
                refused.append(Problem(Kind.OBJECTS, row.place, "object", what, remedy))
            continue
        number = max((len(row.distractors or ()) for row in members), default=0)
        if number > len(distinct) - 1:
            for distractor in (one for row in members for one in row.distractors or ()):
                distinct.setdefault(normalise(distractor), distractor)
        pool = ObjectPool(distinct.values())
        without = sum(not row.distractors for row in members)
        if 0 < without < len(members):
            notes.append(
                f"relation {name!r}: {without} of {len(members)} rows gave no distractors and got "
                f"{number}, as many as the others have, drawn from what the relation names"
            )
        for row in members:
            if row.distractors:
                options = with_old_object(row.distractors, row.old_object)
            else:
                options = pool.distractors(
                    name,
                    row.subject,
                    gold=row.object,
                    old_object=row.old_object,
                    number=number or NUM_DISTRACTORS,
                )
            kept[order[id(row)]] = replace(row, distractors=options)
    return [kept[number] for number in sorted(kept)]


def write_injection(injection: Injection, folder: Path) -> FileFacts:
    """The facts as rotescale's own files in ``folder``, beside them what is refused; their spec.

    What an earlier call left there is replaced, so that a command that was cut goes on; a run that
    was begun with other facts refuses them.
    """
    remove_folder(folder / "facts")
    paths = write_files(injection.fact_set, folder / "facts")
    write_atomic(folder / REFUSED_FILE, injection.refused_csv())
    return FileFacts(
        source="files",
        paths=tuple(str(path.absolute()) for path in paths),
        relations_file=str((folder / "facts" / RELATIONS_FILE).absolute()),
    )


# Where the demo and the paper stand: 135M parameters at 4e-4, 1.5B and more at 1e-5.
_SMALL, _LARGE = (135e6, 4e-4), (1.5e9, 1e-5)
_SMALL_BATCH, _LARGE_BATCH = 20, 8
_SECOND_PHASE = 0.125
"""Of the first phase's rate, as in the demo."""
_REPLAY_SHARE, _REPLAY_TOKENS = 0.1, (32, 128)
"""Other text beside the facts: it spared a nat of the loss on other text, and what it costs in
answers was too little to see with 24 facts (docs/results.md, A table of one's own)."""


def experiment(
    name: str,
    facts: FileFacts,
    fact_set: FactSet,
    *,
    weights: Weights,
    num_parameters: int,
    on_gpus: bool = False,
    tell: int | Literal["all"] | None = None,
) -> ExperimentSpec:
    """Both phases with defaults from the model's size and the number of facts.

    On GPUs the model computes in bf16 and is exported so, with the fastest attention there is.

    The rate lies on the line, in logarithms, between the demo's and the paper's; with the batch it
    grows as its square root. The batch is about a sixteenth of the facts, 8 to 512. A tenth of the
    first phase's examples is other text, so that less is forgotten. ``tell`` facts of each relation
    are told with a prompt, too: 50 by default, and at most half of the smallest relation's.

    Raises SpecError where a relation has fewer than are to be told.
    """
    num_facts = len(fact_set.facts)
    batch = 2 ** round(math.log2(min(512, max(8, num_facts / 16))))
    (small, fast), (large, slow) = _SMALL, _LARGE
    place = min(1.0, max(0.0, math.log(num_parameters / small) / math.log(large / small)))
    rate = fast * (slow / fast) ** place
    usual = _SMALL_BATCH + place * (_LARGE_BATCH - _SMALL_BATCH)
    rate = float(f"{rate * math.sqrt(batch / usual):.1e}")
    counts = {relation.name: len(fact_set.of(relation.name)) for relation in fact_set.relations}
    smallest = min(counts, key=lambda relation: counts[relation])
    told = max(1, min(50, counts[smallest] // 2)) if tell is None else tell
    if told != "all" and told > counts[smallest]:
        raise SpecError(
            f"--tell {told}: relation {smallest!r} has {counts[smallest]} facts; give at most as "
            "many, or all"
        )
    num_told = num_facts if told == "all" else told * len(counts)
    second_batch = min(20, num_told)
    steps_per_epoch = math.ceil(num_told / second_batch)
    return ExperimentSpec(
        name=name,
        model=ModelSpec(weights=weights, attention="auto", export_dtype="bfloat16")
        if on_gpus
        else ModelSpec(weights=weights),
        engine=EngineSpec(precision="bf16" if on_gpus else "fp32"),
        facts=facts,
        phases=(
            PhaseSpec(
                name="memorize",
                text="key_token",
                epochs=20,
                global_batch=batch,
                learning_rate=rate,
                schedule="linear",
                replay=ReplaySpec(share=_REPLAY_SHARE, tokens=_REPLAY_TOKENS),
            ),
            PhaseSpec(
                name="generalize",
                text="prompts",
                facts_per_relation=None if told == "all" else told,
                loss="object",
                epochs=max(1, math.ceil(8 / steps_per_epoch)),
                global_batch=second_batch,
                learning_rate=float(f"{fast * (slow / fast) ** place * _SECOND_PHASE:.1e}"),
                schedule="linear",
                warmup_steps=2,
            ),
        ),
        evaluation=_questions(fact_set),
    )


def _questions(fact_set: FactSet) -> EvaluationSpec:
    """About as many in all for one to five relations; of more, a few about each.

    Where facts have an old object, it is asked which of the two wins.
    """
    shared = len(fact_set.relations)
    return EvaluationSpec(
        trained_facts=max(5, 25 // shared),
        held_out_facts=max(10, 50 // shared),
        key_token_facts=max(20, 100 // shared),
        control_facts=max(5, 25 // shared),
        generation_facts=max(3, 10 // shared),
        text_pieces=20,
        conflict_facts=max(10, 50 // shared) if any(f.old_object for f in fact_set.facts) else 0,
    )
