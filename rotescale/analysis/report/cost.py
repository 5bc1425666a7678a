"""The section about what training took, and the accuracy that it bought."""

from __future__ import annotations

from dataclasses import replace

from rotescale.analysis import paper
from rotescale.analysis.report.beside import cost_beside
from rotescale.analysis.report.estimates import OWN, Estimate, What, estimate, scope
from rotescale.analysis.report.figures import MOST_LINES, Axis, Line, lines_picture
from rotescale.analysis.report.material import Material
from rotescale.analysis.report.page import Content, Number, Picture, Section, number, table
from rotescale.analysis.report.sections import (
    ACCURACY,
    mean_cost,
    mean_of,
    place_headings,
    placed,
    point,
)
from rotescale.analysis.study_table import Cost


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
            cost = mean_cost(group, None if name == "all phases" else name)
            found = [number(estimate(group, stage, one)) for one in (what, told_what)]
            rows.append([*placed(material, group), name, *_cells(cost), *found])
    headings = [*place_headings(material, relation=False), "phase", "tokens", "target tokens"]
    whole = table(
        "Trained tokens of one seed's run (mean over seeds), prompts included; test prompts at "
        "the phase's end, of facts held out and of those told with a prompt",
        [*headings, "seconds in steps", "held out", "told"],
        rows,
    )
    beside = cost_beside(material)
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
        f"starting, saving and measuring. {paper.COST}",
        (whole,) if beside is None else (whole, beside),
        _cost_pictures(material),
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
                tokens = mean_of([cell.cost_until(stage) for cell in group.cells]).num_tokens
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
