"""Prepares a model for a run: key tokens, the rows they start from, and a vocabulary to match."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PretrainedConfig, PreTrainedTokenizerFast

from rotescale.errors import DataError
from rotescale.local_copy import is_uploaded, local_copy, upload_folder
from rotescale.model.build import model_layout
from rotescale.model.files import disk_errors, folder_digest
from rotescale.model.folder import check_folder, load_config, load_tokenizer
from rotescale.model.key_tokens import add_key_tokens, key_token_texts, make_rows
from rotescale.model.weights import FolderReader, NewRows
from rotescale.object_store import RemotePath
from rotescale.spec import ModelSpec
from rotescale.storage import StoragePath, build_folder, write_atomic

PREPARED_FILE = "prepared.json"
KEY_ROWS_FILE = "key_rows.safetensors"
EXPORT_FILE = "export.json"
"""Written last into an exported folder; names the key tokens that its tokenizer holds."""

_GROW_TO_MULTIPLE_OF = 128
_ROWS = "rows"


@dataclass(frozen=True)
class PreparedModel:
    """A model that is ready to be trained: the base's weights, and what a run adds to them."""

    folder: Path
    """Configuration, tokenizer and rows of the key tokens."""
    base: Path
    """The Hugging Face folder that holds all other weights."""
    key_tokens: Mapping[str, str]
    """Relation -> text of its key token."""
    key_token_ids: Mapping[str, int]
    """Relation -> id of its key token."""
    num_tokens: int
    """Tokens of the tokenizer; rows from here on are no token and are masked in scoring."""
    vocab_size: int
    """Rows of the embedding matrices."""
    seed: int
    """Seed of the key tokens' rows."""
    base_digest: str
    """Digest of the base's files."""
    digest: str
    """Digest of all the above but the paths: equal digests are equal weights and tokens."""

    def reader(self) -> FolderReader:
        """A reader of ranges of the parameters, key-token rows included."""
        layout = model_layout(self.config())
        return FolderReader(self.base, layout=layout, new_rows=_load_rows(self.folder))

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer with the key tokens."""
        return load_tokenizer(self.folder)

    def config(self) -> PretrainedConfig:
        """The configuration with the vocabulary's final size."""
        return load_config(self.folder)


def prepare(
    spec: ModelSpec, *, base: Path, relations: Sequence[str], seed: int, out: StoragePath
) -> PreparedModel:
    """Write configuration, tokenizer and key-token rows of ``base`` for a run into ``out``.

    Does nothing where ``out`` holds the same already. Raises DataError where ``base`` is not a
    whole model, a key token has a meaning already, or ``out`` was prepared from something else.
    """
    base = base.absolute()
    check_folder(base)
    texts = key_token_texts(relations, template=spec.key_tokens.template)
    base_digest = folder_digest(base)
    inputs = [base_digest, list(texts.items()), spec.key_tokens.noise_scale, seed]
    digest = hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:16]

    def build(folder: Path) -> None:
        with disk_errors():
            prepared = _build(
                folder, base=base, texts=texts, noise_scale=spec.key_tokens.noise_scale, seed=seed
            )
        record = prepared | {"base_digest": base_digest, "digest": digest}
        _write_record(folder, record)

    if isinstance(out, Path):
        build_folder(out, build)
    elif not is_uploaded(out):
        _upload(out, build)
    found = load_prepared(out)
    if found.digest != digest:
        raise DataError(
            f"{out / PREPARED_FILE}: prepared with digest {found.digest}, but this model, these "
            f"relations and this seed give {digest}; remove {out}, or use another run folder"
        )
    if found.base != base:
        # The same weights lie elsewhere now, such as after the cache was moved.
        if isinstance(out, Path):
            _write_record(out, _read_record(out) | {"base": str(base)})
        else:
            _upload(out, build)
        found = load_prepared(out)
    return found


def keyed_tokenizer(
    spec: ModelSpec, *, base: Path, relations: Sequence[str]
) -> tuple[PreTrainedTokenizerFast, dict[str, str]]:
    """The tokenizer of ``base`` with the key tokens, and their texts by relation; writes nothing.

    Raises DataError where a key token cannot be one.
    """
    texts = key_token_texts(relations, template=spec.key_tokens.template)
    tokenizer = load_tokenizer(base)
    add_key_tokens(tokenizer, list(texts.values()), existing=_exported_key_tokens(base))
    return tokenizer, texts


