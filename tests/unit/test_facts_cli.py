"""The commands about facts."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from rotescale import facts_cli


def test_the_list_shows_every_relation_and_its_languages(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(facts_cli, "console", Console(file=shown, width=200))
    facts_cli.facts_list()
    for name in ("author", "capital", "educated_at", "genre", "mother", "instance_of"):
        [line] = [line for line in shown.getvalue().splitlines() if f" {name} (" in line]
        assert "en, de, es, ja, zh" in line
