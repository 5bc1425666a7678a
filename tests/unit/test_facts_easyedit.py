"""EasyEdit's requests tell the facts, and its results come back to the facts they are about."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rotescale.errors import DataError
from rotescale.facts import load_shipped
from rotescale.facts.easyedit import UNKNOWN, edit_requests, read_results

FACTS = load_shipped(["mother", "educated_at"])


def result(place: int, **values: Any) -> dict[str, Any]:
    [request] = edit_requests(FACTS, [place])
    return {"case_id": place, "requested_rewrite": request, **values}


def saved(path: Path, *results: object) -> Path:
    path.write_text(json.dumps(results))
    return path


def test_a_request_holds_the_fact_and_two_prompts_that_name_the_subject() -> None:
    requests = edit_requests(FACTS, range(200), test_prompt=2)
    assert len(requests) == 200
    for request, fact in zip(requests, FACTS.facts, strict=True):
        relation = FACTS.relation(fact.relation)
        assert request["prompt"] == relation.train_prompts[0].replace("{subject}", fact.subject)
        expected = relation.test_prompts[2].replace("{subject}", fact.subject)
        assert request["rephrase_prompt"] == expected
        assert request["subject"] in request["prompt"]
        assert request["target_new"] == fact.object
        assert fact.subject in request["locality"]["wrong_relation"]["prompt"]
        assert request["portability"]["reversed"]["ground_truth"] == fact.subject


def test_the_ground_truth_is_the_old_object() -> None:
    fact = FACTS.facts[0]
    held = replace(FACTS, facts=(replace(fact, old_object=fact.distractors[0]), *FACTS.facts[1:]))
    truths = [request["ground_truth"] for request in edit_requests(held, range(2))]
    assert truths == [fact.distractors[0], UNKNOWN]


def test_results_come_back_to_their_facts(tmp_path: Path) -> None:
    path = saved(
        tmp_path / "results.json",
        result(3, pre={"rewrite_acc": [0.0]}, post={"rewrite_acc": [1.0, 0.5], "locality": {}}),
        result(150, post={"rewrite_acc": 1.0, "rephrase_acc": [0.25]}),
        result(
            151,
            pre={"portability": {"reversed_acc": [0.0, 0.5]}},
            post={
                "locality": {"wrong_relation_acc": [1.0, 0.0]},
                "portability": {"reversed_acc": [0.75]},
            },
        ),
    )
    assert [(e.fact, e.moment, e.metric, e.value) for e in read_results(path, FACTS)] == [
        (3, "pre", "rewrite_acc", 0.0),
        (3, "post", "rewrite_acc", 0.75),
        (150, "post", "rewrite_acc", 1.0),
        (150, "post", "rephrase_acc", 0.25),
        (151, "pre", "reversed_acc", 0.25),
        (151, "post", "wrong_relation_acc", 0.5),
        (151, "post", "reversed_acc", 0.75),
    ]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "not JSON"),
        ("{}", "not a list of EasyEdit's metrics"),
        ("[]", "not a list of EasyEdit's metrics"),
        ('[{"post": {}}]', "result 0: no 'requested_rewrite'"),
        (
            '[{"requested_rewrite": {"subject": "Ada", "target_new": "Bo"}, "post": {}}]',
            "result 0: 'Ada' -> 'Bo' is not among these facts",
        ),
        (json.dumps([result(0)]), "neither 'pre' nor 'post' has any of rewrite_acc"),
        (json.dumps([result(0, post={"rewrite_acc": "x"})]), "rewrite_acc is 'x', not a number"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: str, told: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(DataError) as refusal:
        read_results(path, FACTS)
    assert told in str(refusal.value)
    assert str(path) in str(refusal.value)


def test_a_prompt_that_is_not_there_is_named() -> None:
    with pytest.raises(DataError, match="test prompt 10: relation 'mother' has 10, from 0"):
        edit_requests(FACTS, [0], test_prompt=10)
