"""Every part of a run records what each of its workers held at most, and where time went."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from helpers import QUICK, micro_spec, prepare, run_workers
from recovery_helpers import events

from rotescale.launch_spec import ProfileSpec
from rotescale.memory_gauge import EVENT, peaks
from rotescale.records import read_records
from rotescale.run_dir import RunDir
from rotescale.step_clock import PARTS
from rotescale.storage import entries


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


def test_every_rank_leaves_a_trace_of_chosen_steps(tmp_path: Path, model_cache: Path) -> None:
    run_dir = prepare(
        micro_spec(*QUICK, "engine.persistence_threshold=0"),
        tmp_path,
        cache=model_cache,
        num_workers=2,
        profile=ProfileSpec(steps=(2, 3), phase="memorize"),
    )
    assert run_workers(run_dir, world_size=2) == [0, 0]
    found = {path.name: path for path in entries(run_dir.profiles_dir)}
    assert sorted(found) == [
        f"memorize-step-000002-000003-rank-0000{rank}.json.gz" for rank in (0, 1)
    ]
    for path in found.values():
        traced = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
        named = {event["name"] for event in traced}
        assert {"ProfilerStep#1", "ProfilerStep#2", "aten::mm"} <= named
        # What ZeRO-3 does around modules, and what travels.
        assert any("ForZeroStage3" in name for name in named)
        assert sum(name.startswith("c10d::") for name in named) > 1


def test_steps_record_where_their_time_went(undisturbed: RunDir) -> None:
    for step in read_records(undisturbed).steps:
        assert tuple(step.parts) == PARTS
        # Each is rounded.
        assert sum(step.parts.values()) <= step.seconds + 1e-5
        computed = ("data", "forward", "backward", "communication", "optimizer")
        assert all(step.parts[name] > 0 for name in computed)
