"""How much of what the devices could compute a run's steps do compute. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pydantic import BaseModel, ConfigDict

from rotescale.hardware import SHAPES, NodeShape
from rotescale.records import EventRow, StepRow

EVENT = "device"
"""The event of each attempt that holds a ``Device``."""

_SLOWER_KINDS = ("pcie", "nvl", "max-q")
"""Words in a GPU's name by which it is slower than the known one of the same chip."""


class Device(BaseModel):
    """What the workers of an attempt compute on, and what a token costs in the model's arithmetic.

    Operations are the model's own: what activation checkpointing computes again does not count, so
    that a share of the peak is model FLOP/s utilisation ("PaLM", Chowdhery et al., 2022, appendix
    B), without the attention's products, which are few in short texts.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: str
    """As its driver calls it; ``CPU`` for workers without a GPU."""
    num_devices: int
    flops_per_token: float
    """Floating-point operations of a token forward and backward, without the output matrix."""
    flops_per_target: float
    """Those of the output matrix, at each token that is predicted."""
    peak_flops: float | None
    """Per second, of one device in the run's precision; None: not known."""
    attention: str | None = None
    """The implementation that the model computes with; None: not recorded."""

    def describe(self) -> str:
        """One line."""
        peak = "" if self.peak_flops is None else f", peak {self.peak_flops / 1e12:.0f} TFLOP/s"
        return f"{self.num_devices} x {self.device}{peak}"

    def flops_per_second(self, steps: Iterable[StepRow]) -> float | None:
        """The model's operations in these steps, by the seconds that they took; None without."""
        total = seconds = 0.0
        for step in steps:
            total += self.flops_per_token * step.num_tokens
            total += self.flops_per_target * step.target_tokens
            seconds += step.seconds
        return total / seconds if seconds else None

    def share_of_peak(self, steps: Iterable[StepRow]) -> float | None:
        """Model FLOP/s utilisation; None where the peak is not known."""
        reached = self.flops_per_second(steps)
        if reached is None or self.peak_flops is None:
            return None
        return reached / (self.num_devices * self.peak_flops)


def device_of(events: Sequence[EventRow], attempt: int) -> Device | None:
    """What that attempt recorded; None where its model's arithmetic is not known."""
    for event in reversed(events):
        if event.name == EVENT and event.attempt == attempt:
            return Device.model_validate(event.details)
    return None


def peak_flops(device: str, *, precision: str, node: NodeShape | None) -> float | None:
    """Dense operations per second of a GPU: the launch spec's node says, else its name.

    None for a name that is not known, and for slower kinds of a known chip.
    """
    field = "gpu_flops_bf16" if precision == "bf16" else "gpu_flops_fp32"
    if node is not None and node.gpu is not None:
        return float(getattr(node, field))
    words = device.casefold().replace("-", " ").split()
    if any(kind in device.casefold() for kind in _SLOWER_KINDS):
        return None
    for shape in SHAPES.values():
        if shape.get("gpu") and shape["gpu"].casefold().split()[0] in words:
            return float(shape[field])
    return None
