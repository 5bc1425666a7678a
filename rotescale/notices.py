"""Notices: reasons to save now and not at the next interval, found while training goes on.

A node that is about to be taken away, or a request on storage by somebody who is about to stop the
workers. Finding one needs no collective; the training loop asks ``due`` and lets all ranks agree.
No torch.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from rotescale.run_dir import RunDir
from rotescale.storage import write_atomic

SUPERVISED = "ROTESCALE_SUPERVISED"
"""Set for a driver whose supervisor asks for a save before it ends it."""
_LAST_SECONDS = 5.0
"""With less time left than this, no further save is begun."""


@dataclass(frozen=True, slots=True)
class Preemption:
    """Nodes that are about to be taken away from the run."""

    nodes: tuple[str, ...]
    deadline: float | None
    """UNIX time in seconds; None where it is not known."""

    @classmethod
    def from_json(cls, value: Any) -> Preemption | None:
        """What ``to_json`` gave, after a way as JSON; None for None."""
        return None if value is None else cls(tuple(value["nodes"]), value["deadline"])

    def to_json(self) -> dict[str, Any]:
        """Its fields, for another process."""
        return {"nodes": list(self.nodes), "deadline": self.deadline}


class Notices:
    """One rank's look-out, a thread that asks every ``poll_seconds``.

    ``preemption`` tells of nodes that this run is about to lose. Rank 0 also looks for a request
    on storage, and answers it while its attempt ``is_newest``. ``report`` is told a name and a
    message of each notice, once, on the rank that found it, in the background.

    A preemption with a deadline is due at once and again at each halving of the time that is
    left, since whatever is trained after the last save is lost.
    """

    def __init__(
        self,
        run_dir: RunDir,
        *,
        rank: int,
        is_newest: Callable[[], bool],
        preemption: Callable[[], Preemption | None],
        report: Callable[[str, str], None],
        poll_seconds: float = 1.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._run_dir = run_dir
        self._rank = rank
        self._is_newest = is_newest
        self._preemption = preemption
        self._report = report
        self._poll_seconds = poll_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._known: Preemption | None = None
        self._save_at: float | None = None
        self._request: str | None = None
        """The request that has been seen and not been answered yet."""
        self._taken = False
        """Whether the save that answers it has begun."""
        self._answered: str | None = None
        """The last one that was answered."""
        self._at_rest = True
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="notices", daemon=True)

    def __enter__(self) -> Notices:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def due(self) -> bool:
        """Whether this rank knows a reason to save now; other ranks may not know it yet."""
        with self._lock:
            wanted = self._request is not None and not self._taken
            return wanted or (self._save_at is not None and self._clock() >= self._save_at)

    def rest(self, at_rest: bool) -> None:
        """Say whether all that was trained is on storage; a request is then met already."""
        with self._lock:
            self._at_rest = at_rest

    def take(self) -> Callable[[], None]:
        """Every rank calls this when a save begins. What is due is met by it.

        Returns what to call, on rank 0, once the save is published.
        """
        with self._lock:
            left = self._time_left()
            self._save_at = None if left is None else self._clock() + left / 2
            self._taken = self._request is not None
            request = self._request
        return lambda: self._answer(request)

    def _time_left(self) -> float | None:
        """Seconds until the known deadline; None without one, or where it is too near."""
        if self._known is None or self._known.deadline is None:
            return None
        left = self._known.deadline - self._clock()
        return left if left > _LAST_SECONDS else None

    def _answer(self, request: str | None) -> None:
        """Note the request as answered, and withdraw it."""
        if request is None:
            return
        # Whoever asked sees the file go, and by then nothing is due.
        with self._lock:
            self._request, self._taken, self._answered = None, False, request
        _withdraw(self._run_dir, request)

    def _watch(self) -> None:
        looks = [self._look_for_preemption]
        if self._rank == 0:
            looks.append(self._look_for_request)
        told: set[str] = set()
        while not self._stop.wait(self._poll_seconds):
            for look in looks:
                try:
                    look()
                except Exception as error:  # noqa: BLE001 (a look-out that dies helps nobody)
                    # Storage that fails for a moment is asked again.
                    if str(error) not in told:
                        told.add(str(error))
                        logging.getLogger(__name__).warning("looking for notices: %s", error)

    def _look_for_preemption(self) -> None:
        found = self._preemption()
        if found is None or found == self._known:
            return
        with self._lock:
            self._known = found
            self._save_at = self._clock()
        when = "soon" if found.deadline is None else f"in {found.deadline - self._clock():.0f} s"
        self._report("preemption", f"{', '.join(found.nodes)} will be taken away {when}: saving")

    def _look_for_request(self) -> None:
        try:
            found = self._run_dir.save_request.read_text(encoding="utf-8")
        except FileNotFoundError:
            return
        if not self._is_newest():
            # The request is for the attempt that has taken over.
            return
        with self._lock:
            if self._taken:
                return
            # One that was answered and is still there could not be withdrawn.
            is_answered, at_rest = found == self._answered, self._at_rest
            is_new = not is_answered and found != self._request
            if not is_answered:
                self._request = found
        if is_new:
            self._report("save_request", _reason(found))
        if at_rest or is_answered:
            self._answer(found)


def _reason(request: str) -> str:
    """What the request says; all of it where nobody wrote it as ``request_save`` does."""
    try:
        return str(json.loads(request)["reason"])
    except (ValueError, KeyError, TypeError):
        return request


def request_save(
    run_dir: RunDir,
    reason: str,
    *,
    limit_seconds: float,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> bool:
    """Ask the run's workers to save, and wait until what they have trained is published.

    For any process that sees the run's storage. False where nobody has answered in time; the
    request is withdrawn then.
    """
    deadline = clock() + limit_seconds
    # No two requests are the same text, so that none is taken for another.
    request = json.dumps({"reason": reason, "id": uuid.uuid4().hex})
    write_atomic(run_dir.save_request, request.encode())
    try:
        while run_dir.save_request.exists():
            if clock() >= deadline:
                _withdraw(run_dir, request)
                return False
            sleep(0.2)
    except BaseException:
        # Whoever waited does so no more, and the next attempt should not answer.
        _withdraw(run_dir, request)
        raise
    return True


def _withdraw(run_dir: RunDir, request: str) -> None:
    """Remove that request, unless another has taken its place meanwhile."""
    with suppress(FileNotFoundError):
        if run_dir.save_request.read_text(encoding="utf-8") == request:
            run_dir.save_request.unlink(missing_ok=True)
