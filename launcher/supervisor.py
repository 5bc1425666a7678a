"""Keeps a run going where nobody else does: starts its driver, and again when it was not at fault.

It runs where the driver runs, so that the machine from which the run was submitted may be switched
off. On Kubernetes the RayJob starts drivers again; there this starts one, keeps what it prints, and
says how it ended, or starts none where the same job has met a user error. One owner of restarts per
place.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from launcher import history
from launcher.driver_output import DriverOutput
from launcher.history import Ending, EndKind, Start
from rotescale.checkpoint.attempts import newest_manifest
from rotescale.errors import RotescaleError, StorageError
from rotescale.launch_spec import Restarts
from rotescale.notices import SUPERVISED, request_save
from rotescale.records import EventRow, read_records
from rotescale.run_dir import Outcome, RunDir

CANCELLED = 130
"""Exit code of a run that was cancelled, as of a program that was interrupted."""
_USER_CODES = (2, 3)
"""How ``rotescale run`` ends where trying again changes nothing (``rotescale.errors``)."""
_FIRST_WAIT, _LONGEST_WAIT = 2.0, 60.0
_STORAGE_SECONDS = 3600.0
"""How long the next start waits for storage that does not answer."""
_AWAY = (StorageError, OSError)
"""What storage raises that does not answer, an object store and a mounted one."""
_UNREADABLE = (RotescaleError, OSError)
"""The same, and what is damaged."""
_END_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do after a driver has ended."""

    action: Literal["restart", "stop"]
    wait_seconds: float
    """Before the restart."""
    reason: str


def classify(
    exit_code: int,
    *,
    outcome: Outcome | None,
    events: Sequence[EventRow],
    last_line: str,
    successor: Start | None = None,
) -> tuple[EndKind, str]:
    """Why a driver ended, and the evidence in words.

    ``events`` are those of the attempts that it made; the newest attempt's decide. ``exit_code`` is
    negative where a signal ended it. ``successor`` is the start that has the run since.
    """
    if outcome is not None and outcome.status == "failed":
        return "user", f"{outcome.error}: {outcome.message}"
    if exit_code == 0:
        return "finished", "the run is finished"
    if exit_code in (CANCELLED, -signal.SIGINT):
        return "cancelled", "it was interrupted"
    if successor is not None:
        return "superseded", _taken_over(successor)
    if exit_code in _USER_CODES:
        return "user", last_line
    newest = max((event.attempt for event in events), default=0)
    kinds: dict[str, EndKind] = {"hang": "hang", "preemption": "preempted"}
    for name, kind in kinds.items():
        found = [one for one in events if one.attempt == newest and one.name == name]
        if found:
            return kind, found[-1].message
    if exit_code < 0:
        name = signal.Signals(-exit_code).name
        memory = ", perhaps for lack of memory" if name == "SIGKILL" else ""
        return "infrastructure", f"the driver was ended by {name}{memory}"
    return "infrastructure", last_line or f"the driver ended with {exit_code}"


def decide(endings: Sequence[Ending], budgets: Restarts) -> Decision:
    """Whether to start the driver again after it has ended in these ways, in order.

    A driver that left a newer checkpoint than the one before it has made progress, and what had
    failed until then counts no more; so a run of weeks outlives any number of faults, and one that
    fails at the same place does not go on for ever.
    """
    last = endings[-1]
    if last.kind in ("finished", "cancelled", "user", "superseded"):
        return Decision("stop", 0.0, last.reason)
    since, newest = 0, endings[0].checkpoint
    for number, ending in enumerate(endings):
        # None: storage did not answer, or there is none yet.
        if ending.checkpoint not in (None, newest):
            since, newest = number, ending.checkpoint
    recent = [ending.kind for ending in endings[since:]]
    budget: int | None = getattr(budgets, last.kind)
    count = recent.count(last.kind)
    if budget is not None and count > budget:
        return Decision(
            "stop",
            0.0,
            f"{last.kind}, {count} times without a newer checkpoint, and restarts.{last.kind} is "
            f"{budget}: {last.reason}",
        )
    wait = min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** (len(recent) - 1))
    return Decision("restart", wait, f"{last.kind}: {last.reason}")


