"""Sections about the core: the paper's table, stages, epochs, k and p, languages, controls."""

from __future__ import annotations

from collections.abc import Sequence

from rotescale.analysis import paper
from rotescale.analysis.report.beside import languages_beside
from rotescale.analysis.report.estimates import OWN, Estimate, What, estimate, scope
from rotescale.analysis.report.figures import (
    Axis,
    Line,
    heat_picture,
    lines_picture,
)
from rotescale.analysis.report.material import Group, Material
from rotescale.analysis.report.page import Content, Number, Picture, Section, number, table
from rotescale.analysis.report.sections import (
    ACCURACY,
    CONTROL_KINDS,
    MAIN_KINDS,
    MOST_FIGURES,
    STYLES,
    changes_table,
    curves,
    ends,
    having,
    place_headings,
    placed,
    point,
    settings_of,
    shown,
    stages_picture,
    stages_table,
    which,
)
from rotescale.analysis.results import HEADINGS, languages_of
from rotescale.evaluation.items import CORE


def paper_section(material: Material) -> Section | str:
    """The paper's main table, and what we have measured in the same columns."""
    if material.refused:
        # Whoever has injected a table asks about that table.
        return ""
    ours = [group for group in material.groups if _compares(group)]
    if not ours:
        return (
            "Beside the paper's table: it takes a phase that memorizes and a last phase with "
            "prompts."
        )
    keyed: list[tuple[tuple[float, ...], bool, list[Content]]] = []
    for row in paper.MAIN_TABLE:
        setting = (row.memorize_epochs, row.facts_per_relation, 1, row.generalize_epochs)
        values = (row.key_token, row.train, row.test)
        cells: list[Content] = [f"paper, {paper.MODEL}", *setting]
        keyed.append((setting, True, [*cells, *(Number(v, f"{v:.2f}") for v in values)]))
    for group in ours:
        own = settings_of(group)
        order = tuple(float(v) if isinstance(v, int) else 1e9 for v in own)
        found = [_key_token(group)]
        found += [estimate(group, group.first.taught, What(OWN, k)) for k in ("train", "test")]
        keyed.append((order, False, [f"ours, {group.name}", *own, *map(number, found)]))
    keyed.sort(key=lambda one: one[:2])
    whole = table(
        "Accuracy on held-out facts, the paper's rows shaded",
        ["whose", "phase-1 epochs", "k", "p", "phase-2 epochs", "key token", "train prompt",
         "test prompts"],
        [row for _, _, row in keyed],
        quoted=[place for place, (_, theirs, _) in enumerate(keyed) if theirs],
    )  # fmt: skip
    told = scope(ours, None, What(OWN, "train"))
    return Section(
        "paper",
        "Beside the paper's table",
        f"Ours: {told}. Paper: {paper.SOURCE}, without intervals. {paper.DIFFERENCES} Our key "
        "token is asked at the end of phase 1, prompts at the end of the phase that tells them.",
        (whole,),
    )


def _compares(group: Group) -> bool:
    taught, found = group.first.taught, group.first.rows
    measured = any((row.stage, row.epoch) == taught and row.suite == CORE for row in found)
    return measured and group.first.memorize is not None and group.first.generalize is not None


def _key_token(group: Group) -> Estimate | None:
    memorize = group.first.memorize
    assert memorize is not None
    return estimate(group, (memorize.name, None), What(OWN, "key_token"))


def stages_section(material: Material) -> Section | str:
    """Accuracy by stage and kind of prompts, and what changed."""
    found = _by_stage(material, MAIN_KINDS, "stages", "Accuracy by stage")
    if found is None:
        return (
            "Accuracy by stage: nothing was asked about held-out facts at the end of training "
            "(evaluation.held_out_facts, or training has not ended)."
        )
    changes = changes_table(material, MAIN_KINDS)
    parts = (*found.parts, *(() if changes is None else (changes,)))
    return Section(found.identifier, found.title, found.scope, parts, found.pictures)


def controls_section(material: Material) -> Section | str:
    """What must stay low: unrelated prompts, another relation's, and the reversed direction."""
    found = _by_stage(material, CONTROL_KINDS, "controls", "Controls")
    if found is None:
        return (
            "Controls: neither unrelated prompts nor another relation's nor reversed ones were "
            "asked at the end of training (evaluation.unrelated_prompts, evaluation.control_facts)."
        )
    note = (
        " The fact's object counts as the answer although the question asks for something else: "
        "what these gain over the base model is leakage."
    )
    return Section("controls", found.title, found.scope + note, found.parts, found.pictures)


