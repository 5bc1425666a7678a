"""Patches as the tests' Kubernetes API server takes them, and who has set which field."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from typing import Any

from api_errors import ApiError, fields_conflict

Object = dict[str, Any]
Path = tuple[str, ...]
ListKeys = Callable[[Path], tuple[str, ...]]
"""From the path of a list to the fields that tell its items apart; none: it is one value."""

_KEYS_BY_NAME = {
    "containers": ("name",),
    "initContainers": ("name",),
    "env": ("name",),
    "volumes": ("name",),
    "volumeMounts": ("mountPath",),
    "ownerReferences": ("uid",),
    "conditions": ("type",),
    "imagePullSecrets": ("name",),
}
_DEFAULT_KEYS = {"protocol": "TCP"}
_NOBODYS = ("name", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp")
_NEVER_MANAGED = {
    *(("apiVersion",), ("kind",), ("metadata", "managedFields"), ("metadata", "deletionTimestamp")),
    *(("metadata", "generateName"), ("metadata", "deletionGracePeriodSeconds")),
    *(("metadata", name) for name in _NOBODYS),
}


def keys_by_name(path: Path) -> tuple[str, ...]:
    """The keys of lists in built-in kinds and in the metadata of all."""
    if path[-1:] == ("ports",):
        return ("containerPort",) if "containers" in path else ("port",)
    return _KEYS_BY_NAME.get(path[-1], ()) if path else ()


def merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7386: null deletes, maps are merged, all else replaces."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    found = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            found.pop(key, None)
        else:
            found[key] = merge_patch(found.get(key), value)
    return found


def json_patch(document: Any, operations: list[Object]) -> Any:
    """RFC 6902; raises ApiError where a path is not there or a test fails."""
    found = copy.deepcopy(document)
    for one in operations:
        try:
            found = _operate(found, one)
        except (KeyError, IndexError, ValueError, TypeError) as error:
            why = f"the server rejected our request due to an error in our request: {error!r}"
            raise ApiError(422, why) from None
    return found


def _steps(pointer: str) -> list[str]:
    return [step.replace("~1", "/").replace("~0", "~") for step in pointer.split("/")[1:]]


def _operate(document: Any, operation: Object) -> Any:
    name, steps = operation["op"], _steps(operation["path"])
    if name == "test":
        if _at(document, steps) != operation["value"]:
            raise ValueError(f"testing value {operation['path']} failed")
        return document
    if name in ("remove", "replace"):
        _at(document, steps)
    if name in ("move", "copy"):
        value = copy.deepcopy(_at(document, _steps(operation["from"])))
        if name == "move":
            _place(document, _steps(operation["from"]), "remove", None)
        name = "add"
    else:
        value = copy.deepcopy(operation.get("value"))
    if not steps:
        return value
    _place(document, steps, name, value)
    return document


def _at(document: Any, steps: list[str]) -> Any:
    for step in steps:
        document = document[int(step)] if isinstance(document, list) else document[step]
    return document


def _place(document: Any, steps: list[str], name: str, value: Any) -> None:
    parent, last = _at(document, steps[:-1]), steps[-1]
    if isinstance(parent, list):
        index = len(parent) if last == "-" else int(last)
        if name == "add":
            parent.insert(index, value)
        elif name == "remove":
            del parent[index]
        else:
            parent[index] = value
    elif name == "remove":
        del parent[last]
    else:
        parent[last] = value


def strategic_patch(target: Any, patch: Any, path: Path = ()) -> Any:
    """Kubernetes' own merge: lists of known kinds are merged item by item."""
    if isinstance(patch, list):
        return _merge_list(target, patch, path)
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    if patch.get("$patch") == "replace":
        return {key: value for key, value in patch.items() if key != "$patch"}
    found = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if key.startswith("$deleteFromPrimitiveList/"):
            name = key.partition("/")[2]
            found[name] = [one for one in found.get(name, []) if one not in value]
        elif key.startswith("$"):
            continue
        elif value is None or (isinstance(value, dict) and value.get("$patch") == "delete"):
            found.pop(key, None)
        else:
            found[key] = strategic_patch(found.get(key), value, (*path, key))
    return found


def _merge_list(target: Any, patch: list[Any], path: Path) -> list[Any]:
    keys = keys_by_name(path)
    old = target if isinstance(target, list) else []
    if path[-1:] == ("finalizers",):
        return [*old, *(one for one in patch if one not in old)]
    if not keys or any(isinstance(one, dict) and one.get("$patch") == "replace" for one in patch):
        return [copy.deepcopy(one) for one in patch if one != {"$patch": "replace"}]
    found = {_item_key(one, keys): one for one in old}
    for one in patch:
        key = _item_key(one, keys)
        if one.get("$patch") == "delete":
            found.pop(key, None)
        else:
            found[key] = strategic_patch(found.get(key), one, path)
    return list(found.values())


def _item_key(item: Object, keys: tuple[str, ...]) -> str:
    known = {key: item.get(key, _DEFAULT_KEYS.get(key)) for key in keys}
    return json.dumps(known, sort_keys=True, separators=(",", ":"))


