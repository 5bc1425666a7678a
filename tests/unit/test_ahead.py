"""What comes next is made while the one before it is used, in order, and no further."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from rotescale.ahead import made_ahead
from rotescale.errors import DataError


def told(begun: list[threading.Event]) -> Iterator[int]:
    """A number for each event, which is set as the number is made."""
    for number, event in enumerate(begun):
        event.set()
        yield number


def test_one_is_made_while_the_one_before_it_is_used() -> None:
    begun = [threading.Event() for _ in range(5)]
    with made_ahead(told(begun)) as numbers:
        assert next(numbers) == 0
        # Nobody has asked for the next one.
        assert begun[1].wait(60)
        assert not begun[2].is_set()
        assert [*numbers] == [1, 2, 3, 4]
        assert next(numbers, None) is None


def test_they_are_made_in_another_thread() -> None:
    def makers() -> Iterator[int]:
        while True:
            yield threading.get_ident()

    with made_ahead(makers()) as found:
        made_by = {next(found) for _ in range(9)}
    assert len(made_by) == 1
    assert threading.get_ident() not in made_by


def test_what_making_one_raises_comes_in_its_turn() -> None:
    def numbers() -> Iterator[int]:
        yield from range(2)
        raise DataError("the third")

    with made_ahead(numbers()) as found:
        assert [next(found), next(found)] == [0, 1]
        with pytest.raises(DataError, match="the third"):
            next(found)


def test_who_leaves_early_has_no_more_than_one_made() -> None:
    begun = [threading.Event() for _ in range(9)]
    with pytest.raises(ZeroDivisionError), made_ahead(told(begun)) as numbers:
        _ = 1 / next(numbers)
    assert [event.is_set() for event in begun[:3]] == [True, True, False]
    assert not any(thread.name.startswith("ahead") for thread in threading.enumerate())


def test_what_is_empty_ends_at_once() -> None:
    nothing: list[int] = []
    with made_ahead(nothing) as numbers:
        assert [*numbers] == []
