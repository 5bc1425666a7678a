"""Operations per second and their share of the peak, by hand."""

from __future__ import annotations

import pytest

from rotescale.hardware import SHAPES, NodeShape
from rotescale.records import EventRow, StepRow
from rotescale.utilisation import EVENT, Device, device_of, peak_flops

DEVICE = Device(
    device="NVIDIA H100 80GB HBM3",
    num_devices=2,
    flops_per_token=6e9,
    flops_per_target=1e9,
    peak_flops=989e12,
)


def step(tokens: int, targets: int, seconds: float) -> StepRow:
    return StepRow(
        **{"attempt": 1, "phase": "memorize", "phase_index": 0, "step": 1, "epoch": 1, "cursor": 1},
        **{"loss": 1.0, "grad_norm": 1.0, "learning_rate": 1e-3, "num_examples": 1},
        **{"num_tokens": tokens, "target_tokens": targets, "seconds": seconds},
    )


def test_operations_are_those_of_tokens_and_targets() -> None:
    steps = [step(1000, 100, 1.0), step(3000, 300, 3.0)]
    assert DEVICE.flops_per_second(steps) == pytest.approx(6.1e12)
    assert DEVICE.share_of_peak(steps) == pytest.approx(6.1e12 / (2 * 989e12))
    assert DEVICE.flops_per_second([]) is None
    assert DEVICE.share_of_peak([]) is None
    unknown = DEVICE.model_copy(update={"peak_flops": None})
    assert unknown.share_of_peak(steps) is None
    assert DEVICE.describe() == "2 x NVIDIA H100 80GB HBM3, peak 989 TFLOP/s"
    assert unknown.describe() == "2 x NVIDIA H100 80GB HBM3"


def test_the_device_is_that_of_the_attempt() -> None:
    events = [
        EventRow(attempt=attempt, time="", name=name, message="", details=device.model_dump())
        for attempt, name, device in (
            (1, EVENT, DEVICE),
            (2, EVENT, DEVICE.model_copy(update={"num_devices": 4})),
            (3, "other", DEVICE),
        )
    ]
    assert device_of(events, 1) == DEVICE
    found = device_of(events, 2)
    assert found is not None
    assert found.num_devices == 4
    assert device_of(events, 3) is None


@pytest.mark.parametrize(
    ("name", "precision", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 9.89e14),
        ("NVIDIA H100 80GB HBM3", "fp32", 6.7e13),
        ("NVIDIA A100-SXM4-80GB", "bf16", 3.12e14),
        ("NVIDIA A100-SXM4-40GB", "bf16", 3.12e14),
        ("NVIDIA H200", "bf16", 9.89e14),
        # A board of the same chip that draws less.
        ("NVIDIA H100 PCIe", "bf16", None),
        ("NVIDIA H100 NVL", "bf16", None),
        ("NVIDIA GeForce RTX 9090", "bf16", None),
    ],
)
def test_a_peak_is_known_by_the_gpus_name(
    name: str, precision: str, expected: float | None
) -> None:
    assert peak_flops(name, precision=precision, node=None) == expected


def test_the_launch_specs_node_says_what_its_gpu_can() -> None:
    own = {**SHAPES["h100-8"], "gpu": "H100 PCIe", "gpu_flops_bf16": 7.56e14}
    node = NodeShape.model_validate(own)
    assert peak_flops("NVIDIA H100 PCIe", precision="bf16", node=node) == 7.56e14
    laptop = NodeShape.model_validate("cpu")
    assert peak_flops("NVIDIA H100 PCIe", precision="bf16", node=laptop) is None
