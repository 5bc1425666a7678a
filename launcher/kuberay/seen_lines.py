"""Which lines of a pod's log were given, when its stream breaks off and begins with the first."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain

NUM_LAST = 200_000
"""By how many lines it is found out which are missing: about as many as a log file has that the
kubelet has not rotated yet. Of each its hash is remembered."""


class SeenLines:
    """How much of a pod's log was given, over as many connections as it takes.

    A connection begins with the log's first line, so lines are told apart by their number. A log
    that begins with another line than before was rotated: the kubelet serves the newest file alone
    (10 MiB, by default). Then what is new begins behind the lines that were given last.
    """

    def __init__(self) -> None:
        self._first: str | None = None
        self._num_lines = 0
        self._given: deque[int] = deque(maxlen=NUM_LAST)

    def new(self, lines: Iterable[str]) -> Iterator[str]:
        """The lines of a connection that are not known yet."""
        lines = iter(lines)
        first = next(lines, None)
        if first is None:
            return
        lines = chain([first], lines)
        if self._first in (None, first):
            lines = self._unknown(lines)
        else:
            self._num_lines = 0
            lines = _behind(list(self._given), self._unknown(lines))
        self._first = first
        for line in lines:
            self._given.append(hash(line))
            yield line

    def _unknown(self, lines: Iterable[str]) -> Iterator[str]:
        known = self._num_lines
        for number, line in enumerate(lines, start=1):
            if number > known:
                self._num_lines = number
                yield line


def _behind(given: list[int], lines: Iterable[str]) -> Iterator[str]:
    """The lines without those in front with whose hashes ``given`` ends."""
    held: list[str] = []
    # Where in ``given`` the line that comes next would stand, if these are its end.
    places = list(range(len(given)))
    for line in lines:
        if len(given) in places or not places:
            yield line
            continue
        known = hash(line)
        places = [place + 1 for place in places if given[place] == known]
        held.append(line)
        if not places:
            yield from held
