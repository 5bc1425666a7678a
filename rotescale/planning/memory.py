"""Whether a whole copy of the model fits beside its shard on each device."""

from __future__ import annotations

from rotescale.spec import EvaluationMode

BYTES_PER_PARAMETER = {"fp32": 4, "bf16": 2}
MASTER_AND_MOMENTS_BYTES = 12
"""fp32 master weight and two moments, per parameter, spread over the workers."""
RESERVE = 0.3
"""Share of the memory left to activations, buffers and the system."""


def evaluation_mode(
    *, num_parameters: int, precision: str, num_workers: int, workers_per_memory: int, memory: int
) -> EvaluationMode:
    """``replicated`` where ``memory`` bytes hold the shards of its workers and a copy for each.

    ``workers_per_memory`` workers share one memory: all of a host's on the CPU, one on a GPU.
    """
    copy = num_parameters * BYTES_PER_PARAMETER[precision]
    # Weights, gradients, masters and moments of one worker's partition.
    shard = num_parameters * (MASTER_AND_MOMENTS_BYTES + 8) / num_workers
    needed = workers_per_memory * (shard + copy)
    return "replicated" if needed <= (1 - RESERVE) * memory else "sharded"
