"""What the tests' Kubernetes API server holds: objects, their versions, every change of them."""

from __future__ import annotations

import copy
import secrets
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import api_errors
from api_errors import ApiError
from api_kinds import NAMESPACES, PODS, Kind
from api_patches import Managers, apply_patch, leaves
from api_schemas import fitted, frozen_causes, list_keys, unknown_fields

Object = dict[str, Any]
Key = tuple[str, str, str]
"""The plural, the namespace (empty for what has none) and the name."""
_SYSTEM = (
    *("name", "namespace", "uid", "creationTimestamp", "generation", "selfLink"),
    *("deletionTimestamp", "deletionGracePeriodSeconds"),
)
_FIRST_STATUS: dict[str, Object] = {
    "pods": {"phase": "Pending", "qosClass": "BestEffort"},
    "namespaces": {"phase": "Active"},
    "persistentvolumeclaims": {"phase": "Pending"},
}


@dataclass(frozen=True)
class Change:
    """One change of one object, as watches tell it."""

    version: int
    kind: Kind
    what: str
    """ADDED, MODIFIED or DELETED."""
    document: Object
    previous: Object | None


@dataclass(frozen=True)
class Write:
    """Who writes, and how."""

    manager: str = "tests"
    subresource: str = ""
    dry_run: bool = False
    strictly: bool = False
    force: bool = False


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Store:
    """Objects by key; whoever waits for a change is told through ``changed``."""

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.objects: dict[Key, Object] = {}
        self.version = 1
        self.history: list[Change] = []
        self.oldest = 1
        """Watches from before this version are refused."""
        self.to_collect = threading.Event()

    def get(self, kind: Kind, namespace: str, name: str) -> Object:
        found = self.objects.get((kind.plural, namespace, name))
        if found is None:
            raise api_errors.not_found(kind, name)
        return found

    def listed(self, kind: Kind, namespace: str = "") -> list[Object]:
        """All objects of a kind, of one namespace or of all, in the order of their keys."""
        with self.changed:
            return [
                one
                for (plural, where, _), one in sorted(self.objects.items())
                if plural == kind.plural and (not namespace or where == namespace)
            ]

    def create(
        self, kind: Kind, namespace: str, document: Object, write: Write
    ) -> tuple[Object, list[str]]:
        """The object as it was created, and warnings."""
        with self.changed:
            made = copy.deepcopy(document)
            metadata = made.setdefault("metadata", {})
            if metadata.get("resourceVersion"):
                text = "resourceVersion should not be set on objects to be created"
                raise ApiError(500, text, reason="")
            if not metadata.get("name") and metadata.get("generateName"):
                metadata["name"] = f"{metadata['generateName']}{secrets.token_hex(3)[:5]}"
            self._require_namespace(kind, namespace, metadata)
            made["apiVersion"], made["kind"] = kind.api_version, kind.kind
            name = metadata.get("name") or ""
            if (kind.plural, namespace, name) in self.objects:
                raise api_errors.already_exists(kind, name)
            for field in _SYSTEM[2:]:
                metadata.pop(field, None)
            metadata.pop("managedFields", None)
            if kind.has_status and kind.plural != "customresourcedefinitions":
                made.pop("status", None)
            made, warnings = fitted(kind, made, strictly=write.strictly)
            made = self._with_first_metadata(kind, namespace, made)
            managers = Managers({})
            fields = self._leaves(kind, {**made, "status": {}})
            who = (write.manager, "Update", "")
            managers.written(who, {}, fields, now())
            made["metadata"]["managedFields"] = managers.as_list(kind.api_version)
            return self.commit(kind, None, made, write.dry_run), warnings

    def _require_namespace(self, kind: Kind, namespace: str, metadata: Object) -> None:
        if not kind.namespaced:
            metadata.pop("namespace", None)
            return
        if metadata.get("namespace", namespace) != namespace:
            raise ApiError(
                400,
                "the namespace of the provided object does not match the namespace sent on the "
                "request",
            )
        metadata["namespace"] = namespace
        owner = self.objects.get(("namespaces", "", namespace))
        if owner is None:
            raise api_errors.not_found(NAMESPACES, namespace)
        if owner["metadata"].get("deletionTimestamp"):
            name = metadata.get("name", "")
            raise ApiError(
                403,
                f'{kind.full_name} "{name}" is forbidden: unable to create new content in '
                f"namespace {namespace} because it is being terminated",
            )

    def _with_first_metadata(self, kind: Kind, namespace: str, made: Object) -> Object:
        metadata = {
            **made["metadata"],
            "uid": str(uuid.uuid4()),
            "creationTimestamp": now(),
        }
        if kind.counts_generations:
            metadata["generation"] = 1
        found = {**made, "metadata": metadata}
        if kind.plural in _FIRST_STATUS:
            found["status"] = copy.deepcopy(_FIRST_STATUS[kind.plural])
        return found

    def _leaves(self, kind: Kind, document: Object) -> dict[tuple[str, ...], Any]:
        return leaves(document, lambda path: list_keys(kind, path))

    def replace(
        self, kind: Kind, namespace: str, document: Object, write: Write, *, name: str
    ) -> tuple[Object, list[str]]:
        """The object as it is after a PUT, and warnings."""
        with self.changed:
            metadata = document.get("metadata", {})
            if metadata.get("name") != name:
                raise ApiError(
                    400,
                    f"the name of the object ({metadata.get('name', '')}) does not match the name "
                    f"on the URL ({name})",
                )
            old = self.get(kind, namespace, name)
            if kind.custom and not metadata.get("resourceVersion"):
                text = "Invalid value: 0: must be specified for an update"
                field = "metadata.resourceVersion"
                raise api_errors.invalid(kind, name, [api_errors.cause(field, text)])
            return self._update(kind, old, document, write)

    def patch(
        self,
        kind: Kind,
        namespace: str,
        name: str,
        change: Callable[[Object], Object],
        write: Write,
    ) -> tuple[Object, list[str]]:
        """The object as ``change`` makes it, and warnings."""
        with self.changed:
            old = self.get(kind, namespace, name)
            return self._update(kind, old, change(copy.deepcopy(old)), write)

    def apply(
        self, kind: Kind, namespace: str, name: str, wanted: Object, write: Write
    ) -> tuple[Object, list[str], bool]:
        """Server-side apply: the object, warnings, and whether it was created."""
        with self.changed:
            unknown = unknown_fields(kind, copy.deepcopy(wanted))
            if unknown:
                raise ApiError(
                    500,
                    f"failed to create typed patch object ({namespace}/{name}; "
                    f"{kind.api_version}, Kind={kind.kind}): .{unknown[0]}: field not declared in "
                    "schema",
                    reason="",
                )
            warnings: list[str] = []
            who = (write.manager, "Apply", write.subresource)
            old = self.objects.get((kind.plural, namespace, name))
            created = old is None
            if old is None:
                old, _ = self.create(kind, namespace, wanted, Write(dry_run=True))
                old = {**old, "metadata": {**old["metadata"], "managedFields": []}}
            made, managers = apply_patch(
                old,
                wanted,
                who=who,
                keys=lambda path: list_keys(kind, path),
                force=write.force,
                now=now(),
            )
            listed = managers.as_list(kind.api_version)
            made["metadata"]["managedFields"] = listed
            if created:
                # Lists that are one value were replaced, and have lost their defaults.
                made, _ = fitted(kind, made, strictly=False)
                return self.commit(kind, None, made, write.dry_run), warnings, True
            found, warnings = self._update(kind, old, made, write, managed=listed)
            return found, warnings, False

    def _update(
        self,
        kind: Kind,
        old: Object,
        document: Object,
        write: Write,
        *,
        managed: list[Object] | None = None,
    ) -> tuple[Object, list[str]]:
        name, before = old["metadata"]["name"], old["metadata"]
        made = copy.deepcopy(document)
        metadata = made.setdefault("metadata", {})
        if metadata.get("uid", before["uid"]) != before["uid"]:
            why = (
                f"Precondition failed: UID in precondition: {metadata['uid']}, UID in object meta: "
                f"{before['uid']}"
            )
            raise api_errors.conflict(kind, name, why)
        version = metadata.get("resourceVersion") or before["resourceVersion"]
        if version != before["resourceVersion"]:
            raise api_errors.conflict(kind, name)
        made["apiVersion"], made["kind"] = kind.api_version, kind.kind
        for field in (*_SYSTEM, "resourceVersion"):
            metadata.pop(field, None)
            if field in before:
                metadata[field] = before[field]
        if write.subresource == "status":
            made = {**old, "status": made.get("status", {})}
            made["metadata"] = {**before}
        elif kind.has_status and kind.plural != "customresourcedefinitions":
            made.pop("status", None)
            if "status" in old:
                made["status"] = old["status"]
        made, warnings = fitted(kind, made, strictly=write.strictly)
        causes = frozen_causes(kind, old, made)
        if causes:
            raise api_errors.invalid(kind, name, causes)
        if kind.counts_generations and _content(made) != _content(old):
            made["metadata"]["generation"] = before.get("generation", 1) + 1
        if managed is None:
            managed = self._managed(kind, old, made, write)
        made["metadata"]["managedFields"] = managed
        same_owners = _untimed(managed) == _untimed(before.get("managedFields", []))
        if same_owners and _unversioned(made) == _unversioned(old):
            return old, warnings
        return self.commit(kind, old, made, write.dry_run), warnings

    def _managed(self, kind: Kind, old: Object, made: Object, write: Write) -> list[Object]:
        given = made["metadata"].get("managedFields")
        if given is not None and given != old["metadata"].get("managedFields"):
            return [one for one in given if one]
        managers = Managers(old)
        who = (write.manager, "Update", write.subresource)
        managers.written(who, self._leaves(kind, old), self._leaves(kind, made), now())
        return managers.as_list(kind.api_version)

    def commit(self, kind: Kind, old: Object | None, made: Object, dry_run: bool) -> Object:
        """Hold the object as it now is; one that was only held by finalizers may be gone."""
        if dry_run:
            return made
        metadata = made["metadata"]
        if metadata.get("deletionTimestamp") and not metadata.get("finalizers"):
            held = kind is PODS and metadata.get("deletionGracePeriodSeconds")
            if not held and kind is not NAMESPACES:
                return self.remove(kind, made)
        self.version += 1
        made = {**made, "metadata": {**metadata, "resourceVersion": str(self.version)}}
        self.objects[(kind.plural, metadata.get("namespace", ""), metadata["name"])] = made
        self._note(kind, "MODIFIED" if old else "ADDED", made, old)
        return made

    def remove(self, kind: Kind, old: Object) -> Object:
        """Hold it no more."""
        metadata = old["metadata"]
        previous = self.objects.pop((kind.plural, metadata.get("namespace", ""), metadata["name"]))
        self.version += 1
        gone = {**old, "metadata": {**metadata, "resourceVersion": str(self.version)}}
        self._note(kind, "DELETED", gone, previous)
        return gone

    def _note(self, kind: Kind, what: str, document: Object, previous: Object | None) -> None:
        self.history.append(Change(self.version, kind, what, document, previous))
        self.to_collect.set()
        self.changed.notify_all()

    def compact(self) -> None:
        """Forget the past: watches and lists from older versions are refused as expired."""
        with self.changed:
            self.oldest = self.version


def _content(document: Object) -> Object:
    return {key: value for key, value in document.items() if key not in ("metadata", "status")}


def _untimed(managed: list[Object]) -> list[Object]:
    return [{key: value for key, value in one.items() if key != "time"} for one in managed]


def _unversioned(document: Object) -> Object:
    metadata = document["metadata"]
    hidden = ("resourceVersion", "managedFields")
    return {**document, "metadata": {k: v for k, v in metadata.items() if k not in hidden}}
