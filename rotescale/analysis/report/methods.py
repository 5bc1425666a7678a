"""Sections about what training took, and about methods against each other."""

from __future__ import annotations

from itertools import combinations

from rotescale.analysis.report.estimates import OWN, Estimate, What, difference, estimate, scope
from rotescale.analysis.report.figures import MOST_LINES, Axis, Line, lines_picture
from rotescale.analysis.report.material import Group, Material
from rotescale.analysis.report.page import Content, Html, Number, Picture, Section, number, table
from rotescale.analysis.report.sections import (
    ACCURACY,
    MAIN_KINDS,
    place_headings,
    placed,
    point,
)
from rotescale.analysis.results import HEADINGS
from rotescale.analysis.study_table import Cost

_MOST_PAIRS = 60


def cost_section(material: Material) -> Section | str:
    """Trained tokens and seconds, and the accuracy that they bought."""
    if not any(cell.cost.num_tokens for cell in material.cells):
        return "Cost: no steps were recorded."
    what = What(OWN, "test")
    rows: list[list[Content]] = []
    for group in material.groups:
        names = [phase.name for phase in group.first.spec.phases]
        costs = [(name, _mean_cost(group, name)) for name in names]
        total = _mean_cost(group, None)
        several = [("all phases", total)] if len(names) > 1 else []
        for name, cost in [*costs, *several]:
            found = estimate(group, (name, None), what)
            if name == "all phases":
                found = estimate(group, group.first.end, what)
            rows.append([*placed(material, group), name, *_cells(cost), number(found)])
    headings = [*place_headings(material, relation=False), "phase", "tokens", "target tokens"]
    whole = table(
        "Trained tokens of one seed's run (mean over seeds), prompts included; test prompts at "
        "the phase's end",
        [*headings, "seconds in steps", "test prompts"],
        rows,
    )
    known = [g for g in material.groups if estimate(g, g.first.end, what) is not None]
    told = f" Accuracy: {scope(known, None, what)}." if known else ""
    return Section(
        "cost",
        "Cost",
        "Tokens of all examples of all phases that lead to a model, repeated epochs counted each "
        f"time.{told} Seconds are those of training steps on the machine that ran them, without "
        "starting, saving and measuring.",
        (whole,),
        _cost_pictures(material, known, what),
    )


def _mean_cost(group: Group, phase: str | None) -> Cost:
    costs = [c.cost if phase is None else c.costs.get(phase, Cost()) for c in group.cells]
    number_of = len(costs)
    total = sum(costs, Cost())
    return Cost(
        round(total.num_tokens / number_of),
        round(total.target_tokens / number_of),
        total.seconds / number_of,
    )


def _cells(cost: Cost) -> list[Content]:
    return [cost.num_tokens, cost.target_tokens, Number(cost.seconds, f"{cost.seconds:,.1f}")]


def _cost_pictures(material: Material, known: list[Group], what: What) -> tuple[Picture, ...]:
    if len(known) < 2:
        return ()
    lines: dict[str, list[tuple[int, Estimate]]] = {}
    for group in known:
        found = estimate(group, group.first.end, what)
        tokens = _mean_cost(group, None).num_tokens
        if found is not None and tokens:
            lines.setdefault(group.method or group.name, []).append((tokens, found))
    drawn = [
        Line(name, tuple(point(x, one) for x, one in sorted(found, key=lambda pair: pair[0])))
        for name, found in lines.items()
    ]
    x = Axis("trained tokens of one run", starts_at_zero=True)
    return (
        lines_picture(
            "cost",
            "Test prompts, held-out facts, by what training took",
            drawn[:MOST_LINES],
            x=x,
            y=ACCURACY,
            among=material.num_options,
            joined=False,
        ),
    )


def paired_section(material: Material) -> Section | str:
    """Differences between methods, paired by seed and fact."""
    methods = list(dict.fromkeys(group.method for group in material.groups))
    if len(methods) < 2:
        return "Methods against each other: it takes a study with baselines."
    pairs = [(one, two) for one, two in combinations(material.groups, 2) if _comparable(one, two)]
    rows: list[list[Content]] = []
    for one, two in pairs[:_MOST_PAIRS]:
        for kind in MAIN_KINDS:
            what = What(OWN, kind)
            found = difference((two, two.first.end), (one, one.first.end), what)
            if found is not None:
                counts: list[Content] = [found.num_facts, len(found.seeds)]
                change = number(found, signed=True)
                rows.append([one.name, two.name, HEADINGS[kind], *counts, change])
    if not rows:
        return "Methods against each other: no two methods share seeds and held-out facts."
    more = f" The first {_MOST_PAIRS} of {len(pairs)} pairs." if len(pairs) > _MOST_PAIRS else ""
    parts: tuple[Html, ...] = (
        table(
            "Difference of accuracy at the end of training: the first setting less the second",
            ["setting", "less", "asked with", "facts", "seeds", "difference"],
            rows,
        ),
    )
    return Section(
        "paired",
        "Methods against each other",
        "Differences on questions about facts that are held out in both, asked under the same "
        "seed; 95 % intervals over facts, and over seeds where there are two or more. Not "
        f"corrected for the number of comparisons ({len(rows)}).{more}",
        parts,
    )


def _comparable(one: Group, two: Group) -> bool:
    """Two methods at the same point of every axis that both have."""
    shared = (one.labels.keys() & two.labels.keys()) - {"method"}
    return one.method != two.method and all(one.labels[a] == two.labels[a] for a in shared)
