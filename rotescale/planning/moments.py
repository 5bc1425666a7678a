"""The parts of device and host memory, in bytes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Moment:
    """What lies in a worker's device memory at one moment, in bytes."""

    weights: int
    """The worker's part of the weights, in the precision of forward and backward."""
    gradients: int
    optimizer: int
    """Master weights and both moments, fp32."""
    gathered: int
    """Whole layers, put together from all workers' parts; or a whole copy of the model."""
    activations: int
    logits: int
    buffers: int
    """Of reducing gradients, and of the update."""
    system: int
    """What CUDA, NCCL and the allocator take; on the CPU what glibc keeps of freed memory."""

    @property
    def total(self) -> int:
        """All of it."""
        return sum(part for _, part in self.parts())

    def parts(self) -> tuple[tuple[str, int], ...]:
        """Name and bytes of each part."""
        return tuple((name, getattr(self, name)) for name in self.__slots__)


@dataclass(frozen=True, slots=True)
class HostMemory:
    """What lies in one node's host memory, in bytes, over all of its workers."""

    processes: int
    training: int
    """What lies on the device where that is the CPU."""
    offloaded: int
    """Masters, moments and gradients that were spared the GPU."""
    snapshot: int
    """The copy that a checkpoint is written from."""

    @property
    def total(self) -> int:
        """All of it."""
        return sum(part for _, part in self.parts())

    def parts(self) -> tuple[tuple[str, int], ...]:
        """Name and bytes of each part."""
        return tuple((name, getattr(self, name)) for name in self.__slots__)
