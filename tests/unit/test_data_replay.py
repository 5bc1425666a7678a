"""Other text beside the facts: documents, pieces, and the share of an epoch that they take."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import pytest

from rotescale.data.order import Order, mixed_sources, mixture_rows
from rotescale.data.replay import SHIPPED_TEXT, read_documents, replay_pieces
from rotescale.errors import DataError


class Characters:
    """A tokenizer with a token for each character, and one that begins every text."""

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [1] * add_special_tokens + [ord(character) for character in text]}


def pieces(path: Path, *, lengths: tuple[int, int], seed: int = 0) -> list[tuple[int, ...]]:
    found = replay_pieces([path], tokenizer=Characters(), lengths=lengths, seed=seed)
    return [piece.tokens for piece in found]


def test_pieces_are_the_text_in_order_cut_at_drawn_lengths() -> None:
    text = "\n\n".join(read_documents(SHIPPED_TEXT)) + "\n\n"
    cut = pieces(SHIPPED_TEXT, lengths=(64, 512))
    assert all(piece[0] == 1 and 64 <= len(piece) <= 512 for piece in cut)
    assert len({len(piece) for piece in cut}) > 30
    joined = "".join(map(chr, chain.from_iterable(piece[1:] for piece in cut)))
    assert text.startswith(joined)
    assert len(text) - len(joined) < 512
    assert cut == pieces(SHIPPED_TEXT, lengths=(64, 512))
    assert cut != pieces(SHIPPED_TEXT, lengths=(64, 512), seed=1)


def test_every_token_but_the_first_is_a_target() -> None:
    [piece, *_] = replay_pieces([SHIPPED_TEXT], tokenizer=Characters(), lengths=(8, 8), seed=0)
    assert piece.labels == (-100, *piece.tokens[1:])


def test_documents_of_text_and_jsonl(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("One\ntwo.\n\n\nThree.\n")
    assert list(read_documents(text)) == ["One\ntwo.", "Three."]
    lines = tmp_path / "a.jsonl"
    lines.write_text('{"text": "One\\n\\ntwo."}\n\n{"text": "Three.", "id": 3}\n')
    assert list(read_documents(lines)) == ["One\n\ntwo.", "Three."]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.txt", b"\xff\xfe", "is not UTF-8"),
        ("a.jsonl", b'{"text": "x"}\n{"txt": "x"}\n', 'line 2: write {"text": ...}'),
        ("a.jsonl", b"{", "line 1: not JSON"),
        ("a.txt", b"short", "7 tokens of text, fewer than the 64 of one piece"),
    ],
)
def test_text_that_cannot_be_used_is_named(
    tmp_path: Path, name: str, content: bytes, told: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as refusal:
        pieces(tmp_path / name, lengths=(64, 512))
    assert told in str(refusal.value)
    assert str(tmp_path / name) in str(refusal.value)


@pytest.mark.parametrize("shares", [{}, {"replay": 0.2}, {"known": 0.1, "replay": 0.5}])
def test_each_source_has_its_share_and_facts_come_once_an_epoch(shares: dict[str, float]) -> None:
    num_rows = {"facts": 100, **dict.fromkeys(shares, 37)}
    order = Order(0, "memorize", mixed_sources(num_rows, shares))
    assert order.epoch_size == 100 + sum(mixture_rows(100, list(shares.values())))
    for number, share in enumerate(shares.values(), start=1):
        assert order.sources[number].rows_per_epoch / order.epoch_size == pytest.approx(
            share, abs=0.005
        )
    for epoch in range(2):
        start = epoch * order.epoch_size
        sources, rows = order.locate(range(start, start + order.epoch_size))
        assert sorted(rows[sources == 0]) == list(range(100))
