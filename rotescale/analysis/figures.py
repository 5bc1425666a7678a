"""Pictures of a run's results."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rotescale.analysis.results import HEADINGS
from rotescale.records import EvaluationRow
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


def accuracy_figure(
    rows: Sequence[EvaluationRow], path: StoragePath, *, relation: str, title: str
) -> None:
    """Multiple choice on held-out facts by stage and kind of prompts, as a PNG at ``path``."""
    # Here, not at the top: matplotlib looks for fonts for seconds at its first import.
    from matplotlib.figure import Figure

    chosen = [
        row
        for row in rows
        if (row.relation, row.metric, row.split) == (relation, "multiple_choice", "held_out")
    ]
    stages = list(dict.fromkeys((row.stage, row.epoch) for row in chosen))
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.add_subplot()
    for number, (kind, (colour, marker)) in enumerate(_STYLES.items()):
        points = {(row.stage, row.epoch): row for row in chosen if row.prompts == kind}
        if not points:
            continue
        # Side by side, so that intervals do not cover each other.
        shift = (number - (len(_STYLES) - 1) / 2) * 0.06
        places = [place + shift for place, stage in enumerate(stages) if stage in points]
        found = [points[stage] for stage in stages if stage in points]
        values = [row.value for row in found]
        low = [row.value - (row.value if row.low is None else row.low) for row in found]
        high = [(row.value if row.high is None else row.high) - row.value for row in found]
        label = f"{HEADINGS[kind]} (n={found[-1].count})"
        axes.errorbar(
            places,
            values,
            yerr=[[max(0.0, v) for v in low], [max(0.0, v) for v in high]],
            color=colour,
            marker=marker,
            markersize=6,
            linewidth=1.5,
            capsize=3,
            label=label,
        )
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
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    write_atomic(path, picture.getvalue())
