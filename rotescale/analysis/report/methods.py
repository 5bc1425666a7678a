"""Sections about what training took, and about methods against each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
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
    what, told_what = What(OWN, "test"), What(OWN, "test", split="trained")
    rows: list[list[Content]] = []
    for group in material.groups:
        names = [phase.name for phase in group.first.spec.phases]
        several = [("all phases", group.first.end)] if len(names) > 1 else []
        for name, stage in [*((name, (name, None)) for name in names), *several]:
            cost = _mean_cost(group, None if name == "all phases" else name)
            found = [number(estimate(group, stage, one)) for one in (what, told_what)]
            rows.append([*placed(material, group), name, *_cells(cost), *found])
    headings = [*place_headings(material, relation=False), "phase", "tokens", "target tokens"]
    whole = table(
        "Trained tokens of one seed's run (mean over seeds), prompts included; test prompts at "
        "the phase's end, of facts held out and of those told with a prompt",
        [*headings, "seconds in steps", "held out", "told"],
        rows,
    )
    known = [g for g in material.groups if estimate(g, g.first.end, what) is not None]
    told = f" Accuracy: {scope(known, None, what)}." if known else ""
    if len(known) < len(material.groups):
        told += (
            " A method that tells every fact with a prompt has no held-out facts: its line is of "
            "facts told with a prompt, asked in other wordings."
        )
    return Section(
        "cost",
        "Cost",
        "Tokens of all examples of all phases that lead to a model, repeated epochs counted each "
        f"time.{told} Seconds are those of training steps on the machine that ran them, without "
        "starting, saving and measuring.",
        (whole,),
        _cost_pictures(material),
    )


def _mean_cost(group: Group, phase: str | None) -> Cost:
    return _mean([c.cost if phase is None else c.cost_of(phase) for c in group.cells])


def _mean(costs: Sequence[Cost]) -> Cost:
    total = sum(costs, Cost())
    return Cost(
        round(total.num_tokens / len(costs)),
        round(total.target_tokens / len(costs)),
        total.seconds / len(costs),
    )


def _cells(cost: Cost) -> list[Content]:
    return [cost.num_tokens, cost.target_tokens, Number(cost.seconds, f"{cost.seconds:,.1f}")]


def _cost_pictures(material: Material) -> tuple[Picture, ...]:
    """Each method's accuracy by tokens, at the ends and on the way of the last phase."""
    lines: dict[str, list[tuple[int, Estimate]]] = {}
    for group in material.groups:
        what = What(OWN, "test")
        name = group.method or group.name
        if group.method and len(material.relations) > 1:
            name += f", {group.relation(what.suite)}"
        if estimate(group, group.first.end, what) is None:
            what, name = replace(what, split="trained"), f"{name}, facts told"
        for stage in group.stages():
            found = estimate(group, stage, what)
            if stage[0] == group.first.end[0] and found is not None:
                tokens = _mean([cell.cost_until(stage) for cell in group.cells]).num_tokens
                lines.setdefault(name, []).append((tokens, found))
    if sum(map(len, lines.values())) < 2:
        return ()
    drawn = [
        Line(name, tuple(point(x, one) for x, one in sorted(found, key=lambda pair: pair[0])))
        for name, found in lines.items()
    ]
    x = Axis("trained tokens of one run", starts_at_zero=True)
    return (
        lines_picture(
            "cost",
            "Test prompts by what training took",
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
