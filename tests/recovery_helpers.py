"""What the tests of recovery share: a run with every stage, its faults, and what equality means."""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch
from helpers import QUICK, phase_end_weights, steps

from rotescale.records import EventRow, read_records
from rotescale.run_dir import RunDir

SAVING = (
    *QUICK,
    "checkpoints.every_steps=2",
    "checkpoints.keep_last=1",
    "phases.0.evaluate_epochs=[1]",
    "phases.0.weight_decay=0.1",
    "phases.1.weight_decay=0.1",
    "phases.1.freeze_key_tokens=true",
)
PHASES = ("memorize", "generalize")

# Point of the fault -> where it strikes, and the steps that the next attempt may go on from. A save
# that is in flight when a process dies may be lost; the one before it never is. In phase 1 there is
# one after steps 2, 3 (before the evaluation on the way) and 4, and at the end.
FAULTS = {
    "start-up": ({"point": "start", "rank": 1}, {None}),
    "before the first save": ({"point": "step", "phase": "memorize", "step": 1, "rank": 0}, {None}),
    "in a step": ({"point": "step", "phase": "memorize", "step": 5, "rank": 1}, {3, 4}),
    "in phase 2": ({"point": "step", "phase": "generalize", "step": 7, "rank": 0}, {4, 6}),
    "during the copy": ({"point": "copy", "phase": "memorize", "step": 4, "rank": 1}, {3}),
    "during the write": ({"point": "write", "phase": "memorize", "step": 4, "rank": 1}, {3}),
    "before the manifest": ({"point": "save", "phase": "memorize", "step": 4, "rank": 0}, {3}),
    "after the manifest": ({"point": "published", "phase": "memorize", "step": 4, "rank": 0}, {4}),
    "during prune": ({"point": "prune", "phase": "memorize", "rank": 0}, {3}),
    "between phases": ({"point": "phase", "phase": "generalize", "rank": 1}, {6}),
    "in export": ({"point": "export", "phase": "memorize", "rank": 0}, {6}),
    "in evaluation": ({"point": "evaluation", "phase": "generalize", "rank": 1}, {12}),
}


def assert_equal_runs(one: RunDir, other: RunDir, *, phases: Sequence[str] = PHASES) -> None:
    """Every step with the same examples and loss, once; weights equal bit for bit."""
    ours, theirs = steps(one), steps(other)
    assert [(s.phase, s.step, s.example_ids, s.loss) for s in ours] == [
        (s.phase, s.step, s.example_ids, s.loss) for s in theirs
    ]
    for phase in phases:
        a, b = phase_end_weights(one, phase), phase_end_weights(other, phase)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)


def events(run_dir: RunDir, name: str) -> list[EventRow]:
    """The run's events of that name, by attempt and time."""
    return [event for event in read_records(run_dir).events if event.name == name]


def made_of(run_dir: RunDir, phase: str) -> str:
    """The checkpoint of which the phase's export and evaluation were made."""
    record = json.loads((run_dir.model_folder(phase) / "export.json").read_text())
    with run_dir.evaluation(phase, None).open() as file:
        assert json.loads(file.readline())["checkpoint"] == record["checkpoint"]
    return str(record["checkpoint"])
