"""What a rank has printed, by attempt: it is kept in the run's folder alone."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from launcher.target import Target
from rotescale.errors import SpecError
from rotescale.object_store import RemotePath
from rotescale.run_dir import RunDir
from rotescale.storage import StoragePath, entries

_WORKER_LOG = re.compile(r"attempt-(\d{4,})-rank-(\d{5,})\.log")
_POLL_SECONDS = 2.0
_REMOTE_POLL_SECONDS = 10.0
"""A log in a bucket is uploaded every half a minute, and read whole."""


def worker_lines(target: Target, *, rank: int, attempt: int | None) -> list[str]:
    """The rank's lines of the attempt, or of its newest. Raises SpecError where there are none."""
    found = _logs(target, rank=rank, attempt=attempt)
    mine = [one for one, other in found if other == rank]
    wanted = max(mine, default=0) if attempt is None else attempt
    if wanted not in mine:
        raise _none_there(target, found, rank=rank, attempt=attempt)
    return found[wanted, rank].read_bytes().decode(errors="replace").splitlines()


def follow_worker(
    target: Target,
    *,
    rank: int,
    attempt: int | None,
    is_alive: Callable[[Target], bool],
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[str]:
    """The rank's lines as they come, from its newest attempt on, until the run has ended.

    With ``attempt`` those of that one alone, until a later one has begun. A rank that has printed
    nothing yet is waited for. Raises SpecError where the folder cannot be read from here.
    """
    is_remote = isinstance(target.run_dir.root, RemotePath)
    current, position, rest = attempt, 0, b""
    while True:
        # Asked first: what is printed before the end is read after it.
        goes_on = is_alive(target)
        found = sorted(_logs(target, rank=rank, attempt=attempt))
        mine = [one for one, other in found if other == rank]
        if current is None and mine:
            current = mine[-1]
        for number in [one for one in mine if current is not None and one >= current]:
            if number != current:
                if attempt is not None:
                    break
                if rest:
                    yield rest.decode(errors="replace")
                yield f"--- attempt {number}"
                current, position, rest = number, 0, b""
            fresh = _from(_log(target, number, rank), position)
            position += len(fresh)
            *lines, rest = (rest + fresh).split(b"\n")
            yield from (line.decode(errors="replace") for line in lines)
        is_past = attempt is not None and any(one > attempt for one, _ in found)
        if is_past or not goes_on:
            if rest:
                yield rest.decode(errors="replace")
            if current not in mine:
                raise _none_there(target, found, rank=rank, attempt=attempt)
            return
        sleep(_REMOTE_POLL_SECONDS if is_remote else _POLL_SECONDS)


def _none_there(
    target: Target, found: Iterable[tuple[int, int]], *, rank: int, attempt: int | None
) -> SpecError:
    there = ", ".join(f"{a}/{r}" for a, r in sorted(found)) or "none"
    return SpecError(
        f"{target.run_dir.logs_dir}: no log of rank {rank} in attempt {attempt or 'any'}; there "
        f"are (attempt/rank) {there}. In a bucket they appear half a minute after their first line"
    )


def _log(target: Target, attempt: int, rank: int) -> StoragePath:
    name = target.run_dir.worker_log(attempt=attempt, rank=rank).name
    return target.run_dir.logs_dir / name


def _from(path: StoragePath, position: int) -> bytes:
    """What follows the first ``position`` bytes."""
    if isinstance(path, RemotePath):
        return path.read_bytes()[position:]
    with path.open("rb") as file:
        file.seek(position)
        return file.read()


def _logs(
    target: Target, *, rank: int, attempt: int | None
) -> Mapping[tuple[int, int], StoragePath]:
    """Attempt and rank -> log; SpecError where the run's folder is not to be seen from here."""
    run_dir: RunDir = target.run_dir
    if isinstance(run_dir.root, Path) and not run_dir.spec_json.exists():
        raise _elsewhere(target, rank=rank, attempt=attempt)
    return {
        (int(match[1]), int(match[2])): path
        for path in entries(run_dir.logs_dir)
        if (match := _WORKER_LOG.fullmatch(path.name))
    }


def _elsewhere(target: Target, *, rank: int, attempt: int | None) -> SpecError:
    """Where a worker's log is, if there is one, and how it is read."""
    launcher = target.launcher()
    if attempt is None:
        told = launcher.account()
        attempt = 1 if told is None or told.progress is None else told.progress.attempt
    log = target.run_dir.logs_dir / target.run_dir.worker_log(attempt=attempt, rank=rank).name
    return SpecError(
        f"{target.run_dir.root}: cannot be read from here, and a worker's log is kept there alone. "
        f"Where the folder is, it is read so: {launcher.how_to_read(str(log))}"
    )
