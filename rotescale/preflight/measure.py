"""The measurements: a matrix product on one rank, an all-reduce over some or all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed

from rotescale.faults import fault_point
from rotescale.preflight.verdict import bus_bandwidth, ranks_of, ring, turns
from rotescale.team import Team

_LEAST_REPEATS = 3
_BUDGET_SECONDS = 2.0
"""About how long the repetitions of one measurement may take; three are made in any case."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is measured on a kind of device: on a GPU a few seconds, on a CPU less than one."""

    dtype: torch.dtype
    product: int
    """Rows and columns of each matrix."""
    reduced_bytes: int
    """Of each rank, summed over all."""
    repeats: int
    """At most."""
    glance_product: int
    """Rows and columns, for a look while training goes on: milliseconds."""
    glance_repeats: int

    @classmethod
    def of(cls, device: torch.device) -> Sizes:
        """Those of the device's kind."""
        return _GPU if device.type == "cuda" else _CPU


_GPU = Sizes(
    dtype=torch.bfloat16,
    product=8192,
    reduced_bytes=512 << 20,
    repeats=20,
    glance_product=2048,
    glance_repeats=50,
)
_CPU = Sizes(
    dtype=torch.float32,
    product=512,
    reduced_bytes=4 << 20,
    repeats=5,
    glance_product=256,
    glance_repeats=4,
)


def matmul_tflops(team: Team) -> float:
    """What this rank reaches alone, in 10^12 floating-point operations per second."""
    device, sizes = team.engine.device, Sizes.of(team.engine.device)
    left, right, out = _matrices(device, sizes.product, sizes.dtype)

    def once() -> None:
        fault_point("matmul", **team.where)
        torch.mm(left, right, out=out)

    _timed(once, device)
    repeats = _repeats(_timed(once, device), sizes.repeats)
    seconds = statistics.median(_timed(once, device) for _ in range(repeats))
    return 2 * sizes.product**3 / seconds / 1e12


def glance_seconds(device: torch.device) -> float:
    """How long a small matrix product takes on this rank alone: the best of three, in seconds.

    It takes milliseconds and no random numbers, so it may stand in the midst of training.
    """
    sizes = Sizes.of(device)
    left, right, out = _matrices(device, sizes.glance_product, sizes.dtype)

    def several() -> None:
        for _ in range(sizes.glance_repeats):
            torch.mm(left, right, out=out)

    several()
    return min(_timed(several, device) for _ in range(3)) / sizes.glance_repeats


def reduce_seconds(team: Team) -> float | None:
    """Collective: every rank calls this. How long an all-reduce over all takes, on this rank.

    None where there is one rank.
    """
    if team.engine.world_size == 1:
        return None
    first = _reduced(team, repeats=1)
    repeats = _repeats(max(team.engine.all_gather(first)), Sizes.of(team.engine.device).repeats)
    return _reduced(team, repeats=repeats)


def pair_speeds(team: Team) -> dict[tuple[str, str], float]:
    """Collective: every rank calls this. GB/s of the pairs of a ring of nodes, by their names.

    Each node is in two pairs, one at a time. Nothing where there are less than three nodes.
    """
    ranks = ranks_of([node.name for node in team.nodes])
    pairs = ring(list(ranks))
    members = [sorted(ranks[one] + ranks[other]) for one, other in pairs]
    # Every rank takes part in making every group, in this order.
    groups = [torch.distributed.new_group(some) for some in members]
    mine: dict[int, float] = {}
    for turn in turns(len(pairs)):
        for index in turn:
            if team.rank in members[index]:
                mine[index] = _reduced(team, repeats=_LEAST_REPEATS, group=groups[index])
        team.engine.all_sum([0.0])
    gathered = team.engine.all_gather(mine)
    for some, group in zip(members, groups, strict=True):
        if team.rank in some:
            torch.distributed.destroy_process_group(group)
    num_bytes = Sizes.of(team.engine.device).reduced_bytes
    return {
        pair: bus_bandwidth(
            num_bytes,
            statistics.median(one[index] for one in gathered if index in one),
            ranks=len(members[index]),
        )
        for index, pair in enumerate(pairs)
    }


def _reduced(team: Team, *, repeats: int, group: Any = None) -> float:
    """Collective for the group's ranks: the median time of an all-reduce, after one to warm up."""
    device, sizes = team.engine.device, Sizes.of(team.engine.device)
    start = torch.zeros(1, device=device)
    count = sizes.reduced_bytes // sizes.dtype.itemsize
    buffer = torch.zeros(count, device=device, dtype=sizes.dtype)

    def once() -> None:
        fault_point("all_reduce", **team.where)
        torch.distributed.all_reduce(buffer, group=group)

    seconds = []
    for _ in range(repeats + 1):
        # All begin together, or the first would count how long it waits for the last.
        torch.distributed.all_reduce(start, group=group)
        seconds.append(_timed(once, device))
    return statistics.median(seconds[1:])


def _matrices(device: torch.device, size: int, dtype: torch.dtype) -> list[torch.Tensor]:
    # Equal numbers would take less power, and so be faster, than those of a model. The generator
    # is its own, so that training draws what it would draw anyway.
    generator = torch.Generator(device).manual_seed(0)
    return [
        torch.randn(size, size, generator=generator, device=device, dtype=dtype) for _ in range(3)
    ]


def _timed(action: Callable[[], Any], device: torch.device) -> float:
    """Seconds that the action takes, with the work that it queues on a GPU."""
    _wait_for(device)
    started = time.perf_counter()
    action()
    _wait_for(device)
    return time.perf_counter() - started


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _repeats(seconds: float, most: int) -> int:
    return max(_LEAST_REPEATS, min(most, int(_BUDGET_SECONDS / max(seconds, 1e-9))))
