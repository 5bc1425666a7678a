"""Sections made of rows by hand: which there are, what they show, and what they say of the rest."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import micro_spec

from rotescale.analysis import paper
from rotescale.analysis.report.accuracy import heat_section, languages_section
from rotescale.analysis.report.build import makers
from rotescale.analysis.report.certainty import certainty_section
from rotescale.analysis.report.conflict import conflict_section
from rotescale.analysis.report.cost import cost_section
from rotescale.analysis.report.epochs import epochs_section
from rotescale.analysis.report.estimates import OWN, Estimate, What, estimate, scope
from rotescale.analysis.report.figures import Axis, Line, Point, heat_picture, lines_picture
from rotescale.analysis.report.in_short import in_short_section, verdicts
from rotescale.analysis.report.material import Cell, Group, Material
from rotescale.analysis.report.page import Html, Number, Section, number, page, table
from rotescale.analysis.report.paired import paired_section
from rotescale.analysis.report.sections import MOST_FIGURES, shown, which
from rotescale.analysis.report.states import states_section
from rotescale.analysis.report.suites import suite_sections
from rotescale.analysis.report.time import time_section
from rotescale.analysis.study_table import Cost
from rotescale.evaluation.intervals import interval_over_seeds
from rotescale.records import EvaluationRow, Records, StepRow
from rotescale.run_dir import RunDir

ROW: dict[str, Any] = {
    **{"attempt": 1, "relation": "mother", "stage": "generalize", "epoch": None, "seed": 0},
    **{"suite": "core", "split": "held_out", "prompts": "test", "language": "en"},
    **{"metric": "multiple_choice", "value": 0.5, "count": 10, "low": 0.3, "high": 0.7},
}


def row(**changes: Any) -> EvaluationRow:
    return EvaluationRow(**{**ROW, **changes})


def group(
    labels: Mapping[str, str], rows: Sequence[EvaluationRow], *overrides: str, tokens: int = 100
) -> Group:
    """A setting of one seed; nothing lies on a disk."""
    spec = micro_spec(*overrides)
    name = " ".join(labels.values()) or "alone"
    costs = {(phase.name, phase.epochs): Cost(tokens, tokens, 1.0) for phase in spec.phases}
    return Group(name, labels, (Cell(name, labels, spec, {}, tuple(rows), costs),))


def material(*groups: Group) -> Material:
    return Material("made", len(groups) > 1, groups, (), {})


def made(section: Section | str) -> Section:
    assert isinstance(section, Section), section
    return section


def cells(whole: Html) -> list[list[str]]:
    """The texts of a table's body, row by row."""
    rows = re.findall("<tr[^>]*>(.*?)</tr>", str(whole).partition("<tbody>")[2])
    return [
        [re.sub("<[^>]*>", "", one) for one in re.findall("<t[dh][^>]*>(.*?)</t[dh]>", row)]
        for row in rows
    ]


def test_k_by_p_is_a_picture_for_each_setting_of_the_rest() -> None:
    groups = [
        group(
            {"method": method, "k": str(k), "p": str(p)},
            [row(value=k * p / 100)],
            f"phases.generalize.facts_per_relation={k}",
            f"phases.generalize.num_prompts={p}",
        )
        for method in ("rote", "sft")
        for k in (1, 10)
        for p in (1, 2, 4)
    ]
    section = made(heat_section(material(*groups)))
    assert [picture.title for picture in section.pictures] == [
        *("Test prompts: rote", "Test prompts: sft")
    ]
    assert "k: facts told with prompts 10 0.40" in section.pictures[0].alt
    assert "it takes a study" in str(heat_section(material(groups[0])))


def test_epochs_on_the_way_and_separate_schedules_are_told_apart() -> None:
    groups = [
        group(
            {"epochs": str(epochs)},
            [
                row(),
                row(stage="base", prompts="key_token", value=0.0),
                *([row(stage="memorize", epoch=1, prompts="key_token")] if epochs == 3 else []),
                row(stage="memorize", prompts="key_token", value=1.0),
            ],
            f"phases.memorize.epochs={epochs}",
        )
        for epochs in (3, 6)
    ]
    section = made(epochs_section(material(*groups)))
    assert [picture.name for picture in section.pictures] == ["epochs-1", "epochs-test"]
    assert "key token: 0 0.00, 1 0.50, 3 1.00" in section.pictures[0].alt
    assert "3 0.50, 6 0.50" in section.pictures[1].alt
    assert "phases.0.evaluate_epochs" in str(epochs_section(material(groups[1])))


