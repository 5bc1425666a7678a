"""The parts of a step: each without those inside it, and together the step."""

from __future__ import annotations

import pytest

from rotescale.step_clock import PARTS, StepClock, shares


class Time:
    """A clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


def test_a_part_is_told_without_those_inside_it(time: Time) -> None:
    clock = StepClock(time)
    time.now = 5.0
    clock.start()
    time.now += 1
    with clock.part("forward"):
        time.now += 2
        with clock.part("communication"):
            time.now += 4
        time.now += 8
    with clock.part("backward"):
        with clock.part("communication"):
            time.now += 16
            with clock.part("communication"):
                time.now += 32
        time.now += 64
    time.now += 128
    assert clock.take() == dict.fromkeys(PARTS, 0.0) | {
        "rest": 129,
        "forward": 10,
        "communication": 52,
        "backward": 64,
    }


def test_what_is_no_part_of_a_step_is_not_told(time: Time) -> None:
    clock = StepClock(time)
    with clock.part("communication"):
        time.now += 1
    clock.start()
    time.now += 2
    assert sum(clock.take().values()) == 2
    with clock.part("communication"):
        time.now += 4
    clock.start()
    assert sum(clock.take().values()) == 0


def test_an_error_in_a_part_ends_it(time: Time) -> None:
    clock = StepClock(time)
    clock.start()
    try:
        with clock.part("data"):
            time.now += 1
            raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    time.now += 2
    found = clock.take()
    assert (found["data"], found["rest"]) == (1, 2)


def test_marks_may_be_read_when_the_step_is_over() -> None:
    order: list[str] = []
    marks = iter(range(10))

    def mark() -> int:
        order.append("mark")
        return next(marks)

    def between(first: int, last: int) -> float:
        order.append("read")
        return float(last - first)

    clock = StepClock(mark, between)
    clock.start()
    with clock.part("optimizer"):
        pass
    assert clock.take()["optimizer"] == 1.0
    assert order == ["mark"] * 4 + ["read"] * 3


def test_shares_are_of_all_steps_together() -> None:
    assert shares([]) == {}
    assert shares([{}, {}]) == {}
    found = shares([{"forward": 1.0, "rest": 0.0}, {"forward": 2.0, "backward": 5.0}])
    assert found == {"backward": 0.625, "forward": 0.375, "rest": 0.0}
    assert list(found) == ["backward", "forward", "rest"]
