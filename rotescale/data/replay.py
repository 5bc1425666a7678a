"""Other text that is mixed into a phase: documents from files, cut into pieces of tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rotescale.data.encoding import IGNORE, Encoded
from rotescale.data.order import derive_key
from rotescale.errors import DataError

SHIPPED_TEXT = Path(__file__).parent.parent / "texts" / "replay.txt"
"""Entries of a dictionary of 1911, in the public domain."""

_BETWEEN = "\n\n"


def replay_paths(paths: Sequence[str]) -> list[Path]:
    """The files that are replayed; the shipped one where none is named."""
    return [Path(path) for path in paths] or [SHIPPED_TEXT]


def read_documents(path: Path) -> Iterator[str]:
    """The documents of a file: lines with a ``text`` of JSONL; else what blank lines part.

    Raises DataError for a file that cannot be read, is not UTF-8, or holds another kind of line.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from _jsonl(file, path) if path.suffix.lower() == ".jsonl" else _paragraphs(file)
    except OSError as error:
        raise DataError(
            f"text file {path} cannot be read ({error.strerror}); check the path"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"text file {path} is not UTF-8; save it as UTF-8") from error


def _jsonl(lines: Iterator[str], path: Path) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: not JSON ({error}); mend it") from error
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            raise DataError(f'{path}, line {number}: write {{"text": ...}}, got {line.strip()!r}')
        yield record["text"]


def _paragraphs(lines: Iterator[str]) -> Iterator[str]:
    held: list[str] = []
    for line in lines:
        if line.strip():
            held.append(line.rstrip("\n"))
        elif held:
            yield "\n".join(held)
            held = []
    if held:
        yield "\n".join(held)


def replay_pieces(
    paths: Sequence[Path], *, tokenizer: Any, lengths: tuple[int, int], seed: int
) -> Iterator[Encoded]:
    """Pieces of the files' text, all tokens but the first counted in the loss.

    The documents follow each other, parted by a blank line, and are cut into pieces of
    ``lengths[0]`` to ``lengths[1]`` tokens, drawn from ``seed``; a shorter rest is left out. Where
    the tokenizer begins every text with a token (BOS), so does every piece.

    Raises DataError where the files hold not even one piece.
    """
    shortest, longest = lengths
    [*begin] = tokenizer("").get("input_ids", [])[:1]
    number = 0
    held: list[int] = []
    for path in paths:
        for document in read_documents(path):
            held += tokenizer(document + _BETWEEN, add_special_tokens=False)["input_ids"]
            while len(held) >= longest:
                drawn = derive_key(seed, "replay", number) % (longest - shortest + 1)
                size = shortest + drawn - len(begin)
                yield _piece([*begin, *held[:size]])
                held = held[size:]
                number += 1
    if len(held) + len(begin) >= shortest:
        yield _piece([*begin, *held[: longest - len(begin)]])
    elif not number:
        names = ", ".join(str(path) for path in paths)
        raise DataError(
            f"{names}: {len(held)} tokens of text, fewer than the {shortest} of one piece; give "
            "more text, or lower replay.tokens"
        )


def _piece(tokens: Sequence[int]) -> Encoded:
    return Encoded(tuple(tokens), (IGNORE, *tokens[1:]), (0, 0), (0, 0))