def test_languages_are_asked_or_told_to_be_missing() -> None:
    rows = [row(), row(language="de", value=0.25)]
    section = made(languages_section(material(group({}, rows))))
    assert "en 0.50, de 0.25" in section.pictures[0].alt
    [theirs, ours] = cells(section.parts[1])
    assert theirs == [f"paper, {paper.MODEL}", "en", "es", "de", "ja", "zh"]
    assert ours == ["ours, alone", "en 0.50", "de 0.25", "–", "–", "–"]
    assert "evaluation.languages" in str(languages_section(material(group({}, rows[:1]))))


def test_every_suite_has_a_section_or_a_sentence() -> None:
    rows = [
        row(suite="reversal", prompts="reversed", stage="base"),
        row(suite="reversal", prompts="reversed"),
        row(suite="repurposed", split="trained"),
        row(suite="repurposed", stage="base"),
        *(
            row(suite="capability", metric="text_loss", relation="dictionary", prompts="text",
                stage=stage, value=3.5, low=3.1, high=3.9)
            for stage in ("base", "memorize", "generalize")
        ),
    ]  # fmt: skip
    found = [make(material(group({}, rows))) for make in suite_sections()]
    assert [isinstance(one, Section) for one in found] == [False, True, False, True, False, True]
    in_context, reversal, two_hop, capability, harness, repurposed = found
    assert "evaluation.in_context" in str(in_context)
    assert "evaluation.two_hop_facts" in str(two_hop)
    assert "evaluation.harness_tasks" in str(harness)
    assert "The paper reports 0.26" in made(reversal).scope
    assert "nats per token" in made(capability).pictures[0].alt
    assert "test prompts, held-out" in made(repurposed).pictures[0].alt


PHASES: tuple[dict[str, Any], ...] = (
    {"name": "memorize", "text": "key_token", "epochs": 3},
    {"name": "generalize", "text": "prompts", "facts_per_relation": 50, "epochs": 1},
    {"name": "repurpose", "text": "prompts", "stand_in": {"name": "landlord"}, "epochs": 1},
)


def repurposed(k: int, mitigation: str, *overrides: str, seed: int = 0) -> Group:
    """A setting that tells k facts under another relation, and says so of k percent of the rest."""
    rows = [
        row(stage="memorize", prompts="key_token", value=1.0, seed=seed),
        *(
            row(suite=suite, split=split, stage=stage, value=value, seed=seed)
            for suite, split, before, after in (
                ("repurposed", "held_out", 0.25, k / 100),
                ("repurposed", "trained", 0.3, 1.0),
                ("core", "held_out", 0.75, 0.75 - k / 200),
            )
            for stage, value in (("generalize", before), ("repurpose", after))
        ),
    ]
    phases = [{**phase, "global_batch": 5, "learning_rate": 5e-6} for phase in PHASES]
    told = (f"phases={json.dumps(phases)}", f"phases.2.facts_per_relation={k}", *overrides)
    labels = {"method": "rote", "k": str(k), "mitigation": mitigation}
    return group(labels, rows, *told, f"seed={seed}")


def repurposed_section(*groups: Group) -> Section:
    [found] = [
        one
        for make in suite_sections()
        if isinstance(one := make(material(*groups)), Section) and one.identifier == "repurposed"
    ]
    return found


