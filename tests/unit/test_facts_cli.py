"""The commands about facts."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from rotescale import facts_cli
from rotescale.facts import iter_pairs
from rotescale.facts.load import load_files


def test_generated_facts_are_written_into_a_new_folder(tmp_path: Path) -> None:
    out = tmp_path / "new" / "mother.csv"
    facts_cli.facts_generate("mother", out, num_facts=120, seed=3)
    facts = load_files([out]).facts
    assert [(fact.subject, fact.object) for fact in facts] == [
        *iter_pairs("mother", num_facts=120, seed=3)
    ]


def test_the_list_shows_every_relation_and_its_languages(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(facts_cli, "console", Console(file=shown, width=200))
    facts_cli.facts_list()
    for name in ("author", "capital", "educated_at", "genre", "mother", "instance_of"):
        [line] = [line for line in shown.getvalue().splitlines() if f" {name} (" in line]
        assert "en, de, es, ja, zh" in line
