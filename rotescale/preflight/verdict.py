"""What measured numbers say of nodes. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from rotescale.launch_spec import Preflight


class Measured(NamedTuple):
    """What one rank has measured."""

    matmul_tflops: float
    reduce_seconds: float | None
    """Of an all-reduce over all ranks; None where there is one rank."""
    fabric: str | None
    """What NCCL has taken between nodes; None where it has not said so."""


class Finding(NamedTuple):
    """Something below its floor."""

    message: str
    """With node, value, floor and remedy."""
    nodes: tuple[str, ...]
    """Whose fault it is; none where that cannot be told."""


def judge(
    nodes: Sequence[str],
    measured: Sequence[Measured],
    wanted: Preflight,
    *,
    speed: float | None,
    pairs: Mapping[tuple[str, str], float],
    fabric: str,
) -> list[Finding]:
    """What is below its floor. ``nodes``, ``measured``: by rank; ``speed``: of all, in GB/s.

    ``pairs``: GB/s of the all-reduces of two nodes, where they were measured. ``fabric``: what NCCL
    must have taken, or ``any``.
    """
    found: list[Finding] = []
    if wanted.matmul_tflops is not None:
        found += _slow_products(nodes, measured, wanted.matmul_tflops)
    floor = wanted.all_reduce_gb_per_s
    if speed is not None and floor is not None and speed < floor:
        found.append(_slow_all_reduce(nodes, speed, floor, pairs))
    return found + list(_other_fabrics(nodes, measured, fabric))


def _slow_products(
    nodes: Sequence[str], measured: Sequence[Measured], floor: float
) -> Iterable[Finding]:
    for node, ranks in ranks_of(nodes).items():
        slowest = min(ranks, key=lambda rank: measured[rank].matmul_tflops)
        reached = measured[slowest].matmul_tflops
        if reached < floor:
            yield Finding(
                f"node {node}: rank {slowest} reaches {reached:.3g} TFLOPS in a matrix product, "
                f"below preflight.matmul_tflops {floor:g}; look for what holds the processor back "
                "(heat, power, another process), replace the node, or lower the floor",
                (node,),
            )


def _slow_all_reduce(
    nodes: Sequence[str], speed: float, floor: float, pairs: Mapping[tuple[str, str], float]
) -> Finding:
    names = list(ranks_of(nodes))
    told = (
        f"an all-reduce over {len(nodes)} workers on {len(names)} node(s) has a bus bandwidth of "
        f"{speed:.3g} GB/s, below preflight.all_reduce_gb_per_s {floor:g}"
    )
    remedy = "look at its links and adapters, replace the node, or lower the floor"
    if len(names) == 1:
        return Finding(f"node {names[0]}: {told}; {remedy}", (names[0],))
    slow = slow_nodes(pairs, floor)
    if slow:
        return Finding(
            f"node {', '.join(slow)}: {told}, and so does each pair with it; {remedy}", slow
        )
    seen = ", ".join(f"{one} with {other} {value:.3g}" for (one, other), value in pairs.items())
    why = f"of pairs, in GB/s: {seen}" if seen else "they are one pair"
    return Finding(
        f"nodes {', '.join(names)}: {told}; which of them is at fault cannot be told ({why}); look "
        "at the network between them, or lower the floor",
        (),
    )


def _other_fabrics(
    nodes: Sequence[str], measured: Sequence[Measured], fabric: str
) -> Iterable[Finding]:
    by_node = ranks_of(nodes)
    if fabric == "any" or len(by_node) == 1:
        return
    for node, ranks in by_node.items():
        taken = {measured[rank].fabric for rank in ranks} - {None, fabric}
        if taken:
            yield Finding(
                f"node {node}: NCCL has taken {', '.join(sorted(map(str, taken)))} between nodes, "
                f"not preflight.fabric {fabric}; look into its workers' NCCL logs for why, or set "
                "preflight.fabric to any",
                (node,),
            )


def unknown_fabrics(
    nodes: Sequence[str], measured: Sequence[Measured], fabric: str
) -> tuple[str, ...]:
    """The nodes none of whose ranks says what NCCL has taken, where a ``fabric`` must be."""
    by_node = ranks_of(nodes)
    if fabric == "any" or len(by_node) == 1:
        return ()
    return tuple(
        node for node, ranks in by_node.items() if all(measured[i].fabric is None for i in ranks)
    )


def ranks_of(nodes: Sequence[str]) -> dict[str, list[int]]:
    """The ranks of each node, in the order of its first; ``nodes`` by rank."""
    ranks: dict[str, list[int]] = {}
    for rank, node in enumerate(nodes):
        ranks.setdefault(node, []).append(rank)
    return ranks


def slow_nodes(pairs: Mapping[tuple[str, str], float], floor: float) -> tuple[str, ...]:
    """Nodes that must be slow, by the bandwidths of pairs that each node is in two of.

    A node of any pair that reaches the floor is well, so in its slow pairs the other one is slow.
    Of a pair of which neither node is known to be well nothing is told.
    """
    well = {node for pair, value in pairs.items() if value >= floor for node in pair}
    slow: dict[str, None] = {}
    for (one, other), value in pairs.items():
        if value < floor and (one in well) != (other in well):
            slow[other if one in well else one] = None
    return tuple(slow)


def ring(nodes: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of neighbours, the last and the first included; none of less than three nodes."""
    if len(nodes) < 3:
        return []
    return [(node, nodes[(index + 1) % len(nodes)]) for index, node in enumerate(nodes)]


def turns(num_pairs: int) -> list[list[int]]:
    """The pairs of a ring, by number, in turns in which no node is in two pairs."""
    paired = num_pairs - num_pairs % 2
    found = [list(range(0, paired, 2)), list(range(1, paired, 2)), list(range(paired, num_pairs))]
    return [turn for turn in found if turn]


def bus_bandwidth(num_bytes: int, seconds: float, *, ranks: int) -> float:
    """Of an all-reduce of ``num_bytes`` per rank, in GB/s: ``S / t * 2 (n - 1) / n``.

    As nccl-tests define it (doc/PERFORMANCE.md there), so that it can be held against the hardware
    whatever the number of ranks.
    """
    return num_bytes / seconds * 2 * (ranks - 1) / ranks / 1e9
