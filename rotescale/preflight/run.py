"""Preflight: every rank times a matrix product, all of them an all-reduce; then it is judged.

Below a floor the attempt ends without an outcome, so that its workers are replaced. Nothing of this
has been run on a GPU.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from rotescale.errors import NodeError
from rotescale.launch_spec import LaunchSpec
from rotescale.nodes import record_fault
from rotescale.preflight.fabric import fabric_of
from rotescale.preflight.measure import Sizes, matmul_tflops, pair_speeds, reduce_seconds
from rotescale.preflight.verdict import (
    Finding,
    Measured,
    bus_bandwidth,
    judge,
    ranks_of,
    unknown_fabrics,
)
from rotescale.run_dir import RunDir
from rotescale.team import Team

EVENT = "preflight"
UNKNOWN = "fabric-unknown"
"""Event: the fabric that is wanted was not checked on some nodes."""


def preflight(team: Team, run_dir: RunDir, launch: LaunchSpec, *, nccl_log: Path | None) -> None:
    """Collective: every rank calls this, before the model is loaded. Measure, record, judge.

    Nothing where ``launch.preflight`` is None. Records an event ``preflight``, and one more where
    NCCL does not tell what it has taken, which ends nothing. Raises NodeError, on all ranks alike,
    where something is below its floor; nodes whose fault it is are in the run's ledger then.
    """
    wanted = launch.preflight
    if wanted is None:
        return
    names = [node.name for node in team.nodes]
    tflops, seconds = matmul_tflops(team), reduce_seconds(team)
    fabric = _fabric(nccl_log) if team.num_nodes > 1 else None
    mine = Measured(tflops, seconds, fabric)
    measured = [Measured(*one) for one in team.engine.all_gather(tuple(mine))]
    speed = _speed(team, measured)
    floor = wanted.all_reduce_gb_per_s
    slow = speed is not None and floor is not None and speed < floor
    pairs = pair_speeds(team) if slow else {}
    if team.engine.device.type == "cuda":
        torch.cuda.empty_cache()
    findings = judge(names, measured, wanted, speed=speed, pairs=pairs, fabric=launch.wanted_fabric)

    def record() -> None:
        _record(team, measured, speed=speed, pairs=pairs, findings=findings)
        _warn(team, unknown_fabrics(names, measured, launch.wanted_fabric), launch.wanted_fabric)
        _blame(team, run_dir, findings)

    # The others' errors may end this process, so all is on storage before they raise.
    team.on_rank_0(record)
    if findings:
        raise NodeError("; ".join(finding.message for finding in findings))


def _fabric(nccl_log: Path | None) -> str | None:
    if nccl_log is not None:
        with suppress(OSError):
            return fabric_of(nccl_log.read_text(encoding="utf-8", errors="replace"))
    return None


def _speed(team: Team, measured: Sequence[Measured]) -> float | None:
    """GB/s of an all-reduce over all ranks; None where there is one."""
    seconds = [one.reduce_seconds for one in measured if one.reduce_seconds is not None]
    if not seconds:
        return None
    num_bytes = Sizes.of(team.engine.device).reduced_bytes
    return bus_bandwidth(num_bytes, statistics.median(seconds), ranks=len(measured))


def _record(
    team: Team,
    measured: Sequence[Measured],
    *,
    speed: float | None,
    pairs: Mapping[tuple[str, str], float],
    findings: Sequence[Finding],
) -> None:
    """On rank 0: the event, written at once."""
    sizes = Sizes.of(team.engine.device)
    by_node = ranks_of([node.name for node in team.nodes])
    details: dict[str, Any] = {
        "nodes": [
            {
                "node": name,
                "ray_id": team.nodes[ranks[0]].ray_id,
                "ranks": ranks,
                "matmul_tflops": [measured[rank].matmul_tflops for rank in ranks],
                "fabric": _fabrics([measured[rank] for rank in ranks]),
            }
            for name, ranks in by_node.items()
        ],
        "all_reduce_gb_per_s": speed,
        "pairs": [{"nodes": pair, "gb_per_s": value} for pair, value in pairs.items()],
        "findings": [finding.message for finding in findings],
        "dtype": str(sizes.dtype).removeprefix("torch."),
        "matmul_size": sizes.product,
        "all_reduce_bytes": sizes.reduced_bytes,
    }
    team.event(EVENT, _summary(team, measured, speed), **details)
    team.records.flush()


def _warn(team: Team, nodes: Sequence[str], wanted: str) -> None:
    """On rank 0: say that a fabric was wanted, and not checked on these nodes."""
    if not nodes:
        return
    message = (
        f"node{'s' if len(nodes) > 1 else ''} {', '.join(nodes)}: not known which network NCCL has "
        f"taken, so preflight.fabric {wanted} was not checked; look into their workers' NCCL logs"
    )
    team.event(UNKNOWN, message, nodes=list(nodes), wanted=wanted)
    team.records.flush()


def _fabrics(measured: Sequence[Measured]) -> list[str]:
    return sorted({one.fabric for one in measured if one.fabric is not None})


def _summary(team: Team, measured: Sequence[Measured], speed: float | None) -> str:
    slowest = min(range(len(measured)), key=lambda rank: measured[rank].matmul_tflops)
    words = [f"slowest product {measured[slowest].matmul_tflops:.3g} TFLOPS (rank {slowest})"]
    if speed is not None:
        words.append(f"all-reduce {speed:.3g} GB/s of bus bandwidth")
    taken = _fabrics(measured)
    if team.engine.device.type != "cuda":
        words.append("fabric not checked: gloo, not NCCL")
    elif team.num_nodes == 1:
        words.append("fabric not checked: one node")
    else:
        words.append(f"fabric {', '.join(taken)}" if taken else "fabric not told by NCCL's log")
    return "; ".join(words)


def _blame(team: Team, run_dir: RunDir, findings: Sequence[Finding]) -> None:
    """On rank 0: note in the run's ledger what is wrong with which node."""
    by_name = {node.name: node for node in team.nodes}
    for finding in findings:
        for name in finding.nodes:
            record_fault(
                *(run_dir, by_name[name]),
                attempt=team.attempt,
                reason="preflight",
                message=finding.message,
                num_nodes=team.num_nodes,
            )
