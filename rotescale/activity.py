"""What a run is doing, by its records. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from rotescale.records import EventRow, Records, StepRow
from rotescale.step_clock import shares
from rotescale.utilisation import device_of

_RECENT_STEPS = 20


@dataclass(frozen=True, slots=True)
class Activity:
    """The stage that a run is at, and how far it is there."""

    stage: str
    """``memorize`` where that phase trains, ``evaluate memorize`` where its end is measured."""
    done: int
    total: int | None
    """Steps of the phase, or items of the evaluation; None: not known."""
    epoch: int | None = None
    loss: float | None = None
    seconds_per_step: float | None = None
    """Median of the last steps; None in an evaluation."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Part of a step -> its share of the last steps' time, the largest first."""
    flops_per_second: float | None = None
    """The model's operations in the last steps; None: its arithmetic is not known."""
    share_of_peak: float | None = None
    """Model FLOP/s utilisation of the last steps; None: the device's peak is not known."""
    later_seconds: float | None = None
    """What the steps of later phases take, if an example takes as long there as in the last steps;
    None: not known."""

    def __str__(self) -> str:
        """In a few words, such as ``memorize 7/50, loss 1.234``."""
        total = "" if self.total is None else f"/{self.total}"
        trains = self.loss is not None and self.seconds_per_step is not None
        return f"{self.stage} {self.done}{total}" + (f", loss {self.loss:.3f}" if trains else "")

    @property
    def seconds_left(self) -> float | None:
        """Until the end of this phase, at the pace of the last steps; None: not known."""
        if self.total is None or self.seconds_per_step is None:
            return None
        return (self.total - self.done) * self.seconds_per_step

    @property
    def run_seconds_left(self) -> float | None:
        """Until the last step of the run, without evaluations, exports and saves; None: not known,
        or no phase follows this one."""
        if self.seconds_left is None or not self.later_seconds:
            return None
        return self.seconds_left + self.later_seconds


def activity_of(records: Records) -> Activity | None:
    """What the newest rows say; None before there is a step or an evaluation."""
    step = records.steps[-1] if records.steps else None
    evaluation = next((e for e in reversed(records.events) if e.name == "evaluation"), None)
    if evaluation is not None and _is_open(evaluation, step):
        return Activity(
            stage=f"evaluate {evaluation.details['stage']}",
            done=int(evaluation.details["done"]),
            total=int(evaluation.details["total"]),
            loss=None if step is None else step.loss,
        )
    if step is None:
        return None
    recent = [row for row in records.steps if row.phase == step.phase][-_RECENT_STEPS:]
    device = device_of(records.events, step.attempt)
    alike = [row for row in recent if row.attempt == step.attempt]
    return Activity(
        stage=step.phase,
        done=step.step,
        total=_total_steps(records.events, step.phase),
        epoch=step.epoch,
        loss=step.loss,
        seconds_per_step=median(row.seconds for row in recent),
        parts=shares(row.parts for row in recent),
        flops_per_second=None if device is None else device.flops_per_second(alike),
        share_of_peak=None if device is None else device.share_of_peak(alike),
        later_seconds=_later_seconds(records.events, recent),
    )


def _is_open(evaluation: EventRow, step: StepRow | None) -> bool:
    """Whether that evaluation still goes on; steps carry no time, so an attempt later is later."""
    if step is not None and step.attempt > evaluation.attempt:
        return False
    return int(evaluation.details["done"]) < int(evaluation.details["total"])


def _total_steps(events: Sequence[EventRow], phase: str) -> int | None:
    begun = _beginning(events, phase)
    return None if begun is None else int(begun.details["total_steps"])


def _later_seconds(events: Sequence[EventRow], recent: Sequence[StepRow]) -> float | None:
    """A step of another phase may have another number of examples, so these are counted."""
    begun = _beginning(events, recent[-1].phase)
    if begun is None or "later_examples" not in begun.details:
        return None
    each = median(row.seconds / row.num_examples for row in recent)
    return int(begun.details["later_examples"]) * each


def _beginning(events: Sequence[EventRow], phase: str) -> EventRow | None:
    named = (event for event in reversed(events) if event.name == "phase")
    return next((event for event in named if event.details.get("phase") == phase), None)
