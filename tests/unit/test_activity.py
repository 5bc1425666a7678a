"""What a run is doing is read from the newest of its rows."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from record_rows import event, step
from rich.console import Console

from launcher.account import Progress
from launcher.report import RunReport
from launcher.status_page import page
from rotescale.activity import Activity, activity_of
from rotescale.records import EventRow, Records, StepRow
from rotescale.utilisation import EVENT, Device

BEGINS = event("phase", phase="memorize", total_steps=9)


def words(steps: list[StepRow], events: list[EventRow]) -> str | None:
    found = activity_of(Records(tuple(steps), (), tuple(events)))
    return None if found is None else str(found)


def test_nothing_is_known_before_a_row() -> None:
    assert words([], []) is None
    assert words([], [event("attempt")]) is None


def test_training_has_its_steps_and_loss() -> None:
    assert words([step(1), step(2)], [BEGINS]) == "memorize 2/9, loss 1.500"
    assert words([step(2)], []) == "memorize 2, loss 1.500"
    found = activity_of(Records((step(1, seconds=9.0), step(2), step(3)), (), (BEGINS,)))
    assert found is not None
    assert found.seconds_per_step == 1.0


def test_later_phases_are_estimated_by_their_examples_where_they_are_known() -> None:
    steps = tuple(step(number, seconds=3.0) for number in range(1, 4))
    begins = event("phase", phase="memorize", total_steps=9, later_examples=40)
    found = activity_of(Records(steps, (), (begins,)))
    assert found is not None
    # Two examples took 3 s.
    assert (found.seconds_left, found.later_seconds, found.run_seconds_left) == (18.0, 60.0, 78.0)
    for unknown in (BEGINS, event("phase", phase="memorize", total_steps=9, later_examples=0)):
        found = activity_of(Records(steps, (), (unknown,)))
        assert found is not None
        assert found.run_seconds_left is None
    assert shown(found, "left") == "18 s of this phase"
    assert shown(replace(found, later_seconds=360.0), "left") == (
        "18 s of this phase; about 6 min of the run's steps, without evaluations and exports"
    )


def test_an_open_evaluation_is_what_goes_on_and_one_of_a_dead_attempt_is_not() -> None:
    asked = event("evaluation", stage="memorize", done=3, total=8)
    assert words([step(9)], [BEGINS, asked]) == "evaluate memorize 3/8"
    over = event("evaluation", stage="memorize", done=8, total=8)
    assert words([step(9)], [BEGINS, asked, over]) == "memorize 9/9, loss 1.500"
    assert words([step(4, attempt=2)], [BEGINS, asked]) == "memorize 4/9, loss 1.500"


def test_the_last_steps_say_where_their_time_went() -> None:
    timed = step(1).model_copy(update={"parts": {"forward": 1.0, "backward": 2.98, "rest": 0.02}})
    found = activity_of(Records((timed,), (), (BEGINS,)))
    assert found is not None
    assert list(found.parts) == ["backward", "forward", "rest"]
    assert found.parts["forward"] == 0.25
    report = RunReport("run", "/runs/run", "here", "running", "", progress=Progress(1, found))
    console = Console(width=100, file=io.StringIO())
    console.print(page(report))
    told = console.file.getvalue()
    assert "1.00 s: backward 74%, forward 25%" in told
    assert "rest" not in told


def test_what_is_computed_is_told_where_the_models_arithmetic_is_known() -> None:
    device = Device(
        **{"device": "NVIDIA H100 80GB HBM3", "num_devices": 2, "peak_flops": 1e12},
        **{"flops_per_token": 1e11, "flops_per_target": 1e10},
    )
    # The step before it was another attempt's, on other devices.
    rows = (step(1, seconds=100.0), step(2, attempt=2), step(3, attempt=2))
    events = (BEGINS, event(EVENT, attempt=2, **device.model_dump()))
    found = activity_of(Records(rows, (), events))
    assert found is not None
    assert found.flops_per_second == pytest.approx(9.7e11)
    assert found.share_of_peak == pytest.approx(0.485)
    assert shown(found) == "970 GFLOP/s of the model's own, 48.5% of the devices' peak"
    assert shown(replace(found, flops_per_second=2.5e14, share_of_peak=None)) == (
        "250 TFLOP/s of the model's own"
    )
    unknown = activity_of(Records(rows, (), (BEGINS,)))
    assert unknown is not None
    assert unknown.flops_per_second is None
    assert shown(unknown) == ""


def shown(activity: Activity, name: str = "computes") -> str:
    """What the status page says of it in that row; empty where it has none."""
    report = RunReport("r", "runs/r", "local", "running", "", progress=Progress(2, activity))
    text = io.StringIO()
    Console(file=text, width=120).print(page(report))
    lines = [line.strip() for line in text.getvalue().splitlines()]
    return next((line.split(maxsplit=1)[1] for line in lines if line.startswith(name)), "")
