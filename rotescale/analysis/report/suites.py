"""Sections about the suites beyond the core."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from rotescale.analysis import paper
from rotescale.analysis.report.epochs import on_the_way, way_points, way_title
from rotescale.analysis.report.estimates import OWN, What, estimate, scope
from rotescale.analysis.report.figures import MOST_LINES, Axis, Line, lines_picture
from rotescale.analysis.report.material import Group, Material, Stage
from rotescale.analysis.report.page import Content, Picture, Section, number, table
from rotescale.analysis.report.repurposing import SUITE as REPURPOSED
from rotescale.analysis.report.repurposing import kept_table, sweep_pictures, sweeps, sweeps_scope
from rotescale.analysis.report.sections import (
    Maker,
    counted,
    curves,
    ends,
    measured,
    place_headings,
    placed,
    point,
    shown,
    stage_name,
    stages_picture,
    which,
)
from rotescale.analysis.results import HEADINGS, SUITE_METRICS
from rotescale.evaluation.harness.results import HARNESS
from rotescale.evaluation.items import CORE
from rotescale.evaluation.similarity import SUITE as REPRESENTATIONS

_CAPABILITY = "capability"
_IN_CONTEXT = "in_context_"
_TITLES = {
    "reversal": "Reversal",
    "two_hop": "Two hops",
    _CAPABILITY: "Capability: loss on other text",
    HARNESS: "Capability: benchmarks",
    REPURPOSED: "Repurposing",
}
_TOLD = {
    "reversal": "Prompts of the reversed direction ask for the subject.",
    "two_hop": "A prompt asks for what a second fact tells of the first one's object.",
    _CAPABILITY: "Negative log-likelihood per token, in nats, of pieces of public-domain texts "
    "that no phase tells; less is better.",
    HARNESS: "Tasks of the lm-evaluation-harness, with its metrics: acc, acc_norm and the like are "
    "shares of right answers; of perplexities and bits per byte less is better. Figures show the "
    f"first {MOST_LINES} shares.",
    REPURPOSED: "Prompts of another relation, under which some of the facts were told; "
    "*trained* are those facts. That relation stands in for a harmful one: harmful answers are "
    "those to its prompts, benign ones those to the prompts of the facts' own relation.",
}
_ASKED_BY = {
    "in_context": "evaluation.in_context",
    "reversal": "evaluation.reversal_facts",
    "two_hop": "evaluation.two_hop_facts",
    _CAPABILITY: "evaluation.text_pieces",
    HARNESS: "evaluation.harness_tasks",
    REPURPOSED: "a phase with stand_in",
}
_ABOUT_SUBJECTS = ("reversal",)
"""Suites whose options are subjects, of which there may be more or fewer than of objects."""
_HEADINGS = {_CAPABILITY: ["text"], HARNESS: ["task", "metric"]}
"""What a row of a suite's table is about, where that is no fact."""
_VALUES = {_CAPABILITY: "nats per token", HARNESS: "values of their metrics"}
_UNITS = {_CAPABILITY: "pieces of text", HARNESS: "documents"}
_MOST_ENDS = 2
"""Figures of separate schedules."""
_BOTH_SPLITS = (REPURPOSED,)
"""Suites whose figures show trained facts too; in others only held-out ones are drawn."""


def suite_sections() -> list[Maker]:
    """A maker for each suite."""
    return [_maker(name) for name in _ASKED_BY]


def _maker(name: str) -> Maker:
    def make(material: Material) -> Section | str:
        found = _suites(material)
        wanted = [suite for suite in found if suite == name or suite.startswith(f"{name}_")]
        if not wanted:
            return f"{_title(name)}: not asked ({_ASKED_BY[name]})."
        return _section(material, name, wanted)

    return make


def _suites(material: Material) -> list[str]:
    found = dict.fromkeys(row.suite for cell in material.cells for row in cell.rows)
    return [suite for suite in found if suite not in (CORE, REPRESENTATIONS)]


