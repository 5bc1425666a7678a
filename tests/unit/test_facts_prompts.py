"""Relations files: what is read, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from rotescale.errors import DataError
from rotescale.facts import load_relations, shipped_relations

SOUND = """
sister:
  train_prompts: ["Who is {subject}'s sister?"]
  test_prompts: ["{subject} has a sister named"]
"""

GERMAN = """  translations:
    de:
      train_prompts: ["Wer ist die Schwester von {subject}?"]
      test_prompts: ["{subject} hat eine Schwester namens"]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "relations.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_only_prompts_are_required(tmp_path: Path) -> None:
    sister = load_relations(write(tmp_path, SOUND))["sister"]
    assert sister.train_prompts == ("Who is {subject}'s sister?",)
    assert sister.unrelated_prompts == ()
    assert sister.wikidata_id == sister.subject_type == ""


def test_translations_come_by_code_whatever_their_order(tmp_path: Path) -> None:
    korean = GERMAN.partition("\n")[2].replace("de:", "ko:")
    regional = korean.replace("ko:", "pt-BR:")
    one = load_relations(write(tmp_path, SOUND + GERMAN + regional + korean))["sister"]
    other = load_relations(write(tmp_path, SOUND + GERMAN + korean + regional))["sister"]
    assert one == other
    assert one.languages == ("en", "de", "ko", "pt-BR")
    assert one.in_language("de").train_prompts == ("Wer ist die Schwester von {subject}?",)
    assert one.in_language("de").unrelated_prompts == ()


def test_shipped_relations_are_a_copy() -> None:
    shipped_relations().clear()
    assert len(shipped_relations()) == 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no relations"),
        ("[a, b]", "holds no relations"),
        ("sister: {train_prompts: [", "not sound YAML"),
        (SOUND + SOUND, "the key 'sister' is given twice"),
        ("my sister: {}", "relation 'my sister': a relation's name starts with a letter"),
        ("12: {}", "relation 12: a relation's name"),
        ("sister: no", "relation 'sister' is False; map it"),
        (SOUND + "  prompts: []", "unknown field 'prompts'; known are: wikidata_id"),
        (SOUND + "  wikidata_id: 25", "wikidata_id is 25, not a string; quote it"),
        (SOUND + "  unrelated_prompts: Who?", "unrelated_prompts is 'Who\\?'; give a list"),
        ("sister: {train_prompts: ['Is {subject}?']}", "test_prompts is None; give a list"),
        (SOUND.replace("{subject} has", "She has"), "holds {subject} 0 times; write it exactly"),
        (SOUND.replace("has a", "{subject}"), "holds {subject} 2 times"),
        (SOUND.replace("named", "named "), "prompt 1 .* ends with white space"),
        (SOUND.replace("named", "na\\tmed"), r"control character U\+0009"),
        (
            SOUND + '  unrelated_prompts: ["who is  {subject}\'s sister?"]',
            "unrelated_prompts, prompt 1 .* is the same as train_prompts, prompt 1",
        ),
        (SOUND + "  translations: de", "translations is 'de'; map language codes to prompts"),
        (SOUND + "  translations: {}", "translations is {}; .* or leave it out"),
        (SOUND + "  translations: {de: []}", r"translations, de is \[\]; map it to train_prompts"),
        (SOUND + GERMAN.replace("de:", "German:"), "'German' is no language code; write one such"),
        (SOUND + GERMAN.replace("de:", "no:"), "False is no language code; .* in quotes"),
        (SOUND + GERMAN.replace("de:", "en:"), "'en' is the language of the relation's own .*rem"),
        (SOUND + GERMAN + "      prompts: []", "translations, de has the unknown field 'prompts'"),
        (SOUND + GERMAN.replace("      test", "      unrelated"), "de, test_prompts is None; give"),
        (SOUND + GERMAN.replace("von {subject}", ""), "de, train_prompts, prompt 1 .* 0 times"),
        (
            SOUND + GERMAN.replace("namens", 'namens", "Nenne die Schwester von {subject}:'),
            "sister.*, translations, de, test_prompts has 2 prompts, but 1 in 'en'; translate each",
        ),
        (
            SOUND + GERMAN + '      unrelated_prompts: ["Wer mag {subject}?"]',
            "de, unrelated_prompts has 1 prompts, but 0 in 'en'",
        ),
        (
            SOUND
            + GERMAN.replace(
                "{subject} hat eine Schwester namens", "wer ist die Schwester von {subject}?"
            ),
            "de, test_prompts, prompt 1 .* is the same as train_prompts, prompt 1",
        ),
    ],
)
def test_a_faulty_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_relations(write(tmp_path, text))
    assert "relations.yaml" in str(caught.value)


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be read .*; check the path"):
        load_relations(tmp_path / "none.yaml")
    path = tmp_path / "latin.yaml"
    path.write_bytes("sœur: é".encode("cp1252"))
    with pytest.raises(DataError, match="not UTF-8"):
        load_relations(path)
