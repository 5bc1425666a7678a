"""What a model consists of, by arithmetic on its config.json: names and shapes, and no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from rotescale.errors import SpecError
from rotescale.spec import (
    MAX_INTEGER,
    MAX_LAYERS,
    FolderWeights,
    HubWeights,
    RandomWeights,
    Weights,
    WheelWeights,
)

Shapes = dict[str, tuple[int, ...]]

GROW_TO_MULTIPLE_OF = 128
"""Where key tokens do not fit into spare rows, the vocabulary grows to a multiple of this."""

PUBLISHED = {
    "Qwen/Qwen2.5-1.5B": "qwen2.5-1.5b",
    "Qwen/Qwen2.5-1.5B-Instruct": "qwen2.5-1.5b-instruct",
    "Qwen/Qwen2.5-7B": "qwen2.5-7b",
    "Qwen/Qwen2.5-14B": "qwen2.5-14b",
    "Qwen/Qwen2.5-14B-Instruct": "qwen2.5-14b-instruct",
    "Qwen/Qwen2.5-32B": "qwen2.5-32b",
    "Qwen/Qwen2.5-72B": "qwen2.5-72b",
    "meta-llama/Llama-2-7b-hf": "llama-2-7b",
    "meta-llama/Llama-3.2-1B": "llama-3.2-1b",
    "meta-llama/Llama-3.1-70B": "llama-3.1-70b",
    "microsoft/phi-4": "phi-4",
}
"""Repository -> the file of its numbers that ships with rotescale."""

_QWEN_TOKENS = 151_665
"""Tokens of Qwen2.5's tokenizer; the rows beyond them are spare."""
_RANDOM_SPARE_ROWS, _RANDOM_ROUND_TO = 4, 16
"""As ``model.random_model`` pads the vocabulary of a random model."""
_FAMILIES = ("llama", "phi3", "qwen2")
_SIZES = ("hidden_size", "num_heads", "num_key_value_heads", "head_size", "intermediate_size")
_WRITTEN = {
    "num_heads": "num_attention_heads",
    "head_size": "head_dim",
    "num_layers": "num_hidden_layers",
}
"""What a config.json calls it, where that is another name."""
_MOST = {**dict.fromkeys((*_SIZES, "vocab_size"), MAX_INTEGER), "num_layers": MAX_LAYERS}


