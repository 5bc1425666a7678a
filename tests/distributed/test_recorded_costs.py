"""Every part of a run records what each of its workers held at most, and where time went."""

from __future__ import annotations

from recovery_helpers import events

from rotescale.memory_gauge import EVENT, peaks
from rotescale.records import read_records
from rotescale.run_dir import RunDir
from rotescale.step_clock import PARTS


def test_training_and_measuring_record_their_peaks(undisturbed: RunDir) -> None:
    found = peaks(read_records(undisturbed))
    assert len(found) == len(events(undisturbed, EVENT))
    told = [(peak.stage, peak.moment) for peak in found]
    assert told == [
        # Phase 1 is measured after its first epoch, too.
        *[("memorize", "training"), ("memorize", "measuring")] * 2,
        ("generalize", "training"),
        ("generalize", "measuring"),
    ]
    for peak in found:
        assert len(peak.ranks) == 2
        assert min(peak.ranks) > 0


def test_steps_record_where_their_time_went(undisturbed: RunDir) -> None:
    for step in read_records(undisturbed).steps:
        assert tuple(step.parts) == PARTS
        # Each is rounded.
        assert sum(step.parts.values()) <= step.seconds + 1e-5
        computed = ("data", "forward", "backward", "communication", "optimizer")
        assert all(step.parts[name] > 0 for name in computed)
