"""Deletion, as the tests' Kubernetes API server does it: grace, finalizers, owners, namespaces."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import api_errors
from api_kinds import KINDS, NAMESPACES, PODS, Kind
from api_store import Store

Object = dict[str, Any]
_FOREGROUND = "foregroundDeletion"
_DEFAULT_GRACE_SECONDS = 30


@dataclass(frozen=True)
class Deletion:
    """How an object is to be deleted."""

    propagation: str = "Background"
    grace_seconds: int | None = None
    uid: str | None = None
    version: str | None = None
    dry_run: bool = False


class Deletions:
    """Deletes from a store, and is its garbage collector."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def delete(self, kind: Kind, namespace: str, name: str, how: Deletion) -> tuple[Object, bool]:
        """The object, and whether it is gone already."""
        store = self.store
        with store.changed:
            old = store.get(kind, namespace, name)
            metadata = old["metadata"]
            for field, wanted in (("uid", how.uid), ("resourceVersion", how.version)):
                if wanted is not None and wanted != metadata[field]:
                    title = "UID" if field == "uid" else "ResourceVersion"
                    why = (
                        f"Precondition failed: {title} in precondition: {wanted}, {title} in "
                        f"object meta: {metadata[field]}"
                    )
                    raise api_errors.conflict(kind, name, why)
            grace = _grace_seconds(kind, old, how.grace_seconds)
            finalizers = list(metadata.get("finalizers") or [])
            if how.propagation == "Foreground" and _FOREGROUND not in finalizers:
                finalizers.append(_FOREGROUND)
            stays = bool(finalizers or grace or kind is NAMESPACES)
            if how.dry_run:
                return old, not stays
            if how.propagation == "Orphan":
                self._orphan(metadata["uid"])
            if not stays:
                return self.store.remove(kind, old), True
            return self._mark_deleted(kind, old, grace=grace, finalizers=finalizers), False

    def _mark_deleted(
        self, kind: Kind, old: Object, *, grace: int, finalizers: list[str]
    ) -> Object:
        metadata = {**old["metadata"]}
        earlier = metadata.get("deletionGracePeriodSeconds")
        if earlier is not None and earlier <= grace:
            return old
        at = datetime.now(UTC) + timedelta(seconds=grace)
        metadata["deletionTimestamp"] = at.strftime("%Y-%m-%dT%H:%M:%SZ")
        metadata["deletionGracePeriodSeconds"] = grace
        if finalizers:
            metadata["finalizers"] = finalizers
        if kind.counts_generations:
            metadata["generation"] = metadata.get("generation", 1) + 1
        made = {**old, "metadata": metadata}
        if kind is NAMESPACES:
            made["status"] = {"phase": "Terminating"}
        return self.store.commit(kind, old, made, dry_run=False)

    def _orphan(self, uid: str) -> None:
        for kind, one in self._dependents(uid):
            owners = [owner for owner in one["metadata"]["ownerReferences"] if owner["uid"] != uid]
            made = {**one, "metadata": {**one["metadata"], "ownerReferences": owners}}
            self.store.commit(kind, one, made, dry_run=False)

    def _dependents(self, uid: str) -> list[tuple[Kind, Object]]:
        return [
            (kind, one)
            for kind, one in self._all()
            if any(owner["uid"] == uid for owner in one["metadata"].get("ownerReferences") or [])
        ]

    def _all(self) -> Iterator[tuple[Kind, Object]]:
        for kind in KINDS:
            for one in self.store.listed(kind):
                yield kind, one

    def collect(self) -> None:
        """Delete what has lost its owners, and go on with what is being deleted."""
        with self.store.changed:
            uids = {one["metadata"]["uid"] for one in self.store.objects.values()}
            for kind, seen in list(self._all()):
                where, name = _namespace(seen), seen["metadata"]["name"]
                one = self.store.objects.get((kind.plural, where, name))
                if one is None:
                    continue
                metadata = one["metadata"]
                owners = metadata.get("ownerReferences") or []
                lost = owners and all(owner["uid"] not in uids for owner in owners)
                if lost and not metadata.get("deletionTimestamp"):
                    self.delete(kind, where, name, Deletion())
                elif metadata.get("deletionTimestamp"):
                    self._go_on_deleting(kind, one)

    def _go_on_deleting(self, kind: Kind, one: Object) -> None:
        metadata = one["metadata"]
        if kind is NAMESPACES:
            name = metadata["name"]
            inside = [pair for pair in self._all() if _namespace(pair[1]) == name]
            for inner, found in inside:
                if not found["metadata"].get("deletionTimestamp"):
                    how = Deletion(grace_seconds=0)
                    self.delete(inner, name, found["metadata"]["name"], how)
            if not inside:
                self.store.remove(kind, one)
        elif _FOREGROUND in (metadata.get("finalizers") or []):
            dependents = self._dependents(metadata["uid"])
            for inner, found in dependents:
                if not found["metadata"].get("deletionTimestamp"):
                    how = Deletion(propagation="Foreground")
                    self.delete(inner, _namespace(found), found["metadata"]["name"], how)
            if not dependents:
                left = [name for name in metadata["finalizers"] if name != _FOREGROUND]
                made = {**one, "metadata": {**metadata, "finalizers": left}}
                self.store.commit(kind, one, made, dry_run=False)


def _namespace(document: Object) -> str:
    found: str = document["metadata"].get("namespace", "")
    return found


def _grace_seconds(kind: Kind, old: Object, asked: int | None) -> int:
    """How long the object stays for its kubelet to stop it."""
    if kind is not PODS:
        return 0
    finished = old.get("status", {}).get("phase") in ("Succeeded", "Failed")
    if finished or not old.get("spec", {}).get("nodeName"):
        return 0
    if asked is not None:
        return asked
    own: int = old["spec"].get("terminationGracePeriodSeconds", _DEFAULT_GRACE_SECONDS)
    return own