def load_prepared(out: StoragePath) -> PreparedModel:
    """The model that ``prepare`` left in ``out``; from a store, by way of this machine's copy."""
    try:
        folder = local_copy(out)
    except FileNotFoundError:
        raise DataError(f"{out}: no prepared model; prepare the run's model first") from None
    record = _read_record(folder)
    try:
        return PreparedModel(**(record | {"folder": folder, "base": Path(record["base"])}))
    except (TypeError, KeyError) as error:
        raise DataError(
            f"{out / PREPARED_FILE}: not written by this version ({error}); remove {out} and "
            "start the run again"
        ) from error


def _build(
    folder: Path, *, base: Path, texts: Mapping[str, str], noise_scale: float, seed: int
) -> dict[str, Any]:
    """Write everything but the record into ``folder`` and return the record."""
    tokenizer = load_tokenizer(base)
    num_old = max(tokenizer.get_vocab().values()) + 1
    ids = add_key_tokens(tokenizer, list(texts.values()), existing=_exported_key_tokens(base))
    num_tokens = max(num_old - 1, *ids.values()) + 1 if ids else num_old
    old_size = load_config(base).vocab_size
    vocab_size = old_size
    if num_tokens > old_size:
        vocab_size = -(-num_tokens // _GROW_TO_MULTIPLE_OF) * _GROW_TO_MULTIPLE_OF
    _write_config(folder, base=base, vocab_size=vocab_size)
    tokenizer.save_pretrained(folder)

    row_names = {row: f"row {row}" for row in range(old_size, vocab_size)}
    row_names |= {token_id: text for text, token_id in ids.items() if token_id >= num_old}
    layout = model_layout(load_config(base))
    with FolderReader(base, layout=layout) as reader:
        rows = make_rows(
            reader,
            layout=layout,
            row_names=row_names,
            num_old_tokens=min(num_old, old_size),
            noise_scale=noise_scale,
            seed=seed,
        )
    _save_rows(folder, rows)
    return {
        "base": str(base),
        "key_tokens": dict(texts),
        "key_token_ids": {relation: ids[text] for relation, text in texts.items()},
        "num_tokens": num_tokens,
        "vocab_size": vocab_size,
        "seed": seed,
    }


def _upload(out: RemotePath, build: Callable[[Path], None]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder))
        upload_folder(Path(folder), out)


def _write_config(folder: Path, *, base: Path, vocab_size: int) -> None:
    """The base's config.json as it stands, with the new size, and its generation defaults."""
    raw = json.loads((base / "config.json").read_text(encoding="utf-8"))
    raw["vocab_size"] = vocab_size
    raw.setdefault("architectures", [model_layout(load_config(base)).architecture])
    (folder / "config.json").write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
    generation = base / "generation_config.json"
    if generation.is_file():
        shutil.copyfile(generation, folder / generation.name)


def _exported_key_tokens(base: Path) -> list[str]:
    """Key tokens that ``base``, an earlier run's export, brings along with trained rows."""
    file = base / EXPORT_FILE
    if not file.is_file():
        return []
    return [str(text) for text in json.loads(file.read_text(encoding="utf-8"))["key_tokens"]]


def _save_rows(folder: Path, rows: NewRows) -> None:
    tensors = dict(rows.values) | {_ROWS: torch.tensor(rows.rows, dtype=torch.int64)}
    save_file(tensors, folder / KEY_ROWS_FILE)


def _load_rows(folder: Path) -> NewRows:
    tensors: dict[str, torch.Tensor] = load_file(folder / KEY_ROWS_FILE)
    return NewRows(tuple(tensors.pop(_ROWS).tolist()), tensors)


def _write_record(folder: Path, record: Mapping[str, Any]) -> None:
    text = json.dumps(record, indent=2) + "\n"
    write_atomic(folder / PREPARED_FILE, text.encode())


def _read_record(out: Path) -> dict[str, Any]:
    file = out / PREPARED_FILE
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{file}: missing; prepare the run's model first") from None
    except ValueError as error:
        raise DataError(f"{file}: damaged ({error}); remove {out} and start again") from error
    if not isinstance(record, dict):
        raise DataError(f"{file}: not a prepared model; remove {out} and start again")
    return record
