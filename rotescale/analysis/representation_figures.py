"""Pictures of hidden states: along the stages, layer by layer, and their principal components."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from rotescale.analysis.representations import (
    MOST_POINTS,
    Points,
    Stage,
    layer_name,
    principal_components,
    sampled_points,
    stage_name,
    stages_of,
)
from rotescale.analysis.results import HEADINGS
from rotescale.evaluation.similarity import COSINE, DELTA
from rotescale.records import EvaluationRow
from rotescale.spec import BASE_LANGUAGE
from rotescale.storage import StoragePath, make_folder, write_atomic

# Colours that stay apart for the colour-blind (Okabe and Ito, 2008), and a marker for each kind.
_KINDS = {
    "key_token": ("#000000", "D"),
    "train": ("#0072B2", "o"),
    "test": ("#009E73", "s"),
    "unrelated": ("#D55E00", "^"),
}
_RELATION_COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999"),
)
_METRICS = {DELTA: "ΔCosSim", COSINE: "cosine to the key token's state"}


def stages_figure(
    rows: Sequence[EvaluationRow], *, layer: int, last: int, split: str, title: str
) -> Any:
    """ΔCosSim and cosines at one layer along the stages, with intervals: a panel each."""
    chosen = [row for row in _english(rows, split) if row.layer == layer]
    stages = stages_of(chosen)
    metrics = [metric for metric in _METRICS if any(row.metric == metric for row in chosen)]
    figure = _figure(width=max(7.5, 1.5 + 1.2 * len(stages)), height=0.8 + 3.4 * len(metrics))
    for number, metric in enumerate(metrics, start=1):
        axes = figure.add_subplot(len(metrics), 1, number)
        for kind, (colour, marker) in _KINDS.items():
            points = {
                (row.stage, row.epoch): row
                for row in chosen
                if (row.metric, row.prompts) == (metric, kind)
            }
            if points:
                _line(axes, points, stages, kind=kind, colour=colour, marker=marker)
        axes.set_xticks(range(len(stages)))
        axes.set_xticklabels([stage_name(stage, separator="\n") for stage in stages], fontsize=9)
        axes.set_xlim(-0.4, len(stages) - 0.6)
        axes.set_xlabel("measured after")
        axes.set_ylabel(_METRICS[metric])
        axes.legend(frameon=False, fontsize=9)
        _tidy(axes)
    figure.suptitle(f"{title}\n{layer_name(layer, last)}; {_facts(split)}", fontsize=11)
    return figure


def _line(
    axes: Any,
    points: dict[Stage, EvaluationRow],
    stages: Sequence[Stage],
    *,
    kind: str,
    colour: str,
    marker: str,
) -> None:
    # Side by side, so that intervals do not cover each other.
    shift = (list(_KINDS).index(kind) - 1.5) * 0.05
    found = [(place, points[stage]) for place, stage in enumerate(stages) if stage in points]
    low = [row.value - (row.value if row.low is None else row.low) for _, row in found]
    high = [(row.value if row.high is None else row.high) - row.value for _, row in found]
    axes.errorbar(
        [place + shift for place, _ in found],
        [row.value for _, row in found],
        yerr=[[max(0.0, v) for v in low], [max(0.0, v) for v in high]],
        color=colour,
        marker=marker,
        markersize=6,
        linewidth=1.5,
        capsize=3,
        label=f"{HEADINGS[kind]} (n={found[-1][1].count})",
    )


def layers_figure(rows: Sequence[EvaluationRow], *, last: int, split: str, title: str) -> Any:
    """Layer by layer: ΔCosSim at the key token, and the cosines; a line per stage.

    Without a key token, ΔCosSim of each kind of prompts.
    """
    from matplotlib import colormaps

    chosen = _english(rows, split)
    stages = stages_of(chosen)
    present = {(row.metric, row.prompts) for row in chosen}
    panels = [(COSINE, kind) for kind in _KINDS if (COSINE, kind) in present]
    of_delta = [(DELTA, kind) for kind in _KINDS if (DELTA, kind) in present]
    # ΔCosSim of the first kind; of a model that knows no key token, of all, as there is no cosine.
    panels = of_delta[:1] + panels if panels else of_delta
    num_rows = -(-len(panels) // 2)
    figure = _figure(width=9.5, height=0.9 + 3.2 * num_rows)
    shades = colormaps["viridis"]
    for number, (metric, kind) in enumerate(panels, start=1):
        axes = figure.add_subplot(num_rows, min(2, len(panels)), number)
        for place, stage in enumerate(stages):
            line = [
                row
                for row in chosen
                if (row.metric, row.prompts, (row.stage, row.epoch)) == (metric, kind, stage)
            ]
            layers = [row.layer for row in line]
            colour = shades(0.9 * place / max(1, len(stages) - 1))
            values = [row.value for row in line]
            axes.plot(layers, values, color=colour, marker=".", label=stage_name(stage))
            low = [row.value if row.low is None else row.low for row in line]
            high = [row.value if row.high is None else row.high for row in line]
            axes.fill_between(layers, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.set_title(f"{_METRICS[metric]}: {HEADINGS[kind]}", loc="left", fontsize=10)
        axes.set_xlabel(f"layer (0: embeddings; {last}: after the final norm)")
        axes.set_ylabel("ΔCosSim" if metric == DELTA else "cosine")
        axes.xaxis.get_major_locator().set_params(integer=True)
        _tidy(axes)
        if number == 1:
            axes.legend(frameon=False, fontsize=8)
    figure.suptitle(f"{title}\n{_facts(split)}; bands: 95 % intervals over facts", fontsize=11)
    return figure


def components_figure(
    points: Sequence[Points], *, layer: int, last: int, split: str, title: str
) -> Any:
    """The states of each stage on their own first two components: colour says the relation."""
    num_columns = min(3, len(points))
    num_rows = -(-len(points) // num_columns)
    figure = _figure(width=max(7.5, 2.2 + 3.6 * num_columns), height=1.2 + 3.4 * num_rows)
    relations = list(dict.fromkeys(text.relation for text in points[0].texts))
    for number, of_stage in enumerate(points, start=1):
        shown, num_texts = sampled_points(of_stage, split=split, most=MOST_POINTS)
        places, shares = principal_components(shown.states)
        axes = figure.add_subplot(num_rows, num_columns, number)
        for index, relation in enumerate(relations):
            for kind, (_, marker) in _KINDS.items():
                chosen = [
                    place
                    for place, text in enumerate(shown.texts)
                    if (text.relation, text.prompts) == (relation, kind)
                ]
                axes.scatter(
                    *places[chosen].T,
                    color=_relation_colour(index),
                    marker=marker,
                    s=16,
                    alpha=0.7,
                    linewidths=0,
                )
        axes.set_title(
            f"{stage_name(of_stage.stage)} ({len(shown.texts)} of {num_texts} states)",
            loc="left",
            fontsize=9,
        )
        axes.set_xlabel(f"component 1 ({shares[0]:.0%} of variance)", fontsize=9)
        axes.set_ylabel(f"component 2 ({shares[1]:.0%})", fontsize=9)
        _tidy(axes)
    _components_legend(figure, relations)
    where = f"{layer_name(layer, last)}; {_facts(split)}"
    figure.suptitle(f"{title}\nPCA of states of length 1, each stage its own\n{where}", fontsize=11)
    return figure


def _components_legend(figure: Any, relations: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    def handle(label: str, colour: str, marker: str) -> Any:
        return Line2D([], [], linestyle="", marker=marker, color=colour, label=label)

    handles = [handle(name, _relation_colour(i), "o") for i, name in enumerate(relations)]
    handles += [handle(HEADINGS[kind], "#777777", marker) for kind, (_, marker) in _KINDS.items()]
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9)


def save_figure(figure: Any, folder: StoragePath, name: str) -> list[StoragePath]:
    """Write ``name.png`` and ``name.svg`` into ``folder``; their paths."""
    make_folder(folder)
    paths = []
    for suffix in ("png", "svg"):
        picture = io.BytesIO()
        figure.savefig(picture, format=suffix, dpi=150)
        paths.append(folder / f"{name}.{suffix}")
        write_atomic(paths[-1], picture.getvalue())
    return paths


def _english(rows: Sequence[EvaluationRow], split: str) -> list[EvaluationRow]:
    """The split's rows in the language that everything is asked in."""
    return [row for row in rows if (row.split, row.language) == (split, BASE_LANGUAGE)]


def _relation_colour(number: int) -> str:
    return _RELATION_COLOURS[number % len(_RELATION_COLOURS)]


def _facts(split: str) -> str:
    return f"{split.replace('_', '-')} facts"


def _figure(*, width: float, height: float) -> Any:
    # Here, not at the top: matplotlib looks for fonts for seconds at its first import.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _tidy(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.4, alpha=0.6)
