"""Pictures of a run's results."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rotescale.analysis.results import HEADINGS, languages_of
from rotescale.evaluation.items import CORE
from rotescale.records import EvaluationRow
from rotescale.spec import BASE_LANGUAGE
from rotescale.storage import StoragePath, write_atomic

# Colours that stay apart for the colour-blind (Okabe and Ito, 2008), and a marker for each.
_STYLES = {
    "key_token": ("#000000", "D"),
    "train": ("#0072B2", "o"),
    "test": ("#009E73", "s"),
    "unrelated": ("#D55E00", "^"),
    "wrong_relation": ("#CC79A7", "v"),
    "reversed": ("#999999", "x"),
}


_LANGUAGE_STYLES = tuple(_STYLES.values())[1:]


@dataclass(frozen=True, slots=True)
class _Line:
    """One line of a picture: its name, its look, and a row for some of the stages."""

    name: str
    style: tuple[str, str]
    rows: Sequence[EvaluationRow]


def accuracy_figure(
    rows: Sequence[EvaluationRow], path: StoragePath, *, relation: str, title: str
) -> None:
    """Multiple choice on held-out facts by stage and kind of prompts, as a PNG at ``path``.

    Where several languages were asked in, a second picture has test prompts by language.
    """
    # Here, not at the top: matplotlib looks for fonts for seconds at its first import.
    from matplotlib.figure import Figure

    chosen = [
        row
        for row in rows
        if (row.suite, row.relation) == (CORE, relation)
        and (row.metric, row.split) == ("multiple_choice", "held_out")
    ]
    panels = [(title, _lines_by_kind(chosen))]
    if len(languages_of(chosen)) > 1:
        panels.append(("test prompts by language", _lines_by_language(chosen)))
    figure = Figure(figsize=(8, 4.8 * len(panels)), layout="constrained")
    stages = list(dict.fromkeys((row.stage, row.epoch) for row in chosen))
    for number, (name, lines) in enumerate(panels, start=1):
        axes = figure.add_subplot(len(panels), 1, number)
        _draw_lines(axes, lines, stages)
        _finish(axes, stages, title=name)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    write_atomic(path, picture.getvalue())


def _lines_by_kind(rows: Sequence[EvaluationRow]) -> list[_Line]:
    english = [row for row in rows if row.language == BASE_LANGUAGE]
    return [
        _Line(HEADINGS[kind], style, [row for row in english if row.prompts == kind])
        for kind, style in _STYLES.items()
    ]


def _lines_by_language(rows: Sequence[EvaluationRow]) -> list[_Line]:
    tests = [row for row in rows if row.prompts == "test"]
    return [
        _Line(
            language,
            _LANGUAGE_STYLES[number % len(_LANGUAGE_STYLES)],
            [row for row in tests if row.language == language],
        )
        for number, language in enumerate(languages_of(rows))
    ]


def _draw_lines(
    axes: Any, lines: Sequence[_Line], stages: Sequence[tuple[str, int | None]]
) -> None:
    """Lines with their intervals, side by side, so that intervals do not cover each other."""
    for number, line in enumerate(lines):
        points = {(row.stage, row.epoch): row for row in line.rows}
        if not points:
            continue
        shift = (number - (len(lines) - 1) / 2) * 0.06
        found = [points[stage] for stage in stages if stage in points]
        low = [row.value - (row.value if row.low is None else row.low) for row in found]
        high = [(row.value if row.high is None else row.high) - row.value for row in found]
        colour, marker = line.style
        axes.errorbar(
            [place + shift for place, stage in enumerate(stages) if stage in points],
            [row.value for row in found],
            yerr=[[max(0.0, v) for v in low], [max(0.0, v) for v in high]],
            color=colour,
            marker=marker,
            markersize=6,
            linewidth=1.5,
            capsize=3,
            label=f"{line.name} (n={found[-1].count})",
        )


def _finish(axes: Any, stages: Sequence[tuple[str, int | None]], *, title: str) -> None:
    """Chance, scales, names and legend."""
    axes.axhline(0.01, color="#777777", linestyle=":", linewidth=1)
    axes.annotate("chance among 100", (len(stages) - 0.72, 0.018), color="#777777", fontsize=8)
    axes.set_xticks(range(len(stages)))
    axes.set_xticklabels(
        [name if epoch is None else f"{name}\nepoch {epoch}" for name, epoch in stages]
    )
    axes.set_xlim(-0.4, len(stages) - 0.4)
    axes.set_ylim(-0.02, 1.04)
    axes.set_ylabel("multiple-choice accuracy")
    axes.set_xlabel("measured after")
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.4, alpha=0.6)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=9)
