"""A fact set as one file: what comes back is what was saved."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from rotescale.errors import DataError
from rotescale.facts import load_shipped
from rotescale.facts.saved import load_saved, save_fact_set


def test_round_trip_with_translations(tmp_path: Path) -> None:
    facts = load_shipped(["genre", "instance_of"])
    save_fact_set(facts, tmp_path / "facts.json")
    again = load_saved(tmp_path / "facts.json")
    assert again == facts
    assert again.digest() == facts.digest()
    assert hash(again.relations[0]) == hash(facts.relations[0])


def test_old_objects_come_back_and_are_left_out_where_there_are_none(tmp_path: Path) -> None:
    facts = load_shipped(["genre"])
    first, *others = facts.facts
    held = replace(facts, facts=(replace(first, old_object=first.distractors[3]), *others))
    path = tmp_path / "facts.json"
    save_fact_set(held, path)
    assert load_saved(path) == held
    raw = json.loads(path.read_text(encoding="utf-8"))["facts"]
    assert ["old_object" in fact for fact in raw] == [True] + [False] * 99


def test_relations_without_translations_are_english_only(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    save_fact_set(load_shipped(["genre"]), path)
    raw = json.loads(path.read_text(encoding="utf-8"))
    del raw["relations"][0]["translations"]
    path.write_text(json.dumps(raw), encoding="utf-8")
    assert load_saved(path).relation("genre").languages == ("en",)


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw["relations"][0]["translations"][0].pop("test_prompts"),
        lambda raw: raw["relations"][0].pop("name"),
        lambda raw: raw.pop("facts"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, damage: object) -> None:
    path = tmp_path / "facts.json"
    save_fact_set(load_shipped(["genre"]), path)
    raw = json.loads(path.read_text(encoding="utf-8"))
    assert callable(damage)
    damage(raw)
    path.write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(DataError, match=r"facts\.json: no saved facts .*; start the run again"):
        load_saved(path)