def leaves(value: Any, keys: ListKeys, path: Path = (), plain: Path = ()) -> dict[Path, Any]:
    """Every value that one manager can own, by its path in the notation of managedFields."""
    if plain in _NEVER_MANAGED:
        return {}
    if isinstance(value, dict) and value:
        found: dict[Path, Any] = {}
        for key, one in value.items():
            found |= leaves(one, keys, (*path, f"f:{key}"), (*plain, key))
        return found
    names = keys(plain) if isinstance(value, list) and value else ()
    if names and all(isinstance(one, dict) for one in value):
        found = {}
        for one in value:
            item = f"k:{_item_key(one, names)}"
            found |= leaves(one, keys, (*path, item), plain)
        return found
    return {path: value}


def _as_fields(paths: set[Path]) -> Object:
    found: Object = {}
    for path in sorted(paths):
        node = found
        for step in path:
            node = node.setdefault(step, {".": {}} if step.startswith("k:") else {})
    return found


def _as_paths(fields: Object, path: Path = ()) -> set[Path]:
    inner = {key: value for key, value in fields.items() if key != "."}
    if not inner:
        return {path} if path else set()
    found: set[Path] = set()
    for key, value in inner.items():
        found |= _as_paths(value, (*path, key))
    return found


class Managers:
    """Who has set which fields of an object."""

    def __init__(self, document: Object) -> None:
        self.entries: dict[tuple[str, str, str], set[Path]] = {}
        self.times: dict[tuple[str, str, str], str] = {}
        for one in document.get("metadata", {}).get("managedFields") or []:
            if "manager" in one:
                key = (one["manager"], one["operation"], one.get("subresource", ""))
                self.entries[key] = _as_paths(one.get("fieldsV1", {}))
                self.times[key] = one.get("time", "")

    def written(
        self, who: tuple[str, str, str], old: Mapping[Path, Any], new: Mapping[Path, Any], now: str
    ) -> None:
        """Note an ordinary write: what it changed is its writer's."""
        changed = {path for path, value in new.items() if path not in old or old[path] != value}
        gone = set(old) - set(new)
        for key in self.entries:
            self.entries[key] -= gone
            if key != who:
                self.entries[key] -= changed
        if changed:
            self.entries.setdefault(who, set()).update(changed)
            self.times[who] = now

    def as_list(self, api_version: str) -> list[Object]:
        """The managedFields of the object."""
        found = []
        for key, paths in self.entries.items():
            if not paths:
                continue
            manager, operation, subresource = key
            entry = {
                "manager": manager,
                "operation": operation,
                "apiVersion": api_version,
                "time": self.times[key],
                "fieldsType": "FieldsV1",
                "fieldsV1": _as_fields(paths),
            }
            found.append({**entry, "subresource": subresource} if subresource else entry)
        return found


def apply_patch(
    live: Object,
    wanted: Object,
    *,
    who: tuple[str, str, str],
    keys: ListKeys,
    force: bool,
    now: str,
) -> tuple[Object, Managers]:
    """Server-side apply: the object as it becomes, and who then owns what.

    Raises ApiError where others own fields that would change.
    """
    managers = Managers(live)
    before, asked = leaves(live, keys), leaves(wanted, keys)
    taken = {
        other: {
            path for path in paths & set(asked) if path in before and before[path] != asked[path]
        }
        for other, paths in managers.entries.items()
        if other != who
    }
    met = {
        _title(other): [_dotted(one) for one in paths] for other, paths in taken.items() if paths
    }
    if met and not force:
        raise fields_conflict(met)
    for other, paths in taken.items():
        managers.entries[other] -= paths
    others = {path for key, paths in managers.entries.items() if key != who for path in paths}
    given_up = managers.entries.get(who, set()) - set(asked) - others
    found = _merge_applied(copy.deepcopy(live), wanted, keys, ())
    for path in given_up:
        _remove(found, path)
    if managers.entries.get(who) != set(asked) or found != live:
        managers.times[who] = now
    managers.entries[who] = set(asked)
    return found, managers


def _merge_applied(live: Any, wanted: Any, keys: ListKeys, path: Path) -> Any:
    if isinstance(live, dict) and isinstance(wanted, dict):
        found = dict(live)
        for key, value in wanted.items():
            found[key] = _merge_applied(live.get(key), value, keys, (*path, key))
        return found
    names = keys(path)
    if isinstance(live, list) and isinstance(wanted, list) and names:
        items = {_item_key(one, names): one for one in live}
        for one in wanted:
            key = _item_key(one, names)
            items[key] = _merge_applied(items.get(key), one, keys, path)
        return list(items.values())
    return copy.deepcopy(wanted)


def _remove(document: Any, path: Path) -> None:
    step, rest = path[0], path[1:]
    if step.startswith("k:"):
        wanted = json.loads(step[2:])
        for number, item in enumerate(document if isinstance(document, list) else []):
            if all(item.get(key, _DEFAULT_KEYS.get(key)) == one for key, one in wanted.items()):
                _remove_below(document, number, rest)
                return
    elif isinstance(document, dict) and step[2:] in document:
        _remove_below(document, step[2:], rest)


def _remove_below(parent: Any, key: Any, rest: Path) -> None:
    if rest:
        _remove(parent[key], rest)
    if not rest or parent[key] in ({}, []):
        del parent[key]


def _dotted(path: Path) -> str:
    found = ""
    for step in path:
        if step.startswith("k:"):
            pairs = json.loads(step[2:]).items()
            found += "[" + ",".join(f"{key}={json.dumps(value)}" for key, value in pairs) + "]"
        else:
            found += f".{step[2:]}"
    return found


def _title(who: tuple[str, str, str]) -> str:
    return who[0] if who[1] == "Apply" else f'{who[0]}" using "{who[1]}'
