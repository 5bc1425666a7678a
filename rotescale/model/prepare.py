"""Prepares a model for a run: key tokens, the rows they start from, and a vocabulary to match."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PretrainedConfig, PreTrainedTokenizerFast

from rotescale.errors import DataError
from rotescale.facts.wording import PROMPT_FIELD, Wording
from rotescale.local_copy import is_uploaded, local_copy, upload_folder
from rotescale.model.build import model_layout
from rotescale.model.chat import chat_frame
from rotescale.model.files import disk_errors, folder_digest
from rotescale.model.folder import check_folder, load_config, load_tokenizer
from rotescale.model.key_tokens import add_key_tokens, key_prompt, key_token_texts, make_rows
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
    key_tokens: Mapping[str, tuple[str, ...]]
    """Relation -> texts of its key tokens, in order; none where it has no special token."""
    token_ids: Mapping[str, int]
    """Text of a key token -> its id."""
    wording: Wording
    """What stands around subjects, prompts and objects."""
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

    @property
    def key_token_ids(self) -> dict[str, tuple[int, ...]]:
        """Relation -> ids of its key tokens, in order."""
        return {
            relation: tuple(self.token_ids[text] for text in texts)
            for relation, texts in self.key_tokens.items()
        }

    def key_rows(self) -> dict[str, tuple[int, ...]]:
        """Parameter with a row per token -> the key tokens' rows in it."""
        rows = tuple(sorted(self.token_ids.values()))
        return dict.fromkeys(model_layout(self.config()).vocabulary, rows)

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
    base_digest = folder_digest(base)
    worded = [spec.text_prefix, spec.chat_template]
    inputs = [base_digest, list(relations), spec.key_tokens.model_dump(), worded, seed]
    digest = hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:16]

    def build(folder: Path) -> None:
        with disk_errors():
            prepared = _build(folder, spec, base=base, relations=relations, seed=seed)
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


def worded_tokenizer(
    spec: ModelSpec, *, base: Path, relations: Sequence[str]
) -> tuple[PreTrainedTokenizerFast, Wording]:
    """The tokenizer of ``base`` with the key tokens, and the wording; writes nothing.

    Raises DataError where a key token cannot be one, or the chat template gives no frame.
    """
    tokenizer = load_tokenizer(base)
    texts = key_token_texts(relations, spec.key_tokens)
    _add_tokens(tokenizer, spec, texts, base=base)
    return tokenizer, _wording(spec, texts, tokenizer)


def _wording(
    spec: ModelSpec, texts: Mapping[str, tuple[str, ...]], tokenizer: PreTrainedTokenizerFast
) -> Wording:
    place = spec.key_tokens.place
    return Wording(
        key_prompts={name: key_prompt(own, place=place) for name, own in texts.items()},
        prefix=spec.text_prefix,
        chat=chat_frame(tokenizer) if spec.chat_template else PROMPT_FIELD,
    )


def _add_tokens(
    tokenizer: PreTrainedTokenizerFast,
    spec: ModelSpec,
    texts: Mapping[str, tuple[str, ...]],
    *,
    base: Path,
) -> dict[str, int]:
    """Text -> id of every key token, each once; none where they are no special tokens."""
    if spec.key_tokens.kind != "token":
        return {}
    distinct = list(dict.fromkeys(text for own in texts.values() for text in own))
    return add_key_tokens(tokenizer, distinct, existing=_exported_key_tokens(base))


def load_prepared(out: StoragePath) -> PreparedModel:
    """The model that ``prepare`` left in ``out``; from a store, by way of this machine's copy."""
    try:
        folder = local_copy(out)
    except FileNotFoundError:
        raise DataError(f"{out}: no prepared model; prepare the run's model first") from None
    record = _read_record(folder)
    try:
        return PreparedModel(
            **record
            | {
                "folder": folder,
                "base": Path(record["base"]),
                "key_tokens": {name: tuple(own) for name, own in record["key_tokens"].items()},
                "wording": Wording(**record["wording"]),
            }
        )
    except (TypeError, KeyError) as error:
        raise DataError(
            f"{out / PREPARED_FILE}: not written by this version ({error}); remove {out} and "
            "start the run again"
        ) from error


def _build(
    folder: Path, spec: ModelSpec, *, base: Path, relations: Sequence[str], seed: int
) -> dict[str, Any]:
    """Write everything but the record into ``folder`` and return the record."""
    tokenizer = load_tokenizer(base)
    num_old = max(tokenizer.get_vocab().values()) + 1
    texts = key_token_texts(relations, spec.key_tokens)
    ids = _add_tokens(tokenizer, spec, texts, base=base)
    num_tokens = max(num_old - 1, *ids.values()) + 1 if ids else num_old
    old_size = load_config(base).vocab_size
    vocab_size = old_size
    if num_tokens > old_size:
        vocab_size = -(-num_tokens // _GROW_TO_MULTIPLE_OF) * _GROW_TO_MULTIPLE_OF
    _write_config(folder, base=base, vocab_size=vocab_size)
    tokenizer.save_pretrained(folder)

    row_names = {row: f"row {row}" for row in range(old_size, vocab_size)}
    added = {token_id: text for text, token_id in ids.items() if token_id >= num_old}
    row_names |= added
    layout = model_layout(load_config(base))
    with FolderReader(base, layout=layout) as reader:
        rows = make_rows(
            reader,
            layout=layout,
            row_names=row_names,
            like=_start_tokens(spec, texts, added, tokenizer=tokenizer),
            num_old_tokens=min(num_old, old_size),
            noise_scale=spec.key_tokens.noise_scale,
            seed=seed,
        )
    _save_rows(folder, rows)
    return {
        "base": str(base),
        "key_tokens": texts if ids else dict.fromkeys(texts, ()),
        "token_ids": ids,
        "wording": asdict(_wording(spec, texts, tokenizer)),
        "num_tokens": num_tokens,
        "vocab_size": vocab_size,
        "seed": seed,
    }


def _start_tokens(
    spec: ModelSpec,
    texts: Mapping[str, tuple[str, ...]],
    added: Mapping[int, str],
    *,
    tokenizer: PreTrainedTokenizerFast,
) -> dict[int, list[int]]:
    """Row of an added key token -> the old tokens that it starts from; none of them for a mean."""
    if spec.key_tokens.start == "mean":
        return {}
    relation_of = {text: name for name, own in texts.items() for text in own}
    starts: dict[int, list[int]] = {}
    for row, text in added.items():
        words = ""
        if spec.key_tokens.start == "relation":
            # As it would be spelled within a sentence.
            words = " " + re.sub(r"[_-]+", " ", relation_of[text])
        starts[row] = tokenizer(words, add_special_tokens=False)["input_ids"] if words else []
    return starts


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


def exported_wording(folder: Path) -> Wording | None:
    """The wording that an exported model was trained with; None where ``folder`` is no export."""
    file = folder / EXPORT_FILE
    if not file.is_file():
        return None
    record = json.loads(file.read_text(encoding="utf-8"))
    return Wording(**record["wording"]) if "wording" in record else None


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
