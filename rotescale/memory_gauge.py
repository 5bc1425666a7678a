"""How much memory a worker held at most while it trained, or measured: what a plan foretells.

Of a GPU what torch has allocated; on the CPU what the process holds beyond what it held before it
had a model, so that a library's code does not count. Torch is imported for GPUs alone: the launcher
reads what was recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from rotescale.records import Records

if TYPE_CHECKING:
    import torch

EVENT = "memory"
"""The event that holds a ``MemoryPeak``."""

Moment = Literal["training", "measuring"]


class MemoryPeak(BaseModel):
    """The most that each rank's device held during one part of the run, in bytes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: str
    """``base`` or the name of a phase."""
    moment: Moment
    """``training`` includes copies for checkpoints on the way, and at its start what is loaded; it
    is told in parts where a phase is measured on the way."""
    ranks: tuple[int, ...]

    @property
    def most(self) -> int:
        """Of the rank that held most."""
        return max(self.ranks)

    def describe(self) -> str:
        """One line."""
        ranks = "the worker" if len(self.ranks) == 1 else f"each of {len(self.ranks)} workers"
        return f"{self.stage}: {self.moment}, {ranks} held {self.most / 1e9:.2f} GB at most"


class MemoryGauge:
    """One process's memory, above what it held when this was made. Linux on the CPU."""

    def __init__(self, *, proc: Path = Path("/proc/self")) -> None:
        self._proc = proc
        self._before = self._resident("VmRSS")
        self._is_reset = False

    def restart(self, device: torch.device) -> None:
        """What is held from now on counts."""
        if device.type == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats(device)
            return
        try:
            # proc_pid_clear_refs(5): 5 makes the peak what is resident now.
            (self._proc / "clear_refs").write_text("5")
            self._is_reset = True
        except OSError:
            self._is_reset = False

    def take(self, device: torch.device) -> int | None:
        """The most bytes held at a time since ``restart``; None where the system does not tell."""
        if device.type == "cuda":
            import torch

            return int(torch.cuda.max_memory_allocated(device))
        peak = self._resident("VmHWM")
        if not self._is_reset or peak is None or self._before is None:
            return None
        return max(0, peak - self._before)

    def _resident(self, field: str) -> int | None:
        try:
            lines = (self._proc / "status").read_text(encoding="ascii", errors="replace")
        except OSError:
            return None
        for line in lines.splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
        return None


def make_peak(stage: str, moment: Moment, ranks: Sequence[int | None]) -> MemoryPeak | None:
    """What all ranks took, by rank; None where one could not tell."""
    known = tuple(one for one in ranks if one is not None)
    return MemoryPeak(stage=stage, moment=moment, ranks=known) if len(known) == len(ranks) else None


def peaks(records: Records) -> tuple[MemoryPeak, ...]:
    """What the newest attempt has recorded, the oldest first."""
    newest = max((event.attempt for event in records.events), default=0)
    found = []
    for event in records.events:
        if event.name == EVENT and event.attempt == newest:
            try:
                found.append(MemoryPeak.model_validate(event.details))
            except ValidationError:
                # Of another version of rotescale: nothing to show, and no reason to fail.
                continue
    return tuple(found)