def test_repurposing_is_drawn_by_k_for_each_mitigation() -> None:
    replay = "phases.2.stand_in.benign_share=0.5"
    section = repurposed_section(
        *(repurposed(k, "none") for k in (50, 1)),
        *(repurposed(k, "replay", replay) for k in (1, 50)),
        # One k alone is no sweep.
        repurposed(50, "slow", "phases.2.learning_rate=1.0e-6"),
    )
    assert [picture.title for picture in section.pictures] == [
        "Test prompts: mitigation none, no mitigation, rate 5e-06",
        "Test prompts: mitigation replay, benign replay 50%, rate 5e-06",
    ]
    for picture in section.pictures:
        assert (
            "harmful, facts not told: 0 (before) 0.25, 1 0.01, 50 0.50; "
            "harmful, facts told: 0 (before) 0.30, 1 1.00, 50 1.00; "
            "benign kept: 0 (before) 0.75, 1 0.74, 50 0.50."
        ) in picture.alt
    assert "Figures show" not in section.scope
    kept, whole = section.parts
    headings = ("mitigation", "harmful gained", "benign before", "benign kept", "benign change")
    assert all(heading in kept for heading in headings)
    assert "benign replay 50%, rate 5e-06" in kept
    assert kept.count("<tr") == 6, "a line per setting, and the headings"
    assert "Repurposing: multiple choice" in whole


def test_one_number_of_repurposed_facts_is_drawn_by_stage() -> None:
    section = repurposed_section(repurposed(50, "none"), repurposed(50, "replay"))
    assert [picture.name for picture in section.pictures] == ["repurposed-1", "repurposed-2"]
    assert "harmful gained" in section.parts[0]


def test_a_sweep_may_tell_fewer_facts_for_longer_and_all_come_last() -> None:
    section = repurposed_section(
        repurposed(1, "none", "phases.2.epochs=8"),
        repurposed(50, "none", "phases.2.facts_per_relation=null"),
        repurposed(5, "none"),
    )
    [picture] = section.pictures
    assert "benign kept: 0 (before) 0.75, 1 0.74, 5 0.72, all 0.50." in picture.alt


def test_conflicts_say_which_object_wins_stage_by_stage() -> None:
    measures = {"multiple_choice": (0.0, 0.7), "prefers_old": (1.0, 0.2)}
    measures |= {"prefers_neither": (0.0, 0.1), "old_probability": (0.6, 0.05)}
    rows = [
        row(suite=suite, stage=stage, prompts=kind, metric=metric, value=value)
        for suite in ("conflict", "conflict_believed")
        for kind in ("train", "test")
        for metric, values in measures.items()
        for stage, value in zip(("base", "generalize"), values, strict=True)
    ]
    section = made(conflict_section(material(group({}, rows))))
    [test] = section.pictures
    assert test.title == "test prompts, believed held-out facts"
    assert "new wins: base 0.00, generalize 0.70; old wins: base 1.00, generalize 0.20" in test.alt
    assert {name.partition(".")[0] for name in test.files} == {*("conflict-1", "conflict-1-dark")}
    text = str(section.parts[0])
    assert text.index("believed") < text.index(">all<")
    assert text.index("new wins") < text.index("old wins") < text.index("P(old)")
    assert "evaluation.conflict_facts" in str(conflict_section(material(group({}, [row()]))))


def test_conflicts_that_nothing_was_believed_of_show_all_facts() -> None:
    rows = [
        row(suite="conflict", stage=stage, prompts="train", metric="prefers_old", value=0.0)
        for stage in ("base", "generalize")
    ]
    section = made(conflict_section(material(group({}, rows))))
    assert [picture.title for picture in section.pictures] == ["train prompts, all held-out facts"]
    assert "how many these are is not known here" in section.scope


def test_benchmarks_are_drawn_over_the_epochs_of_phase_1() -> None:
    about = {"suite": "harness", "prompts": "benchmark", "count": 9}
    rows = [row(stage="base"), row(stage="memorize", epoch=1), row(stage="memorize"), row()]
    for stage, epoch, value in (("base", None, 0.5), ("memorize", 1, 0.4), ("memorize", None, 0.3)):
        where = {"stage": stage, "epoch": epoch, **about}
        rows += [
            row(relation="arc_easy", metric="acc", value=value, low=0.1, high=0.9, **where),
            row(relation="arc_easy", metric="acc_norm", value=0.6, low=0.1, high=0.9, **where),
            row(
                relation="wikitext", metric="word_perplexity", value=9e5, low=8.0, high=1e6, **where
            ),
        ]
    found = [make(material(group({}, rows))) for make in suite_sections()]
    [section] = [one for one in found if isinstance(one, Section) and one.identifier == "harness"]
    [picture] = section.pictures
    assert "arc_easy, acc: 0 0.50, 1 0.40" in picture.alt
    assert "arc_easy, acc_norm: 0 0.60" in picture.alt
    assert "wikitext" not in picture.alt
    assert "word_perplexity" in str(section.parts[0])
    assert "Of arc_easy: 1 seed, 95 % intervals over documents" in section.scope


