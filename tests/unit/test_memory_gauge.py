"""What a worker held at most is told from the system's own account of the process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from rotescale.memory_gauge import EVENT, MemoryGauge, MemoryPeak, make_peak, peaks
from rotescale.records import EventRow, Records

CPU = torch.device("cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="no /proc")
def test_what_was_held_for_a_moment_counts_and_what_came_before_does_not() -> None:
    before = torch.ones(30_000_000)
    gauge = MemoryGauge()
    gauge.restart(CPU)
    during = torch.ones(50_000_000)
    del during
    first = gauge.take(CPU)
    gauge.restart(CPU)
    second = gauge.take(CPU)
    assert first is not None
    assert second is not None
    assert 190e6 <= first <= 230e6
    assert second <= 30e6
    assert before.sum() == 30_000_000


def test_what_the_system_does_not_tell_is_not_told(tmp_path: Path) -> None:
    gauge = MemoryGauge(proc=tmp_path / "none")
    gauge.restart(CPU)
    assert gauge.take(CPU) is None
    # Where the peak cannot be set back it is of another part of the run.
    (tmp_path / "status").write_text("VmRSS:\t 10 kB\nVmHWM:\t 20 kB\n")
    (tmp_path / "clear_refs").mkdir()
    gauge = MemoryGauge(proc=tmp_path)
    gauge.restart(CPU)
    assert gauge.take(CPU) is None
    (tmp_path / "clear_refs").rmdir()
    gauge.restart(CPU)
    assert gauge.take(CPU) == 10 * 1024


def test_a_peak_is_of_all_ranks_or_of_none() -> None:
    assert make_peak("memorize", "training", [1, None]) is None
    peak = make_peak("memorize", "training", [2_000_000_000, 3_000_000_000])
    assert peak is not None
    assert peak.most == 3_000_000_000
    assert peak.describe() == "memorize: training, each of 2 workers held 3.00 GB at most"
    alone = MemoryPeak(stage="base", moment="measuring", ranks=(5_000_000,))
    assert alone.describe() == "base: measuring, the worker held 0.01 GB at most"


def test_the_newest_attempts_peaks_are_read_and_strange_ones_passed_over() -> None:
    peak = MemoryPeak(stage="memorize", moment="training", ranks=(1, 2))

    def event(attempt: int, details: dict[str, object]) -> EventRow:
        return EventRow(attempt=attempt, time="t", name=EVENT, message="", details=details)

    old = event(1, MemoryPeak(stage="base", moment="measuring", ranks=(9, 9)).model_dump())
    found = Records((), (), (old, event(2, {"of": "another version"}), event(2, peak.model_dump())))
    assert peaks(found) == (peak,)
    assert peaks(Records((), (), ())) == ()
