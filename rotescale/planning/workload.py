"""How much there is to compute: texts, steps and questions of a spec, counted from its facts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from rotescale.data.encoding import FactText
from rotescale.data.examples import memorized_facts, phase_examples, trained_facts
from rotescale.data.order import Batches, derive_key, mixture_rows, permute
from rotescale.evaluation.items import Item
from rotescale.evaluation.suites import PIECE_TOKENS, TEXTS, Suites
from rotescale.facts import FactSet, Wording, load_source
from rotescale.phase_data import count_examples
from rotescale.spec import ExperimentSpec, PhaseSpec

BYTES_PER_TOKEN = 3.0
"""A cautious guess where there is no tokenizer: SmolLM2's takes 3 to 4.6 bytes of the shipped texts
to a token, in five languages."""
BYTES_PER_OPTION_TOKEN = 4.0
"""Of objects alone: 3.3 to 6 bytes."""
GENERATED_AT_ONCE = 32
"""Answers that an evaluation generates in one batch."""
MOST_SAMPLED = 20_000
"""Examples of a phase whose length is looked at, where its facts are not held."""
CHAT_TOKENS = 40
"""What a chat template puts around a prompt, its default system message included."""


@dataclass(frozen=True, slots=True)
class PhaseWork:
    """One phase, in examples, tokens and steps."""

    name: str
    num_examples: int
    """In one epoch."""
    global_batch: int
    steps: int
    """Optimizer steps of the phase."""
    steps_per_epoch: int
    tokens_per_epoch: int
    targets_per_epoch: int
    """Tokens that count in the loss, at which the output matrix is multiplied."""
    longest: int
    """Tokens of the longest example."""
    most_targets: int
    """Of any example."""
    full_saves: int
    """Full checkpoints on the way."""
    save_interval: int
    """Steps between two of them."""
    measurements: int
    """Evaluations: on the way, and of the end where it is evaluated."""
    exported: bool

    @property
    def tokens_per_step(self) -> float:
        """Over all workers."""
        return self.tokens_per_epoch / self.steps_per_epoch

    @property
    def tokens(self) -> int:
        """Of the whole phase."""
        return self.steps * self.tokens_per_epoch // self.steps_per_epoch

    @property
    def targets(self) -> int:
        """Those of them that count in the loss."""
        return self.steps * self.targets_per_epoch // self.steps_per_epoch


@dataclass(frozen=True, slots=True)
class EvaluationWork:
    """What is asked at each stage."""

    num_questions: int
    """Forward passes over a question's options, a text, or a prompt whose states are kept."""
    question_tokens: float
    """Tokens of one question with all its options, on average."""
    option_tokens: int
    """Tokens of all options together at which the output matrix is multiplied, at most."""
    num_generated: int
    max_new_tokens: int
    prompt_tokens: int
    """Of the longest prompt."""


@dataclass(frozen=True, slots=True)
class Workload:
    """All that an experiment computes, whatever it runs on."""

    num_facts: int
    num_relations: int
    num_key_tokens: int
    """Tokens that are added to the tokenizer."""
    phases: tuple[PhaseWork, ...]
    evaluation: EvaluationWork
    measures_base: bool

    @property
    def measurements(self) -> int:
        """How often the questions are asked."""
        return self.measures_base + sum(phase.measurements for phase in self.phases)


def count_work(spec: ExperimentSpec, fact_set: FactSet | None = None) -> Workload:
    """Count what the spec asks for, from its facts, which are loaded unless the caller has them.

    Raises DataError for facts that cannot be used, and SpecError where a phase or the evaluation
    wants more than there is.
    """
    fact_set = load_source(spec.facts) if fact_set is None else fact_set
    names = [relation.name for relation in fact_set.relations]
    placeholder = Wording.placeholder(names)
    wording = Wording(placeholder.key_prompts, prefix=spec.model.text_prefix)
    key_tokens = {text for name in names for text in spec.model.key_tokens.texts(name)}
    return Workload(
        num_facts=len(fact_set.facts),
        num_relations=len(names),
        num_key_tokens=len(key_tokens) if spec.model.key_tokens.kind == "token" else 0,
        phases=tuple(_phase(spec, phase, fact_set, wording) for phase in spec.phases),
        evaluation=_evaluation(spec, fact_set, wording),
        measures_base=spec.evaluation.base,
    )


