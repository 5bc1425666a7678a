"""Nodes: what a machine offers to training, for plans that are made before any of it is seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from rotescale.spec import Name, Part


class NodeShape(Part):
    """One node of a place, all of whose nodes are alike; rates are the vendor's, not reached ones.

    A known shape is written by its name, ``node: h100-8``, or with changes, ``node: {like: h100-8,
    price_per_hour: 40}``.
    """

    name: Name = "own"
    """What the plan calls it."""
    gpu: str | None = None
    """The GPU's name; null: none, workers run on the CPU."""
    gpus_per_node: NonNegativeInt = 0
    """GPUs of one node."""
    gpu_memory_gib: NonNegativeFloat = 0.0
    """Memory of one GPU as programs see it, which is less than its name says."""
    gpu_flops_bf16: NonNegativeFloat = 0.0
    """Dense bf16 matrix products with fp32 sums, floating-point operations per second of a GPU."""
    gpu_flops_fp32: NonNegativeFloat = 0.0
    """The same in fp32, which is what ``precision: fp32`` computes in."""
    gpu_memory_bandwidth: NonNegativeFloat = 0.0
    """Bytes per second that one GPU reads from its memory."""
    intranode_gbit: PositiveFloat = 100.0
    """Gbit per second and direction between two GPUs, or two workers, of one node."""
    interconnect_gbit: PositiveFloat = 10.0
    """Gbit per second and direction between nodes, all network cards of one node together."""
    host_memory_gib: PositiveFloat = 16.0
    """Memory of the node, or what the place lets a run take of it."""
    cpus: PositiveInt = 8
    """CPU cores of the node."""
    cpu_flops: PositiveFloat = 9.6e10
    """fp32 floating-point operations per second of one core; as given: AVX2's, 32 a cycle, at 3
    GHz."""
    storage_gbit: PositiveFloat = 8.0
    """Gbit per second that one node reads from, or writes to, the run's storage."""
    price_per_hour: NonNegativeFloat | None = None
    """What one node costs in an hour, in whichever currency; null: the plan names no cost."""

    @model_validator(mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        """A name stands for a known shape; ``like`` for one with changes."""
        if isinstance(value, str):
            return _shape(value)
        if isinstance(value, Mapping) and "like" in value:
            own = {name: part for name, part in value.items() if name != "like"}
            return _shape(value["like"]) | own
        return value

    @model_validator(mode="after")
    def _whole(self) -> NodeShape:
        if (self.gpu is None) != (self.gpus_per_node == 0):
            raise ValueError(
                f"gpu: {self.gpu} beside gpus_per_node: {self.gpus_per_node}; name the GPU and "
                "how many a node has, or neither"
            )
        rates = ("gpu_memory_gib", "gpu_flops_bf16", "gpu_flops_fp32", "gpu_memory_bandwidth")
        missing = [name for name in rates if self.gpu is not None and not getattr(self, name)]
        if missing:
            raise ValueError(
                f"{', '.join(missing)} of the {self.gpu}: not given; say what its data sheet "
                f"says, or begin from a known shape with like: {', '.join(SHAPES)}"
            )
        return self

    @property
    def host_bytes(self) -> int:
        """Memory of the node, in bytes."""
        return round(self.host_memory_gib * (1 << 30))

    @property
    def gpu_bytes(self) -> int:
        """Memory of one GPU, in bytes."""
        return round(self.gpu_memory_gib * (1 << 30))


SHAPES: dict[str, dict[str, Any]] = {
    "h200-8": {
        "gpu": "H200",
        "gpus_per_node": 8,
        "gpu_memory_gib": 139.8,
        "gpu_flops_bf16": 9.89e14,
        "gpu_flops_fp32": 6.7e13,
        "gpu_memory_bandwidth": 4.8e12,
        "intranode_gbit": 3600.0,
        "interconnect_gbit": 3200.0,
        "host_memory_gib": 1500.0,
        "cpus": 96,
        "storage_gbit": 40.0,
    },
    "h100-8": {
        "gpu": "H100",
        "gpus_per_node": 8,
        "gpu_memory_gib": 79.1,
        "gpu_flops_bf16": 9.89e14,
        "gpu_flops_fp32": 6.7e13,
        "gpu_memory_bandwidth": 3.35e12,
        "intranode_gbit": 3600.0,
        "interconnect_gbit": 3200.0,
        "host_memory_gib": 1500.0,
        "cpus": 96,
        "storage_gbit": 40.0,
    },
    "h100-1": {
        "gpu": "H100",
        "gpus_per_node": 1,
        "gpu_memory_gib": 79.1,
        "gpu_flops_bf16": 9.89e14,
        "gpu_flops_fp32": 6.7e13,
        "gpu_memory_bandwidth": 3.35e12,
        "intranode_gbit": 3600.0,
        "interconnect_gbit": 100.0,
        "host_memory_gib": 120.0,
        "cpus": 16,
        "storage_gbit": 8.0,
    },
    "a100-80g-8": {
        "gpu": "A100 80GB",
        "gpus_per_node": 8,
        "gpu_memory_gib": 79.1,
        "gpu_flops_bf16": 3.12e14,
        "gpu_flops_fp32": 1.95e13,
        "gpu_memory_bandwidth": 2.039e12,
        "intranode_gbit": 2400.0,
        "interconnect_gbit": 1600.0,
        "host_memory_gib": 1000.0,
        "cpus": 96,
        "storage_gbit": 20.0,
    },
    "a100-40g-8": {
        "gpu": "A100 40GB",
        "gpus_per_node": 8,
        "gpu_memory_gib": 39.4,
        "gpu_flops_bf16": 3.12e14,
        "gpu_flops_fp32": 1.95e13,
        "gpu_memory_bandwidth": 1.555e12,
        "intranode_gbit": 2400.0,
        "interconnect_gbit": 400.0,
        "host_memory_gib": 1000.0,
        "cpus": 96,
        "storage_gbit": 20.0,
    },
    "l40s-8": {
        "gpu": "L40S",
        "gpus_per_node": 8,
        "gpu_memory_gib": 44.4,
        "gpu_flops_bf16": 3.62e14,
        "gpu_flops_fp32": 9.16e13,
        "gpu_memory_bandwidth": 8.64e11,
        "intranode_gbit": 256.0,
        "interconnect_gbit": 400.0,
        "host_memory_gib": 1000.0,
        "cpus": 128,
        "storage_gbit": 20.0,
    },
    "l4-8": {
        "gpu": "L4",
        "gpus_per_node": 8,
        "gpu_memory_gib": 22.0,
        "gpu_flops_bf16": 1.21e14,
        "gpu_flops_fp32": 3.03e13,
        "gpu_memory_bandwidth": 3.0e11,
        "intranode_gbit": 256.0,
        "interconnect_gbit": 100.0,
        "host_memory_gib": 360.0,
        "cpus": 96,
        "storage_gbit": 16.0,
    },
    # Between processes, through memory that they share (``engine/shared_memory.py``): two cores
    # were seen to reach 6 gathering and 11 reducing; plans reckon with 45 to 85 % of this.
    "cpu": {
        "intranode_gbit": 15.0,
        "interconnect_gbit": 10.0,
        "host_memory_gib": 16.0,
        "cpus": 8,
    },
}
"""Known shapes. GPUs: NVIDIA's data sheets, dense rates, NVLink or PCIe in one direction. The rest
(network, host, storage) is what clouds commonly put around them: give your own where it differs.
No prices, since they change."""


def _shape(name: object) -> dict[str, Any]:
    if not isinstance(name, str) or name not in SHAPES:
        raise ValueError(
            f"{name!r} is no known node; choose one of {', '.join(SHAPES)}, or write out the "
            "node's own numbers"
        )
    return {"name": name, **SHAPES[name]}
