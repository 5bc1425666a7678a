"""What a place says of its preflight, and what of it reaches the cluster."""

from __future__ import annotations

from pathlib import Path

import pytest
from kuberay_helpers import place

from rotescale.errors import SpecError
from rotescale.launch_spec import LaunchSpec, Preflight
from rotescale.spec_file import dump_json, load_spec, parse_spec

LAUNCHES = sorted((Path(__file__).parents[2] / "configs" / "launch").glob("*.yaml"))


def test_nothing_is_measured_unless_it_is_asked_for() -> None:
    assert LaunchSpec().preflight is None
    asked = parse_spec(LaunchSpec, {"preflight": {}}, where="x")
    assert asked.preflight == Preflight()
    assert LaunchSpec.model_validate_json(dump_json(asked)) == asked


@pytest.mark.parametrize("path", LAUNCHES, ids=lambda path: path.stem)
def test_shipped_places_with_several_gpus_are_measured(path: Path) -> None:
    launch = load_spec(LaunchSpec, path)
    on_gpus = launch.gpus_per_worker and launch.num_workers[1] > 1
    assert (launch.preflight is not None) == bool(on_gpus)
    if launch.preflight is not None:
        assert launch.preflight.matmul_tflops is not None


@pytest.mark.parametrize(
    ("fabric", "wanted"),
    [("none", "any"), ("infiniband", "infiniband"), ("efa", "efa"), ("tcpxo", "tcpxo")],
)
def test_the_cluster_is_told_which_fabric_its_pods_were_given(fabric: str, wanted: str) -> None:
    launch = place("preflight={matmul_tflops: 500}", fabric=fabric)
    inside = launch.inside_the_cluster()
    assert launch.wanted_fabric == inside.wanted_fabric == wanted
    assert inside.preflight is not None
    assert inside.preflight.matmul_tflops == 500
    assert place(fabric=fabric).inside_the_cluster().preflight is None


def test_a_place_may_want_another_fabric_or_none() -> None:
    assert place("preflight={fabric: any}", fabric="efa").wanted_fabric == "any"
    assert place("preflight={fabric: tcpxo}").inside_the_cluster().wanted_fabric == "tcpxo"


@pytest.mark.parametrize("field", ["matmul_tflops: 0", "all_reduce_gb_per_s: -1", "fabric: ib"])
def test_a_floor_is_above_zero_and_a_fabric_is_one_of_those(field: str) -> None:
    with pytest.raises(SpecError, match=field.partition(":")[0]):
        place(f"preflight={{{field}}}")