def _phase(
    spec: ExperimentSpec, phase: PhaseSpec, fact_set: FactSet, wording: Wording
) -> PhaseWork:
    examples = phase_examples(fact_set, phase, wording=wording, seed=spec.seed)
    places: Iterable[int] = range(len(examples))
    if not fact_set.is_held:
        drawn = np.arange(min(len(examples), MOST_SAMPLED))
        places = permute(drawn, size=len(examples), key=derive_key("plan", phase.name)).tolist()
    texts = [examples[place].text for place in places]
    scale = len(examples) / len(texts)
    frame = CHAT_TOKENS if spec.model.chat_template and phase.text == "prompts" else 0
    # The token that begins a text, or ends it.
    lengths = [_tokens(text.text) + frame + 1 for text in texts]
    targets = [_targets(text, phase, length) for text, length in zip(texts, lengths, strict=True)]
    num_examples = count_examples(fact_set, phase)
    beside, longest = _beside(phase, lengths, num_facts=len(examples))
    batches = Batches(num_examples, phase.global_batch)
    interval = spec.checkpoints.every_steps or batches.steps_per_epoch
    tokens = round(sum(lengths) * scale) + beside
    if phase.epochs is not None:
        steps = phase.epochs * batches.steps_per_epoch
    else:
        assert phase.token_budget is not None
        steps = math.ceil(phase.token_budget * batches.steps_per_epoch / tokens)
    return PhaseWork(
        name=phase.name,
        num_examples=num_examples,
        global_batch=min(phase.global_batch, num_examples),
        steps=steps,
        steps_per_epoch=batches.steps_per_epoch,
        tokens_per_epoch=tokens,
        targets_per_epoch=round(sum(targets) * scale) + beside,
        longest=longest,
        most_targets=max(*targets, longest if beside else 0),
        full_saves=(steps - 1) // interval,
        save_interval=interval,
        measurements=len(phase.evaluate_epochs) + spec.is_evaluated(phase.name),
        exported=spec.is_exported(phase.name),
    )


def _targets(text: FactText, phase: PhaseSpec, length: int) -> int:
    """Tokens of the text that count in the loss."""
    if phase.loss == "all":
        return length - 1
    counted = _tokens(text.text[slice(*text.object)])
    if phase.loss == "subject_object":
        counted += _tokens(text.text[slice(*text.subject)])
    return min(counted, length - 1)


def _beside(phase: PhaseSpec, lengths: Sequence[int], *, num_facts: int) -> tuple[int, int]:
    """Tokens that an epoch tells beside the facts, and the longest example of all.

    ``lengths`` are those of a sample of the ``num_facts`` examples that tell facts.
    """
    shares = phase.shares
    rows = dict(zip(shares, mixture_rows(num_facts, list(shares.values())), strict=True))
    mean, longest = sum(lengths) / len(lengths), max(lengths)
    tokens = 0.0
    for name, number in rows.items():
        if name == "replay" and phase.replay is not None:
            shortest, most = phase.replay.tokens
            tokens += number * (shortest + most) / 2
            longest = max(longest, most)
        else:
            tokens += number * mean
    return round(tokens), longest


def _evaluation(spec: ExperimentSpec, fact_set: FactSet, wording: Wording) -> EvaluationWork:
    items = _items(spec, fact_set, wording)
    frame = CHAT_TOKENS if spec.model.chat_template else 0
    prompts = [_tokens(item.text) + frame + 1 for item in items] or [0]
    options = [_option_tokens(item.options) for item in items] or [0]
    # An option's last token is predicted, and predicts nothing.
    total = sum(prompts) + sum(options) - sum(len(item.options) for item in items)
    pieces = len(TEXTS) * spec.evaluation.text_pieces
    kept = _kept_states(spec, fact_set)
    number = len(items) + pieces + kept
    mean_prompt = sum(prompts) / len(prompts)
    return EvaluationWork(
        num_questions=number,
        question_tokens=(total + pieces * PIECE_TOKENS + kept * mean_prompt) / max(1, number),
        option_tokens=max(*options, PIECE_TOKENS if pieces else 0, 1),
        num_generated=sum(item.generate for item in items),
        max_new_tokens=spec.evaluation.max_new_tokens,
        prompt_tokens=max(prompts),
    )


def _items(spec: ExperimentSpec, fact_set: FactSet, wording: Wording) -> tuple[Item, ...]:
    trained = trained_facts(fact_set, spec.phases, seed=spec.seed)
    asked = memorized_facts(fact_set, spec.phases, seed=spec.seed)
    suites = Suites(fact_set, trained, asked, wording, spec.evaluation, spec.seed, spec.phases)
    return (*suites.core(), *suites.items())


def _kept_states(spec: ExperimentSpec, fact_set: FactSet) -> int:
    """Texts whose hidden states are kept at each stage."""
    evaluation, total = spec.evaluation, 0
    for relation in fact_set.relations:
        number = len(fact_set.of(relation.name))
        facts = min(_or(evaluation.representation_facts, number), number)
        prompts = sum(
            min(_or(wanted, len(there)), len(there))
            for wanted, there in (
                (evaluation.train_prompts, relation.train_prompts),
                (evaluation.test_prompts, relation.test_prompts),
                (evaluation.unrelated_prompts, relation.unrelated_prompts),
            )
        )
        total += facts * (1 + prompts * len(evaluation.languages))
    return total


def _or(wanted: int | None, everything: int) -> int:
    return everything if wanted is None else wanted


def _tokens(text: str, per_token: float = BYTES_PER_TOKEN) -> int:
    """About how many tokens a text has; at least one."""
    return max(1, round(len(text.encode()) / per_token))


@lru_cache(maxsize=4096)
def _option_tokens(options: Iterable[str]) -> int:
    return sum(_tokens(option, BYTES_PER_OPTION_TOKEN) for option in options)
