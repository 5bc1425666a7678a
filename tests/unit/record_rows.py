"""Rows of a run that never was."""

from __future__ import annotations

from typing import Any

from rotescale.records import EventRow, StepRow


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
