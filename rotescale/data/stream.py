"""The stream of a phase: what any rank computes in any step, from nothing but the step's number."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rotescale.data.order import Batches, Indices, Order, mixed_sources
from rotescale.data.packing import PackedRow, assign, pack
from rotescale.data.shards import ExampleShards
from rotescale.spec import PhaseSpec

_INDICES_AT_ONCE = 1 << 20
"""Examples whose places are computed together, so that memory does not grow with an epoch."""


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

    @classmethod
    def open(
        cls, folder: Path, *, digest: str, phase: PhaseSpec, seed: int, row_tokens: int
    ) -> Stream:
        """The phase's examples in ``folder``. Raises DataError where they are not those."""
        shards = ExampleShards(folder, digest=digest)
        order = Order(seed, phase.name, mixed_sources(shards.sources, phase.shares))
        return cls(shards, order, Batches(order.epoch_size, phase.global_batch), row_tokens)

    def num_steps(self, phase: PhaseSpec) -> int:
        """Optimizer steps of the phase: its epochs, or as many as its tokens take."""
        if phase.epochs is not None:
            return phase.epochs * self.batches.steps_per_epoch
        assert phase.token_budget is not None
        return self._steps_for(phase.token_budget)

    def _steps_for(self, num_tokens: int) -> int:
        """The least number of whole steps that train on so many tokens; from the index alone."""
        left, epoch = num_tokens, 0
        if len(self.order.sources) == 1:
            # Every epoch has the same examples: all but the last pass need no look.
            epoch, left = divmod(num_tokens - 1, int(self.shards.num_tokens.sum(dtype=np.int64)))
            left += 1
        step = epoch * self.batches.steps_per_epoch
        while True:
            reached = np.cumsum(self._step_tokens(step))
            if reached[-1] >= left:
                return step + int(np.searchsorted(reached, left)) + 1
            left -= int(reached[-1])
            step += len(reached)

    def _step_tokens(self, first: int) -> Indices:
        """Tokens of each step from ``first`` on, (n,) int64; not past the epoch, nor very many."""
        per_epoch = self.batches.steps_per_epoch
        most = max(1, _INDICES_AT_ONCE // self.batches.batch_size)
        stop = min(first + most, (first // per_epoch + 1) * per_epoch)
        start = self.batches.indices(first).start
        rows = self._rows(np.arange(start, self.batches.indices(stop - 1).stop))
        starts = np.arange(0, len(rows), self.batches.batch_size)
        tokens: Indices = np.add.reduceat(self.shards.num_tokens[rows].astype(np.int64), starts)
        return tokens

    def _rows(self, indices: Indices | range) -> Indices:
        """Rows of the phase's shards for global example indices (n,), int64."""
        sources, in_source = self.order.locate(indices)
        first_rows = np.cumsum([0, *self.shards.sources.values()])
        rows: Indices = first_rows[sources] + in_source
        return rows

    def step(self, step: int, *, rank: int, world_size: int) -> StepData:
        """What ``rank`` of ``world_size`` computes in step 0, 1, …; lengths come from the index."""
        rows = self._rows(self.batches.indices(step))
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
