"""The report's figures: small, in a light and a dark variant, the same bytes for the same data."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rotescale.analysis.report.page import Picture

_INCHES = (4.5, 3.6)
_PIXELS_PER_INCH = 96
_PNG_DPI = 200
_JITTER = 0.05
_FEW_TICKS = 7
_LONGEST_LABEL = 46
_LABELLED_SHARE = 0.11
"""A narrower part of a bar has no room for its number."""


@dataclass(frozen=True, slots=True)
class Theme:
    """Colours of one variant."""

    suffix: str
    ink: str
    soft: str
    ground: str
    colours: tuple[str, ...]
    """They stay apart for the colour-blind (Okabe and Ito, 2008)."""
    heat: tuple[str, str]
    """From nothing to everything."""
    strong: float
    """From this value on, text on the shade has the colour of the ground."""


_THEMES = (
    Theme(
        *("", "#1b1f24", "#6b737d", "#f6f7f9"),
        ("#000000", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#E69F00", "#56B4E9", "#808080"),
        ("#ffffff", "#00508a"),
        0.68,
    ),
    Theme(
        *("-dark", "#e8eaed", "#9aa3ad", "#1b1f25"),
        ("#FFFFFF", "#56B4E9", "#2BBE92", "#F0803C", "#E3A0C6", "#F0B93A", "#4F8FE0", "#A8A8A8"),
        ("#20262e", "#7cc4fa"),
        0.55,
    ),
)
_MARKERS = ("D", "o", "s", "^", "v", "P", "X", "*")
_DASHES = ("-", "-", "-", "--", "-.", ":", "--", "-.")
MOST_LINES = len(_MARKERS)
"""More lines than that are not told apart."""


@dataclass(frozen=True, slots=True)
class Point:
    """A value with its interval, if it has one, at a place."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """Points under one name."""

    name: str
    points: tuple[Point, ...]
    style: int | None = None
    """Which colour and marker; default: its place among the lines."""


@dataclass(frozen=True, slots=True)
class Axis:
    """What an axis says."""

    name: str
    ticks: tuple[str, ...] = ()
    """Names of the places 0, 1, 2 …; none: a scale of numbers."""
    whole: bool = False
    """Whether its numbers are whole ones."""
    unit: bool = False
    """Whether it goes from 0 to 1."""
    starts_at_zero: bool = False


def lines_picture(
    name: str,
    title: str,
    lines: Sequence[Line],
    *,
    x: Axis,
    y: Axis,
    among: int | None = None,
    joined: bool = True,
) -> Picture:
    """Lines with their intervals, each point named in the alternative text.

    ``among`` draws the level of chance among that many options.
    """

    def draw(axes: Any, theme: Theme) -> None:
        for number in range(len(lines)):
            _draw_line(axes, theme, lines, number, x=x, joined=joined)
        if among is not None:
            axes.axhline(1 / among, color=theme.soft, linestyle=":", linewidth=1.2)
        _scales(axes, x, y)
        places = sorted({p.x for line in lines for p in line.points})
        if x.whole and len(places) <= _FEW_TICKS:
            axes.set_xticks(places)
        if among is not None:
            told = f"(dotted: chance among {among})"
            gap = "\n" if len(x.name) + len(told) > _LONGEST_LABEL else "  "
            axes.set_xlabel(f"{x.name}{gap}{told}")

    told = "; ".join(
        f"{line.name}: " + ", ".join(f"{_tick(x, p.x)} {p.y:.2f}" for p in line.points)
        for line in lines
    )
    return render(name, title, draw, alt=f"{title}. {y.name} by {x.name}. {told}.", lines=lines)


def _draw_line(
    axes: Any, theme: Theme, lines: Sequence[Line], number: int, *, x: Axis, joined: bool
) -> None:
    line = lines[number]
    # Side by side, so that intervals do not cover each other.
    shift = 0.0 if x.starts_at_zero else (number - (len(lines) - 1) / 2) * _jitter(lines, x)
    style = (number if line.style is None else line.style) % MOST_LINES
    below = [max(0.0, p.y - (p.y if p.low is None else p.low)) for p in line.points]
    above = [max(0.0, (p.y if p.high is None else p.high) - p.y) for p in line.points]
    axes.errorbar(
        [p.x + shift for p in line.points],
        [p.y for p in line.points],
        yerr=[below, above],
        color=theme.colours[style],
        marker=_MARKERS[style],
        linestyle=_DASHES[style] if joined else "none",
        markersize=6,
        linewidth=1.6,
        elinewidth=1.2,
        capsize=3,
        label=line.name,
    )


def _jitter(lines: Sequence[Line], x: Axis) -> float:
    places = [p.x for line in lines for p in line.points]
    return _JITTER if x.ticks else _JITTER / 5 * (max(places) - min(places))


def _scales(axes: Any, x: Axis, y: Axis) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(x.name)
    axes.set_ylabel(y.name)
    if x.ticks:
        axes.set_xticks(range(len(x.ticks)))
        crowded = sum(len(tick) for tick in x.ticks) > 38
        axes.set_xticklabels(
            x.ticks, rotation=30 if crowded else 0, ha="right" if crowded else "center"
        )
        axes.set_xlim(-0.4, len(x.ticks) - 0.6)
    if x.whole:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if x.starts_at_zero:
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_xlim(left=0)
    if y.unit:
        axes.set_ylim(-0.03, 1.05)


def heat_picture(
    name: str,
    title: str,
    values: Sequence[Sequence[float | None]],
    *,
    x: Axis,
    y: Axis,
) -> Picture:
    """Values between 0 and 1 on a grid, ``values[row][column]``, each written into its field."""

    def draw(axes: Any, theme: Theme) -> None:
        from matplotlib.colors import LinearSegmentedColormap

        shades = LinearSegmentedColormap.from_list("heat", theme.heat, bad=theme.ground)
        grid = [[float("nan") if v is None else v for v in row] for row in values]
        axes.pcolormesh(grid, cmap=shades, vmin=0, vmax=1, edgecolors=theme.soft, linewidth=0.8)
        for row, of_row in enumerate(values):
            for column, value in enumerate(of_row):
                text = "–" if value is None else f"{value:.2f}"
                strong = value is not None and value >= theme.strong
                colour = theme.ground if strong else theme.ink
                axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=colour)
        axes.set_xticks([place + 0.5 for place in range(len(x.ticks))], x.ticks)
        axes.set_yticks([place + 0.5 for place in range(len(y.ticks))], y.ticks)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel(x.name)
        axes.set_ylabel(y.name)
        axes.grid(visible=False)

    told = "; ".join(
        f"{y.name} {y.ticks[row]}: "
        + ", ".join(
            f"{x.name} {x.ticks[column]} {'none' if value is None else f'{value:.2f}'}"
            for column, value in enumerate(of_row)
        )
        for row, of_row in enumerate(values)
    )
    return render(name, title, draw, alt=f"{title}. {told}.", lines=())


@dataclass(frozen=True, slots=True)
class Bar:
    """Shares of a whole, under one name."""

    name: str
    parts: Mapping[str, float]


def bars_picture(name: str, title: str, bars: Sequence[Bar], *, parts: Sequence[str]) -> Picture:
    """A bar of length 1 for each, with the ``parts`` of its whole side by side."""

    def draw(axes: Any, theme: Theme) -> None:
        for place, bar in enumerate(bars):
            start = 0.0
            for number, part in enumerate(parts):
                share = bar.parts.get(part, 0.0)
                colour = theme.colours[(number + 1) % MOST_LINES]
                label = part if place == 0 else None
                axes.barh(place, share, left=start, color=colour, height=0.62, label=label)
                if share >= _LABELLED_SHARE:
                    told = axes.text(start + share / 2, place, f"{share:.0%}")
                    told.set(ha="center", va="center", color=_on(colour), fontsize=10)
                start += share
        axes.set_yticks(range(len(bars)), [bar.name for bar in bars])
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False)

    told = "; ".join(
        f"{bar.name}: " + ", ".join(f"{part} {bar.parts.get(part, 0.0):.0%}" for part in parts)
        for bar in bars
    )
    legend = [Line(part, ()) for part in parts]
    return render(name, title, draw, alt=f"{title}. {told}.", lines=legend)


def _on(colour: str) -> str:
    """Black or white, whichever is read better on a ``#rrggbb``."""
    red, green, blue = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    # Relative luminance (WCAG 2), with a gamma of 2.2; at 0.18 black and white are read alike.
    light = 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2
    return "#000000" if light > 0.18 else "#ffffff"


