"""Specs as files: read from YAML or JSON, overridden, explained where wrong, and saved."""

from __future__ import annotations

import copy
import difflib
import re
import reprlib
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from rotescale.credentials import found_inside, hidden
from rotescale.errors import SpecError
from rotescale.spec import CONFIDENTIAL, TABLE_SUFFIXES, Part
from rotescale.storage import StoragePath

SpecType = TypeVar("SpecType", bound=Part)

_MAX_CHARACTERS = 1 << 20
"""A spec of a megabyte is a mistake, or an attack."""
_MAX_DEPTH = 100
_MAX_PROBLEMS = 20
_KINDS = {
    "phases": "an experiment (configs/experiments: what is computed)",
    "experiment": "a study (configs/studies: a grid of one experiment)",
    "num_workers": "a launch spec (configs/launch: where it runs)",
    "place": "a launch spec (configs/launch: where it runs)",
}
"""A key that only files of one kind have -> that kind."""
_MAX_LINE = 1000
_NOT_IN_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
"""What JSON leaves as it is and YAML refuses, or reads as the end of a line."""


def load_spec(kind: type[SpecType], path: StoragePath, overrides: Sequence[str] = ()) -> SpecType:
    """Read a YAML or JSON spec and apply ``a.b=c`` overrides.

    Raises SpecError that names the file, the field, the value and the remedy.
    """
    return overridden_spec(kind, read_fields(path), overrides, where=str(path))


def overridden_spec(
    kind: type[SpecType], fields: Mapping[str, Any], overrides: Sequence[str], *, where: str
) -> SpecType:
    """The spec of the fields, which stay as they are, with the overrides applied."""
    # Before an override makes sections that only another kind of file has.
    _check_kind(kind, fields, where=where)
    raw = copy.deepcopy(dict(fields))
    for override in overrides:
        _apply_override(raw, override)
    return parse_spec(kind, raw, where=where)


def read_fields(path: StoragePath) -> dict[str, Any]:
    """The fields of a YAML or JSON file, not checked yet. Raises SpecError where it is no spec."""
    if str(path).lower().endswith(TABLE_SUFFIXES):
        raise SpecError(
            f"{path}: a table of facts is no spec; `rotescale inject` teaches it, and a spec names "
            "it in facts.paths"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SpecError(
            f"{path}: cannot be read ({error.strerror}); give the path of a spec file"
        ) from None
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: not UTF-8 ({error.reason}); save it as UTF-8 text") from None
    if len(text) > _MAX_CHARACTERS:
        raise SpecError(
            f"{path}: {len(text)} characters, and a spec has at most {_MAX_CHARACTERS}; give the "
            "path of a spec file"
        )
    try:
        raw = _read_yaml(text)
    except ValueError as error:
        raise SpecError(f"{path}: not valid YAML: {error}; mend it") from None
    if not isinstance(raw, dict):
        raise SpecError(f"{path}: a spec is a mapping of fields, not {type(raw).__name__}")
    return raw


def parse_spec(kind: type[SpecType], raw: Mapping[str, Any], *, where: str) -> SpecType:
    """Validate ``raw``; SpecError lists every wrong field, with its value and the remedy."""
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        lines = [hidden(_explain(kind, one))[:_MAX_LINE] for one in problems[:_MAX_PROBLEMS]]
        if len(problems) > _MAX_PROBLEMS:
            lines.append(f"and {len(problems) - _MAX_PROBLEMS} more")
        raise SpecError(hidden(f"{where}: " + "; ".join(lines))) from None


def _check_kind(kind: type[Part], raw: Mapping[str, Any], *, where: str) -> None:
    """Raise SpecError where one kind of file stands in another's place."""
    wanted = {what for key, what in _KINDS.items() if key in kind.model_fields}
    given = {what for key, what in _KINDS.items() if key in raw}
    if wanted and len(given) == 1 and wanted != given:
        raise SpecError(
            f"{where}: this is {given.pop()}, and {wanted.pop()} belongs here; give the path of one"
        )


def _explain(kind: type[Part], problem: Any) -> str:
    field = ".".join(str(part) for part in problem["loc"]) or "(spec)"
    if problem["type"] == "extra_forbidden":
        known = _known_keys(kind, problem["loc"][:-1])
        close = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
        return f"{field}: unknown key; {hint}"
    value = problem["input"]
    shown = f" (got {_SHORT.repr(value)})"
    if isinstance(value, dict | BaseModel) or _is_confidential(kind, problem["loc"]):
        shown = ""
    elif found_inside(value) is not None:
        # Cut short, a credential may look like none.
        shown = " (its value is hidden)"
    what = problem["msg"].removeprefix("Value error, ")
    if problem["type"] in ("tuple_type", "list_type") and not isinstance(value, dict | list):
        what = "a list is wanted; write it in brackets, [...]"
    return f"{field}: {what}{shown}"


def _short() -> reprlib.Repr:
    """Shows a value whole as long as it is short: a few aliases in YAML make gigabytes."""
    shorter = reprlib.Repr()
    shorter.maxlevel, shorter.maxlist, shorter.maxdict, shorter.maxtuple = 3, 8, 8, 8
    shorter.maxstring, shorter.maxother, shorter.maxlong = 200, 200, 60
    return shorter


_SHORT = _short()


def _is_confidential(kind: type[Part], location: Sequence[str | int]) -> bool:
    """Whether ``location`` lies in a field whose value is not to be repeated."""
    models: list[type[BaseModel]] = [kind]
    for step in location:
        fields = [m.model_fields[step] for m in models if step in m.model_fields]
        if any(field.json_schema_extra == CONFIDENTIAL.json_schema_extra for field in fields):
            return True
        models = [model for field in fields for model in _models_in(field)] or models
    return False


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
        value = _read_yaml(text)
    except ValueError as error:
        raise SpecError(
            f"--set {override!r}: the value is not valid YAML: {error}; quote it"
        ) from None
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


def _read_yaml(text: str) -> Any:
    """The value that the text spells. ValueError says in one line what is wrong, and where."""
    try:
        return yaml.load(text, Loader=_PlainLoader)
    except yaml.YAMLError as error:
        raise ValueError(hidden(_yaml_fault(error))) from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _yaml_fault(error: yaml.YAMLError) -> str:
    """What is wrong and where, in one line."""
    problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    if problem is None or mark is None:
        return str(error).splitlines()[0]
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"


class _PlainLoader(yaml.SafeLoader):
    """YAML without tags and duplicate keys."""

    def fetch_tag(self) -> None:
        raise yaml.scanner.ScannerError(
            None, None, "a spec has no tags (!...); write plain values", self.get_mark()
        )

    def fetch_flow_collection_start(self, token_class: Any) -> None:
        # PyYAML looks through all open brackets at each token.
        if self.flow_level >= _MAX_DEPTH:
            raise yaml.scanner.ScannerError(None, None, "nested too deeply", self.get_mark())
        super().fetch_flow_collection_start(token_class)

    def construct_scalar(self, node: Any) -> Any:
        value = super().construct_scalar(node)
        try:
            # JSON spells a character beyond 16 bits as two; YAML reads each as one of its own.
            return value.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            raise yaml.constructor.ConstructorError(
                None, None, "half of a surrogate pair is no character", node.start_mark
            ) from None

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
    text = part.model_dump_json(indent=2) + "\n"
    return _NOT_IN_YAML.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
