"""Steps of training on given examples, as a phase does them, in the ZeRO-3 engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from ranks import note
from rotescale.data.packing import assign, pack
from rotescale.model.prepare import load_prepared
from rotescale.phases import to_row
from rotescale.spec import EngineSpec
from rotescale.step_clock import StepClock
from subjects import SETTINGS, builder

Example = tuple[Sequence[int], Sequence[int]]
"""Tokens and labels."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What rank 0 has seen of some steps."""

    seconds: tuple[float, ...]
    """Of each step."""
    losses: tuple[float, ...]
    """Mean over the step's targets."""
    tokens: int
    """Computed by all ranks in all steps, padding included."""
    parts: tuple[dict[str, float], ...]
    """Seconds of each part of each step; of ours only."""
    clock_seconds: float = 0.0
    """Of a step: what it takes to read the clock as often as the last one did."""
    operators: dict[str, float] = field(default_factory=dict)
    """Torch's operator to its own seconds, without those it calls, in a step like the last one;
    where that was asked for."""


def train(
    prepared: Path,
    spec: EngineSpec,
    steps: Sequence[Sequence[Example]],
    learning_rate: float,
    operators: bool = False,
) -> Trained:
    """Collective: every rank calls this. One update on the examples of each step.

    With ``operators`` the last step is done once more, under torch's profiler.
    """
    from rotescale.engine.zero3 import Zero3Engine

    engine = Zero3Engine(builder(prepared), spec=spec, settings=SETTINGS)
    engine.load(load_prepared(prepared).reader(), optimizer_step=None)

    def update(step: Sequence[Example]) -> tuple[float, int]:
        lengths = [len(example[0]) for example in step]
        dealt = assign(lengths, row_tokens=spec.row_tokens, world_size=engine.world_size)
        rows = [
            to_row(pack([step[place] for place in places]), engine.device)
            for places in dealt[engine.rank]
        ]
        num_targets = sum(sum(label >= 0 for label in labels[1:]) for _, labels in step)
        scale = engine.world_size / num_targets
        of_rows = [
            engine.backward(row, scale=scale, last=i == len(rows) - 1) for i, row in enumerate(rows)
        ]
        loss = sum(torch.stack(of_rows).tolist())
        with engine.clock.part("communication"):
            [total] = engine.all_sum([loss])
        engine.step(learning_rate=learning_rate)
        return total / num_targets, sum(row.tokens.numel() for row in rows)

    seconds, losses, parts, tokens, readings = [], [], [], 0, 0
    for number, step in enumerate(steps):
        note(f"ours: step {number + 1} of {len(steps)}")
        began = time.perf_counter()
        engine.clock.start()
        loss, computed_here = update(step)
        readings = engine.clock.num_readings
        parts.append(engine.clock.take())
        seconds.append(time.perf_counter() - began)
        losses.append(loss)
        tokens += computed_here
    own = _own_seconds(partial(update, steps[-1])) if operators else {}
    [computed] = engine.all_sum([tokens])
    engine.close()
    return Trained(
        *(tuple(seconds), tuple(losses), round(computed), tuple(parts)),
        clock_seconds=readings * _reading_seconds(),
        operators=own,
    )


def _own_seconds(work: Callable[[], object]) -> dict[str, float]:
    """Torch's operators to the seconds that each takes itself in that work."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        work()
    return {one.key: one.self_cpu_time_total / 1e6 for one in seen.key_averages()}


def _reading_seconds() -> float:
    """Of one reading of a clock as steps have it."""
    clock = StepClock()
    clock.start()
    began = time.perf_counter()
    for _ in range(5000):
        with clock.part("forward"):
            pass
    return (time.perf_counter() - began) / clock.num_readings
