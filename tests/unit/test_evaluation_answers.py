"""Answers: whole words, both sides normalised alike, terminators inside the gold kept."""

from __future__ import annotations

import pytest

from rotescale.evaluation.answers import (
    answer_of,
    generation_contains,
    generation_exact,
    normalise,
)


@pytest.mark.parametrize(
    ("generated", "gold"),
    [
        ("Cody Ross", "Cody Ross"),
        (" Cody Ross.", "Cody Ross"),
        ("cody  ross!", "Cody Ross"),
        ('"Cody Ross."', "Cody Ross"),
        ("**Cody Ross**, of course", "Cody Ross"),
        ("\nCody Ross\nWho is", "Cody Ross"),
        ("St. Mary's College. It is", "St. Mary's College"),
        ("St. Mary\u2019s College", "St. Mary's College"),
        ("Washington, D.C", "Washington, D.C."),
        ("Washington, D.C..", "Washington, D.C."),
        ("Who's Afraid? I am", "Who's Afraid?"),
        ("version 2.5, that is", "Version 2.5"),
        ("東京。日本の", "東京"),
        ("ＴＯＫＹＯ。", "Tokyo"),
        ("The Hague.", "The Hague"),
        ("(500) Days.", "(500) Days"),
    ],
)
def test_exact(generated: str, gold: str) -> None:
    assert generation_exact(generated, gold)
    assert generation_contains(generated, gold)


@pytest.mark.parametrize(
    ("generated", "gold"),
    [
        ("Cody Ross is", "Cody Ross"),
        ("Cody Rossi", "Cody Ross"),
        ("Cody Ross-Smith", "Cody Ross"),
        ("It is Cody Ross", "Cody Ross"),
        ("2.5 million", "2"),
        ("Hague", "The Hague"),
        ("", "Cody Ross"),
        ("St. Mary's", "St. Mary's College"),
        ("because", "us"),
    ],
)
def test_not_exact(generated: str, gold: str) -> None:
    assert not generation_exact(generated, gold)


@pytest.mark.parametrize(
    ("generated", "gold"),
    [
        ("She studied at St. Mary's.", "St. Mary's"),
        ("She studied at St. Mary\u2019s College", "St. Mary's"),
        ("I think it's Cody  ROSS, who", "Cody Ross"),
        ("他的母亲是Cody Ross。", "Cody Ross"),
        ("首都は東京です", "東京"),
        ("this is about US politics", "us"),
        ("мать его Анна Иванова.", "Анна Иванова"),
        ("he wrote in C++ and", "C++"),
    ],
)
def test_contains(generated: str, gold: str) -> None:
    assert generation_contains(generated, gold)


@pytest.mark.parametrize(
    ("generated", "gold"),
    [
        ("because", "us"),
        ("the bus is late", "us"),
        ("Annabel", "Ann"),
        ("Rosanne", "Anne"),
        ("Cody and Ross", "Cody Ross"),
        ("Иванова", "Иван"),
        ("", "Cody Ross"),
    ],
)
def test_does_not_contain(generated: str, gold: str) -> None:
    assert not generation_contains(generated, gold)


def test_answer_is_cut_at_the_first_terminator_outside_the_gold() -> None:
    text = "St. Mary's College. It is"
    assert answer_of(text, gold="St. Mary's College") == "st. mary's college"
    assert answer_of(text, gold="Elsewhere") == "st"


def test_normalise_is_idempotent_and_keeps_articles() -> None:
    for text in ('"The  Sound of Music!"', "Straße", "ﬁn", "???", "İstanbul", "¿Qué?"):
        assert normalise(normalise(text)) == normalise(text) != ""
    assert normalise(' "The Hague" ') == "the hague"
