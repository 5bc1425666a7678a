"""How names are compared and shown, and which text cannot be a name or a prompt."""

from __future__ import annotations

import unicodedata

from rotescale.facts.problems import Fault, Kind

MAX_CHARACTERS = 10_000
"""No name or prompt is longer: such a text is a broken file, and would fill every context."""

# Control characters, line and paragraph separators, and halves of surrogate pairs.
_REFUSED_CATEGORIES = frozenset({"Cc", "Zl", "Zp", "Cs"})
_SHOWN_CHARACTERS = 160


_ALIKE = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u02bc\u201b\u00b4`", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u201f\u00ab\u00bb", '"'),
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-"),
    }
)


def normalise(name: str) -> str:
    """The form in which two names are the same: NFKC, case folded, white space collapsed.

    Quotes and dashes of every shape are alike. So a letter with its accent apart, as some systems
    write file names, is the letter with its accent.
    """
    folded = unicodedata.normalize("NFKC", name).translate(_ALIKE).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def shown(value: object) -> str:
    """The value as an error shows it: quoted, and cut where it is long."""
    # A long text is cut first, so that megabytes are not quoted to show a line.
    text = repr(value[:_SHOWN_CHARACTERS] if isinstance(value, str) else value)
    cut = len(text) > _SHOWN_CHARACTERS
    return f"{text[:_SHOWN_CHARACTERS]}…" if cut else text


def text_fault(value: object) -> Fault | None:
    """What is wrong with a name or a prompt, and the remedy; ``None`` for a sound one."""
    if value is None:
        return Fault(Kind.EMPTY, "is None, not a string", "fill it in")
    if not isinstance(value, str):
        return Fault(Kind.TYPE, f"is {shown(value)}, not a string", "quote it")
    if not value.strip():
        return Fault(Kind.EMPTY, f"is empty ({shown(value)})", "fill it in")
    if len(value) > MAX_CHARACTERS:
        what = f"{shown(value)} has {len(value)} characters, but at most {MAX_CHARACTERS} may be"
        return Fault(Kind.LENGTH, what, "shorten it")
    # Whatever is printable is in none of the categories, and most names are.
    for character in "" if value.isprintable() else value:
        if unicodedata.category(character) in _REFUSED_CATEGORIES:
            what = f"{shown(value)} holds the control character U+{ord(character):04X}"
            return Fault(Kind.CHARACTER, what, "remove it")
    if value != value.strip():
        return Fault(Kind.SPACE, f"{shown(value)} begins or ends with white space", "remove it")
    return None