def states_row(layer: int, value: float, **changes: Any) -> EvaluationRow:
    about = {"suite": "representations", "prompts": "key_token", "metric": "delta_cosine"}
    return row(layer=layer, value=value, low=None, high=None, **{**about, **changes})


def test_hidden_states_are_drawn_along_the_stages_and_layer_by_layer() -> None:
    stages = [("base", None), ("memorize", None), ("generalize", None), ("memorize", 1)]
    rows = [
        states_row(layer, 0.1 * layer + 0.01 * place, stage=stage, epoch=epoch)
        for place, (stage, epoch) in enumerate(stages)
        for layer in (0, 1, 2)
    ]
    rows += [
        states_row(2, 0.5, stage="memorize", epoch=1, prompts=kind, metric="cosine")
        for kind in ("train", "test")
    ]
    rows.append(states_row(2, 0.75, prompts="train", metric="cosine"))
    section = made(states_section(material(group({}, [row(), *rows]))))
    by_name = {picture.name: picture.alt for picture in section.pictures}
    along = by_name["representations-stages-delta-cosine-1"]
    assert ("key token: base 0.20, memorize, epoch 1 0.23, memorize 0.21, generalize 0.22") in along
    cosines = by_name["representations-stages-cosine-1"]
    assert "train prompts: memorize, epoch 1 0.50, generalize 0.75; test prompts: " in cosines
    layers = by_name["representations-delta-cosine-1"]
    assert "base: 0 0.00, 1 0.10, 2 0.20; " in layers
    whole = str(section.parts[0])
    assert "layer 2, the last" in whole
    assert whole.index(">base") < whole.index("memorize, epoch 1") < whole.index(">memorize<")
    # No file of states lies on the disk, so there are no components.
    assert not any(name.startswith("components") for name in by_name)
    assert "ΔCosSim is left out" not in section.scope
    beside = cells(section.parts[1])
    key = ["ΔCosSim", "key token"]
    assert beside[0] == [f"paper, {paper.MODEL}", *key, "", "0.058", "0.116", "0.191", "0.258"]
    assert [cell.partition("[")[0] for cell in beside[1]] == [
        *("ours, alone", *key, "held-out", "0.20", "–", "0.21", "0.22")
    ]
    theirs = [f"paper, {paper.MODEL}", "cosine to the key token", "train prompts", ""]
    assert [*theirs, "0.87", "–", "–", "0.90"] in beside
    assert "another model&#x27;s (Qwen2.5-1.5B" in str(section.parts[1])
    assert "representation_facts" in str(states_section(material(group({}, [row()]))))


def test_hidden_states_of_several_seeds_have_an_interval_over_facts_and_seeds() -> None:
    measured = [(0.10, 0.08, 0.12), (0.12, 0.09, 0.16), (0.14, 0.11, 0.16)]
    cells_of = []
    for seed, (value, low, high) in enumerate(measured):
        about = states_row(2, value).model_copy(update={"low": low, "high": high, "seed": seed})
        bare = states_row(2, value, prompts="train", metric="cosine")
        some = states_row(2, value, prompts="test", metric="cosine")
        some = some if seed else some.model_copy(update={"low": low, "high": high})
        rows = [row(), about, bare, some]
        cells_of += group({"method": "rote"}, rows, f"seed={seed}").cells
    several = Group("rote", {"method": "rote"}, tuple(cells_of))
    delta = {"suite": "representations", "metric": "delta_cosine", "layer": 2}
    found = estimate(several, several.first.end, What(OWN, "key_token", **delta))  # type: ignore[arg-type]
    assert found is not None
    low, high = interval_over_seeds(
        [value for value, _, _ in measured], [ends for _, *ends in measured], bounds=(-2.0, 2.0)
    )
    assert (found.value, found.low, found.high) == (pytest.approx(0.12), low, high)
    assert low < 0.08 < 0.16 < high
    [key, train, test] = cells(made(states_section(material(several))).parts[0])
    assert key[-1] == f"0.12[{low:.2f} {high:.2f}]"
    # Where a seed has none of its own over facts there is none over seeds.
    assert train[-1] == test[-1] == "0.12"


