"""What is below its floor is named, with the node whose fault it is where that can be told."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from rotescale.launch_spec import Preflight
from rotescale.preflight.verdict import (
    Finding,
    Measured,
    bus_bandwidth,
    judge,
    ring,
    slow_nodes,
    turns,
    unknown_fabrics,
)

NODES = ("a", "a", "b", "b", "c", "c")
FINE = [Measured(600.0, 0.001, "infiniband")] * 6


def found(
    measured: list[Measured] = FINE, *, nodes: tuple[str, ...] = NODES, **said: Any
) -> list[Finding]:
    floors = Preflight(matmul_tflops=500, all_reduce_gb_per_s=100)
    asked = {"wanted": floors, "speed": 300.0, "pairs": {}, "fabric": "infiniband"}
    return judge(nodes, measured, **{**asked, **said})


def changed(rank: int, **fields: Any) -> list[Measured]:
    return [one._replace(**fields) if i == rank else one for i, one in enumerate(FINE)]


def test_what_reaches_its_floors_is_left_alone() -> None:
    assert found() == []
    assert found(wanted=Preflight(), speed=1.0, fabric="any") == []
    assert found(speed=None) == []


def test_a_slow_product_is_its_own_node_s() -> None:
    [finding] = found(changed(3, matmul_tflops=412.3))
    assert finding.nodes == ("b",)
    assert "node b: rank 3 reaches 412 TFLOPS" in finding.message
    assert "preflight.matmul_tflops 500" in finding.message
    assert "replace the node, or lower the floor" in finding.message


@pytest.mark.parametrize(
    ("speeds", "expected"),
    [
        pytest.param({"ab": 20, "bc": 20, "ca": 300}, ("b",), id="one of three"),
        pytest.param({"ab": 20, "bc": 20, "ca": 20}, (), id="all pairs"),
        pytest.param({"ab": 300, "bc": 300, "ca": 300}, (), id="no pair"),
        pytest.param({"ab": 20, "bc": 300, "ca": 300}, (), id="a link between two that are well"),
        pytest.param({"ab": 300, "bc": 20, "cd": 20, "da": 300}, ("c",), id="one of four"),
        pytest.param({"ab": 20, "bc": 20, "cd": 20, "da": 300}, ("b", "c"), id="two neighbours"),
        pytest.param(
            {"ab": 20, "bc": 20, "cd": 20, "de": 20, "ea": 300}, ("b", "d"), id="one between two"
        ),
        pytest.param({}, (), id="one pair of nodes"),
    ],
)
def test_the_slow_node_of_an_all_reduce_is_the_one_that_all_its_pairs_share(
    speeds: dict[str, float], expected: tuple[str, ...]
) -> None:
    pairs = {(pair[0], pair[1]): value for pair, value in speeds.items()}
    assert slow_nodes(pairs, 100) == expected
    [finding] = found(speed=20.5, pairs=pairs)
    assert finding.nodes == expected
    assert "20.5 GB/s, below preflight.all_reduce_gb_per_s 100" in finding.message
    assert ("cannot be told" in finding.message) == (not expected)


def test_a_slow_all_reduce_within_one_node_is_that_node_s() -> None:
    [finding] = found(nodes=("a",) * 6, speed=20.0)
    assert finding.nodes == ("a",)


def test_another_network_is_each_node_s_that_took_it() -> None:
    [finding] = found(changed(4, fabric="socket"))
    assert finding.nodes == ("c",)
    assert "has taken socket between nodes, not preflight.fabric infiniband" in finding.message
    # What NCCL has not told cannot be held against a node, nor what it would take if it had to.
    assert found([one._replace(fabric=None) for one in FINE]) == []
    assert found(changed(4, fabric="socket"), fabric="any") == []
    assert found(changed(4, fabric="socket"), nodes=("a",) * 6) == []


def test_a_node_none_of_whose_ranks_tells_its_fabric_is_named() -> None:
    silent = [one._replace(fabric=None) if i in (2, 3, 4) else one for i, one in enumerate(FINE)]
    assert unknown_fabrics(NODES, silent, "infiniband") == ("b",), "one rank of c has told it"
    assert unknown_fabrics(NODES, FINE, "infiniband") == ()
    assert unknown_fabrics(NODES, silent, "any") == ()
    assert unknown_fabrics(("a",) * 6, silent, "infiniband") == (), "nothing goes between nodes"


@pytest.mark.parametrize("number", [3, 4, 5, 8])
def test_a_ring_has_each_node_in_two_pairs_and_in_one_at_a_time(number: int) -> None:
    nodes = [f"n{i}" for i in range(number)]
    pairs = ring(nodes)
    assert pairs == [*itertools.pairwise(nodes), (nodes[-1], nodes[0])]
    order = turns(len(pairs))
    assert sorted(itertools.chain(*order)) == list(range(number))
    for turn in order:
        listed = [node for index in turn for node in pairs[index]]
        assert len(set(listed)) == len(listed)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_two_nodes_make_no_ring(number: int) -> None:
    assert ring(["a", "b"][:number]) == []
    assert turns(0) == []


@pytest.mark.parametrize(("ranks", "expected"), [(2, 1.0), (4, 1.5), (32, 1.9375)])
def test_bus_bandwidth_is_that_of_nccl_tests(ranks: int, expected: float) -> None:
    assert bus_bandwidth(10**9, 1.0, ranks=ranks) == pytest.approx(expected)
    assert bus_bandwidth(10**9, 0.5, ranks=ranks) == pytest.approx(2 * expected)
