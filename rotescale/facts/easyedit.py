"""The same facts for model editing: EasyEdit's requests, and what its results say about them.

The fields are those of EasyEdit's ``BaseEditor.edit`` (https://github.com/zjunlp/EasyEdit): a list
of requests in, a list of metrics per request out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rotescale.errors import DataError
from rotescale.facts.text import normalise
from rotescale.facts.types import Fact, FactSet, Relation

UNKNOWN = "<|endoftext|>"
"""What EasyEdit takes for the old object of a fact that a model has never met."""

METRICS: Mapping[str, tuple[str, ...]] = {
    "rewrite_acc": ("rewrite_acc",),
    "rephrase_acc": ("rephrase_acc",),
    "wrong_relation_acc": ("locality", "wrong_relation_acc"),
    "reversed_acc": ("portability", "reversed_acc"),
}
"""EasyEdit's own accuracies, by where they stand in a result: parts of the target's tokens that are
predicted, not of answers; of locality, parts of the answer's tokens that the edit has left alone,
which there is behind the edit only."""


@dataclass(frozen=True, slots=True)
class Edited:
    """What an editor says about one fact, before or after its edit."""

    fact: int
    """Place in the fact set."""
    moment: str
    """``pre`` or ``post``."""
    metric: str
    value: float
    """Mean over the target's tokens."""


def edit_requests(
    fact_set: FactSet, places: Iterable[int], *, train_prompt: int = 0, test_prompt: int = 0
) -> list[dict[str, Any]]:
    """A request per fact: the fact in a train prompt, a test prompt as its rephrasing.

    Its ground truth is the fact's old object, which an editor measures before its edit.
    Its locality is the same subject in another relation's prompt, its portability the reversed
    question. Raises DataError for a prompt that a relation does not have.
    """
    return [
        _request(
            fact_set.facts[place], fact_set, train_prompt=train_prompt, test_prompt=test_prompt
        )
        for place in places
    ]


def _request(
    fact: Fact, fact_set: FactSet, *, train_prompt: int, test_prompt: int
) -> dict[str, Any]:
    relation = fact_set.relation(fact.relation)
    prompt = _prompt(relation.train_prompts, train_prompt, relation, kind="train")
    rephrased = _prompt(relation.test_prompts, test_prompt, relation, kind="test")
    old = UNKNOWN if fact.old_object is None else fact.old_object
    request: dict[str, Any] = {
        "prompt": Relation.fill(prompt, fact.subject),
        "subject": fact.subject,
        "target_new": fact.object,
        "ground_truth": old,
        "rephrase_prompt": Relation.fill(rephrased, fact.subject),
        "locality": {},
        "portability": {
            "reversed": {
                "prompt": Relation.fill(prompt, fact.object),
                "ground_truth": fact.subject,
            }
        },
        "relation": fact.relation,
    }
    others = [other for other in fact_set.relations if other.name != relation.name]
    if others:
        request["locality"]["wrong_relation"] = {
            "prompt": Relation.fill(others[0].train_prompts[0], fact.subject),
            "ground_truth": fact.object,
        }
    return request


def _prompt(prompts: Sequence[str], number: int, relation: Relation, *, kind: str) -> str:
    if not 0 <= number < len(prompts):
        raise DataError(
            f"{kind} prompt {number}: relation {relation.name!r} has {len(prompts)}, from 0; name "
            "one of them"
        )
    return prompts[number]


def read_results(path: Path, fact_set: FactSet) -> list[Edited]:
    """The accuracies in a file of EasyEdit's metrics, each with the fact it belongs to.

    A result is recognised by the subject and target of its ``requested_rewrite``. Raises DataError
    for a file that is no such list, or a result about a fact that is not among these.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); give EasyEdit's metrics file") from error
    if not isinstance(results, list) or not results:
        raise DataError(f"{path}: not a list of EasyEdit's metrics; give the file that it saved")
    known = {_key(fact.subject, fact.object): i for i, fact in enumerate(fact_set.facts)}
    found: list[Edited] = []
    for number, result in enumerate(results):
        found += _of_result(result, known, where=f"{path}, result {number}")
    return found


def _of_result(result: object, known: Mapping[tuple[str, str], int], *, where: str) -> list[Edited]:
    if not isinstance(result, dict) or not isinstance(result.get("requested_rewrite"), dict):
        raise DataError(
            f"{where}: no 'requested_rewrite', which names the fact; save all that edit() returns"
        )
    request = result["requested_rewrite"]
    subject, target = str(request.get("subject", "")), str(request.get("target_new", ""))
    fact = known.get(_key(subject, target))
    if fact is None:
        raise DataError(
            f"{where}: {subject!r} -> {target!r} is not among these facts; give the results of "
            "requests that were made of them"
        )
    found = [
        Edited(fact, moment, metric, _mean(value, where=f"{where}, {metric}"))
        for moment in ("pre", "post")
        for metric, path in METRICS.items()
        if (value := _at(result.get(moment), path)) is not None
    ]
    if not found:
        raise DataError(f"{where}: neither 'pre' nor 'post' has any of {', '.join(METRICS)}")
    return found


def _at(values: object, path: Sequence[str]) -> object:
    """What stands there, or None."""
    for name in path:
        if not isinstance(values, dict):
            return None
        values = values.get(name)
    return values


def _mean(value: object, *, where: str) -> float:
    numbers = value if isinstance(value, list) else [value]
    if not numbers or not all(isinstance(number, int | float) for number in numbers):
        raise DataError(f"{where} is {value!r}, not a number or a list of numbers")
    return sum(numbers) / len(numbers)


def _key(subject: str, target: str) -> tuple[str, str]:
    return normalise(subject), normalise(target)
