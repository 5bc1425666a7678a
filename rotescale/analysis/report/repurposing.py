"""What telling facts under another relation gains, and what it leaves of their own, by k."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rotescale.analysis.report.estimates import OWN, What, difference, estimate
from rotescale.analysis.report.figures import Axis, Line, Point, lines_picture
from rotescale.analysis.report.material import BASE, Group, Material, Stage
from rotescale.analysis.report.page import Content, Html, Number, Picture, number, table
from rotescale.analysis.report.sections import (
    ACCURACY,
    place_headings,
    placed,
    point,
)
from rotescale.analysis.results import HEADINGS
from rotescale.spec import PhaseSpec
from rotescale.study.spec import METHOD

SUITE = "repurposed"
_KINDS = ("train", "test")
_DRAWN = "test"
_MOST_SWEEPS = 8
"""Two relations with four mitigations each."""
_BEFORE = "0 (before)"
_LINES = {
    "harmful, facts not told": What(OWN, _DRAWN, suite=SUITE),
    "harmful, facts told": What(OWN, _DRAWN, split="trained", suite=SUITE),
    "benign kept": What(OWN, _DRAWN),
}


def stand_in_phase(group: Group) -> PhaseSpec | None:
    """The phase whose other relation is asked about: the first one that has one."""
    return next((p for p in group.first.spec.phases if p.stand_in is not None), None)


def stages_around(group: Group, phase: PhaseSpec) -> tuple[Stage, Stage]:
    """What the phase starts from, and its end."""
    phases = group.first.spec.phases
    place = phases.index(phase)
    return (BASE if place == 0 else (phases[place - 1].name, None)), (phase.name, None)


def mitigation(phase: PhaseSpec) -> str:
    """What may keep the benign answers, in words; with the learning rate, which is one of them."""
    share = None if phase.stand_in is None else phase.stand_in.benign_share
    told = [] if share is None else [f"benign replay {share:.0%}"]
    told += ["frozen key tokens"] if phase.freeze_key_tokens else []
    return ", ".join([*(told or ["no mitigation"]), f"rate {phase.learning_rate:g}"])


def kept_table(material: Material) -> Html | None:
    """Harmful answers gained and benign ones kept, a line per setting and kind of prompts.

    None where no setting has such a phase.
    """
    rows = []
    for group in material.groups:
        phase = stand_in_phase(group)
        for kind in _KINDS if phase is not None else ():
            assert phase is not None
            values = _values(group, phase, kind)
            if any(values):
                about: list[Content] = [_told(phase), mitigation(phase), HEADINGS[kind]]
                rows.append([*placed(material, group), *about, *values])
    if not rows:
        return None
    headings = [*place_headings(material, relation=False), "k", "mitigation", "asked with"]
    headings += ["harmful, facts told", "harmful before", "harmful", "harmful gained"]
    headings += ["benign before", "benign kept", "benign change"]
    return table(
        "Before the phase that repurposes and at its end, held-out facts; changes are paired by "
        "fact and seed",
        headings,
        rows,
    )


def _values(group: Group, phase: PhaseSpec, kind: str) -> list[Content]:
    """Of a line of the table: harmful and benign, each before, after and what changed."""
    before, after = stages_around(group, phase)
    found: list[Content] = [
        number(estimate(group, after, What(OWN, kind, split="trained", suite=SUITE)))
    ]
    for what in (What(OWN, kind, suite=SUITE), What(OWN, kind)):
        found += [number(estimate(group, stage, what)) for stage in (before, after)]
        found.append(number(difference((group, before), (group, after), what), signed=True))
    return found


def _told(phase: PhaseSpec) -> Content:
    """k: how many facts of a relation the phase tells."""
    k = phase.facts_per_relation
    return Number(None, "all") if k is None else k


@dataclass(frozen=True)
class Sweep:
    """Settings that differ in how many facts the phase tells, and in how long it tells them."""

    name: str
    by_k: Mapping[int, Group]
    """k, 0 for all facts -> its setting; in ascending order, all last."""


def sweeps(material: Material) -> list[Sweep]:
    """A sweep for each setting of everything else, such as a mitigation; each of two k or more."""
    found: dict[str, list[dict[int, Group]]] = {}
    for group in material.groups:
        phase = stand_in_phase(group)
        if phase is not None:
            k = phase.facts_per_relation or 0
            alike = found.setdefault(_all_but_k(group, phase), [])
            # Where epochs vary too, each number of them comes once for every k.
            free = next((one for one in alike if k not in one), None)
            if free is None:
                alike.append(free := {})
            free[k] = group
    every = [dict(sorted(one.items(), key=_all_last)) for alike in found.values() for one in alike]
    return [Sweep(_name(material, list(one.values())), one) for one in every if len(one) > 1]


def _all_last(item: tuple[int, Group]) -> float:
    return item[0] or float("inf")


def _all_but_k(group: Group, phase: PhaseSpec) -> str:
    """What is the same where two settings differ in k alone, and in how long it is told."""
    spec = group.first.spec
    length = {"epochs": 1, "token_budget": None, "schedule_epochs": None}
    blank = phase.model_copy(update={"facts_per_relation": None, **length})
    phases = tuple(blank if one is phase else one for one in spec.phases)
    return spec.model_copy(update={"seed": 0, "phases": phases}).prefix_digest(len(phases))


def _name(material: Material, groups: Sequence[Group]) -> str:
    """The mitigation, and the labels that tell these settings from the others."""
    labels = groups[0].labels.items()
    shared = {a: v for a, v in labels if all(one.labels.get(a) == v for one in groups)}
    others = {a for a, v in shared.items() if any(g.labels.get(a) != v for g in material.groups)}
    told = [v if a == METHOD else f"{a} {v}" for a, v in shared.items() if a in others]
    phase = stand_in_phase(groups[0])
    assert phase is not None
    return ", ".join([*told, mitigation(phase)])


def sweep_pictures(material: Material, found: Sequence[Sweep]) -> list[Picture]:
    """A picture for each of the first sweeps: x is k, and 0 what was there before."""
    pictures = []
    for place, sweep in enumerate(found[:_MOST_SWEEPS]):
        ticks = (_BEFORE, *(str(k or "all") for k in sweep.by_k))
        lines = [Line(name, _points(sweep, what)) for name, what in _LINES.items()]
        pictures.append(
            lines_picture(
                f"repurposed-k-{place + 1}",
                f"Test prompts: {sweep.name}",
                [line for line in lines if line.points],
                x=Axis("k: facts told under the other relation", ticks=ticks),
                y=ACCURACY,
                among=material.num_options,
            )
        )
    return pictures


def _points(sweep: Sweep, what: What) -> tuple[Point, ...]:
    """At 0 what was there before, of the first setting that has it; then the end by k."""
    around = []
    for group in sweep.by_k.values():
        phase = stand_in_phase(group)
        assert phase is not None
        around.append((group, *stages_around(group, phase)))
    befores = (estimate(group, before, what) for group, before, _ in around)
    found = [next((one for one in befores if one is not None), None)]
    found += [estimate(group, after, what) for group, _, after in around]
    return tuple(point(place, one) for place, one in enumerate(found) if one is not None)


def sweeps_scope(found: Sequence[Sweep]) -> str:
    """Says what the pictures show, and of how many sweeps."""
    shown = min(len(found), _MOST_SWEEPS)
    more = "" if shown == len(found) else f", the first {shown} of {len(found)}"
    return (
        " Figures are by k, the number of facts told under the other relation, one for each "
        f"setting of everything else{more}. At 0 stands what was there before, so what a line "
        "rises from there was gained; of questions about the other relation those of the smallest "
        "k. Facts that were not told differ with k."
    )
