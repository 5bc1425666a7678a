"""Answers of the tests' Kubernetes API server that go on: watches and pods' logs."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from api_errors import ApiError, expired, too_large_version
from api_kinds import PODS, Kind
from api_selectors import Test
from api_store import Change, Store

Object = dict[str, Any]
_POLL_SECONDS = 0.1
_BOOKMARK_SECONDS = 10.0
_STAMP = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z) (.*)", re.DOTALL)


@dataclass(frozen=True)
class WatchRequest:
    """What a client wants to be told."""

    kind: Kind
    namespace: str
    selected: Test
    version: str
    bookmarks: bool
    initial_events: bool
    timeout_seconds: float


def watch(store: Store, asked: WatchRequest, goes_on: Callable[[], bool]) -> Iterator[bytes]:
    """The events as lines; an empty one wherever nothing has happened for a moment.

    Raises ApiError at once where the version is one that the server has not reached.
    """
    at = int(asked.version or 0)
    if at > store.version:
        raise too_large_version(at, store.version)
    return _events(store, asked, at, goes_on)


def _events(
    store: Store, asked: WatchRequest, at: int, goes_on: Callable[[], bool]
) -> Iterator[bytes]:
    deadline = time.monotonic() + asked.timeout_seconds
    if at and at < store.oldest:
        yield event("ERROR", expired(at, store.oldest).status())
        return
    with store.changed:
        first = [] if at and not asked.initial_events else store.listed(asked.kind, asked.namespace)
        if not at or asked.initial_events:
            at = store.version
    yield from (event("ADDED", one) for one in first if asked.selected(one))
    if asked.initial_events:
        yield _bookmark(asked.kind, at, {"k8s.io/initial-events-end": "true"})
    told_at = time.monotonic()
    while goes_on() and time.monotonic() < deadline:
        with store.changed:
            news = changes_after(store.history, at)
            if not news:
                store.changed.wait(_POLL_SECONDS)
        lines = [line for change in news if (line := _line(asked, change))]
        at = max([at, *(change.version for change in news)])
        if asked.bookmarks and time.monotonic() - told_at > _BOOKMARK_SECONDS:
            told_at = time.monotonic()
            lines.append(_bookmark(asked.kind, at, {}))
        yield from lines or [b""]
    if asked.bookmarks:
        yield _bookmark(asked.kind, at, {})


def changes_after(history: list[Change], version: int) -> list[Change]:
    """The changes after a version, oldest first."""
    found = []
    for change in reversed(history):
        if change.version <= version:
            break
        found.append(change)
    return found[::-1]


def _line(asked: WatchRequest, change: Change) -> bytes:
    """The change as this watch sees it: what stops being selected is deleted for it."""
    where = change.document["metadata"].get("namespace", "")
    if change.kind is not asked.kind or (asked.namespace and where != asked.namespace):
        return b""
    was = change.previous is not None and asked.selected(change.previous)
    is_now = change.what != "DELETED" and asked.selected(change.document)
    if is_now:
        return event("MODIFIED" if was else "ADDED", change.document)
    return event("DELETED", change.document) if was else b""


def event(what: str, document: Object) -> bytes:
    """One line of a watch."""
    return json.dumps({"type": what, "object": document}).encode() + b"\n"


def _bookmark(kind: Kind, version: int, annotations: dict[str, str]) -> bytes:
    metadata: Object = {"resourceVersion": str(version), "creationTimestamp": None}
    if annotations:
        metadata["annotations"] = annotations
    known = {"kind": kind.kind, "apiVersion": kind.api_version}
    return event("BOOKMARK", {**known, "metadata": metadata})


@dataclass(frozen=True)
class LogRequest:
    """What a client wants of a log."""

    namespace: str
    pod: str
    container: str
    follow: bool
    tail_lines: int | None
    since: datetime | None
    timestamps: bool
    limit_bytes: int | None


def log_request(store: Store, namespace: str, pod: str, query: dict[str, str]) -> LogRequest:
    """From the query of a request; raises ApiError where there is no such log."""
    found = store.get(PODS, namespace, pod)
    container = _container(found, query.get("container", ""))
    since = None
    try:
        if "sinceSeconds" in query:
            since = datetime.now(UTC) - timedelta(seconds=int(query["sinceSeconds"]))
        elif "sinceTime" in query:
            since = _time(query["sinceTime"])
        tail = int(query["tailLines"]) if "tailLines" in query else None
        limit = int(query["limitBytes"]) if "limitBytes" in query else None
    except ValueError as error:
        raise ApiError(400, f"unable to decode query: {error}") from None
    return LogRequest(
        namespace=namespace,
        pod=pod,
        container=container,
        follow=query.get("follow", "") == "true",
        tail_lines=tail,
        since=since,
        timestamps=query.get("timestamps", "") == "true",
        limit_bytes=limit,
    )


def _container(pod: Object, asked: str) -> str:
    name = pod["metadata"]["name"]
    names = [one["name"] for one in pod.get("spec", {}).get("containers", [])]
    if asked and asked not in names:
        raise ApiError(400, f"container {asked} is not valid for pod {name}")
    if not asked and len(names) > 1:
        listed = f"[{' '.join(names)}]"
        raise ApiError(
            400, f"a container name must be specified for pod {name}, choose one of: {listed}"
        )
    container = asked or names[0]
    for status in pod.get("status", {}).get("containerStatuses", []):
        waiting = status.get("state", {}).get("waiting")
        if status["name"] == container and waiting is not None:
            why = waiting.get("reason", "ContainerCreating")
            raise ApiError(
                400, f'container "{container}" in pod "{name}" is waiting to start: {why}'
            )
    return container


def _time(text: str) -> datetime:
    """RFC 3339, with more digits of the second than Python takes."""
    return datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text))


def log_lines(
    store: Store, path: Path | None, asked: LogRequest, goes_on: Callable[[], bool]
) -> Iterator[bytes]:
    """Lines of the file, each of which may begin with its time; an empty one while nothing comes.

    A line without a time counts as written when the file was last changed.
    """
    sent, position = 0, 0
    lines, position = _read(path, position)
    if asked.since is not None:
        lines = [one for one in lines if one[0] >= asked.since]
    if asked.tail_lines is not None:
        lines = lines[max(0, len(lines) - asked.tail_lines) :]
    while True:
        for at, text in lines:
            stamp = f"{at.isoformat()} ".replace("+00:00", "Z").encode()
            line = stamp + text if asked.timestamps else text
            if asked.limit_bytes is not None:
                line = line[: asked.limit_bytes - sent]
            sent += len(line)
            if line:
                yield line
        if not (asked.follow and goes_on()):
            return
        lives = _may_go_on(store, asked)
        lines, position = _read(path, position)
        if not lines and not lives:
            return
        if not lines:
            yield b""
            time.sleep(_POLL_SECONDS)


def _read(path: Path | None, position: int) -> tuple[list[tuple[datetime, bytes]], int]:
    """Whole lines from a position on, and the position after them."""
    if path is None or not path.exists():
        return [], position
    with path.open("rb") as file:
        file.seek(position)
        data = file.read()
    whole = data[: data.rfind(b"\n") + 1]
    changed = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    found = []
    for line in whole.splitlines(keepends=True):
        match = _STAMP.fullmatch(line)
        found.append((_time(match[1].decode()), match[2]) if match else (changed, line))
    return found, position + len(whole)


def _may_go_on(store: Store, asked: LogRequest) -> bool:
    """Whether the container may still write."""
    pod = store.objects.get(("pods", asked.namespace, asked.pod))
    if pod is None or pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
        return False
    states = pod.get("status", {}).get("containerStatuses", [])
    ended = [one for one in states if one["name"] == asked.container]
    return not any("terminated" in one.get("state", {}) for one in ended)
