"""Preflight of a rank alone: what it records, and how it ends below a floor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rotescale.errors import NodeError
from rotescale.launch_spec import LaunchSpec, Preflight
from rotescale.nodes import Node, left_out, read_faults
from rotescale.preflight.run import preflight
from rotescale.records import EventRow, RecordWriter, read_records
from rotescale.run_dir import RunDir
from rotescale.team import Team


class Alone:
    """As much of an engine as preflight asks for."""

    rank, world_size = 0, 1
    device = torch.device("cpu")

    def all_gather(self, value: Any) -> list[Any]:
        return [value]


def measure(run_dir: RunDir, wanted: Preflight | None, *, attempt: int = 1) -> list[EventRow]:
    """What it records."""
    records = RecordWriter(run_dir, attempt=attempt, rank=0)
    team = Team(Alone(), records, attempt, (Node("gpu-7", "ab"),))  # type: ignore[arg-type]
    try:
        preflight(team, run_dir, LaunchSpec(preflight=wanted), nccl_log=None)
    finally:
        records.close()
    return list(read_records(run_dir).events)


def test_without_a_section_nothing_is_measured(tmp_path: Path) -> None:
    assert measure(RunDir(tmp_path), None) == []


def test_what_is_measured_is_recorded(tmp_path: Path) -> None:
    [event] = measure(RunDir(tmp_path), Preflight())
    assert event.name == "preflight"
    assert event.message.endswith("TFLOPS (rank 0); fabric not checked: gloo, not NCCL")
    [node] = event.details["nodes"]
    assert (node["node"], node["ray_id"], node["ranks"]) == ("gpu-7", "ab", [0])
    assert node["matmul_tflops"][0] > 0
    assert event.details["all_reduce_gb_per_s"] is None
    assert (event.details["dtype"], event.details["findings"]) == ("float32", [])


def test_below_a_floor_the_node_is_named_but_never_the_only_one_left_out(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    for attempt in (1, 2, 3):
        with pytest.raises(NodeError, match=r"gpu-7: rank 0 .* preflight.matmul_tflops 1e\+06"):
            measure(run_dir, Preflight(matmul_tflops=1e6), attempt=attempt)
    events = read_records(run_dir).events
    assert [len(event.details["findings"]) for event in events] == [1, 1, 1]
    faults = read_faults(run_dir)
    assert [(one.attempt, one.ray_id, one.reason) for one in faults] == [
        (1, "ab", "preflight"),
        (2, "ab", "preflight"),
        (3, "ab", "preflight"),
    ]
    assert left_out(faults) == {}