def _title(suite: str) -> str:
    return _TITLES.get(suite, "Facts in the context" if suite == "in_context" else suite)


def _told(suite: str) -> str:
    if suite == "in_context":
        return "Facts stand before the question: they are read, not remembered."
    return _TOLD[suite]


def _whats(material: Material, suite: str) -> list[What]:
    """Every value of a suite, each once, in the order of the rows."""
    metric = SUITE_METRICS.get(suite, "multiple_choice")
    return list(
        dict.fromkeys(
            What(row.relation, row.prompts, row.split, suite, row.language, row.metric)
            for cell in material.cells
            for row in cell.rows
            if row.suite == suite and (suite == HARNESS or row.metric == metric)
        )
    )


def _section(material: Material, name: str, suites: Sequence[str]) -> Section:
    whats = [what for suite in suites for what in _whats(material, suite)]
    stages = measured(ends(material.groups), material.groups, whats)
    rows: list[list[Content]] = []
    for group in material.groups:
        for what in whats:
            found = [estimate(group, stage, what) for stage in stages]
            if any(found):
                start = [*placed(material, group), *_about(what)]
                rows.append([*start, counted(found), *map(number, found)])
    headings = place_headings(material, relation=False)
    headings += _HEADINGS.get(name, ["suite", "about", "facts", "asked with"])
    values = _VALUES.get(name, "multiple choice")
    whole = table(
        f"{_title(name)}: {values}, with 95 % intervals",
        [*headings, "n", *map(stage_name, stages)],
        rows,
    )
    # Tasks have metrics of their own, so one task speaks for all.
    first = whats[0] if name == HARNESS else replace(whats[-1], relation=OWN)
    known = [g for g in material.groups if any(estimate(g, s, first) for s in stages)]
    shows, pictures = _drawn(material, known, name, whats)
    kept = kept_table(material) if name == REPURPOSED else None
    return Section(
        name.replace("_", "-"),
        _title(name),
        f"{_told(name)} {_scope(known, first, stages)} {paper.SUITES.get(name, '')}".strip()
        + shows,
        (whole,) if kept is None else (kept, whole),
        tuple(pictures),
    )


def _drawn(
    material: Material, known: Sequence[Group], name: str, whats: Sequence[What]
) -> tuple[str, list[Picture]]:
    """The figures, and a sentence on which they are: by k where a study repurposes by several."""
    by_k = sweeps(material) if name == REPURPOSED else []
    if by_k:
        return sweeps_scope(by_k), sweep_pictures(material, by_k)
    return which(known), _pictures(material, known, name, whats)


def _about(what: What) -> list[Content]:
    """What a row of a suite's table is about."""
    if what.suite == _CAPABILITY:
        return [what.relation]
    if what.suite == HARNESS:
        return [what.relation, what.metric]
    kind = HEADINGS.get(what.prompts, what.prompts)
    return [what.suite, what.relation, what.split.replace("_", "-"), kind]


def _scope(groups: Sequence[Group], what: What, stages: Sequence[Stage]) -> str:
    known = measured(stages, groups, [what])
    if not known:
        return "It was measured on the way only."
    told = scope(groups, known[-1], what, unit=_UNITS.get(what.suite, "facts"))
    return f"Shown: {told}." if what.suite != HARNESS else f"Of {what.relation}: {told}."


