"""Preflight of a rank alone: what it records, and how it ends below a floor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from launcher.account import read_account
from rotescale.errors import NodeError
from rotescale.launch_spec import LaunchSpec, Preflight
from rotescale.nodes import Node, left_out, read_faults
from rotescale.preflight.run import preflight
from rotescale.records import EventRow, RecordWriter, read_records
from rotescale.run_dir import RunDir
from rotescale.team import Team


class Alone:
    """As much of an engine as preflight asks for; ``beside`` others like it."""

    rank, world_size = 0, 1
    device = torch.device("cpu")

    def __init__(self, beside: int = 0) -> None:
        self._beside = beside

    def all_gather(self, value: Any) -> list[Any]:
        return [value] * (1 + self._beside)


def measure(
    run_dir: RunDir, wanted: Preflight | None, *, attempt: int = 1, nodes: tuple[Node, ...] = ()
) -> list[EventRow]:
    """What it records; ``nodes``: of the ranks, one of its own unless they are given."""
    records = RecordWriter(run_dir, attempt=attempt, rank=0)
    nodes = nodes or (Node("gpu-7", "ab"),)
    team = Team(Alone(len(nodes) - 1), records, attempt, nodes)  # type: ignore[arg-type]
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


def test_a_fabric_that_is_not_told_is_an_event_that_status_shows(tmp_path: Path) -> None:
    run_dir, nodes = RunDir(tmp_path), (Node("gpu-7", "ab"), Node("gpu-8", "cd"))
    measured, warned = measure(run_dir, Preflight(fabric="efa"), nodes=nodes)
    assert (measured.name, measured.details["findings"]) == ("preflight", [])
    assert warned.name == "fabric-unknown"
    assert warned.message.startswith("nodes gpu-7, gpu-8: not known which network NCCL has taken")
    assert "preflight.fabric efa was not checked" in warned.message
    assert read_faults(run_dir) == (), "nobody is blamed"
    run_dir.spec_json.write_text("{}")
    account = read_account(run_dir)
    assert account is not None
    assert account.events == (warned,)
    others = measure(RunDir(tmp_path / "any"), Preflight(), nodes=nodes)
    assert [event.name for event in others] == ["preflight"]


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
