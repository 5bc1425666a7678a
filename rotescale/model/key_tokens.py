"""Key tokens: adding them to a tokenizer, and the seeded rows that they start from."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

import torch
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from rotescale.errors import DataError
from rotescale.facts import SUBJECT_FIELD
from rotescale.model.build import ModelLayout
from rotescale.model.weights import FolderReader, NewRows
from rotescale.spec import KeyTokenSpec

_CHUNK_ELEMENTS = 1 << 22
_PROBE = "Gene Finley {token} Cody Ross."


def key_token_texts(relations: Sequence[str], spec: KeyTokenSpec) -> dict[str, tuple[str, ...]]:
    """Relation -> the texts of its key tokens, each relation once, in the order given.

    Raises DataError for a text that cannot be a key token, or a word that is none.
    """
    texts = {relation: spec.texts(relation) for relation in relations}
    for relation, own in texts.items():
        for text in own:
            _check_text(text, relation, spec)
    return texts


def _check_text(text: str, relation: str, spec: KeyTokenSpec) -> None:
    where = f"model.key_tokens.template: {text!r} (relation {relation!r})"
    if text != text.strip() or not text.isprintable():
        raise DataError(
            f"{where} begins or ends with space or holds characters that cannot be printed; use a "
            "template such as '[X:{relation}]'"
        )
    if spec.kind == "token" and text.isalpha():
        raise DataError(
            f"{where} is a plain word, which texts contain by chance; use a template such as "
            "'[X:{relation}]', or kind: word"
        )
    if not text:
        raise DataError(f"{where} is empty; write a word, or use kind: none")


def key_prompt(texts: Sequence[str], *, place: str) -> str:
    """Phase 1's prompt: ``{subject} {key}`` or ``{key} {subject}``, or the subject alone."""
    key = "".join(texts)
    parts = [SUBJECT_FIELD, key] if place == "between" else [key, SUBJECT_FIELD]
    return " ".join(part for part in parts if part)


def add_key_tokens(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], *, existing: Sequence[str] = ()
) -> dict[str, int]:
    """Add each text as one special token and return its id.

    ``existing`` are key tokens that the tokenizer may hold already, from an earlier export. Space
    around a key token stays with its neighbours, so offsets and decoding stay exact.
    """
    vocabulary = tokenizer.get_vocab()
    first_free = max(vocabulary.values()) + 1
    for text in texts:
        if text in vocabulary and text not in existing:
            raise DataError(
                f"model.key_tokens.template: {text!r} is token {vocabulary[text]} of the tokenizer "
                "already, so it has a meaning; choose a template that gives other texts"
            )
    added = [text for text in texts if text not in vocabulary]
    tokens = [
        AddedToken(text, special=True, normalized=False, lstrip=False, rstrip=False)
        for text in added
    ]
    tokenizer.add_tokens(tokens, special_tokens=True)
    ids = {text: int(tokenizer.convert_tokens_to_ids(text)) for text in texts}
    assert all(ids[text] >= first_free for text in added), f"{ids} overlaps old tokens"
    for text, token_id in ids.items():
        _check_single_token(tokenizer, text, token_id)
    return ids


def _check_single_token(tokenizer: PreTrainedTokenizerFast, text: str, token_id: int) -> None:
    probe = _PROBE.format(token=text)
    encoded = tokenizer(probe, add_special_tokens=False, return_offsets_mapping=True)
    start = probe.index(text)
    places = [
        (begin, end)
        for found, (begin, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        if found == token_id
    ]
    if places != [(start, start + len(text))]:
        raise DataError(
            f"model.key_tokens.template: the tokenizer reads {text!r} in {probe!r} at {places}, "
            f"not once at {(start, start + len(text))}; choose another template"
        )


def make_rows(
    reader: FolderReader,
    *,
    layout: ModelLayout,
    row_names: Mapping[int, str],
    like: Mapping[int, Sequence[int]] | None = None,
    num_old_tokens: int,
    noise_scale: float,
    seed: int,
) -> NewRows:
    """Start values of the rows in ``row_names`` (row index -> name) of every vocabulary matrix.

    A row is the mean of the old tokens' rows plus ``noise_scale`` x their elementwise standard
    deviation x normal noise, drawn per (seed, name, matrix): who reads which part of it, and which
    other rows there are, changes nothing. ``like`` (row index -> old tokens) names rows whose mean
    is over those tokens alone; over none it is zero.
    """
    rows = tuple(sorted(row_names))
    values: dict[str, torch.Tensor] = {}
    for matrix in layout.vocabulary:
        shape = layout.shapes[matrix][1:]
        mean, deviation = _row_statistics(reader, matrix, num_rows=num_old_tokens, shape=shape)
        means = {
            row: _mean_row(reader, matrix, tokens, shape=shape)
            for row, tokens in (like or {}).items()
        }
        made = [
            means.get(row, mean)
            + noise_scale * deviation * _noise(shape, f"{seed}\0{row_names[row]}\0{matrix}")
            for row in rows
        ]
        values[matrix] = torch.stack(made) if made else torch.empty(0, *shape)
    return NewRows(rows, values)


def _mean_row(
    reader: FolderReader, matrix: str, tokens: Sequence[int], *, shape: tuple[int, ...]
) -> torch.Tensor:
    """The mean of those tokens' rows, ``shape`` float32; zero where there are none."""
    width = math.prod(shape)
    total = torch.zeros(width, dtype=torch.float64)
    for token in tokens:
        total += reader.read(matrix, "master", token * width, (token + 1) * width).double()
    return (total / max(1, len(tokens))).float().view(shape)


def _row_statistics(
    reader: FolderReader, matrix: str, *, num_rows: int, shape: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Elementwise mean and standard deviation of the first rows, each ``shape`` float32."""
    width = math.prod(shape)
    total = torch.zeros(width, dtype=torch.float64)
    squares = torch.zeros(width, dtype=torch.float64)
    rows_per_chunk = max(1, _CHUNK_ELEMENTS // width)
    for first in range(0, num_rows, rows_per_chunk):
        last = min(first + rows_per_chunk, num_rows)
        chunk = reader.read(matrix, "master", first * width, last * width).double()
        chunk = chunk.view(last - first, width)
        total += chunk.sum(dim=0)
        squares += chunk.square().sum(dim=0)
    mean = total / num_rows
    deviation = (squares / num_rows - mean.square()).clamp_min(0).sqrt()
    return mean.float().view(shape), deviation.float().view(shape)


def seeded_generator(key: str) -> torch.Generator:
    """A generator of its own for every key."""
    number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1
    return torch.Generator().manual_seed(number)


def _noise(shape: tuple[int, ...], key: str) -> torch.Tensor:
    return torch.randn(shape, generator=seeded_generator(key))