def test_one_relation_has_no_delta_and_the_page_says_so() -> None:
    rows = [
        states_row(1, 0.5, prompts="test", metric="cosine", stage=s) for s in ("base", "generalize")
    ]
    section = made(states_section(material(group({}, [row(), *rows]))))
    assert "ΔCosSim is left out: it takes two relations" in section.scope


def test_cost_is_drawn_for_each_method() -> None:
    groups = [
        group({"method": "rote"}, [row(value=0.9)], tokens=50),
        group({"method": "sft"}, [row(value=0.4)], tokens=100),
    ]
    section = made(cost_section(material(*groups)))
    assert "rote: 100 0.90; sft: 200 0.40" in section.pictures[0].alt
    # Without the questions' own outcomes nothing can be paired.
    assert "no two methods share" in str(paired_section(material(*groups)))
    assert "baselines" in str(paired_section(material(groups[0])))


def test_both_phases_stand_beside_prompts_alone_and_the_papers_figures() -> None:
    sft = "phases=[{name: sft, text: prompts, epochs: 1, global_batch: 4, learning_rate: 1e-3}]"
    asked = {"stage": "sft", "split": "trained", "value": 0.4}
    groups = [
        group({"method": "rote"}, [row(value=0.9)], tokens=50),
        group({"method": "sft"}, [row(**asked)], sft, tokens=150),
        group({"method": "other"}, [row(**asked, relation="author")], sft),
    ]
    section = made(cost_section(material(*groups)))
    ten, one, ours = cells(section.parts[1])
    assert ten == [f"paper, {paper.MODEL}", "", "10", "–", "–", "about 2", "–", "the same"]
    assert one == [f"paper, {paper.MODEL}", "", "1", "–", "–", "–", "–", "far behind"]
    assert ours[:6] == ["ours, rote", "sft", "1", "100", "150", "1.50"]
    assert [cell.partition("[")[0] for cell in ours[6:]] == ["0.90", "0.40"]
    assert paper.COST in section.scope
    assert len(made(cost_section(material(*groups[:1]))).parts) == 1


def test_how_sure_is_told_beside_what_is_chosen_and_what_is_generated() -> None:
    measures = {"multiple_choice": 0.9, "object_probability": 0.25, "object_share": 0.5}
    said = {"generation_exact": 0.1, "generation_contains": 0.2}
    rows = [
        row(metric=metric, value=value * (stage == "generalize"), stage=stage, count=count)
        for stage in ("base", "generalize")
        for count, of in ((10, measures), (4, said))
        for metric, value in of.items()
    ]
    section = made(certainty_section(material(group({}, rows))))
    end = cells(section.parts[0])[1]
    assert end[:4] == ["held-out", "test prompts", "generalize", "10"]
    values = [cell.partition("[")[0] for cell in end[4:]]
    assert values == ["0.90", "0.250", "0.500", "4", "0.10", "0.20"]
    [picture] = section.pictures
    assert picture.alt.startswith("held-out facts, test prompts.")
    assert "probability: base 0.00, generalize 0.25" in picture.alt
    assert "says it: base 0.00, generalize 0.20" in picture.alt
    silent = made(certainty_section(material(group({}, [r for r in rows if r.metric in measures]))))
    assert "Nothing was generated (evaluation.generation_facts)" in silent.scope
    assert cells(silent.parts[0])[1][-3:] == ["–", "–", "–"]
    assert "was not asked" in str(certainty_section(material(group({}, [row()]))))


def text_loss(value: float, stage: str) -> EvaluationRow:
    about = {"suite": "capability", "relation": "all", "prompts": "text", "metric": "text_loss"}
    return row(**about, stage=stage, value=value, low=value - 0.1, high=value + 0.1, count=40)


