"""What may go wrong between the tests' Kubernetes API server and its clients."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field
from typing import Any

from api_errors import ApiError, too_large_version

FOR_EVER = -1
_MESSAGES = {
    409: "Operation cannot be fulfilled: the object has been modified; please apply your changes "
    "to the latest version and try again",
    410: "The resourceVersion for the provided watch is too old.",
    429: "the server has received too many requests and has asked us to try again later",
    500: "Internal error occurred: told to by a test",
    503: "the server is currently unable to handle the request",
}


@dataclass
class Fault:
    """What happens to requests that match; the first fault of the queue that matches is used."""

    method: str = ""
    """Of the request, such as ``GET``; empty: any."""
    path: str = ""
    """A pattern searched for in path and query, such as ``/rayjobs\\?.*watch``; empty: any."""
    user: str = "client"
    """Who asks: ``client``, or ``operator`` for whoever bears the operators' token."""
    times: int = 1
    """How many requests; FOR_EVER: all, until the fault is removed."""
    status: int | None = None
    """Answer with a Status of this code, and do nothing else."""
    retry_after: int | None = None
    """Seconds in the header Retry-After of that answer."""
    delay_seconds: float = 0.0
    """Wait before anything else."""
    lost: bool = False
    """Do what was asked for, and close the connection without an answer."""
    cut_after: int | None = None
    """Close the connection after so many bytes of the answer's body."""
    end_after: int | None = None
    """End a watch or a log in good order after so many events or lines."""
    error_event: int | None = None
    """End a watch by an event ERROR with a Status of this code, after ``end_after`` events."""
    hits: int = 0
    """How many requests it has met."""

    def matches(self, method: str, target: str, user: str) -> bool:
        """Whether it is about such a request."""
        right = self.user == user and self.method in ("", method)
        return right and bool(re.search(self.path, target))


@dataclass(frozen=True)
class Request:
    """A request that the server has had."""

    method: str
    path: str
    query: dict[str, str]
    body: Any
    user_agent: str
    user: str
    """``client``, or ``operator`` for whoever bears the operators' token."""


@dataclass
class Faults:
    """The queue of faults."""

    queue: list[Fault] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, fault: Fault) -> Fault:
        with self.lock:
            self.queue.append(fault)
        return fault

    def remove(self, fault: Fault) -> None:
        with self.lock:
            self.queue = [one for one in self.queue if one is not fault]

    def take(self, method: str, target: str, user: str) -> Fault:
        """The fault for a request; one without effect where none is due."""
        with self.lock:
            for fault in self.queue:
                if fault.times != 0 and fault.matches(method, target, user):
                    fault.hits += 1
                    if fault.times > 0:
                        fault.times -= 1
                    return fault
        return Fault()


def error_of(code: int, version: int) -> ApiError:
    """The Status that a fault answers with."""
    if code == 504:
        return too_large_version(version + 1000, version)
    return ApiError(code, _MESSAGES.get(code, "told to by a test"))
