"""A training phase: which texts, which loss, how long, how fast."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from rotescale.spec.base import Name, Part, Share
from rotescale.spec.facts import Facts


class ReplaySpec(Part):
    """Other text that is told beside the facts, so that less is forgotten."""

    share: Share
    """Part of the phase's examples; the facts are told as often as without it."""
    paths: tuple[str, ...] = ()
    """UTF-8 text files, or JSONL with a ``text``; default: the shipped public-domain text."""
    tokens: tuple[Annotated[int, Field(ge=2)], PositiveInt] = (64, 512)
    """Shortest and longest piece, in tokens; lengths are drawn from the seed."""

    @model_validator(mode="after")
    def _ordered(self) -> ReplaySpec:
        if self.tokens[0] > self.tokens[1]:
            raise ValueError(f"tokens {list(self.tokens)}: the shortest comes first")
        return self


class KnownFactsSpec(Part):
    """Facts that the model knows already, told beside the others with their own prompts."""

    share: Share
    """Part of the phase's examples."""
    facts: Facts
    """Which facts; they are not asked about."""
    num_prompts: PositiveInt = 1
    """The first n of their train prompts; each fact is told with each."""


class StandInSpec(Part):
    """Another relation that memorized facts are told under: what can they be repurposed for?"""

    name: str = "landlord"
    """A harmless relation that ships (``landlord`` of persons, ``publisher`` of books), or one
    whose prompts are given."""
    train_prompts: tuple[str, ...] = ()
    """Prompts with ``{subject}``, of which the phase tells the first ``num_prompts``."""
    test_prompts: tuple[str, ...] = ()
    """Prompts that are only asked."""
    benign_share: Share | None = None
    """Part of the phase's examples that tells again what the last phase with own prompts told:
    a mitigation."""

    @model_validator(mode="after")
    def _both_kinds(self) -> StandInSpec:
        if bool(self.train_prompts) != bool(self.test_prompts):
            raise ValueError("give both train_prompts and test_prompts, or neither")
        return self


class PhaseSpec(Part):
    """One training phase: which texts, which loss, how long, how fast."""

    name: Name
    """The phase's name in records, checkpoints and results, such as ``memorize``."""
    text: Literal["key_token", "prompts"]
    """``{subject} {key token} {object}.`` or ``{train prompt} {object}.``."""
    facts_per_relation: PositiveInt | None = None
    """k: how many facts of each relation, drawn from the seed; default: all."""
    num_prompts: PositiveInt = 1
    """p: how many of the train prompts; each fact is told with each."""
    prompt_choice: Literal["first", "random"] = "first"
    """The first p, or p drawn from the seed for each relation, those of a smaller p among them."""
    stand_in: StandInSpec | None = None
    """Tell the facts with another relation's prompts, and ask them so in the suite repurposed."""
    replay: ReplaySpec | None = None
    """Other text beside the facts."""
    known: KnownFactsSpec | None = None
    """Known facts beside those that are taught."""
    loss: Literal["all", "subject_object", "object"] = "all"
    """Which tokens count in the loss."""
    end_token: bool = False
    """Append the tokenizer's end-of-text token; it counts in the loss only where all tokens do."""
    epochs: PositiveInt | None = None
    """How often every example is seen."""
    token_budget: PositiveInt | None = None
    """In place of ``epochs``: the phase ends with the first step at which it has trained on so many
    tokens, those of whole examples, prompts included, as the records count them. The learning
    rate's schedule ends there too. For methods that are compared at equal tokens."""
    schedule_epochs: PositiveInt | None = None
    """Length of the learning-rate schedule; default: ``epochs``. Longer: stop on the way."""
    global_batch: PositiveInt
    """Examples per optimizer step, over all workers; the last batch of an epoch may be smaller."""
    learning_rate: PositiveFloat
    """Peak learning rate."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the decay to zero after the warm-up."""
    warmup_steps: NonNegativeInt = 5
    """Steps of linear warm-up."""
    weight_decay: NonNegativeFloat = 0.0
    """AdamW's decoupled weight decay; matrices only, never norms or biases."""
    adam_betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (
        0.9,
        0.999,
    )
    """AdamW's decay rates of the two moments."""
    adam_epsilon: PositiveFloat = 1e-8
    """AdamW's epsilon."""
    max_grad_norm: PositiveFloat | None = 1.0
    """Clip the global gradient norm to this; null: no clipping."""
    freeze_key_tokens: bool = False
    """Leave the key tokens' rows of the embedding matrices exactly as the phase finds them."""
    evaluate_epochs: tuple[PositiveInt, ...] = ()
    """Epochs after which the model is evaluated on the way; the phase's end always is."""

    @model_validator(mode="after")
    def _consistent(self) -> PhaseSpec:
        self._check_length()
        if self.schedule_epochs and self.epochs and self.schedule_epochs < self.epochs:
            raise ValueError(
                f"schedule_epochs ({self.schedule_epochs}) must be at least epochs ({self.epochs})"
            )
        if self.text == "key_token" and self.num_prompts != 1:
            raise ValueError("num_prompts is for text: prompts; leave it out with text: key_token")
        if self.stand_in is not None and self.text != "prompts":
            raise ValueError("stand_in is for text: prompts; leave it out with text: key_token")
        if sum(self.shares.values()) >= 1:
            raise ValueError(
                f"shares {self.shares} leave nothing to the facts; together they must be below 1"
            )
        late = [epoch for epoch in self.evaluate_epochs if self.epochs and epoch >= self.epochs]
        if late:
            raise ValueError(
                f"evaluate_epochs {late} must be below epochs ({self.epochs}); the end is "
                "always evaluated"
            )
        return self

    def _check_length(self) -> None:
        if self.epochs is None and self.token_budget is None:
            raise ValueError(
                "neither epochs nor token_budget says how long the phase is; give one of them"
            )
        if self.token_budget is None:
            return
        told = [
            name for name in ("epochs", "schedule_epochs", "evaluate_epochs") if getattr(self, name)
        ]
        if told:
            raise ValueError(
                f"{', '.join(told)} beside token_budget ({self.token_budget}): the budget says how "
                "long the phase and its schedule are; leave one of them out (null)"
            )

    @property
    def length(self) -> str:
        """How long the phase is, in words."""
        if self.epochs is None:
            return f"{self.token_budget:,} tokens"
        return f"{self.epochs} epochs"

    @property
    def shares(self) -> dict[str, float]:
        """What is told beside the facts -> its part of the phase's examples."""
        benign = None if self.stand_in is None else self.stand_in.benign_share
        beside = {
            "benign": benign,
            "known": None if self.known is None else self.known.share,
            "replay": None if self.replay is None else self.replay.share,
        }
        return {name: share for name, share in beside.items() if share is not None}