def _taken_over(successor: Start) -> str:
    return f"start {successor.number}, at {successor.where}, has the run since {successor.time}"


def forget_failure(run_dir: RunDir, *, before: datetime) -> None:
    """Let a run that failed until then go on.

    A later failure stays: the request that says so may be started again, by Kubernetes, and must
    not try it again.
    """
    outcome = Outcome.read(run_dir)
    if outcome is None or outcome.status == "finished":
        return
    if outcome.time is None or datetime.fromisoformat(outcome.time) <= before:
        Outcome.clear(run_dir)


class Supervisor:
    """One run's driver, as often as it takes. Use it in a process of its own."""

    def __init__(
        self,
        run_dir: RunDir,
        command: Sequence[str],
        *,
        place: str,
        launch: str,
        budgets: Restarts | None,
        grace_seconds: float,
        say: Callable[[str], None],
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        """``place`` and the name of the ``launch`` spec are noted. ``budgets`` None: start it once,
        since somebody else starts it again, and not where its owner's last start met a user error.
        ``grace_seconds``: for a save when asked to end."""
        self._run_dir = run_dir
        self._command = command
        # Whoever starts supervisors again says whose they are; any other is one by itself.
        owner = os.environ.get(history.OWNER_VARIABLE) or uuid.uuid4().hex
        self._origin = {"place": place, "launch": launch, "owner": owner}
        self._budgets = budgets
        self._grace_seconds = grace_seconds
        self._say = say
        self._asked = threading.Event()
        self._sleep = sleep or self._asked.wait

    def run(self) -> int:
        """Start drivers until one decides the run; the exit code of the last.

        Where a later start has the run, this one leaves it: two that went on would each end the
        other's workers for ever. Whoever starts this again must not, and is told so by 0.
        A user error is not tried again: its exit code is given once more, and nothing is started.
        """
        refused = self._refused()
        if refused is not None:
            self._say(
                f"not started again: start {refused.number} of this submission met a user error; "
                f"submit --retry goes on once its cause is gone. {refused.reason}"
            )
            return _shell_code(refused.exit_code)
        endings: list[Ending] = []
        with self._signals():
            while begun := self._begin(patient=bool(endings)):
                endings.append(self._run_once(*begun))
                if not self._goes_on(endings):
                    break
                if self._asked.is_set():
                    return CANCELLED
            else:
                if self._asked.is_set():
                    return CANCELLED
                self._say("not started: a later start has the run")
        if not endings or (self._budgets is None and endings[-1].kind == "superseded"):
            return 0
        return _shell_code(endings[-1].exit_code)

    def _begin(self, *, patient: bool) -> tuple[Start, int] | None:
        """A start, and the newest attempt before it; None where the run is another's, or it was
        asked to end.

        A run that has been under way before is not given up for storage that is away for a while:
        no driver has failed then. What is wrong at the first start is raised.
        """
        wait, waited = _FIRST_WAIT, 0.0
        while True:
            try:
                start = history.begin(self._run_dir, **self._origin)
                return None if start is None else (start, self._run_dir.newest_attempt() or 0)
            except _AWAY as error:
                if not patient or self._budgets is None or waited >= _STORAGE_SECONDS:
                    raise
                if not waited:
                    self._say(f"waiting for the run's folder: {error}")
            self._sleep(wait)
            if self._asked.is_set():
                return None
            waited += wait
            wait = min(_LONGEST_WAIT, 2 * wait)

    def _refused(self) -> Ending | None:
        """The user error that another process has met for the same submission; None without one."""
        if self._budgets is not None:
            return None
        return history.refused(self._run_dir, self._origin["owner"])

    def _goes_on(self, endings: Sequence[Ending]) -> bool:
        """Whether another driver is to be started, once it is time for that."""
        last = endings[-1]
        if last.kind == "superseded":
            self._say(f"not started again: {last.reason}")
        if last.kind == "superseded" or self._budgets is None or self._asked.is_set():
            return False
        decision = decide(endings, self._budgets)
        if decision.action == "stop":
            if last.kind not in ("finished", "cancelled"):
                self._say(f"not started again: {decision.reason}")
            return False
        self._say(f"started again in {decision.wait_seconds:.0f} s; {decision.reason}")
        self._sleep(decision.wait_seconds)
        return True

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Being asked to end is noted; what goes on is ended in order."""
        wanted = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, lambda *_: self._asked.set()) for number in wanted]
        try:
            yield
        finally:
            for number, handler in zip(wanted, before, strict=True):
                signal.signal(number, handler)

    def _run_once(self, start: Start, attempts_before: int) -> Ending:
        log = self._run_dir.numbered_driver_log(start.number)
        driver = subprocess.Popen(
            self._command,
            env={**os.environ, SUPERVISED: "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        output = DriverOutput(driver, log, self._run_dir)
        while driver.poll() is None:
            if self._asked.wait(0.1) and driver.poll() is None:
                self._end(driver, attempts_before)
        output.close()
        ending = self._ending(
            start.number, driver.returncode, attempts_before=attempts_before, log=output
        )
        try:
            history.end(self._run_dir, ending)
        except _UNREADABLE as error:
            self._say(f"it cannot be noted that the driver has ended ({ending.kind}): {error}")
        return ending

    def _end(self, driver: subprocess.Popen[bytes], attempts_before: int) -> None:
        """Have the workers save, then end the driver, and with it the workers."""
        with suppress(_DriverGoneError, *_UNREADABLE):
            has_begun = (self._run_dir.newest_attempt() or 0) > attempts_before
            if has_begun and self._grace_seconds > 0:
                self._say("asked to end: saving first")
                saved = request_save(
                    self._run_dir,
                    "the run is cancelled",
                    limit_seconds=self._grace_seconds,
                    sleep=lambda seconds: _while_alive(driver, seconds),
                )
                self._say("saved" if saved else f"nothing saved in {self._grace_seconds:.0f} s")
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                driver.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                driver.wait(_END_SECONDS)
                return

    def _ending(
        self, number: int, exit_code: int, *, attempts_before: int, log: DriverOutput
    ) -> Ending:
        try:
            outcome = Outcome.read(self._run_dir)
            events = [
                event
                for event in read_records(self._run_dir).events
                if event.attempt > attempts_before
            ]
            checkpoint = newest_manifest(self._run_dir, self._run_dir.newest_attempt())
            successor = history.successor(self._run_dir, number)
        except _UNREADABLE as error:
            # Storage that does not answer says nothing about the run, but that it can go on.
            return Ending(
                number=number,
                time=history.now(),
                kind="infrastructure",
                reason=f"the driver ended with {exit_code}, and the run cannot be read: {error}",
                exit_code=exit_code,
                checkpoint=None,
            )
        kind, reason = classify(
            exit_code,
            outcome=outcome,
            events=events,
            last_line=log.last_line,
            successor=successor,
        )
        if self._asked.is_set() and kind not in ("finished", "user"):
            kind, reason, exit_code = "cancelled", "it was asked to end", CANCELLED
        return Ending(
            number=number,
            time=history.now(),
            kind=kind,
            reason=reason,
            exit_code=exit_code,
            checkpoint=checkpoint,
        )


def _shell_code(exit_code: int) -> int:
    """A shell's code for a program that a signal has ended; any other as it is."""
    return exit_code if exit_code >= 0 else 128 - exit_code


class _DriverGoneError(Exception):
    """Nobody will answer any more."""


def _while_alive(driver: subprocess.Popen[bytes], seconds: float) -> None:
    if driver.poll() is not None:
        raise _DriverGoneError
    time.sleep(seconds)