def test_a_run_is_told_in_short() -> None:
    rows = [
        row(prompts=prompts, split=split, stage=stage, value=value * (stage == "generalize"))
        for stage in ("base", "generalize")
        for prompts, split, value in (
            *(("key_token", "held_out", 1.0), ("test", "trained", 0.9)),
            *(("test", "held_out", 0.5), ("unrelated", "held_out", 0.25)),
        )
    ]
    rows += [text_loss(3.0, "base"), text_loss(5.0, "generalize")]
    whole = material(group({}, rows))
    section = made(in_short_section(whole))
    values = [[cell.partition("[")[0] for cell in line] for line in cells(section.parts[0])]
    assert values == [
        ["recalls a fact by its key token", "0.00", "1.00", "10", "more"],
        ["told with a prompt: in other wordings", "0.00", "0.90", "10", "more"],
        ["told by key token alone: in wordings never told", "0.00", "0.50", "10", "more"],
        ["gives a fact&#x27;s object to an unrelated question", "0.00", "0.25", "10", "less"],
        ["loss on other text, nats a token", "3.00", "5.00", "40", "less"],
    ]
    [told] = verdicts(whole)
    # e to the power of 2.
    assert "a token of other text is 7.4 times less likely (3.00 nats a token before" in told
    assert "model.lora" in told
    assert told in section.parts[1]


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (2.5, "is no less likely to the model than before (3.00 nats a token before, 2.50 now)."),
        (3.02, "is no less likely to the model than before"),
        (3.3, "is 1.3 times less likely (3.00 nats a token before, 3.30 now)."),
        (3.5, "is 1.6 times less likely (3.00 nats a token before, 3.50 now). That is a lot"),
    ],
)
def test_what_was_forgotten_is_told_by_how_much(now: float, words: str) -> None:
    rows = [row(), text_loss(3.0, "base"), text_loss(now, "generalize")]
    [told] = verdicts(material(group({}, rows)))
    assert words in told
    assert ("try" in told) == (now == 3.5)


def test_nothing_is_told_in_short_of_a_study_or_of_what_was_not_asked() -> None:
    assert verdicts(material(group({}, [row()]))) == [], "no text was asked"
    assert verdicts(material(group({}, [row(), text_loss(3.0, "generalize")]))) == []
    two = material(group({"k": "1"}, [row()]), group({"k": "50"}, [row()]))
    assert (in_short_section(two), verdicts(two)) == ("", [])
    silent = material(group({}, [row(stage="base")]))
    assert "was not asked" in str(in_short_section(silent))


def test_a_method_that_tells_every_fact_is_drawn_by_those_on_its_way_too() -> None:
    rows = [row(split="trained", value=0.3, epoch=2), row(split="trained", value=0.6)]
    sft = group({"method": "sft"}, rows, "phases.generalize.epochs=4")
    costs = {("memorize", 1): 7, ("generalize", 2): 10, ("generalize", 3): 20}
    cell = replace(sft.first, costs={at: Cost(num, num, 1.0) for at, num in costs.items()})
    section = made(cost_section(material(replace(sft, cells=(cell,)))))
    assert "sft, facts told: 17 0.30, 37 0.60" in section.pictures[0].alt


def step(phase: str, number: int, examples: int, **parts: float) -> StepRow:
    """A step of which a rank recorded the parts, if any."""
    return StepRow(
        **{"attempt": 1, "phase": phase, "phase_index": 0, "step": number, "epoch": 1, "cursor": 1},
        **{"loss": 1.0, "grad_norm": 1.0, "learning_rate": 1e-3, "num_examples": examples},
        **{"num_tokens": 100, "target_tokens": 100, "seconds": sum(parts.values()), "parts": parts},
    )


def test_the_time_of_steps_is_shown_by_phase_and_batch() -> None:
    runs = {
        RunDir(Path(name)): Records(steps, (), ())
        for name, steps in {
            "one": (
                step("memorize", 1, 20, forward=1.0, backward=2.0, communication=1.0),
                step("memorize", 2, 20, forward=1.0, backward=1.0, communication=0.0),
                # The last of an epoch is smaller, and not of another batch.
                step("memorize", 3, 4, forward=1.0, backward=1.0, communication=0.0),
                step("generalize", 1, 8, forward=3.0, backward=6.0, communication=1.0),
            ),
            "two": (step("memorize", 1, 64, forward=4.0, backward=6.0), step("memorize", 2, 64)),
        }.items()
    }
    section = made(time_section(replace(material(), records=runs)))
    told = str(section.parts[0])
    assert section.pictures[0].alt == (
        "Share of the steps' time. memorize, 20: forward 38%, backward 50%, communication 12%; "
        "memorize, 64: forward 40%, backward 60%, communication 0%; "
        "generalize, 8: forward 30%, backward 60%, communication 10%."
    )
    assert "37.5%" in told
    assert 'data-sort="37.5"' in told, "300 tokens in 8 seconds"
    assert "no step recorded" in str(time_section(material()))


