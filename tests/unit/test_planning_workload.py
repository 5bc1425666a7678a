"""What there is to compute, counted from the facts as a run counts it."""

from __future__ import annotations

import pytest
from planning_helpers import experiment, work_of

from rotescale.data.examples import memorized_facts, trained_facts
from rotescale.evaluation.items import build_items
from rotescale.evaluation.suites import PIECE_TOKENS
from rotescale.facts import Wording, load_source
from rotescale.phase_data import count_examples
from rotescale.planning.workload import BYTES_PER_TOKEN, CHAT_TOKENS

DEMO = "smollm2-135m-demo"


def test_the_demo_has_the_steps_and_questions_that_it_has() -> None:
    work = work_of(DEMO)
    memorize, generalize = work.phases
    # 100 facts in batches of 20, 20 times; 50 of them 3 times.
    assert (memorize.num_examples, memorize.steps_per_epoch, memorize.steps) == (100, 5, 100)
    assert (generalize.num_examples, generalize.steps_per_epoch, generalize.steps) == (50, 3, 9)
    # The table in the README: 176 questions of the core, 6 facts of 12 kinds generated.
    assert (work.evaluation.num_questions, work.evaluation.num_generated) == (176, 72)
    assert work.measurements == 3
    assert (work.num_facts, work.num_relations, work.num_key_tokens) == (100, 1, 1)


@pytest.mark.parametrize("name", ["micro", "llama-3.1-70b"])
def test_examples_and_questions_are_those_of_the_run(name: str) -> None:
    spec, work = experiment(name), work_of(name)
    fact_set = load_source(spec.facts)
    assert [phase.num_examples for phase in work.phases] == [
        count_examples(fact_set, phase) for phase in spec.phases
    ]
    items = build_items(
        fact_set,
        trained=trained_facts(fact_set, spec.phases, seed=spec.seed),
        asked=memorized_facts(fact_set, spec.phases, seed=spec.seed),
        wording=Wording.placeholder(relation.name for relation in fact_set.relations),
        spec=spec.evaluation,
        seed=spec.seed,
    )
    pieces = 2 * spec.evaluation.text_pieces
    assert work.evaluation.num_questions == len(items) + pieces
    assert work.evaluation.num_generated == sum(item.generate for item in items)


def test_tokens_are_told_from_the_texts() -> None:
    work = work_of(DEMO)
    fact_set = load_source(experiment(DEMO).facts)
    told = sum(len(f"{fact.subject} [X] {fact.object}.") for fact in fact_set.facts)
    [memorize, _] = work.phases
    assert memorize.tokens_per_epoch == pytest.approx(told / BYTES_PER_TOKEN + 100, rel=0.02)
    assert memorize.targets_per_epoch == memorize.tokens_per_epoch - 100
    assert memorize.longest < 40


def test_a_budget_of_tokens_takes_as_many_steps_as_it_needs() -> None:
    epochs = work_of(DEMO).phases[0]
    budget = epochs.tokens_per_epoch * 3 // 2
    work = work_of(DEMO, "phases.0.epochs=null", f"phases.0.token_budget={budget}").phases[0]
    # One and a half epochs of five steps.
    assert (work.steps_per_epoch, work.steps) == (5, 8)
    assert budget <= work.tokens < budget + work.tokens_per_step
    assert work.targets == 8 * work.targets_per_epoch // 5
    assert epochs.tokens == 20 * epochs.tokens_per_epoch


def test_loss_on_objects_has_fewer_targets() -> None:
    memorize, generalize = work_of(DEMO).phases
    assert generalize.targets_per_epoch < generalize.tokens_per_epoch / 3
    assert generalize.most_targets < memorize.most_targets


def test_full_checkpoints_are_those_on_the_way() -> None:
    # Every 50 steps of 100, the last being the phase's end; of 9 steps none.
    assert [phase.full_saves for phase in work_of(DEMO).phases] == [1, 0]
    every = work_of(DEMO, "checkpoints.every_steps=30")
    assert [phase.full_saves for phase in every.phases] == [3, 0]
    each_epoch = work_of("micro")
    assert [phase.full_saves for phase in each_epoch.phases] == [2, 1]


def test_measurements_on_the_way_count() -> None:
    spec = ("phases.0.evaluate_epochs=[1, 2]", "evaluation.base=false")
    assert work_of("micro", *spec).measurements == 4
    ends = work_of("micro", "evaluation.phases=[generalize]", "checkpoints.export=last")
    assert [phase.measurements for phase in ends.phases] == [0, 1]
    assert [phase.exported for phase in ends.phases] == [False, True]


def test_a_chat_template_makes_prompts_longer() -> None:
    plain, chat = work_of(DEMO), work_of(DEMO, "model.chat_template=true")
    assert chat.phases[0] == plain.phases[0], "phase 1's text stays plain"
    assert chat.phases[1].longest == plain.phases[1].longest + CHAT_TOKENS
    assert chat.evaluation.prompt_tokens > plain.evaluation.prompt_tokens


def test_replay_and_texts_are_longer_than_facts() -> None:
    replay = work_of(DEMO, "phases.0.replay={share: 0.5, tokens: [100, 300]}").phases[0]
    assert (replay.num_examples, replay.longest, replay.most_targets) == (200, 300, 300)
    facts = work_of(DEMO).phases[0].tokens_per_epoch
    assert replay.tokens_per_epoch == facts + 100 * 200
    texts = work_of(DEMO, "evaluation.text_pieces=100").evaluation
    assert texts.num_questions == 176 + 200
    assert texts.option_tokens >= PIECE_TOKENS


def test_kept_hidden_states_are_passes_too() -> None:
    kept = work_of(DEMO, "evaluation.representation_facts=10").evaluation
    # With the key token, and 1 train, 2 test and 1 unrelated prompts.
    assert kept.num_questions == 176 + 10 * 5


def test_baselines_without_a_key_token_add_none() -> None:
    assert work_of("micro", "model.key_tokens={kind: none}").num_key_tokens == 0
    word = "model.key_tokens={kind: word, template: blicket}"
    assert work_of("micro", word).num_key_tokens == 0
    many = "model.key_tokens={template: '[X{number}:{relation}]', count: 3}"
    assert work_of("micro", many).num_key_tokens == 3
