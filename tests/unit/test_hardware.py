"""Nodes: known shapes by name, with changes, or written out."""

from __future__ import annotations

from typing import Any

import pytest

from rotescale.errors import SpecError
from rotescale.hardware import SHAPES, NodeShape
from rotescale.launch_spec import LaunchSpec
from rotescale.planning.place import node_of
from rotescale.spec_file import dump_json, parse_spec


def node(value: Any) -> NodeShape | None:
    return parse_spec(LaunchSpec, {"node": value}, where="profile").node


@pytest.mark.parametrize("name", SHAPES)
def test_a_known_shape_is_named(name: str) -> None:
    found = node(name)
    assert found is not None
    assert found.name == name
    assert (found.gpu is None) == (name == "cpu")
    assert found.price_per_hour is None, "prices change"


def test_a_known_shape_with_changes() -> None:
    found = node({"like": "h100-8", "price_per_hour": 40, "host_memory_gib": 900})
    assert found is not None
    assert (found.name, found.gpus_per_node, found.price_per_hour) == ("h100-8", 8, 40)
    assert found.host_bytes == 900 << 30


def test_a_shape_of_its_own() -> None:
    found = node({"host_memory_gib": 2, "cpus": 4})
    assert found is not None
    assert (found.name, found.gpu, found.gpu_bytes) == ("own", None, 0)


def test_a_profile_with_a_node_is_saved_and_read_back() -> None:
    launch = parse_spec(LaunchSpec, {"node": "a100-80g-8"}, where="profile")
    assert LaunchSpec.model_validate_json(dump_json(launch)) == launch


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("h100", r"node: 'h100' is no known node; choose one of h200-8, h100-8"),
        ({"like": "x"}, "'x' is no known node"),
        (
            {"like": "h100-8", "price_per_hours": 1},
            r"hours: unknown key; did you mean 'price_per_hour'",
        ),
        ({"gpu": "B200"}, "gpus_per_node: 0; name the GPU and how many"),
        ({"gpu": "B200", "gpus_per_node": 8, "gpu_memory_gib": 178}, "gpu_flops_bf16.*data sheet"),
        ({"gpus_per_node": 8}, "gpu: None beside gpus_per_node: 8"),
        (3, r"node: .*\(got 3\)"),
    ],
)
def test_a_shape_that_is_no_node_is_refused(value: Any, told: str) -> None:
    with pytest.raises(SpecError, match=told):
        node(value)


def test_a_plan_on_this_machine_needs_no_node() -> None:
    found = node_of(LaunchSpec())
    assert found.name == "this-machine"
    assert found.gpu is None
    assert found.cpus >= 1


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"gpus_per_worker": 1}, r"node: profile 'local' names none.*its GPUs.*h100-8"),
        ({"place": "ray", "address": "auto"}, r"node: profile 'local' names none"),
        ({"gpus_per_worker": 1, "node": "cpu"}, r"cpu has no GPU.*gpus_per_worker to 0"),
    ],
)
def test_what_cannot_be_known_from_here_must_be_told(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError, match=told):
        node_of(parse_spec(LaunchSpec, fields, where="profile"))
