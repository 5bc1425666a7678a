"""Addresses of the tests' Kubernetes API server: what they name, and what tells of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from api_errors import no_such_path
from api_kinds import (
    KUBERNETES,
    PODS,
    Kind,
    group_list,
    group_of,
    openapi_index,
    openapi_of,
    resource_list,
)

Object = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """What an address names."""

    kind: Kind
    namespace: str
    name: str
    subresource: str


def discovered(parts: list[str], kinds: list[Kind]) -> Object | None:
    """What is told of the kinds at that address; None where it is about objects."""
    match parts:
        case ["version"]:
            return dict(KUBERNETES)
        case ["api"]:
            return {"kind": "APIVersions", "versions": ["v1"]}
        case ["apis"]:
            return group_list(kinds)
        case ["apis", group]:
            return group_of(kinds, group)
        case ["api", "v1"]:
            return resource_list(kinds, "v1")
        case ["apis", group, version]:
            return resource_list(kinds, f"{group}/{version}")
        case ["openapi", "v3"]:
            return openapi_index(kinds)
        case ["openapi", "v3", *prefix]:
            return openapi_of(kinds, "/".join(prefix))
    return None


def place_of(parts: list[str], kinds: list[Kind]) -> Place:
    """The kind or object at that address; raises ApiError where there is none."""
    match parts:
        case ["api", "v1", *rest]:
            api_version = "v1"
        case ["apis", group, version, *rest]:
            api_version = f"{group}/{version}"
        case _:
            raise no_such_path()
    namespace = ""
    if rest[:1] == ["namespaces"] and len(rest) > 2 and rest[2] not in ("status", "finalize"):
        namespace, rest = rest[1], rest[2:]
    served = {one.plural: one for one in kinds if one.api_version == api_version}
    if not 1 <= len(rest) <= 3 or rest[0] not in served:
        raise no_such_path()
    kind = served[rest[0]]
    name, subresource = (*rest[1:], "", "")[:2]
    known = {"status"} if kind.has_status else set()
    known |= {"log"} if kind is PODS else set()
    if (subresource and subresource not in known) or bool(namespace) > kind.namespaced:
        raise no_such_path()
    if kind.namespaced and name and not namespace:
        raise no_such_path()
    return Place(kind, namespace, name, subresource)
