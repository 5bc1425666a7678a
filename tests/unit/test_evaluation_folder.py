"""What a model folder outside and inside a run is asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from rotescale.errors import SpecError
from rotescale.evaluation.folder import (
    Questions,
    choose_questions,
    with_languages,
    with_tasks,
)


def questions_of(folder: Path) -> Questions:
    return choose_questions(
        folder,
        facts=None,
        relations=("genre",),
        key_token="[X:{relation}]",
        seed=0,
        full=False,
    )


def test_languages_are_added_to_those_of_the_sample(tmp_path: Path) -> None:
    asked = questions_of(tmp_path)
    assert with_languages(asked, ()) == asked
    more = with_languages(asked, ("de", "en", "zh"))
    assert more.spec == asked.spec.model_copy(update={"languages": ("en", "de", "zh")})
    assert more.fact_set == asked.fact_set


def test_what_is_no_language_code_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"--language: languages\.1: .*got 'German'"):
        with_languages(questions_of(tmp_path), ("German",))


def test_tasks_are_added_to_the_questions(tmp_path: Path) -> None:
    asked = questions_of(tmp_path)
    assert with_tasks(asked, ()) == asked
    assert with_tasks(asked, ("arc_easy", "arc_easy")).spec.harness_tasks == ("arc_easy",)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"nowhere: no such folder; give one that holds"):
        choose_questions(
            tmp_path / "nowhere",
            facts=None,
            relations=(),
            key_token=None,
            seed=0,
            full=False,
        )