def _by_stage(
    material: Material, kinds: Sequence[str], identifier: str, title: str
) -> Section | None:
    groups = material.groups
    told = [what for kind in kinds if having(groups, what := What(OWN, kind))]
    if not told:
        return None
    known = having(groups, told[0])
    pictures = []
    for place, group in enumerate(shown(known)):
        name = "Held-out facts" if len(groups) == 1 else f"{group.name}: held-out facts"
        whats = [(HEADINGS[what.prompts], what) for what in told]
        pictures.append(
            stages_picture(
                f"{identifier}-{place + 1}", name, group, whats, among=material.num_options
            )
        )
    stages = ends(groups)
    caption = f"{title}: multiple choice with 95 % intervals; n counts questions"
    scoped = scope(known, None, told[0])
    return Section(
        identifier,
        title,
        f"Multiple choice among a fact's options: {scoped}." + which(known),
        (stages_table(material, caption, kinds, stages),),
        tuple(picture for picture in pictures if picture is not None),
    )


def heat_section(material: Material) -> Section | str:
    """Accuracy at the end by k facts and p prompts of the last phase."""
    groups = [group for group in material.groups if group.first.generalize is not None]
    grids = curves(groups, lambda group: (_facts(group), _prompts(group)), _facts, _prompts)
    what = What(OWN, "test")
    chosen = {name: grid for name, grid in grids.items() if len(grid) > 1}
    known = [group for grid in chosen.values() for group in having(grid.values(), what)]
    if not known:
        return (
            "k facts by p prompts: it takes a study that varies facts_per_relation or num_prompts "
            "of the last phase."
        )
    pictures = [
        _heat(f"heat-{place + 1}", name, grid, what)
        for place, (name, grid) in enumerate(list(chosen.items())[:MOST_FIGURES])
    ]
    told = f"Test prompts, held-out facts, at the end of training: {scope(known, None, what)}"
    more = "" if len(chosen) <= MOST_FIGURES else f", the first {MOST_FIGURES} of {len(chosen)}"
    return Section(
        "heat",
        "k facts by p prompts",
        f"{told}; a picture per setting of everything else{more}. Fields without a value were not "
        "run; held-out facts differ with k. Intervals are in the table of stages.",
        (),
        tuple(pictures),
    )


def _facts(group: Group) -> int:
    """k of the last phase; 0: all."""
    last = group.first.generalize
    return 0 if last is None else last.facts_per_relation or 0


def _prompts(group: Group) -> int:
    last = group.first.generalize
    return 0 if last is None else last.num_prompts


def _heat(name: str, rest: str, grid: dict[tuple[int, int], Group], what: What) -> Picture:
    ks = sorted({k for k, _ in grid}, key=lambda k: k or 1e9)
    ps = sorted({p for _, p in grid})
    values = []
    for p in ps:
        row = [grid.get((k, p)) for k in ks]
        found = [None if g is None else estimate(g, g.first.end, what) for g in row]
        values.append([None if one is None else one.value for one in found])
    return heat_picture(
        name,
        f"Test prompts{': ' if rest else ''}{rest}",
        values,
        x=Axis("k: facts told with prompts", ticks=tuple(str(k or "all") for k in ks)),
        y=Axis("p: prompts of each", ticks=tuple(map(str, ps))),
    )


def languages_section(material: Material) -> Section | str:
    """Held-out facts at the end, by the language that is asked in."""
    languages = _languages(material)
    if len(languages) < 2:
        return "Languages: only English was asked (evaluation.languages)."
    what = What(OWN, "test")
    known = having(material.groups, what)
    if not known:
        return "Languages: nothing was asked at the end of training yet."
    rows: list[list[Content]] = []
    drawn: list[Line] = []
    for group in material.groups:
        for kind in ("train", "test", "unrelated"):
            found = [
                estimate(group, group.first.end, What(OWN, kind, language=language))
                for language in languages
            ]
            if not any(found):
                continue
            rows.append([*placed(material, group), HEADINGS[kind], *map(number, found)])
            points = tuple(point(x, one) for x, one in enumerate(found) if one is not None)
            name = HEADINGS[kind] if len(material.groups) == 1 else group.name
            if group in shown(known) and (kind == "test" or len(material.groups) == 1):
                style = STYLES[kind] if len(material.groups) == 1 else None
                drawn.append(Line(name, points, style))
    title = "At the end of training" + ("" if len(material.groups) == 1 else ": test prompts")
    picture = lines_picture(
        "languages", title, drawn, x=Axis("language", ticks=tuple(languages)),
        y=ACCURACY, among=material.num_options, joined=False,
    )  # fmt: skip
    headings = [*place_headings(material, relation=False), "asked with", *languages]
    return Section(
        "languages",
        "Languages",
        f"The same facts and prompts in each language, at the end of training; phases train on "
        f"English prompts: {scope(known, None, what)}. No native speaker has read the "
        "translations that ship." + which(known),
        (
            table("Accuracy on held-out facts by language", headings, rows),
            languages_beside(known, languages),
        ),
        (picture,),
    )


def _languages(material: Material) -> list[str]:
    """Those that the core was asked in, English first."""
    rows = (row for cell in material.cells for row in cell.rows if row.suite == CORE)
    return list(languages_of(rows))
