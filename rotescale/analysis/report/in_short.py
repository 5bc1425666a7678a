"""The first section of a run's page: what the model has learnt and lost, in a few lines."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rotescale.analysis.report.estimates import OWN, Estimate, What, estimate, scope
from rotescale.analysis.report.material import BASE, Group, Material, Stage
from rotescale.analysis.report.page import Content, Section, number, paragraph, table
from rotescale.analysis.report.sections import having
from rotescale.evaluation.metrics import TEXT_LOSS

_NOTICED, _MUCH = 1.05, 1.5
"""How many times less likely a token of other text is said to be, and from when that is a lot."""
_TEXT = What(OWN, "text", suite="capability", metric=TEXT_LOSS)
_SAYS = "generation_contains"


@dataclass(frozen=True, slots=True)
class _Line:
    """A row: what is told of it, where it is measured, and which way is good."""

    told: str
    what: What
    better: str = "more"


_LINES = (
    _Line("recalls a fact by its key token", What(OWN, "key_token")),
    _Line("told with a prompt: finds it, asked just so", What(OWN, "train", split="trained")),
    _Line("told with a prompt: in other wordings", What(OWN, "test", split="trained")),
    _Line("told by key token alone: finds it, asked with the prompt", What(OWN, "train")),
    _Line("told by key token alone: in wordings never told", What(OWN, "test")),
    _Line("... and says it by itself, no options given", What(OWN, "test", metric=_SAYS)),
    _Line("gives a fact's object to an unrelated question", What(OWN, "unrelated"), "less"),
    _Line("gives it to another relation's question", What(OWN, "wrong_relation"), "less"),
    _Line("loss on other text, nats a token", _TEXT, "less"),
)


def in_short_section(material: Material) -> Section | str:
    """Of a run alone: a study has many settings, and sections that set them side by side."""
    if material.is_study:
        return ""
    (group,) = material.groups
    known = [line for line in _LINES if having([group], line.what)]
    if not known:
        return "In short: the core was not asked at the end of training."
    before, end = _before(group), group.first.end
    rows: list[list[Content]] = []
    for line in known:
        found = estimate(group, end, line.what)
        assert found is not None, line
        first = None if before is None else number(estimate(group, before, line.what))
        of = found.num_facts or found.count
        rows.append([line.told, first, number(found), of, line.better])
    parts = [
        table(
            "At the end of training, beside the untrained model; each section below says more",
            ["what", "untrained", "now", "facts, or texts", "better"],
            rows,
        )
    ]
    parts += [paragraph(text) for text in verdicts(material)]
    return Section(
        "in-short",
        "In short",
        "Shares of questions that were answered right, out of all options where they are not "
        f"generated: {scope([group], None, known[0].what)}.",
        tuple(parts),
    )


def verdicts(material: Material) -> list[str]:
    """Sentences about a run that nobody should miss; none about a study."""
    if material.is_study:
        return []
    (group,) = material.groups
    before = _before(group)
    if before is None:
        return []
    first, last = (estimate(group, stage, _TEXT) for stage in (before, group.first.end))
    return [] if first is None or last is None else [_forgot(first, last)]


def _before(group: Group) -> Stage | None:
    return BASE if BASE in group.stages() else None


def _forgot(first: Estimate, last: Estimate) -> str:
    """What training did to text that has nothing to do with the facts."""
    times = math.exp(last.value - first.value)
    told = f"({first.value:.2f} nats a token before, {last.value:.2f} now)"
    if times < _NOTICED:
        return f"Other text is no less likely to the model than before {told}."
    text = f"What it forgot: a token of other text is {times:.2g} times less likely {told}."
    if times < _MUCH:
        return text
    return (
        f"{text} That is a lot, and other abilities will have suffered: try a lower learning_rate "
        "or fewer epochs in the first phase, other text told beside the facts (replay), or "
        "adapters (model.lora), and compare this line."
    )
