"""Tables that set our own beside what the paper reports of another model."""

from __future__ import annotations

from collections.abc import Sequence

from rotescale.analysis import paper
from rotescale.analysis.report.estimates import OWN, What, estimate
from rotescale.analysis.report.material import Group, Material, Stage
from rotescale.analysis.report.page import Content, Html, Number, number, table
from rotescale.analysis.report.sections import comparable, mean_cost
from rotescale.analysis.results import HEADINGS
from rotescale.evaluation.items import CORE, SPLITS
from rotescale.evaluation.similarity import COSINE, DELTA
from rotescale.evaluation.similarity import SUITE as REPRESENTATIONS

COSINES = {DELTA: "ΔCosSim", COSINE: "cosine to the key token"}
_PAPER = f"paper, {paper.MODEL}"
_ANOTHER = f"the paper's are {paper.OF}"


def languages_beside(groups: Sequence[Group], languages: Sequence[str]) -> Html:
    """The order of the languages, in the paper and in each setting that was asked in several."""
    rows: list[list[Content]] = [[_PAPER, *paper.LANGUAGES]]
    for group in groups:
        found = {
            language: one.value
            for language in languages
            if (one := estimate(group, group.first.end, What(OWN, "test", language=language)))
        }
        if len(found) > 1:
            best = sorted(found.items(), key=lambda pair: -pair[1])
            rows.append([_ours(group), *(f"{language} {value:.2f}" for language, value in best)])
    most = max(map(len, rows))
    places = [f"place {place}" for place in range(1, most)]
    return table(
        f"Languages by their test prompts, the best answered first; {_ANOTHER}",
        ["whose", *places],
        [[*row, *[None] * (most - len(row))] for row in rows],
        quoted=[0],
    )


def cost_beside(material: Material) -> Html | None:
    """Memorizing first against fine-tuning on as many prompts alone; None where one is missing."""
    pairs = [
        (one, two)
        for one in material.groups
        for two in material.groups
        if _prompts(one, alone=False) == _prompts(two, alone=True) is not None
        and comparable(one, two)
        and one.relation(CORE) == two.relation(CORE)
    ]
    if not pairs:
        return None
    about = Number(paper.SFT_TIMES_TOKENS, f"about {paper.SFT_TIMES_TOKENS}")
    rows: list[list[Content]] = [
        [_PAPER, "", paper.SFT_PROMPTS, None, None, about, None, Number(None, "the same")],
        [_PAPER, "", 1, None, None, None, None, Number(None, "far behind")],
    ]
    rows += [_cost_row(one, two) for one, two in pairs]
    return table(
        "Both phases against fine-tuning on prompts alone: tokens, and test prompts at the end; "
        f"{_ANOTHER}",
        ["both phases", "prompts alone", "p", "tokens", "tokens alone", "times", "held out",
         "alone, told"],
        rows,
        quoted=[0, 1],
    )  # fmt: skip


def _cost_row(one: Group, two: Group) -> list[Content]:
    tokens, alone = mean_cost(one).num_tokens, mean_cost(two).num_tokens
    times = alone / tokens if tokens else None
    return [
        *(_ours(one), two.name, _prompts(one, alone=False), tokens, alone),
        None if times is None else Number(times, f"{times:.2f}"),
        number(estimate(one, one.first.taught, What(OWN, "test"))),
        number(estimate(two, two.first.end, What(OWN, "test", split="trained"))),
    ]


def _prompts(group: Group, *, alone: bool) -> int | None:
    """p, of a setting that tells prompts alone or after it has memorized; None of any other."""
    phases = group.first.spec.phases
    last = group.first.generalize
    if last is None or any(phase.shares or phase.stand_in for phase in phases):
        return None
    return last.num_prompts if (group.first.memorize is None) == alone else None


def states_beside(groups: Sequence[Group], *, layer: int) -> Html:
    """ΔCosSim and cosines through training, in the paper and at our last layer."""
    rows: list[list[Content]] = []
    quoted = []
    for theirs in paper.COSINES:
        about = [COSINES[theirs.metric], HEADINGS[theirs.prompts]]
        values = (theirs.first, theirs.after_2_epochs, theirs.after_20_epochs, theirs.last)
        quoted.append(len(rows))
        told = [None if v is None else Number(v, f"{v:.3f}".removesuffix("0")) for v in values]
        rows.append([_PAPER, *about, "", *told])
        for group in groups:
            for split in SPLITS[::-1]:
                what = What(
                    *(OWN, theirs.prompts, split, REPRESENTATIONS),
                    metric=theirs.metric,
                    layer=layer,
                )
                found = [None if s is None else estimate(group, s, what) for s in _through(group)]
                if any(found):
                    start = [_ours(group), *about, split.replace("_", "-")]
                    rows.append([*start, *map(number, found)])
    return table(
        f"Through training, ours at layer {layer}; {_ANOTHER}",
        ["whose", "measure", "states at", "facts", "first", "phase 1, epoch 2", "phase 1, end",
         "last"],
        rows,
        quoted=quoted,
    )  # fmt: skip


def _through(group: Group) -> list[Stage | None]:
    """The first stage, the second epoch and the end of phase 1, and the end of training."""
    memorize = group.first.memorize
    phase: list[Stage | None] = [None, None]
    if memorize is not None:
        phase = [(memorize.name, 2), (memorize.name, None)]
    return [group.stages()[0], *phase, group.first.end]


def _ours(group: Group) -> str:
    return f"ours, {group.name}"