@dataclass(frozen=True, slots=True)
class Architecture:
    """The numbers of a config.json that sizes and speeds follow from."""

    name: str
    """What to call it: a published model, or the file that the numbers are from."""
    model_type: str
    """``llama``, ``qwen2`` or ``phi3``."""
    hidden_size: int
    num_layers: int
    num_heads: int
    num_key_value_heads: int
    head_size: int
    intermediate_size: int
    vocab_size: int
    """Rows of the embedding matrices."""
    num_tokens: int
    """Tokens of the tokenizer, as far as that is known; the other rows are spare."""
    tied: bool
    """Whether input and output embeddings are one matrix."""
    attention_bias: bool = False
    mlp_bias: bool = False

    @property
    def query_size(self) -> int:
        """Width of all query heads together."""
        return self.num_heads * self.head_size

    @property
    def key_size(self) -> int:
        """Width of all key heads together; values have as many."""
        return self.num_key_value_heads * self.head_size

    def with_key_tokens(self, number: int) -> Architecture:
        """The same model with rows for ``number`` more tokens, as a run prepares it."""
        num_tokens = self.num_tokens + number
        rows = self.vocab_size
        if num_tokens > rows:
            rows = -(-num_tokens // GROW_TO_MULTIPLE_OF) * GROW_TO_MULTIPLE_OF
        return replace(self, vocab_size=rows, num_tokens=num_tokens)


def read_architecture(raw: Mapping[str, Any], *, name: str) -> Architecture:
    """The architecture of a config.json.

    Raises SpecError for a model type whose arithmetic is not known, and for a number that is
    missing or that no model has.
    """
    model_type = raw.get("model_type")
    if model_type not in _FAMILIES:
        raise SpecError(
            f"{name}: model_type {model_type!r} is not planned for, only {', '.join(_FAMILIES)}; "
            "start the run without a plan, or plan for a model of one of these types"
        )
    try:
        hidden, heads = int(raw["hidden_size"]), int(raw["num_attention_heads"])
        found = Architecture(
            name=name,
            model_type=model_type,
            hidden_size=hidden,
            num_layers=int(raw["num_hidden_layers"]),
            num_heads=heads,
            num_key_value_heads=int(raw.get("num_key_value_heads") or heads),
            head_size=int(raw.get("head_dim") or hidden // heads),
            intermediate_size=int(raw["intermediate_size"]),
            vocab_size=int(raw["vocab_size"]),
            num_tokens=_num_tokens(model_type, int(raw["vocab_size"])),
            # transformers' default for each of the three types.
            tied=bool(raw.get("tie_word_embeddings", False)),
            attention_bias=model_type == "qwen2" or bool(raw.get("attention_bias")),
            mlp_bias=bool(raw.get("mlp_bias")),
        )
        for field, most in _MOST.items():
            if not 0 < getattr(found, field) <= most:
                raise ValueError(f"{_WRITTEN.get(field, field)} is not between 1 and {most}")
        return found
    except (ArithmeticError, KeyError, TypeError, ValueError) as error:
        raise SpecError(
            f"{name}: the configuration lacks a number, or holds something else in its place "
            f"({error}); give the model's own config.json"
        ) from None


def published(name: str) -> Architecture:
    """The architecture of a model whose numbers ship with rotescale, by the name of its file."""
    return read_architecture(_published_config(name), name=name)


def architecture_of(weights: Weights, *, config: Path | None = None) -> Architecture:
    """The architecture of the weights that a spec names, from ``config`` where one is given.

    Raises SpecError where the numbers are not at hand: nothing is fetched for a plan.
    """
    if config is not None:
        return read_architecture(_read_config(config), name=str(config))
    match weights:
        case HubWeights():
            if weights.repository not in PUBLISHED:
                raise SpecError(
                    f"model.weights.repository: the numbers of {weights.repository!r} do not ship "
                    "with rotescale; give its config.json with --config FILE"
                )
            return published(PUBLISHED[weights.repository])
        case WheelWeights():
            return published(weights.name)
        case FolderWeights():
            file = Path(weights.path).expanduser() / "config.json"
            return read_architecture(_read_config(file), name=str(file))
        case RandomWeights():
            return _random(weights)


def parameter_shapes(architecture: Architecture) -> Shapes:
    """Name and shape of each parameter, in transformers' order and words; tied ones once."""
    hidden = architecture.hidden_size
    shapes: Shapes = {"model.embed_tokens.weight": (architecture.vocab_size, hidden)}
    layer = _layer_shapes(architecture)
    for number in range(architecture.num_layers):
        shapes |= {f"model.layers.{number}.{name}": shape for name, shape in layer.items()}
    shapes["model.norm.weight"] = (hidden,)
    if not architecture.tied:
        shapes["lm_head.weight"] = (architecture.vocab_size, hidden)
    return shapes


def layer_parameters(architecture: Architecture) -> int:
    """Parameters of one decoder layer; all have as many."""
    return sum(math.prod(shape) for shape in _layer_shapes(architecture).values())


def _layer_shapes(architecture: Architecture) -> Shapes:
    hidden, inner = architecture.hidden_size, architecture.intermediate_size
    query, key = architecture.query_size, architecture.key_size
    norms: Shapes = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }
    if architecture.model_type == "phi3":
        return {
            "self_attn.o_proj.weight": (hidden, query),
            "self_attn.qkv_proj.weight": (query + 2 * key, hidden),
            "mlp.gate_up_proj.weight": (2 * inner, hidden),
            "mlp.down_proj.weight": (hidden, inner),
            **norms,
        }
    # Qwen2's output projection has no bias, where Llama's has one with the other three.
    output_bias = architecture.attention_bias and architecture.model_type == "llama"
    return {
        **_linear("self_attn.q_proj", query, hidden, bias=architecture.attention_bias),
        **_linear("self_attn.k_proj", key, hidden, bias=architecture.attention_bias),
        **_linear("self_attn.v_proj", key, hidden, bias=architecture.attention_bias),
        **_linear("self_attn.o_proj", hidden, query, bias=output_bias),
        **_linear("mlp.gate_proj", inner, hidden, bias=architecture.mlp_bias),
        **_linear("mlp.up_proj", inner, hidden, bias=architecture.mlp_bias),
        **_linear("mlp.down_proj", hidden, inner, bias=architecture.mlp_bias),
        **norms,
    }


def _linear(name: str, num_out: int, num_in: int, *, bias: bool) -> Shapes:
    shapes: Shapes = {f"{name}.weight": (num_out, num_in)}
    return shapes | {f"{name}.bias": (num_out,)} if bias else shapes


def _random(weights: RandomWeights) -> Architecture:
    """The published architecture, reduced as ``model.random_model`` reduces it."""
    base = published(weights.architecture)
    rows = weights.vocab_size + _RANDOM_SPARE_ROWS
    tied = base.tied if weights.tie_word_embeddings is None else weights.tie_word_embeddings
    return replace(
        base,
        name=f"random {weights.architecture}",
        hidden_size=weights.hidden_size,
        num_layers=weights.num_layers,
        num_heads=weights.num_heads,
        num_key_value_heads=weights.num_key_value_heads,
        head_size=weights.hidden_size // weights.num_heads,
        intermediate_size=weights.intermediate_size,
        vocab_size=-(-rows // _RANDOM_ROUND_TO) * _RANDOM_ROUND_TO,
        num_tokens=weights.vocab_size,
        tied=tied,
    )


def _num_tokens(model_type: str, rows: int) -> int:
    """Tokens of the tokenizer; as many as rows where spare ones are not known, the larger plan."""
    return min(rows, _QWEN_TOKENS) if model_type == "qwen2" else rows


def _published_config(name: str) -> dict[str, Any]:
    # A file of the package, read without importing model/, which needs torch.
    file = resources.files("rotescale") / "model" / "architectures" / f"{name}.json"
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return config


def _read_config(file: Path) -> dict[str, Any]:
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(
            f"{file}: cannot be read ({error}); give the model's config.json with --config FILE"
        ) from None
    except ValueError as error:
        raise SpecError(f"{file}: not JSON ({error}); give the model's own config.json") from None
    if not isinstance(raw, dict):
        raise SpecError(f"{file}: not a model's configuration; give the model's own config.json")
    return raw