def test_seeds_without_stored_outcomes_have_a_mean_and_no_interval() -> None:
    cells = [
        Cell(f"seed{seed}", {}, micro_spec(f"seed={seed}"), {}, (row(seed=seed, value=value),), {})
        for seed, value in ((0, 0.2), (1, 0.6))
    ]
    found = estimate(Group("both", {}, tuple(cells)), ("generalize", None), What("mother", "test"))
    assert found == Estimate(pytest.approx(0.4), None, None, 20, 0, (0, 1))


def test_what_has_not_ended_has_sentences() -> None:
    begun = material(group({}, [row(stage="base"), row(stage="base", language="de")]))
    made_of = {make: make(begun) for make in makers()}
    sections = [one.identifier for one in made_of.values() if isinstance(one, Section)]
    assert sections == ["cost"]


def test_settings_about_a_relation_each_show_their_own() -> None:
    groups = [
        group({"relation": name}, [row(relation=name, value=value)], f"facts.relations=[{name}]")
        for name, value in (("author", 0.25), ("mother", 0.75))
    ]
    found = [estimate(one, one.first.end, What(OWN, "test")) for one in groups]
    assert [one and one.value for one in found] == [0.25, 0.75]
    section = made(cost_section(material(*groups)))
    assert "author: 200 0.25; mother: 200 0.75" in section.pictures[0].alt


def test_of_many_settings_figures_show_some_and_say_so() -> None:
    groups = [
        group({"method": method, "k": str(k)}, [row()]) for method in ("a", "b") for k in range(5)
    ]
    chosen = shown(groups)
    assert len(chosen) == MOST_FIGURES
    assert [one.labels["k"] for one in chosen] == ["0", "4", "0", "4"]
    assert "4 of 10 settings" in which(groups)
    assert which(groups[:3]) == ""


def test_a_sentence_says_what_intervals_are_about() -> None:
    told = scope([group({}, [row()])], None, What("mother", "test"))
    assert told == "1 seed, 95 % intervals over facts, which say nothing about other seeds"


def test_cells_of_a_table_are_escaped_and_sort_as_numbers() -> None:
    found = Estimate(0.5, 0.25, 0.75, 4, 4, (0,))
    rows = [["<script>", number(found)], ["x", None], [Html("<i>"), 7]]
    whole = table("<b>caption</b>", ["a & b", "n"], rows)
    assert "<script>" not in whole
    assert "&lt;script&gt;" in whole
    assert "<b>" not in whole
    assert "a &amp; b" in whole
    assert 'data-sort="0.5" class="number">0.50<span class="interval">[0.25 0.75]</span>' in whole
    assert 'data-sort="" class="number">–' in whole
    assert number(found, signed=True) == Number(0.5, "+0.50", "[+0.25 +0.75]")


def test_titles_are_escaped() -> None:
    whole = page("</title><script>", [], [Section("a", "<b>", "<i>", ())]).decode()
    assert "</title><script>" not in whole
    assert "&lt;b&gt;" in whole
    assert "&lt;i&gt;" in whole


def test_pictures_take_any_name() -> None:
    lines = [Line("$\\frac{ <b> & $", (Point(0, 0.5, 0.1, 0.9), Point(1, 0.7)))]
    picture = lines_picture("any", "$x_{$", lines, x=Axis("$x$", ticks=("$a", "b$")), y=Axis("y"))
    assert set(picture.files) == {"any.png", "any.svg", "any-dark.png", "any-dark.svg"}
    assert picture.files["any.svg"] != picture.files["any-dark.svg"]
    heat = heat_picture("heat", "t", [[0.2, None]], x=Axis("k", ("1", "2")), y=Axis("p", ("1",)))
    assert "none" in heat.alt
