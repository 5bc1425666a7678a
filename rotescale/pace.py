"""Which rank the others wait for: what each does alone, compared now and then. No torch.

Under ZeRO-3 every layer's forward and backward pass is a collective, so a step takes all ranks the
same time, whoever is slow. What tells them apart is how late each comes to the step's first
collective: all leave the sum of the losses together, and what a rank does between there and its
next forward pass (the update, records, the next batch) it does alone, but for the norm of the
gradients, where all meet. A GPU that computes slowly is not seen that way, since ranks meet in
every layer; so each GPU also times a small product of its own.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict

from rotescale.records import EventRow, Records

EVENT = "ranks"
"""The event that holds a ``RankPace`` per rank, under ``ranks``."""
EVERY_STEPS = 50
"""How often ranks compare themselves, besides the end of a phase."""
_LATE_RATIO = 1.1
"""A rank makes others wait from here on: a step takes a tenth longer than it would without."""
_SLOW_RATIO = 1.25
"""Of the time of a product, which varies more."""


class Window(NamedTuple):
    """One rank's medians since the last look; None where no two steps followed each other."""

    alone_seconds: float | None
    """From the sum of the losses to the next step's first collective."""
    step_seconds: float | None
    """From one sum of the losses to the next."""


class Pace:
    """One rank's clock: ``leave`` when a step's losses are summed, ``enter`` before the next pass.

    ``pause`` where anything else comes between, such as a save or an evaluation.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._left: float | None = None
        self._alone: list[float] = []
        self._steps: list[float] = []
        self._waits_for_step = False

    def enter(self) -> None:
        """The first collective of a step comes next."""
        self._waits_for_step = self._left is not None
        if self._left is not None:
            self._alone.append(self._clock() - self._left)

    def leave(self) -> None:
        """The losses of the step are summed: all ranks are here."""
        now = self._clock()
        if self._waits_for_step and self._left is not None:
            self._steps.append(now - self._left)
        self._left = now

    def pause(self) -> None:
        """What comes now is no part of a step."""
        self._left = None

    def take(self) -> Window:
        """The medians so far, in seconds, and a new beginning."""
        window = Window(*(statistics.median(v) if v else None for v in (self._alone, self._steps)))
        self._alone, self._steps = [], []
        return window


class RankPace(BaseModel):
    """What one rank has measured of itself over some steps; times are medians, in seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int
    node: str
    wait_seconds: float
    """How long it waits, at each step's first collective, for the rank that comes last."""
    step_seconds: float
    """How long a step takes, which is the same for all."""
    product_seconds: float | None
    """A small matrix product on this rank alone, the best of three; None on a CPU, where other
    processes disturb it more than a slow processor would."""


class Straggler(NamedTuple):
    """A rank that makes others wait."""

    rank: int
    node: str
    ratio: float
    """How many times as long a step takes as it would without this rank; where its product is
    slow, that is the most it can be."""


def compare(
    windows: Sequence[Window], nodes: Sequence[str], products: Sequence[float | None]
) -> tuple[RankPace, ...]:
    """What the windows of all ranks, in rank order, say of each; nothing where one is empty."""
    alone = [window.alone_seconds for window in windows if window.alone_seconds is not None]
    steps = [window.step_seconds for window in windows if window.step_seconds is not None]
    if not windows or len(alone) < len(windows) or len(steps) < len(windows):
        return ()
    return tuple(
        RankPace(
            rank=rank,
            node=nodes[rank],
            wait_seconds=max(alone) - alone[rank],
            step_seconds=steps[rank],
            product_seconds=products[rank],
        )
        for rank in range(len(windows))
    )


def stragglers(rows: Sequence[RankPace]) -> list[Straggler]:
    """The ranks that the others wait for, the worst first.

    Such a rank waits least while most wait much; or its own product takes longer than most's.
    """
    if len(rows) < 2:
        return []
    # Of an even number the lower, or upper, middle: with two ranks the better one is the measure.
    usual_wait = statistics.median_high(row.wait_seconds for row in rows)
    products = [row.product_seconds for row in rows if row.product_seconds is not None]
    usual_product = statistics.median_low(products) if products else 0.0
    found = []
    for row in rows:
        late = usual_wait - row.wait_seconds
        lateness = row.step_seconds / max(row.step_seconds - late, 1e-3 * row.step_seconds)
        slowness = (row.product_seconds or 0.0) / usual_product if usual_product else 1.0
        ratio = max(
            lateness if lateness >= _LATE_RATIO else 1.0,
            slowness if slowness >= _SLOW_RATIO else 1.0,
        )
        if ratio > 1:
            found.append(Straggler(row.rank, row.node, ratio))
    return sorted(found, key=lambda one: (-one.ratio, one.rank))


def describe(rows: Sequence[RankPace]) -> str:
    """One line: who keeps the others waiting."""
    found = stragglers(rows)
    if not found:
        return "no rank keeps the others waiting"
    return "; ".join(
        f"rank {one.rank} on {one.node} makes a step take up to {one.ratio:.2g} times as long"
        for one in found
    )


def paces_of(event: EventRow) -> tuple[RankPace, ...]:
    """What an event ``ranks`` holds. Raises pydantic's ValidationError for anything else."""
    ranks: list[Any] = event.details.get("ranks", [])
    return tuple(RankPace.model_validate(row) for row in ranks)


def newest_paces(records: Records) -> tuple[RankPace, ...]:
    """What the ranks last compared, in the newest attempt; nothing where they have not yet."""
    newest = max((event.attempt for event in records.events), default=0)
    found = [e for e in records.events if e.name == EVENT and e.attempt == newest]
    return paces_of(found[-1]) if found else ()
