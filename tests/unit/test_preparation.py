"""What is decided before a run folder is made."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import micro_spec
from kuberay_helpers import experiment, place

from rotescale.errors import SpecError
from rotescale.preparation import _texts, load_facts, prepare_run


def test_a_micro_tokenizer_learns_the_languages_that_are_asked() -> None:
    english, several = (
        micro_spec(f"evaluation.languages={languages}") for languages in ("[en]", "[en, ja]")
    )
    fact_set = load_facts(several)
    japanese = fact_set.relation("mother").in_language("ja").prompts
    assert set(_texts(fact_set, several)) - set(_texts(fact_set, english)) == set(japanese)


def test_a_language_without_prompts_is_refused_before_anything_is_made() -> None:
    with pytest.raises(SpecError, match=r"evaluation\.languages: 'ko' asked for, but relation"):
        load_facts(micro_spec("evaluation.languages=[en, ko]"))


def test_a_place_that_only_the_launcher_starts_is_not_prepared_here() -> None:
    with pytest.raises(SpecError, match="place: kuberay is started by the launcher"):
        prepare_run(experiment(), place())
    assert not Path("/checkpoints").exists()
