"""What drivers have printed, as the run's folder has kept it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from launcher import history
from rotescale.run_dir import RunDir
from rotescale.storage import StoragePath, entries

_DRIVER_LOG = re.compile(r"driver-(\d{4,})\.log")
_MAX_HOST = 63
"""Linux's limit, by which Kubernetes cuts a pod's name."""


def kept_lines(run_dir: RunDir) -> Iterator[str]:
    """Everything that drivers have printed, one after the other."""
    found = [path for path in entries(run_dir.logs_dir) if _DRIVER_LOG.fullmatch(path.name)]
    for index, path in enumerate(sorted(found, key=lambda path: path.name)):
        if index:
            yield f"--- another start: {path.name}"
        yield from _lines(path)


def kept_on(run_dir: RunDir, host: str) -> list[str]:
    """What the drivers on that machine, or in the pod of that name, have printed; nothing where
    none is known. Raises RotescaleError or OSError where the folder cannot be read."""
    mine = {
        run_dir.numbered_driver_log(start.number).name
        for start in history.starts(run_dir)
        if start.host == host[:_MAX_HOST]
    }
    there = sorted(entries(run_dir.logs_dir), key=lambda path: path.name)
    return [line for path in there if path.name in mine for line in _lines(path)]


def not_given(kept: Sequence[str], given: Iterable[str]) -> Sequence[str]:
    """The lines of ``kept`` after the last of ``given``, which has others between its lines, and
    may begin later."""
    at = 0
    for line in given:
        if at < len(kept) and kept[at] == line:
            at += 1
        elif line.strip() and line in kept[at:]:
            at = kept.index(line, at) + 1
    return kept[at:]


def _lines(path: StoragePath) -> list[str]:
    # Progress bars have carriage returns in a line, as a place's stream has them.
    lines = path.read_bytes().decode(errors="replace").split("\n")
    return lines if lines[-1] else lines[:-1]
