"""Tensors that lie in a file: what is offloaded to a node's own disk, NVMe if it has one.

The kernel reads pages as they are used and writes them back in its own time, with whatever host
memory is free as a cache. Host memory must still hold a save's copy of the state, and gradients.
DeepSpeed's own way to NVMe compiles libaio's binding, and gives no views of the state, which
checkpoints read.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from rotescale.errors import StorageError


def map_zeros(num_elements: int, *, folder: Path) -> Tensor:
    """(num_elements,) float32 zeros, in a file in ``folder`` that has no name any more.

    It goes when the tensor does, or the process, however that ends. Its room is taken at once:
    a disk that fills up later would end the process. Raises StorageError where there is none.
    """
    size = 4 * max(num_elements, 1)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix="offload-", dir=folder)
        try:
            os.posix_fallocate(descriptor, 0, size)
            mapped = torch.from_file(name, shared=True, size=num_elements, dtype=torch.float32)
        finally:
            os.close(descriptor)
            Path(name).unlink()
    except OSError as error:
        raise StorageError(
            f"engine.offload_optimizer: nvme: {folder} does not take {size / 1e9:.2f} GB "
            f"({error.strerror}); free some, or let ROTESCALE_LOCAL name a folder of a larger disk"
        ) from error
    return mapped


def map_copy(values: Tensor, *, folder: Path) -> Tensor:
    """The same values, (n,) float32, in such a file."""
    mapped = map_zeros(values.numel(), folder=folder)
    mapped.copy_(values)
    return mapped
