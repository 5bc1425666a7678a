"""Opens a Hugging Face folder, and refuses one that cannot be trained before anything starts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerFast

from rotescale.errors import DataError
from rotescale.model.build import ModelLayout, model_layout
from rotescale.model.files import DTYPES, StoredTensor, stored_tensors

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
_FETCH_AGAIN = "fetch the model again, or give the folder that belongs to this config.json"


def check_folder(folder: Path) -> None:
    """Raise DataError, with the file, the value and the remedy, unless ``folder`` is a whole model.

    Reads configuration, tokenizer and the headers of the weights, not the weights.
    """
    config = load_config(folder)
    layout = model_layout(config)
    if layout.stored_buffers:
        raise DataError(
            f"{folder / 'config.json'}: {layout.architecture} keeps buffers in its checkpoints "
            f"({', '.join(layout.stored_buffers[:3])}), which are not carried over; use another "
            "architecture"
        )
    stored = stored_tensors(folder)
    for name, shape in layout.shapes.items():
        entry = find_tensor(name, stored, layout=layout, folder=folder)
        _check_tensor(name, entry, shape=shape)
    num_tokens = max(load_tokenizer(folder).get_vocab().values()) + 1
    if num_tokens > config.vocab_size:
        raise DataError(
            f"{folder / 'config.json'}: vocab_size {config.vocab_size} is below the tokenizer's "
            f"{num_tokens} tokens; {_FETCH_AGAIN}"
        )


def load_config(folder: Path) -> PretrainedConfig:
    """The configuration in ``folder``; never runs code that a folder brings along."""
    file = folder / "config.json"
    if not file.is_file():
        raise DataError(f"{file}: missing; give a Hugging Face folder with config.json in it")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file}: not a configuration that transformers knows ({error}); use a model that "
            "needs no code of its own"
        ) from error
    if getattr(config, "quantization_config", None) is not None:
        raise DataError(
            f"{file}: quantization_config is set, and quantized weights cannot be trained; give "
            "the model's float32, bfloat16 or float16 version"
        )
    if not isinstance(getattr(config, "vocab_size", None), int):
        raise DataError(
            f"{file}: model_type {config.model_type!r} has no vocab_size of its own; give a "
            "text-only causal language model"
        )
    return config


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer in ``folder``; it must know offsets, which spans of text are found by."""
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise DataError(
            f"{folder}: no tokenizer (none of {', '.join(_TOKENIZER_FILES)}); save the model's "
            "tokenizer into the folder"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise DataError(
            f"{folder}: the tokenizer cannot be loaded ({error}); {_FETCH_AGAIN}"
        ) from error
    if not tokenizer.is_fast:
        raise DataError(
            f"{folder}: the tokenizer {type(tokenizer).__name__} gives no offsets; save it with a "
            "tokenizer.json (a fast tokenizer)"
        )
    return tokenizer


def find_tensor(
    name: str, stored: Mapping[str, StoredTensor], *, layout: ModelLayout, folder: Path
) -> StoredTensor:
    """The stored tensor of a parameter: under its name, a tied name, or without the prefix."""
    names = [name, *(alias for alias, target in layout.aliases.items() if target == name)]
    bare = [n.removeprefix(layout.base_prefix) for n in names]
    for candidate in (*names, *bare):
        if candidate in stored:
            return stored[candidate]
    raise DataError(
        f"{folder}: tensor {name!r} of {layout.architecture} is in none of the safetensors files; "
        f"{_FETCH_AGAIN}"
    )


def _check_tensor(name: str, entry: StoredTensor, *, shape: tuple[int, ...]) -> None:
    if entry.dtype not in DTYPES:
        raise DataError(
            f"{entry.file}: tensor {name!r} has dtype {entry.dtype}; weights may be float32, "
            "bfloat16 or float16: convert the model, or give its unquantized version"
        )
    if entry.shape != shape:
        raise DataError(
            f"{entry.file}: tensor {name!r} has shape {list(entry.shape)}, but config.json asks "
            f"for {list(shape)}; {_FETCH_AGAIN}"
        )
