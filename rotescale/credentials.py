"""Finds text that looks like a credential, which belongs in no file, argument or message."""

from __future__ import annotations

import re
from collections.abc import Mapping

_SHAPES = {
    "a Hugging Face token": r"hf_[A-Za-z0-9]{16,}",
    "a GitHub token": r"gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}",
    "a GitLab token": r"glpat-[A-Za-z0-9_-]{16,}",
    "an AWS access key": r"(?:AKIA|ASIA)[0-9A-Z]{16}",
    "a Google API key": r"AIza[0-9A-Za-z_-]{32,}",
    "a Slack token": r"xox[abeprs]-[0-9]{6,}-[A-Za-z0-9-]+",
    "an API key": r"sk-(?:[a-z0-9]{1,12}-)?[A-Za-z0-9_]{20,}",
    "a package index token": r"pypi-AgE[A-Za-z0-9_-]{16,}",
    "a JSON web token": r"eyJ[A-Za-z0-9_-]{8,512}\.[A-Za-z0-9_-]{8,4096}(?:\.[A-Za-z0-9_-]*)?",
    "a private key": r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----"
    r"(?:[\s\S]{0,16384}?-----END [A-Z ]{0,30}PRIVATE KEY-----|[\s\S]{0,16384})",
    "a password in a URL": r"(?<=[a-z0-9])://[^\s/@:]{0,256}:[^\s/@]{1,256}@",
}
"""Bounded, so that no text takes long to look through."""
_NO_WORD_BEFORE = r"(?<![A-Za-z0-9])"
_ANY = re.compile(
    "|".join(
        rf"(?P<_{i}>{'' if shape.startswith('(?<') else _NO_WORD_BEFORE}(?:{shape}))"
        for i, shape in enumerate(_SHAPES.values())
    )
)
_NAMES = re.compile(
    r"SECRET|PASSW|(^|_)(TOKEN|CREDENTIALS?|(API|ACCESS|AUTH|ACCOUNT|PRIVATE|CUSTOMER)_?KEY)(_|$)"
)
_HIDDEN = "(hidden: looks like {})"
HIDDEN = "(hidden: the credential itself)"
"""In place of a credential that is known as one."""


def found_in(text: str) -> str | None:
    """What kind of credential stands in ``text``; None where none does."""
    match = _ANY.search(text)
    return None if match is None else _kind(match)


def found_inside(value: object) -> str | None:
    """As ``found_in``, of any text in lists and mappings, keys too, however deep."""
    left, seen = [value], set[int]()
    while left:
        one = left.pop()
        if isinstance(one, str):
            kind = found_in(one)
            if kind is not None:
                return kind
        # What YAML's aliases repeat is looked at once.
        elif isinstance(one, Mapping | list | tuple | set | frozenset) and id(one) not in seen:
            seen.add(id(one))
            left += [*one, *one.values()] if isinstance(one, Mapping) else one
    return None


def hidden(text: str, *known: str) -> str:
    """``text`` with every credential in it replaced by what kind it looks like.

    ``known`` are credentials whatever they look like: a server may repeat what it was sent.
    """
    for secret in known:
        if secret:
            text = text.replace(secret, HIDDEN)
    return _ANY.sub(lambda match: _HIDDEN.format(_kind(match)), text)


def names_one(variable: str) -> bool:
    """Whether an environment variable of that name holds a credential, as far as its name tells."""
    return _NAMES.search(variable.upper()) is not None


def _kind(match: re.Match[str]) -> str:
    return list(_SHAPES)[int(str(match.lastgroup).removeprefix("_"))]
