"""What a benchmark prints and writes: measured details, and rows of ours, the peer, the ratio."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

CONSOLE = Console(width=160, highlight=False)


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison on one model."""

    name: str
    model: str
    ours: float
    peer: float
    agree: bool
    """Whether both sides held, or restored, the same bits, or gave the same answers."""
    floor: float | None = None
    """The ratio that must not be exceeded, or of rates must be reached."""
    unit: str = "s"
    """Of ``ours`` and ``peer``: seconds or megabytes, of which less is better, or a rate."""

    @property
    def ratio(self) -> float | None:
        """Ours ÷ peer; None where the peer's is zero or, by noise, less."""
        return self.ours / self.peer if self.peer > 0 else None

    @property
    def misses_its_floor(self) -> bool:
        """Whether there is a floor and the ratio is on its wrong side, or unknown."""
        if self.floor is None:
            return False
        if self.ratio is None:
            return True
        return self.ratio > self.floor if self.unit in ("s", "MB") else self.ratio < self.floor


@dataclass(frozen=True, slots=True)
class Detail:
    """One measured thing of one side: several runs of it, in seconds, and what it took."""

    what: str
    seconds: Sequence[float]
    num_bytes: int | None = None
    """Written or read, over all ranks."""
    peak_bytes: int | None = None
    """Peak resident memory of the rank that needed most."""
    extra_bytes: int | None = None
    """How much more than before it began that rank needed."""
    cpu_seconds: float | None = None
    """Processor time of all threads of a rank, the least of the runs: what other work disturbs
    less than wall time."""


def print_details(title: str, details: Iterable[Detail]) -> None:
    """A table of everything that was measured, every run of it."""
    table = Table(title=title, title_justify="left")
    table.add_column("measured")
    for heading in (
        "runs, s",
        "least",
        "median",
        "least CPU, s",
        "MB",
        "peak MB/rank",
        "of which new",
    ):
        table.add_column(heading, justify="right")
    for detail in details:
        runs = sorted(detail.seconds)
        table.add_row(
            detail.what,
            " ".join(f"{value:.2f}" for value in detail.seconds),
            f"{runs[0]:.2f}",
            f"{median(runs):.2f}",
            "" if detail.cpu_seconds is None else f"{detail.cpu_seconds:.2f}",
            *(_megabytes(n) for n in (detail.num_bytes, detail.peak_bytes, detail.extra_bytes)),
        )
    CONSOLE.print(table)


def print_rows(rows: Iterable[Row]) -> None:
    """The comparisons as a table."""
    table = Table(title="ours against the peers", title_justify="left")
    table.add_column("row")
    table.add_column("model")
    for heading in ("unit", "ours", "peer", "ratio", "floor", "agree"):
        table.add_column(heading, justify="right")
    for row in rows:
        ratio = math.nan if row.ratio is None else row.ratio
        floor = "" if row.floor is None else f"{row.floor:g}"
        table.add_row(
            row.name,
            row.model,
            row.unit,
            f"{row.ours:.3f}",
            f"{row.peer:.3f}",
            f"[red]{ratio:.3f}[/red]" if row.misses_its_floor else f"{ratio:.3f}",
            floor,
            "yes" if row.agree else "[red]no[/red]",
        )
    CONSOLE.print(table)


def write_rows(rows: Iterable[Row], path: Path) -> None:
    """The comparisons as a JSON list of {name, model, unit, ours, peer, ratio, agree}.

    Of the units ``s`` and ``MB`` less is better, of all others more.
    """
    values = [
        {
            "name": row.name,
            "model": row.model,
            "unit": row.unit,
            "ours": row.ours,
            "peer": row.peer,
            "ratio": row.ratio,
            "agree": row.agree,
        }
        for row in rows
    ]
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def median(values: Sequence[float]) -> float:
    """The middle value, or the mean of the middle two."""
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def _megabytes(num_bytes: int | None) -> str:
    return "" if num_bytes is None else f"{num_bytes / 1e6:,.0f}"
