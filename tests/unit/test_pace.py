"""Who keeps the others waiting is told from how long each rank waits."""

from __future__ import annotations

import pytest

from rotescale.pace import (
    EVENT,
    Pace,
    RankPace,
    Window,
    compare,
    describe,
    newest_paces,
    stragglers,
)
from rotescale.records import EventRow, Records


def rows(
    waits: list[float], *, step: float = 1.0, products: list[float | None] | None = None
) -> list[RankPace]:
    return [
        RankPace(
            rank=rank,
            node=f"node-{rank}",
            wait_seconds=wait,
            step_seconds=step,
            product_seconds=(products or [0.002] * len(waits))[rank],
        )
        for rank, wait in enumerate(waits)
    ]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_what_a_rank_does_alone_is_timed_between_two_steps() -> None:
    clock = Clock()
    pace = Pace(clock)

    def step(alone: float, together: float) -> None:
        clock.now += alone
        pace.enter()
        clock.now += together
        pace.leave()

    step(50.0, 1.0)
    assert pace.take() == Window(None, None)
    for alone in (0.2, 0.3, 9.0):
        step(alone, 1.0)
    window = pace.take()
    assert window.alone_seconds == pytest.approx(0.3)
    assert window.step_seconds == pytest.approx(1.3)
    assert pace.take() == Window(None, None)
    step(0.2, 1.0)
    pace.pause()
    step(70.0, 1.0)
    step(0.4, 1.0)
    window = pace.take()
    assert window.alone_seconds == pytest.approx(0.3)
    assert window.step_seconds == pytest.approx(1.3)


def test_waits_are_for_whoever_comes_last() -> None:
    found = compare([Window(0.1, 1.0), Window(0.5, 1.0)], ["a", "b"], [0.002, 0.003])
    assert [row.wait_seconds for row in found] == [pytest.approx(0.4), 0.0]
    assert [(row.rank, row.node, row.product_seconds) for row in found] == [
        (0, "a", 0.002),
        (1, "b", 0.003),
    ]
    assert compare([Window(0.1, 1.0), Window(None, None)], ["a", "b"], [0.002, 0.002]) == ()
    assert compare([], [], []) == ()


@pytest.mark.parametrize(
    ("waits", "expected"),
    [
        pytest.param([0.0], [], id="alone"),
        pytest.param([0.0, 0.01], [], id="two alike"),
        pytest.param([0.5, 0.0], [(1, 2.0)], id="one of two"),
        pytest.param([0.8, 0.8, 0.0, 0.8], [(2, 5.0)], id="one of four"),
        pytest.param([0.5, 0.0, 0.5, 0.0], [(1, 2.0), (3, 2.0)], id="two of four"),
        pytest.param([0.05] * 7 + [0.0], [], id="hardly"),
        pytest.param([0.0, 0.0, 0.0, 0.3], [], id="one that is early"),
    ],
)
def test_who_waits_least_is_waited_for(
    waits: list[float], expected: list[tuple[int, float]]
) -> None:
    found = stragglers(rows(waits))
    assert [(one.rank, one.ratio) for one in found] == [
        (rank, pytest.approx(ratio)) for rank, ratio in expected
    ]
    assert all(one.node == f"node-{one.rank}" for one in found)


def test_a_rank_that_computes_slowly_is_found_though_nobody_waits_at_the_start_of_a_step() -> None:
    found = stragglers(rows([0.0] * 4, products=[0.002, 0.002, 0.003, 0.0021]))
    assert [(one.rank, one.ratio) for one in found] == [(2, pytest.approx(1.5))]


def test_products_that_nobody_timed_say_nothing() -> None:
    assert stragglers(rows([0.0] * 2, products=[None, None])) == []
    [found] = stragglers(rows([0.5, 0.0], products=[None, 0.002]))
    assert (found.rank, found.ratio) == (1, pytest.approx(2))


def test_the_worst_comes_first_in_words_too() -> None:
    listed = rows([0.5, 0.0, 0.5], products=[0.006, 0.002, 0.002])
    assert [one.rank for one in stragglers(listed)] == [0, 1]
    assert describe(listed).startswith("rank 0 on node-0 makes a step take up to 3 times as long")
    assert describe(rows([0.0, 0.0])) == "no rank keeps the others waiting"


def event(attempt: int, waits: list[float], name: str = EVENT) -> EventRow:
    ranks = [row.model_dump() for row in rows(waits)]
    return EventRow(attempt=attempt, time="", name=name, message="", details={"ranks": ranks})


def test_the_newest_attempt_s_last_look_counts() -> None:
    assert newest_paces(Records((), (), ())) == ()
    listed = (event(1, [0.5, 0.0]), event(2, [0.5, 0.0]), event(2, [0.0, 0.0]))
    assert newest_paces(Records((), (), listed)) == tuple(rows([0.0, 0.0]))
    assert newest_paces(Records((), (), (*listed, event(3, [], name="attempt")))) == ()
