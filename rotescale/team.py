"""Team: the ranks of one attempt, what they record, and how they agree on what storage shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rotescale.engine.base import Engine
from rotescale.nodes import Node
from rotescale.records import EventRow, RecordWriter


@dataclass(frozen=True)
class Team:
    """One rank's view of all ranks of an attempt."""

    engine: Engine
    records: RecordWriter
    attempt: int
    nodes: tuple[Node, ...]
    """Where each rank runs, by rank."""

    @property
    def num_nodes(self) -> int:
        """How many nodes they run on."""
        return len({node.name for node in self.nodes})

    @property
    def rank(self) -> int:
        """This process's number, from 0."""
        return self.engine.rank

    @property
    def where(self) -> dict[str, int]:
        """Rank and attempt, as fault points name them."""
        return {"rank": self.rank, "attempt": self.attempt}

    def agreed(self, question: Callable[..., bool], *arguments: Any) -> bool:
        """Collective: every rank calls this. What rank 0 sees on storage, for all alike."""
        return bool(self.on_rank_0(lambda: question(*arguments)))

    def on_rank_0(self, ask: Callable[[], Any]) -> Any:
        """Collective: every rank calls this. Storage may look different from every host."""
        answer = ask() if self.rank == 0 else None
        return self.engine.all_gather(answer)[0]

    def event(self, name: str, message: str, *, every_rank: bool = False, **details: Any) -> None:
        """Record what happened: to the run, by rank 0, or with ``every_rank`` to each rank."""
        if self.rank and not every_rank:
            return
        now = datetime.now(UTC).isoformat()
        self.records.append(
            EventRow(attempt=self.attempt, time=now, name=name, message=message, details=details)
        )
