"""The section that says where the time of training steps went."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import median

from rotescale.analysis.report.figures import Bar, bars_picture
from rotescale.analysis.report.material import Material
from rotescale.analysis.report.page import Content, Number, Section, table
from rotescale.records import StepRow
from rotescale.step_clock import PARTS, shares

_LEAST_SHARE = 0.005
"""A part that is less than this of every bar is left out of the picture."""
_MOST_BARS = 8


def time_section(material: Material) -> Section | str:
    """Each part's share of the steps' time, by phase and size of the global batch."""
    found = _by_work(material)
    if not found:
        return "Where the time went: no step recorded its parts."
    rows: list[list[Content]] = []
    bars = []
    for (phase, batch), steps in found.items():
        of = shares(step.parts for step in steps)
        seconds = median(step.seconds for step in steps)
        rate = sum(step.num_tokens for step in steps) / sum(step.seconds for step in steps)
        told: list[Content] = [Number(of.get(p, 0.0), f"{of.get(p, 0.0):.1%}") for p in PARTS]
        rows.append(
            [
                *(phase, batch, len(steps)),
                *(Number(seconds, f"{seconds:.3g}"), Number(rate, f"{rate:,.0f}"), *told),
            ]
        )
        bars.append(Bar(f"{phase}, {batch}", of))
    drawn = [part for part in PARTS if any(bar.parts.get(part, 0) >= _LEAST_SHARE for bar in bars)]
    return Section(
        "time",
        "Where the time went",
        "Training steps of all runs, by phase and examples in the global batch. Times are those of "
        "rank 0 on the machine that ran them, each part without what lies inside it: what it waits "
        "for in gathers, reductions and sums is communication, wherever that happens; data is "
        "waiting for its examples, which are read a step ahead; checkpoint, waiting for a copy "
        "that is being made.",
        (
            table(
                "Median seconds of a step, tokens per second over all of them, and shares",
                ["phase", "examples", "steps", "seconds", "tokens/s", *PARTS],
                rows,
            ),
        ),
        (
            bars_picture(
                "time",
                "Share of the steps' time",
                bars[:_MOST_BARS],
                parts=drawn,
            ),
        ),
    )


def _by_work(material: Material) -> dict[tuple[str, int], Sequence[StepRow]]:
    """Phase and examples of a global batch -> all steps that recorded their parts."""
    found: dict[tuple[str, int], list[StepRow]] = defaultdict(list)
    for records in material.records.values():
        batches: dict[str, int] = defaultdict(int)
        for step in records.steps:
            batches[step.phase] = max(batches[step.phase], step.num_examples)
        for step in records.steps:
            # The last batch of an epoch may be smaller than the others.
            if any(step.parts.values()):
                found[step.phase, batches[step.phase]].append(step)
    order = list(dict.fromkeys(phase for phase, _ in found))
    return {key: found[key] for key in sorted(found, key=lambda key: (order.index(key[0]), key[1]))}
