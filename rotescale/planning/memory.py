"""Whether a whole copy of the model fits beside its shard on each device."""

from __future__ import annotations

import os
from pathlib import Path

from rotescale.spec import EvaluationMode

BYTES_PER_PARAMETER = {"fp32": 4, "bf16": 2}
MASTER_AND_MOMENTS_BYTES = 12
"""fp32 master weight and two moments, per parameter, spread over the workers."""
RESERVE = 0.3
"""Share of the memory left to activations, buffers and the system."""

_CGROUP_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")
"""Of cgroup v2 and v1, below the folder where cgroups are mounted; ``max`` means no limit."""


def host_memory(cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that this process's machine or container may use, whichever are fewer."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [physical]
    for name in _CGROUP_LIMITS:
        try:
            text = (cgroups / name).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdecimal():
            limits.append(int(text))
    return min(limits)


def evaluation_mode(
    *,
    num_parameters: int,
    num_trainable: int,
    precision: str,
    num_workers: int,
    workers_per_memory: int,
    memory: int,
    offloaded: bool = False,
) -> EvaluationMode:
    """``replicated`` where ``memory`` bytes hold the shards of its workers and a copy for each.

    ``workers_per_memory`` workers share one memory: all of a host's on the CPU, one on a GPU.
    ``offloaded`` masters and moments lie in another memory.
    """
    copy = num_parameters * BYTES_PER_PARAMETER[precision]
    # Weights of one worker's partition; gradients, masters and moments of what is trained of it.
    state = 4 if offloaded else 4 + MASTER_AND_MOMENTS_BYTES
    shard = (num_parameters * 4 + num_trainable * state) / num_workers
    needed = workers_per_memory * (shard + copy)
    return "replicated" if needed <= (1 - RESERVE) * memory else "sharded"
