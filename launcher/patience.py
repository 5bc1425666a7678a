"""Asking again through an outage."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from launcher.job import PlaceUnavailableError

FIRST_WAIT, LONGEST_WAIT = 0.5, 8.0
"""Seconds between two tries; each wait is twice the one before."""
PATIENCE_SECONDS = 60.0
"""How long a call waits for a place that does not answer, before it says so."""
LOOK_SECONDS = 8.0
"""The same where a person waits to see how things are."""
Answer = TypeVar("Answer")


def capped(timeouts: tuple[float, float], patience_seconds: float) -> tuple[float, float]:
    """Seconds for connecting and for an answer, of which none is longer than the patience."""
    most = max(1.0, patience_seconds)
    return min(timeouts[0], most), min(timeouts[1], most)


def told_seconds(retry_after: str | None) -> float | None:
    """What a ``Retry-After`` header says; None where there is none, or a date."""
    return None if retry_after is None or not retry_after.isdigit() else float(retry_after)


def patiently(
    ask: Callable[[], Answer], *, seconds: float, sleep: Callable[[float], None]
) -> Answer:
    """What ``ask`` returns once it raises no PlaceUnavailableError; the error after ``seconds``.

    ``ask`` may be called many times. A server that says when to come back is heard.
    """
    deadline = time.monotonic() + seconds
    wait = FIRST_WAIT
    while True:
        try:
            return ask()
        except PlaceUnavailableError as error:
            if time.monotonic() >= deadline:
                raise
            after = error.retry_after
        sleep(wait if after is None else min(after, LONGEST_WAIT))
        wait = min(LONGEST_WAIT, wait * 2)
