"""What is decided before a run folder is made."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import micro_spec
from kuberay_helpers import experiment, place

from rotescale.branching import _check_beliefs
from rotescale.errors import SpecError
from rotescale.preparation import _texts, check_beliefs, load_facts, prepare_run
from rotescale.run_dir import RunDir

UNMEASURED = ("evaluation.conflict_facts=9", "evaluation.base=false")


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


def test_conflicts_are_refused_where_nothing_measures_the_untrained_model(tmp_path: Path) -> None:
    message = r"evaluation\.base is false, but evaluation\.conflict_facts \(9\) .*--branch-from"
    spec, run_dir = micro_spec(*UNMEASURED), RunDir(tmp_path)
    for where in (None, run_dir):
        with pytest.raises(SpecError, match=message):
            check_beliefs(spec, where)
    check_beliefs(micro_spec("evaluation.conflict_facts=9"))
    check_beliefs(micro_spec("evaluation.base=false"))
    measured(run_dir)
    check_beliefs(spec, run_dir)


def measured(run_dir: RunDir) -> None:
    """Of the stage base only that it is there is looked at."""
    path = run_dir.evaluation("base", None)
    assert isinstance(path, Path)
    path.parent.mkdir()
    path.touch()


def test_a_branch_asks_about_no_more_facts_than_its_source_has_measured(tmp_path: Path) -> None:
    source, spec = RunDir(tmp_path), micro_spec(*UNMEASURED)
    as_many, fewer = (micro_spec(f"evaluation.conflict_facts={number}") for number in (9, 8))
    for of_source in (as_many, fewer):
        with pytest.raises(SpecError, match="has not measured what the untrained model believes"):
            _check_beliefs(spec, source, of_source)
    measured(source)
    _check_beliefs(spec, source, as_many)
    with pytest.raises(SpecError, match=r"about 9 facts \(its evaluation\.conflict_facts is 8"):
        _check_beliefs(spec, source, fewer)
    # One that measures the untrained model itself needs nobody's beliefs.
    _check_beliefs(micro_spec("evaluation.conflict_facts=100"), source, fewer)


def test_a_place_that_only_the_launcher_starts_is_not_prepared_here() -> None:
    with pytest.raises(SpecError, match="place: kuberay is started by the launcher"):
        prepare_run(experiment(), place())
    assert not Path("/checkpoints").exists()
