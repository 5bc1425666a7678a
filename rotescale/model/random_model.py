"""Makes micro models with random weights: a published architecture, made narrow and shallow."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from rotescale.errors import SpecError
from rotescale.spec import RandomWeights

END_TOKEN = "<|endoftext|>"
_MIN_SPARE_ROWS = 4
_ROUND_ROWS_TO = 16


def published_config(architecture: str) -> dict[str, Any]:
    """The config.json that the architecture was published with."""
    file = resources.files("rotescale.model") / "architectures" / f"{architecture}.json"
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return config


def reduced_config(weights: RandomWeights, *, num_tokens: int) -> dict[str, Any]:
    """The published config.json with the spec's width, depth, heads and vocabulary.

    The embedding matrix has a few spare rows beyond ``num_tokens``, as padded models do.
    """
    config = published_config(weights.architecture)
    head_size = _head_size(weights)
    padded = -(-(num_tokens + _MIN_SPARE_ROWS) // _ROUND_ROWS_TO) * _ROUND_ROWS_TO
    config |= {
        "hidden_size": weights.hidden_size,
        "intermediate_size": weights.intermediate_size,
        "num_hidden_layers": weights.num_layers,
        "num_attention_heads": weights.num_heads,
        "num_key_value_heads": weights.num_key_value_heads,
        "vocab_size": padded,
        # The published 0.02 suits thousands of dimensions; a narrow model would hardly learn.
        "initializer_range": max(0.02, weights.hidden_size**-0.5),
        "torch_dtype": "float32",
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": None,
    }
    if "head_dim" in config:
        config["head_dim"] = head_size
    if "max_window_layers" in config:
        config["max_window_layers"] = weights.num_layers
    if weights.tie_word_embeddings is not None:
        config["tie_word_embeddings"] = weights.tie_word_embeddings
    return config


def build_random_model(weights: RandomWeights, *, texts: Sequence[str], out: Path) -> None:
    """Write the model's folder into ``out``: tokenizer, configuration, seeded weights."""
    tokenizer = train_tokenizer(texts, vocab_size=weights.vocab_size)
    tokenizer.save_pretrained(out)
    raw = reduced_config(weights, num_tokens=len(tokenizer))
    raw["eos_token_id"] = tokenizer.eos_token_id
    config = AutoConfig.for_model(**raw)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(weights.seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(out)
    # Last, so that the file keeps the published form instead of transformers' own.
    (out / "config.json").write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")


def train_tokenizer(texts: Sequence[str], *, vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most ``vocab_size`` tokens, or of the 256 bytes if fewer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_TOKEN, clean_up_tokenization_spaces=False
    )


def _head_size(weights: RandomWeights) -> int:
    size, rest = divmod(weights.hidden_size, weights.num_heads)
    if rest or size % 2:
        raise SpecError(
            f"model.weights.hidden_size: {weights.hidden_size} does not split into "
            f"num_heads={weights.num_heads} heads of even size; use an even multiple of num_heads"
        )
    if weights.num_heads % weights.num_key_value_heads:
        raise SpecError(
            f"model.weights.num_key_value_heads: {weights.num_key_value_heads} does not divide "
            f"num_heads={weights.num_heads}; use a divisor"
        )
    return size
