"""Compares a generated text with the right answer: whole words, both sides normalised alike."""

from __future__ import annotations

import re
import unicodedata

from rotescale.facts import normalise as fold

_SPACELESS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
)
"""Thai, Lao, Burmese, Khmer, kana and Han: scripts that put no space between words."""

_SPACELESS_CHARACTER = re.compile(f"[{_SPACELESS}]")
_WORD_CHARACTER = f"[^\\W_{_SPACELESS}]"
_TERMINATOR = re.compile(r"(?<!\d)[.,]|[.,](?!\d)|[!?;。、।\n]")
"""What ends an answer; the point or comma inside a number does not."""


def normalise(text: str) -> str:
    """One form for gold and answer: as names are compared, outer marks gone; articles stay."""
    folded = fold(text)
    return _strip_marks(folded) or folded


def answer_of(generated: str, *, gold: str) -> str:
    """The answer in a generated text, normalised: up to the first terminator outside the gold.

    The gold may hold terminators itself: "St. Mary's College. It is old" answers "st. mary's
    college" where the gold is "St. Mary's College", and "st" where it is not.
    """
    text = _strip_marks(fold(generated.strip().partition("\n")[0]), right=False)
    # A mark at the gold's own end is not part of its normalised form, so it may end the answer.
    wanted = normalise(gold)
    start = len(wanted) if text.startswith(wanted) else 0
    end = _TERMINATOR.search(text, start)
    return normalise(text[: end.start()] if end else text)


def generation_exact(generated: str, gold: str) -> bool:
    """Whether the normalised answer is the normalised gold."""
    return answer_of(generated, gold=gold) == normalise(gold)


def generation_contains(generated: str, gold: str) -> bool:
    """Whether the gold stands somewhere in the generated text as whole words.

    "us" is not in "because". Where the gold begins or ends with a character of a script without
    spaces, any place in such a text is a border.
    """
    wanted = normalise(gold)
    before = "" if _SPACELESS_CHARACTER.match(wanted[0]) else f"(?<!{_WORD_CHARACTER})"
    after = "" if _SPACELESS_CHARACTER.match(wanted[-1]) else f"(?!{_WORD_CHARACTER})"
    return re.search(before + re.escape(wanted) + after, fold(generated)) is not None


def _strip_marks(text: str, *, right: bool = True) -> str:
    """The text without the punctuation, quotes and white space around it."""
    start, stop = 0, len(text)
    while start < stop and _is_mark(text[start]):
        start += 1
    while right and start < stop and _is_mark(text[stop - 1]):
        stop -= 1
    return text[start:stop]


def _is_mark(character: str) -> bool:
    return character.isspace() or unicodedata.category(character).startswith("P")
