"""How names are compared, and which text cannot be a name or a prompt."""

from __future__ import annotations

import unicodedata

# Control characters, line and paragraph separators, and halves of surrogate pairs.
_REFUSED_CATEGORIES = frozenset({"Cc", "Zl", "Zp", "Cs"})


def normalise(name: str) -> str:
    """The form in which two names are the same: case folded, runs of white space made one space."""
    return " ".join(name.casefold().split())


def text_fault(value: object) -> str | None:
    """What is wrong with a name or a prompt, and the remedy; ``None`` for a sound one."""
    if not isinstance(value, str):
        return f"is {value!r}, not a string; quote it"
    if not value.strip():
        return f"is empty ({value!r}); fill it in"
    for character in value:
        if unicodedata.category(character) in _REFUSED_CATEGORIES:
            return f"{value!r} holds the control character U+{ord(character):04X}; remove it"
    if value != value.strip():
        return f"{value!r} begins or ends with white space; remove it"
    return None
