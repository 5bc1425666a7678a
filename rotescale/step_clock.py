"""Where the time of a step goes: its parts, each without the parts inside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

Part = Literal["data", "forward", "backward", "communication", "optimizer", "checkpoint", "rest"]
PARTS: tuple[Part, ...] = (
    *("data", "forward", "backward", "communication", "optimizer", "checkpoint", "rest"),
)
"""``data``: waiting for the rank's rows, read and packed a step ahead. ``communication``: what the
rank waits for in gathers, reductions and sums, those inside ``forward``, ``backward`` and
``optimizer`` too.
``checkpoint``: waiting for a copy that is being made. ``rest``: whatever is none of these."""


def shares(steps: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Part -> its share of all the steps' time, the largest first; nothing where none is known."""
    seconds: dict[str, float] = {}
    for step in steps:
        for name, value in step.items():
            seconds[name] = seconds.get(name, 0.0) + value
    total = sum(seconds.values())
    if not total:
        return {}
    return {name: seconds[name] / total for name in sorted(seconds, key=lambda n: -seconds[n])}


class StepClock:
    """One rank's clock. Parts outside ``start`` and ``take`` are not measured.

    A mark is a reading of the clock on the CPU, and on a GPU an event in its stream, where the work
    is done later than it is asked for: there ``take`` waits for the step's last work.
    """

    def __init__(
        self,
        mark: Callable[[], Any] = time.perf_counter,
        between: Callable[[Any, Any], float] = lambda first, last: last - first,
    ) -> None:
        """``between`` gives the seconds from one mark to another."""
        self._mark = mark
        self._between = between
        self._open: list[Part] = []
        self._marks: list[tuple[Part, Any]] = []

    @classmethod
    def of(cls, device: torch.device) -> StepClock:
        """For work on that device, in the stream that is the current one now."""
        if device.type != "cuda":
            return cls()
        import torch

        stream = torch.cuda.current_stream(device)

        def mark() -> torch.cuda.Event:
            event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record(stream)
            return event

        def between(first: torch.cuda.Event, last: torch.cuda.Event) -> float:
            last.synchronize()
            return float(first.elapsed_time(last)) / 1000

        return cls(mark, between)

    def start(self) -> None:
        """A step begins."""
        self._open = ["rest"]
        self._marks = [("rest", self._mark())]

    @contextmanager
    def part(self, name: Part) -> Iterator[None]:
        """What happens inside is that part of the step."""
        if not self._open:
            yield
            return
        self._open.append(name)
        self._marks.append((name, self._mark()))
        try:
            yield
        finally:
            self._open.pop()
            self._marks.append((self._open[-1], self._mark()))

    @property
    def num_readings(self) -> int:
        """How often the clock was read since the step began."""
        return len(self._marks)

    def take(self) -> dict[str, float]:
        """The step ends: the seconds of each part, which together are the step's."""
        seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        ends = [mark for _, mark in self._marks[1:]] + [self._mark()]
        for (name, begin), end in zip(self._marks, ends, strict=True):
            seconds[name] += self._between(begin, end)
        self._open, self._marks = [], []
        return seconds
