"""Specs as files: read from YAML or JSON, overridden, explained where wrong, and saved."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from rotescale.errors import SpecError
from rotescale.spec import Part
from rotescale.storage import StoragePath

SpecType = TypeVar("SpecType", bound=Part)


def load_spec(kind: type[SpecType], path: StoragePath, overrides: Sequence[str] = ()) -> SpecType:
    """Read a YAML or JSON spec and apply ``a.b=c`` overrides.

    Raises SpecError that names the file, the field, the value and the remedy.
    """
    return overridden_spec(kind, read_fields(path), overrides, where=str(path))


def overridden_spec(
    kind: type[SpecType], fields: Mapping[str, Any], overrides: Sequence[str], *, where: str
) -> SpecType:
    """The spec of the fields, which stay as they are, with the overrides applied."""
    raw = copy.deepcopy(dict(fields))
    for override in overrides:
        _apply_override(raw, override)
    return parse_spec(kind, raw, where=where)


def read_fields(path: StoragePath) -> dict[str, Any]:
    """The fields of a YAML or JSON file, not checked yet. Raises SpecError where it is no spec."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SpecError(
            f"{path}: cannot be read ({error.strerror}); give the path of a spec file"
        ) from None
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: not UTF-8 ({error.reason}); save it as UTF-8 text") from None
    try:
        raw = yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.YAMLError as error:
        raise SpecError(f"{path}: not valid YAML: {_yaml_fault(error)}; mend it") from error
    if not isinstance(raw, dict):
        raise SpecError(f"{path}: a spec is a mapping of fields, not {type(raw).__name__}")
    return raw


def parse_spec(kind: type[SpecType], raw: Mapping[str, Any], *, where: str) -> SpecType:
    """Validate ``raw``; SpecError lists every wrong field, with its value and the remedy."""
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        lines = [_explain(kind, problem) for problem in error.errors(include_url=False)]
        raise SpecError(f"{where}: " + "; ".join(lines)) from None


def _explain(kind: type[Part], problem: Any) -> str:
    field = ".".join(str(part) for part in problem["loc"]) or "(spec)"
    if problem["type"] == "extra_forbidden":
        known = _known_keys(kind, problem["loc"][:-1])
        close = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
        return f"{field}: unknown key; {hint}"
    value = problem["input"]
    shown = "" if isinstance(value, dict | BaseModel) else f" (got {value!r})"
    return f"{field}: {problem['msg'].removeprefix('Value error, ')}{shown}"


def _known_keys(kind: type[Part], location: Sequence[str | int]) -> list[str]:
    """The keys that are legal where ``location`` points, as far as the types tell."""
    models: list[type[BaseModel]] = [kind]
    for step in location:
        if isinstance(step, int):
            continue
        nested = [m for model in models for m in _models_in(model.model_fields.get(step))]
        # A tagged union adds its tag to the location: the tag is no field, but names the model.
        models = nested or [model for model in models if _has_tag(model, step)] or models
    return sorted({name for model in models for name in model.model_fields})


def _has_tag(model: type[BaseModel], tag: str) -> bool:
    return any(get_args(field.annotation) == (tag,) for field in model.model_fields.values())


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if annotation is None:
        return []
    inner = getattr(annotation, "annotation", annotation)
    if isinstance(inner, type) and get_origin(inner) is None:
        return [inner] if issubclass(inner, BaseModel) else []
    return [model for argument in get_args(inner) for model in _models_in(argument)]


def _apply_override(raw: dict[str, Any], override: str) -> None:
    """Set ``a.b=c`` in ``raw``; a number in the path is an index of a list."""
    path, separator, text = override.partition("=")
    keys = path.strip().split(".")
    if not separator or not all(keys):
        raise SpecError(f"--set {override!r}: write it as field=value, such as --set seed=1")
    try:
        value = yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.YAMLError as error:
        raise SpecError(
            f"--set {override!r}: the value is not valid YAML: {_yaml_fault(error)}; quote it"
        ) from error
    node: Any = raw
    for key in keys[:-1]:
        node = _descend(node, key, override=override)
    if isinstance(node, list):
        node[_place(node, keys[-1], override=override)] = value
    elif isinstance(node, dict):
        node[keys[-1]] = value
    else:
        raise SpecError(f"--set {override!r}: {'.'.join(keys[:-1])} is a value, not a section")


def _descend(node: Any, key: str, *, override: str) -> Any:
    if isinstance(node, dict):
        return node.setdefault(key, {})
    return node[_place(node, key, override=override)]


def _place(node: Any, key: str, *, override: str) -> int:
    """Where a list holds the entry of that index or name."""
    if isinstance(node, list):
        if key.isdecimal() and int(key) < len(node):
            return int(key)
        names = [entry.get("name") if isinstance(entry, dict) else None for entry in node]
        if key in names:
            return names.index(key)
    raise SpecError(
        f"--set {override!r}: no entry {key!r}; lists are addressed by index or by an entry's name"
    )


def _yaml_fault(error: yaml.YAMLError) -> str:
    """What is wrong and where, in one line."""
    problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    if problem is None or mark is None:
        return str(error).splitlines()[0]
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML without duplicate keys, and with 1e-5 read as a number."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key!r} cannot be a key", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return dict(super().construct_mapping(node, deep))


def dump_json(part: BaseModel) -> str:
    """The resolved spec as indented JSON text, which ``load_spec`` reads back."""
    return part.model_dump_json(indent=2) + "\n"
