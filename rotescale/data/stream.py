"""The stream of a phase: what any rank computes in any step, from nothing but the step's number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rotescale.data.order import Batches, Order
from rotescale.data.packing import PackedRow, assign, pack
from rotescale.data.shards import ExampleShards


@dataclass(frozen=True, slots=True)
class StepData:
    """One rank's packed rows of a step, and the counts of the step's global batch."""

    rows: list[PackedRow]
    example_ids: tuple[int, ...]
    """Rows of the phase's shards, over all ranks, in the stream's order."""
    num_tokens: int
    target_tokens: int


@dataclass(frozen=True, slots=True)
class Stream:
    """The examples of one phase in their order. Position is one integer, so nothing is skipped."""

    shards: ExampleShards
    order: Order
    batches: Batches
    row_tokens: int

    def step(self, step: int, *, rank: int, world_size: int) -> StepData:
        """What ``rank`` of ``world_size`` computes in step 0, 1, …; lengths come from the index."""
        sources, in_source = self.order.locate(self.batches.indices(step))
        first_rows = np.cumsum([0, *self.shards.sources.values()])
        rows = first_rows[sources] + in_source
        lengths = self.shards.num_tokens[rows]
        dealt = assign(lengths.tolist(), row_tokens=self.row_tokens, world_size=world_size)
        mine = dealt[rank]
        wanted = [int(rows[place]) for packed in mine for place in packed]
        loaded = iter(list(self.shards.examples(wanted)))
        return StepData(
            rows=[pack([next(loaded) for _ in packed]) for packed in mine],
            example_ids=tuple(int(row) for row in rows),
            num_tokens=int(lengths.sum()),
            target_tokens=int(self.shards.num_targets[rows].sum()),
        )
