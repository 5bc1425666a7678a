"""What a run is doing is read from the newest of its rows."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from launcher.report import Progress, RunReport
from launcher.status_page import page
from rotescale.activity import activity_of
from rotescale.records import EventRow, Records, StepRow


def step(
    number: int, *, phase: str = "memorize", attempt: int = 1, seconds: float = 1.0
) -> StepRow:
    return StepRow(
        **{"attempt": attempt, "phase": phase, "phase_index": 0, "step": number, "epoch": 1},
        **{"cursor": 2 * number, "loss": 1.5, "grad_norm": 1.0, "learning_rate": 1e-3},
        **{"num_examples": 2, "num_tokens": 9, "target_tokens": 7, "seconds": seconds},
    )


def event(name: str, *, attempt: int = 1, **details: Any) -> EventRow:
    return EventRow(attempt=attempt, time="t", name=name, message="", details=details)


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
