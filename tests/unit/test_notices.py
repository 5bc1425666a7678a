"""A notice is found in the background, met by one save, and answered when that is published."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rotescale.notices import Notices, Preemption, request_save
from rotescale.run_dir import RunDir
from rotescale.storage import write_atomic


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def watching(
    folder: Path,
    *,
    rank: int = 0,
    is_newest: bool = True,
    preemption: Callable[[], Preemption | None] = lambda: None,
    clock: Callable[[], float] = time.time,
) -> Iterator[tuple[Notices, list[tuple[str, str]]]]:
    told: list[tuple[str, str]] = []
    notices = Notices(
        RunDir(folder),
        rank=rank,
        is_newest=lambda: is_newest,
        preemption=preemption,
        report=lambda name, message: told.append((name, message)),
        poll_seconds=0.01,
        clock=clock,
    )
    with notices:
        yield notices, told


def eventually(what: Callable[[], object]) -> bool:
    deadline = time.monotonic() + 30
    while not what() and time.monotonic() < deadline:
        time.sleep(0.01)
    return bool(what())


def test_a_preemption_is_due_at_once_and_at_each_halving_of_the_time_left(tmp_path: Path) -> None:
    clock = Clock()
    known: list[Preemption] = []
    with watching(tmp_path, preemption=lambda: known[0] if known else None, clock=clock) as (
        notices,
        told,
    ):
        assert not notices.due
        known.append(Preemption(("node-a",), deadline=clock.now + 40))
        assert eventually(lambda: notices.due)
        due_after = []
        while notices.due:
            notices.take()()
            assert not notices.due
            while not notices.due and clock.now < 1040:
                clock.now += 1
            due_after.append(clock.now - 1000)
            if clock.now >= 1040:
                break
    assert due_after == [20, 30, 35, 40]
    assert told == [("preemption", "node-a will be taken away in 40 s: saving")]


def test_a_preemption_without_a_deadline_is_met_by_one_save(tmp_path: Path) -> None:
    with watching(tmp_path, preemption=lambda: Preemption(("a", "b"), None)) as (notices, told):
        assert eventually(lambda: notices.due)
        notices.take()()
        time.sleep(0.1)
        assert not notices.due
    assert told == [("preemption", "a, b will be taken away soon: saving")]


def test_a_request_is_answered_when_its_save_is_published(tmp_path: Path) -> None:
    answers: list[bool] = []
    asker = threading.Thread(
        target=lambda: answers.append(
            request_save(RunDir(tmp_path), "resize to 3 workers", limit_seconds=30)
        )
    )
    with watching(tmp_path) as (notices, told):
        notices.rest(False)
        asker.start()
        assert eventually(lambda: notices.due)
        published = notices.take()
        assert not notices.due
        time.sleep(0.1)
        assert asker.is_alive()
        published()
        asker.join(30)
        assert not notices.due
    assert answers == [True]
    assert told == [("save_request", "resize to 3 workers")]
    assert not RunDir(tmp_path).save_request.exists()


def test_a_request_is_met_at_once_where_everything_is_on_storage(tmp_path: Path) -> None:
    with watching(tmp_path) as (notices, _):
        assert request_save(RunDir(tmp_path), "cancel", limit_seconds=30)
        notices.rest(False)
        assert not notices.due


def test_a_request_that_could_not_be_withdrawn_is_not_met_twice(tmp_path: Path) -> None:
    place = RunDir(tmp_path).save_request
    with watching(tmp_path) as (notices, told):
        place.write_text("x")
        assert eventually(lambda: not place.exists())
        notices.rest(False)
        # As if storage had failed between the answer and the file.
        place.write_text("x")
        assert eventually(lambda: not place.exists())
        assert not notices.due
    assert told == [("save_request", "x")]


def test_a_request_that_came_at_the_last_step_is_met_by_the_end_of_the_phase(
    tmp_path: Path,
) -> None:
    answers: list[bool] = []
    asker = threading.Thread(
        target=lambda: answers.append(request_save(RunDir(tmp_path), "x", limit_seconds=30))
    )
    with watching(tmp_path) as (notices, _):
        notices.rest(False)
        asker.start()
        assert eventually(lambda: notices.due)
        notices.rest(True)
        asker.join(30)
    assert answers == [True]


def test_a_second_request_is_not_answered_by_the_save_of_the_first(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    with watching(tmp_path) as (notices, told):
        notices.rest(False)
        write_atomic(run_dir.save_request, b'{"reason": "first", "id": "1"}')
        assert eventually(lambda: notices.due)
        published = notices.take()
        write_atomic(run_dir.save_request, b'{"reason": "second", "id": "2"}')
        published()
        assert run_dir.save_request.exists()
        assert eventually(lambda: notices.due)
        notices.take()()
        assert not run_dir.save_request.exists()
    assert told == [("save_request", "first"), ("save_request", "second")]


def test_other_ranks_leave_requests_alone(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    run_dir.save_request.write_text('{"reason": "x", "id": "1"}')
    with watching(tmp_path, rank=1) as (notices, told):
        time.sleep(0.1)
        assert not notices.due
    assert run_dir.save_request.exists()
    assert told == []


def test_a_superseded_attempt_answers_nothing(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    write_atomic(run_dir.save_request, b'{"reason": "x", "id": "1"}')
    with watching(tmp_path, is_newest=False) as (notices, told):
        time.sleep(0.1)
        assert not notices.due
    assert run_dir.save_request.exists()
    assert told == []


def test_what_goes_wrong_in_a_look_ends_no_look_out(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)

    def fails() -> Preemption | None:
        raise AttributeError("moved")

    with watching(tmp_path, preemption=fails) as (_, told):
        write_atomic(run_dir.save_request, b"no JSON")
        assert eventually(lambda: told)
        assert request_save(run_dir, "still there", limit_seconds=30)
    assert told == [("save_request", "no JSON"), ("save_request", "still there")]


def test_a_request_that_nobody_answers_is_withdrawn(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    assert not request_save(run_dir, "resize", limit_seconds=0.0)
    assert not run_dir.save_request.exists()


@pytest.mark.parametrize(
    "told", [None, Preemption(("a", "b"), 12.5), Preemption(("a",), None)], ids=str
)
def test_a_preemption_goes_to_another_process_and_back(told: Preemption | None) -> None:
    text = json.dumps(None if told is None else told.to_json())
    assert Preemption.from_json(json.loads(text)) == told


def test_only_ones_own_request_is_withdrawn(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)

    def another_asks(seconds: float) -> None:
        run_dir.save_request.write_text("another request")

    assert not request_save(run_dir, "resize", limit_seconds=0.05, sleep=another_asks)
    assert run_dir.save_request.read_text() == "another request"


def test_who_waits_no_more_withdraws_the_request(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)

    def interrupted(_: float) -> None:
        assert run_dir.save_request.exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        request_save(run_dir, "a test", limit_seconds=60, sleep=interrupted)
    assert not run_dir.save_request.exists()