def _pictures(
    material: Material, groups: Sequence[Group], name: str, whats: Sequence[What]
) -> list[Picture]:
    if name == _CAPABILITY:
        return _over_epochs(material, groups, whats, y=Axis("nats per token"))
    if name == HARNESS:
        fractions = [what for what in whats if _is_fraction(material, what)]
        y = Axis("share of right answers", unit=True)
        return _over_epochs(material, groups, fractions, y=y) if fractions else []
    several = len({what.suite for what in whats}) > 1
    drawn = dict.fromkeys(
        replace(what, relation=OWN)
        for what in whats
        if what.split == "held_out" or name in _BOTH_SPLITS
    )
    pictures = []
    for place, group in enumerate(shown(groups)):
        labelled = [(_label(what, several=several), what) for what in drawn]
        title = "" if len(material.groups) == 1 else f"{group.name}: "
        title += "all facts" if name in _BOTH_SPLITS else "held-out facts"
        file = f"{name.replace('_', '-')}-{place + 1}"
        among = None if name in _ABOUT_SUBJECTS else material.num_options
        pictures.append(stages_picture(file, title, group, labelled, among=among))
    return [picture for picture in pictures if picture is not None]


def _label(what: What, *, several: bool) -> str:
    kind = HEADINGS.get(what.prompts, what.prompts)
    context = f"{what.suite.removeprefix(_IN_CONTEXT)} in context, " if several else ""
    split = f", {what.split.replace('_', '-')}" if what.suite in _BOTH_SPLITS else ""
    return f"{context}{kind}{split}"


def _is_fraction(material: Material, what: What) -> bool:
    """Whether all its values lie between 0 and 1, as those of an accuracy do."""
    about = (what.suite, what.relation, what.metric)
    rows = [row for cell in material.cells for row in cell.rows]
    found = [row for row in rows if (row.suite, row.relation, row.metric) == about]
    bounds = [bound for row in found for bound in (row.value, row.low, row.high)]
    return all(bound is None or 0 <= bound <= 1 for bound in bounds)


def _over_epochs(
    material: Material, known: Sequence[Group], whats: Sequence[What], *, y: Axis
) -> list[Picture]:
    """Values over phase-1 epochs: on the way, and at the ends of separate schedules."""
    axes = (Axis("epochs of phase 1", whole=True), y)
    suite = whats[0].suite
    pictures = []
    for place, group in enumerate(on_the_way(material)):
        lines = _lines(whats, [(epoch, group, stage) for epoch, stage in way_points(group)])
        name, title = f"{suite}-{place + 1}", way_title(group, on_the_way(material))
        if lines:
            pictures.append(lines_picture(name, title, lines, x=axes[0], y=axes[1]))
    ended = (group for group in material.groups if way_points(group))
    ways = curves(ended, lambda group: way_points(group)[-1][0])
    several = [(name, found) for name, found in ways.items() if len(found) > 1]
    for place, (name, found) in enumerate(several[:_MOST_ENDS]):
        places = [(epochs, found[epochs], way_points(found[epochs])[-1][1]) for epochs in found]
        lines = _lines(whats, sorted(places, key=lambda one: one[0]))
        title = "At the end of phase 1, separate schedules" + (f" ({name})" if name else "")
        if lines:
            name = f"{suite}-ends-{place + 1}"
            pictures.append(lines_picture(name, title, lines, x=axes[0], y=axes[1]))
    if pictures:
        return pictures
    drawn = []
    for place, group in enumerate(shown(known)):
        labelled = [(_line_label(what), what) for what in whats]
        own = "Benchmarks" if suite == HARNESS else "Held-out text"
        title = own if len(material.groups) == 1 else group.name
        drawn.append(stages_picture(f"{suite}-{place + 1}", title, group, labelled, y=axes[1]))
    return [picture for picture in drawn if picture is not None]


def _lines(whats: Iterable[What], places: Sequence[tuple[int, Group, Stage]]) -> list[Line]:
    lines = []
    for what in whats:
        found = [(epoch, estimate(group, stage, what)) for epoch, group, stage in places]
        points = tuple(point(epoch, one) for epoch, one in found if one is not None)
        if points:
            lines.append(Line(_line_label(what), points))
    return lines[:MOST_LINES]


def _line_label(what: What) -> str:
    return f"{what.relation}, {what.metric}" if what.suite == HARNESS else what.relation
