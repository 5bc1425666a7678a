"""How the player of the operators talks to a Kubernetes API server: HTTP, and nothing else."""

from __future__ import annotations

import secrets
import ssl
import string
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import urllib3

Object = dict[str, Any]
AGENT = "kuberay-player/1.7"
_GROUPS = {
    "rayjobs": "apis/ray.io/v1",
    "rayclusters": "apis/ray.io/v1",
    "workloads": "apis/kueue.x-k8s.io/v1beta2",
    "localqueues": "apis/kueue.x-k8s.io/v1beta2",
    "clusterqueues": "apis/kueue.x-k8s.io/v1beta2",
    "workloadpriorityclasses": "apis/kueue.x-k8s.io/v1beta2",
    "jobs": "apis/batch/v1",
}
_CLUSTER_WIDE = ("nodes", "clusterqueues", "workloadpriorityclasses")
_RETRY_SECONDS = 0.2
_LETTERS = string.ascii_lowercase + string.digits


class RefusedError(Exception):
    """The server's answer was an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class StoppedError(Exception):
    """The player is being stopped."""


class Api:
    """Requests to one server, repeated while it cannot be reached, until the player stops."""

    def __init__(self, url: str, *, token: str | None, authority: bytes | None) -> None:
        self.url = url
        self.stopping = threading.Event()
        context = None
        if authority is not None:
            context = ssl.create_default_context(cadata=authority.decode())
        self._pool = urllib3.PoolManager(maxsize=16, retries=False, timeout=30, ssl_context=context)
        self._headers = {"User-Agent": AGENT}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"
        self._events: set[tuple[str, str, str]] = set()

    def _request(
        self, method: str, path: str, body: Any = None, *, kind: str = "application/json"
    ) -> Object:
        headers = {**self._headers, "Content-Type": kind}
        while True:
            if self.stopping.is_set():
                raise StoppedError
            try:
                answer = self._pool.request(
                    method, f"{self.url}/{path}", headers=headers, json=body
                )
                found: Object = answer.json()
            except (urllib3.exceptions.HTTPError, ValueError):
                self.stopping.wait(_RETRY_SECONDS)
                continue
            if answer.status >= 500 or answer.status == 429:
                self.stopping.wait(_RETRY_SECONDS)
                continue
            if answer.status >= 400:
                raise RefusedError(answer.status, found.get("message", ""))
            return found

    def _path(self, plural: str, namespace: str = "", name: str = "", tail: str = "") -> str:
        where = f"/namespaces/{namespace}" if namespace and plural not in _CLUSTER_WIDE else ""
        path = f"{_GROUPS.get(plural, 'api/v1')}{where}/{plural}"
        return path + (f"/{name}" if name else "") + (f"/{tail}" if tail else "")

    def listed(self, plural: str) -> list[Object]:
        """All objects of a kind; none where the kind is not served."""
        try:
            found: list[Object] = self._request("GET", self._path(plural))["items"]
        except RefusedError as refused:
            if refused.status == 404:
                return []
            raise
        return found

    def get(self, plural: str, name: str, namespace: str = "") -> Object | None:
        try:
            return self._request("GET", self._path(plural, namespace, name))
        except RefusedError as refused:
            if refused.status == 404:
                return None
            raise

    def create(self, plural: str, document: Object) -> Object | None:
        """The object as it was created; None where it is there already."""
        path = self._path(plural, document["metadata"].get("namespace", ""))
        try:
            return self._request("POST", path, document)
        except RefusedError as refused:
            if refused.status == 409:
                return None
            raise

    def patch(self, plural: str, one: Object, change: Object, *, tail: str = "") -> Object | None:
        """The object after a merge patch; None where it is gone."""
        metadata = one["metadata"]
        path = self._path(plural, metadata.get("namespace", ""), metadata["name"], tail)
        try:
            return self._request("PATCH", path, change, kind="application/merge-patch+json")
        except RefusedError as refused:
            if refused.status == 404:
                return None
            raise

    def set_status(self, plural: str, one: Object, status: Object) -> Object | None:
        """Change fields of the status; those that are None go."""
        return self.patch(plural, one, {"status": status}, tail="status")

    def delete(self, plural: str, one: Object, *, grace_seconds: int | None = None) -> None:
        """Delete an object that may be gone."""
        metadata = one["metadata"]
        path = self._path(plural, metadata.get("namespace", ""), metadata["name"])
        options: Object = {"preconditions": {"uid": metadata["uid"]}}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        with suppress(RefusedError):
            self._request("DELETE", path, options)

    def event(
        self, about: Object, reason: str, message: str, *, who: str, warning: bool = False
    ) -> None:
        """Tell an event about an object, once."""
        metadata = about["metadata"]
        known = (metadata["uid"], reason, message)
        if known in self._events:
            return
        self._events.add(known)
        at = now()
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "name": f"{metadata['name']}.{secrets.token_hex(8)}",
                "namespace": metadata["namespace"],
            },
            "involvedObject": {
                "apiVersion": about["apiVersion"],
                "kind": about["kind"],
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata["uid"],
                "resourceVersion": metadata["resourceVersion"],
            },
            "type": "Warning" if warning else "Normal",
            "reason": reason,
            "message": message,
            "source": {"component": who},
            "reportingComponent": who,
            "firstTimestamp": at,
            "lastTimestamp": at,
            "count": 1,
        }
        with suppress(RefusedError):
            self.create("events", event)


def full_name(one: Object) -> str:
    return f"{one['metadata']['namespace']}/{one['metadata']['name']}"


def random_suffix() -> str:
    return "".join(secrets.choice(_LETTERS) for _ in range(5))


def owner(one: Object) -> Object:
    return {
        "apiVersion": one["apiVersion"],
        "kind": one["kind"],
        "name": one["metadata"]["name"],
        "uid": one["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def seconds_since(text: str) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(text)).total_seconds()


def condition(
    kind: str, status: bool, reason: str, message: str = "", *, old: list[Object] | None = None
) -> Object:
    """A condition of a status; its time is that of ``old`` where it says the same."""
    said = "True" if status else "False"
    at = now()
    for one in old or []:
        if one["type"] == kind and one["status"] == said:
            at = one["lastTransitionTime"]
    return {
        "type": kind,
        "status": said,
        "reason": reason,
        "message": message,
        "lastTransitionTime": at,
    }


def merged(conditions: list[Object], *fresh: Object) -> list[Object]:
    """The conditions with those of the same types replaced."""
    types = {one["type"] for one in fresh}
    return [*(one for one in conditions if one["type"] not in types), *fresh]


def is_true(conditions: list[Object], kind: str) -> bool:
    return any(one["type"] == kind and one["status"] == "True" for one in conditions)


def repeat(api: Api, step: Callable[[], None], *, seconds: float) -> None:
    """Run a step again and again, until the player stops."""
    while not api.stopping.is_set():
        began = time.monotonic()
        try:
            step()
        except StoppedError:
            return
        except RefusedError as refused:
            # Somebody else was faster, as happens to controllers; the next round sees it.
            if refused.status not in (403, 404, 409):
                raise
        api.stopping.wait(max(0.01, seconds - (time.monotonic() - began)))
