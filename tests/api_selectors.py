"""Label and field selectors, as the tests' Kubernetes API server reads them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from api_errors import ApiError
from api_kinds import Kind, value_at

Object = dict[str, Any]
Test = Callable[[Object], bool]
_IN = re.compile(r"\s*(\S+)\s+(in|notin)\s+\(([^)]*)\)\s*")
_PAIR = re.compile(r"\s*([^=!\s]+)\s*(==|=|!=)\s*([^=!]*?)\s*")
_PRESENT = re.compile(r"\s*(!?)\s*([^=!\s]+)\s*")


def selector(kind: Kind, *, labels: str = "", fields: str = "") -> Test:
    """Whether an object is selected; raises ApiError where a selector is not one."""
    tests = [_label_test(one) for one in _split(labels)]
    tests += [_field_test(kind, one) for one in _split(fields)]
    return lambda one: all(test(one) for test in tests)


def _split(text: str) -> list[str]:
    """At commas outside parentheses."""
    return [one for one in re.split(r",(?![^(]*\))", text) if one.strip()]


def _label_test(text: str) -> Test:
    def labels(one: Object) -> dict[str, str]:
        found: dict[str, str] = one["metadata"].get("labels") or {}
        return found

    if match := _IN.fullmatch(text):
        key, inside, values = (
            match[1],
            match[2] == "in",
            set(re.split(r"\s*,\s*", match[3].strip())),
        )
        if inside:
            return lambda one: labels(one).get(key) in values
        return lambda one: labels(one).get(key) not in values
    if match := _PAIR.fullmatch(text):
        key, operator, value = match.groups()
        if operator == "!=":
            return lambda one: labels(one).get(key) != value
        return lambda one: labels(one).get(key) == value
    if match := _PRESENT.fullmatch(text):
        absent, key = bool(match[1]), match[2]
        return lambda one: (key in labels(one)) != absent
    raise ApiError(400, f"unable to parse requirement: {text!r}")


def _field_test(kind: Kind, text: str) -> Test:
    match = _PAIR.fullmatch(text)
    if match is None:
        raise ApiError(400, f"invalid field selector: {text!r}")
    path, operator, value = match.groups()
    if path not in ("metadata.name", "metadata.namespace", *kind.fields):
        raise ApiError(400, f"field label not supported: {path}")
    if operator == "!=":
        return lambda one: _text(one, path) != value
    return lambda one: _text(one, path) == value


def _text(one: Object, path: str) -> str:
    found = value_at(one, path)
    if path == "source":
        found = value_at(one, "source.component")
    if isinstance(found, bool):
        return str(found).lower()
    return "" if found is None else str(found)
