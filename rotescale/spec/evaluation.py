"""What is measured at each stage."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import (
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from rotescale.errors import SpecError
from rotescale.spec.base import BASE_LANGUAGE, Language, Name, Part


class EvaluationSpec(Part):
    """Which sample is scored at each stage; null means all of it. Draws are seeded."""

    base: bool = True
    """Evaluate before the first phase."""
    phases: tuple[Name, ...] | None = None
    """The phases whose end is evaluated; default: all of them."""
    trained_facts: NonNegativeInt | None = 25
    """Facts per relation of the trained split (those with prompts in a phase)."""
    held_out_facts: NonNegativeInt | None = 50
    """Facts per relation of the held-out split."""
    key_token_facts: NonNegativeInt | None = 100
    """Facts per relation asked with the key token, over both splits."""
    train_prompts: NonNegativeInt | None = 1
    """The first n train prompts."""
    test_prompts: NonNegativeInt | None = 3
    """The first n test prompts."""
    unrelated_prompts: NonNegativeInt | None = 3
    """The first n unrelated prompts."""
    languages: tuple[Language, ...] = (BASE_LANGUAGE,)
    """Languages that train, test and unrelated prompts are asked in, the same ones in each; the key
    token and the controls are asked in English only. English is always among them."""
    control_facts: NonNegativeInt | None = 25
    """Facts per relation and split for the wrong-relation and the reversed-direction control."""
    generation_facts: NonNegativeInt | None = 25
    """Facts per relation and split for greedy generation, with the first prompt of each kind;
    null: all facts with every prompt."""
    in_context: tuple[PositiveInt, ...] = ()
    """Suite in_context_n: the first train and test prompt behind n facts, the one asked about among
    them; for each n."""
    in_context_words: Literal["prompt", "key_token"] = "prompt"
    """How in_context tells its facts: with the first train prompt, as phase 2 does, or with the key
    token, as phase 1 does, which no untrained model has met."""
    in_context_facts: NonNegativeInt = 25
    """Facts per relation and split for in_context."""
    reversal_facts: NonNegativeInt = 0
    """Suite reversal: facts per relation and split asked from the object to the subject, with
    prompts of the reversed direction (the control ``reversed`` uses the forward prompt)."""
    two_hop_facts: NonNegativeInt = 0
    """Suite two_hop: facts whose object another of the facts tells something of."""
    conflict_facts: NonNegativeInt = 0
    """Suite conflict: facts per relation, over both splits, that have an old object, asked with the
    key token and the train and test prompts above. Which of them the untrained model holds is
    measured at stage base, with the first train prompt: suite conflict_believed is about these."""
    text_pieces: NonNegativeInt = 0
    """Suite capability: pieces of 256 tokens of each public-domain text whose loss is measured."""
    harness_tasks: tuple[str, ...] = ()
    """Suite harness: tasks, groups and tags of the lm-evaluation-harness (the extra ``harness``),
    by name, with as many examples in front as the task says; ``rotescale_continuation`` and
    ``rotescale_last_word`` are shipped with their data."""
    harness_folder: str | None = None
    """A folder with task files (YAML) of your own, the harness's ``include_path``; at every start
    of workers the first one reads it. They may run code, which ``allow_task_code`` of the launch
    spec must allow."""
    harness_limit: PositiveInt | None = None
    """The first n documents of each task; null: all."""
    max_new_tokens: PositiveInt = 50
    """Length limit of greedy generation."""
    bootstrap_samples: PositiveInt = 10_000
    """Resamplings behind a 95 % interval."""
    representation_facts: NonNegativeInt | None = 0
    """Facts per relation, over both splits, whose hidden states are kept, with the key token and
    with the prompts above; 0: none."""
    representation_dtype: Literal["float32", "float16"] = "float32"
    """The dtype in which hidden states are kept."""

    @model_validator(mode="after")
    def _compares_languages(self) -> EvaluationSpec:
        if BASE_LANGUAGE not in self.languages:
            raise ValueError(
                f"languages {list(self.languages)} lacks {BASE_LANGUAGE!r}, which the other "
                "languages and the controls are compared with; add it"
            )
        if len(set(self.languages)) != len(self.languages):
            raise ValueError(
                f"languages {list(self.languages)} names a language twice; name each once"
            )
        return self

    @model_validator(mode="after")
    def _belief_has_a_prompt(self) -> EvaluationSpec:
        if self.conflict_facts and self.train_prompts == 0:
            raise ValueError(
                f"conflict_facts {self.conflict_facts}: what the model believes is measured with "
                "the first train prompt, but train_prompts is 0; set it to 1 or more"
            )
        return self

    @model_validator(mode="after")
    def _names_tasks_once(self) -> EvaluationSpec:
        if len(set(self.harness_tasks)) != len(self.harness_tasks):
            raise ValueError(
                f"harness_tasks {list(self.harness_tasks)} names a task twice; name each once"
            )
        return self

    def require_code_allowed(self, allowed: bool) -> None:
        """SpecError where tasks of ``harness_folder`` are asked and may not run code."""
        if self.harness_tasks and self.harness_folder is not None and not allowed:
            raise SpecError(
                f"evaluation.harness_folder: {self.harness_folder!r} holds tasks that may run any "
                "code where the run does, and this place does not allow it; read them, then set "
                "allow_task_code: true in the launch spec (rotescale evaluate: --allow-task-code), "
                "or leave the folder out"
            )


def full_sample(spec: EvaluationSpec) -> EvaluationSpec:
    """The same evaluation with nothing sampled; hidden states stay off where they are off."""
    sampled = {
        name: None
        for name, field in EvaluationSpec.model_fields.items()
        if type(None) in get_args(field.annotation) and name not in ("phases", "harness_folder")
    }
    if spec.representation_facts == 0:
        del sampled["representation_facts"]
    return spec.model_copy(update=sampled)
