"""Nodes are measured before they train; below a floor nothing is trained, and the node is named.

Each rank is told that it runs on a node of its own.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from helpers import QUICK, micro_spec, prepare, run_ranks
from recovery_helpers import events

from rotescale.faults import VARIABLE
from rotescale.launch_spec import Preflight
from rotescale.nodes import NAME_VARIABLE, left_out, read_faults
from rotescale.run_dir import Outcome, RunDir
from rotescale.worker import run_worker


def on_nodes(run_folder: Path) -> None:
    os.environ[NAME_VARIABLE] = f"node-{os.environ['RANK']}"
    run_worker(run_folder)


def start(run_dir: RunDir, world_size: int, **fault: object) -> list[int]:
    """Run to the end of one attempt, with a delay of 0.2 s at a point of one rank; exit codes."""
    delay = {VARIABLE: json.dumps({"action": "delay", **fault})} if fault else {}
    return run_ranks(
        on_nodes,
        run_dir.root,
        world_size=world_size,
        logs=run_dir.node_dir / "logs",
        environment=delay,
    )


def test_a_node_that_computes_slowly_is_named_and_the_next_attempt_goes_on(
    tmp_path: Path, model_cache: Path
) -> None:
    # A product of 512 x 512 that takes 0.2 s reaches 0.0013 TFLOPS; a core reaches 0.05.
    spec = micro_spec(*QUICK)
    place: dict[str, Any] = {"cache": model_cache, "num_workers": 2}
    run_dir = prepare(spec, tmp_path, preflight=Preflight(matmul_tflops=0.002), **place)
    codes = start(run_dir, 2, point="matmul", rank=1)
    assert 0 not in codes
    # The workers are replaced, as after any loss: the run has not ended.
    assert Outcome.read(run_dir) is None
    [fault] = read_faults(run_dir)
    assert (fault.attempt, fault.node, fault.reason, fault.num_nodes) == (
        *(1, "node-1", "preflight"),
        2,
    )
    assert "node node-1: rank 1 reaches 0.00" in fault.message
    assert "below preflight.matmul_tflops 0.002" in fault.message
    assert fault.message in run_dir.worker_log(attempt=1, rank=0).read_text()
    [measured] = events(run_dir, "preflight")
    assert measured.details["findings"] == [fault.message]
    assert not events(run_dir, "phase")
    # Without a floor, as nobody knows how much of its cores a test gets.
    assert prepare(spec, tmp_path, preflight=Preflight(), **place) == run_dir
    assert start(run_dir, 2) == [0, 0]
    measured = events(run_dir, "preflight")[1]
    assert "fabric not checked: gloo" in measured.message
    nodes = measured.details["nodes"]
    assert [(node["node"], node["ranks"]) for node in nodes] == [("node-0", [0]), ("node-1", [1])]
    assert all(value > 0 for node in nodes for value in node["matmul_tflops"])
    assert measured.details["all_reduce_gb_per_s"] > 0
    assert measured.details["pairs"] == []
    # Once is no reason to leave a node out.
    assert left_out(read_faults(run_dir)) == {}
    assert events(run_dir, "node-excluded") == []


def test_the_node_that_slows_an_all_reduce_is_found_by_pairs(
    tmp_path: Path, model_cache: Path
) -> None:
    # 4 MiB in 0.2 s: 0.028 GB/s of bus bandwidth between three, 0.021 between two.
    floors = Preflight(all_reduce_gb_per_s=0.03)
    spec = micro_spec(*QUICK)
    run_dir = prepare(spec, tmp_path, cache=model_cache, num_workers=3, preflight=floors)
    assert 0 not in start(run_dir, 3, point="all_reduce", rank=1)
    assert Outcome.read(run_dir) is None
    [fault] = read_faults(run_dir)
    assert (fault.attempt, fault.node) == (1, "node-1")
    assert "and so does each pair with it" in fault.message
    [measured] = [event.details for event in events(run_dir, "preflight")]
    slow = {tuple(pair["nodes"]) for pair in measured["pairs"] if pair["gb_per_s"] < 0.03}
    assert slow == {("node-0", "node-1"), ("node-1", "node-2")}