def _tick(x: Axis, place: float) -> str:
    return x.ticks[round(place)] if x.ticks else f"{place:,.10g}"


def render(
    name: str,
    title: str,
    draw: Callable[[Any, Theme], None],
    *,
    alt: str,
    lines: Sequence[Line],
) -> Picture:
    """The picture that ``draw`` makes on axes, in both themes and both formats.

    ``lines`` are what its legend names; one alone has no legend.
    """
    # Here, not at the top: matplotlib looks for fonts for seconds at its first import.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    legend_rows = -(-len(lines) // _columns(lines)) if len(lines) > 1 else 0
    width, height = _INCHES[0], _INCHES[1] + 0.24 * legend_rows
    files: dict[str, bytes] = {}
    for theme in _THEMES:
        with rc_context(_settings(theme)):
            figure = Figure(figsize=(width, height), layout="constrained")
            axes = figure.add_subplot()
            draw(axes, theme)
            if legend_rows:
                figure.legend(loc="outside lower center", ncols=_columns(lines), frameon=False)
            for suffix, unset in (("png", "Software"), ("svg", "Date")):
                picture = io.BytesIO()
                figure.savefig(picture, format=suffix, dpi=_PNG_DPI, metadata={unset: None})
                files[f"{name}{theme.suffix}.{suffix}"] = picture.getvalue()
    size = (round(width * _PIXELS_PER_INCH), round(height * _PIXELS_PER_INCH))
    return Picture(name, title, alt, size, files)


def _columns(lines: Sequence[Line]) -> int:
    """Of the legend: as many as fit side by side."""
    longest = max((len(line.name) for line in lines), default=1)
    return max(1, min(3, 44 // (longest + 5)))


def _settings(theme: Theme) -> dict[str, Any]:
    return {
        "font.size": 11,
        "axes.labelsize": 11,
        "legend.fontsize": 10.5,
        "text.color": theme.ink,
        # A dollar in a name is a dollar.
        "text.parse_math": False,
        "axes.labelcolor": theme.ink,
        "axes.edgecolor": theme.soft,
        "axes.facecolor": theme.ground,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "grid.color": theme.soft,
        "grid.linewidth": 0.5,
        "grid.alpha": 0.45,
        "xtick.color": theme.ink,
        "ytick.color": theme.ink,
        "figure.facecolor": theme.ground,
        # Equal data, equal bytes.
        "svg.hashsalt": "rotescale",
    }
