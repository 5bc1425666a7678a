"""Texts to tokens: whole ones, and all options behind a prompt, whose beginning is read once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rotescale.errors import DataError
from rotescale.facts import before_object

LEAST_BEGINNING = 256
"""Characters; a shorter beginning takes less to tokenize again than to look at."""
_SEEN_BEHIND = 16
"""Characters that all texts share behind the line break at which they are cut."""


def encode(texts: Sequence[str], *, tokenizer: Any) -> list[list[int]]:
    """Tokens of each text, special tokens in front kept, an end-of-text token behind dropped."""
    if not texts:
        return []  # fast tokenizers fail on an empty batch
    encoding = tokenizer(list(texts), add_special_tokens=True)
    return [_without_end(ids, tokenizer=tokenizer) for ids in encoding["input_ids"]]


def encode_options(
    prompt: str, options: Sequence[str], *, tokenizer: Any
) -> tuple[list[list[int]], int]:
    """The tokens of prompt and option for every option, and where the options' own begin in all.

    The tokens are those of the whole text as it is trained on, with the full stop behind it, up to
    the last that covers a character of the option: ``Ltd.`` and the stop may be one token, which is
    what a model that was taught the object says. A tokenizer that gives no offsets, which none is
    trained with, sees options without the stop. Many lines in front of the prompt, such as examples
    in context, are tokenized once where that gives the same.
    Raises DataError for an option that no token covers.
    """
    lead = before_object(prompt)
    if tokenizer.is_fast:
        texts = _Texts(lead, tuple(options))
        found = _cut_at_a_line(texts, tokenizer=tokenizer)
        sequences, starts = found or _with_offsets(texts, tokenizer=tokenizer)
    else:
        sequences = encode([lead + option for option in options], tokenizer=tokenizer)
        [alone] = encode([prompt], tokenizer=tokenizer)
        starts = [_num_shared([alone, ids]) for ids in sequences]
    for option, ids, start in zip(options, sequences, starts, strict=True):
        if start >= len(ids):
            raise DataError(f"{prompt!r}: no token covers option {option!r}; change its spelling")
    if len(options) == 1:
        return sequences, starts[0]
    return sequences, min(*starts, _num_shared(sequences))


@dataclass(frozen=True, slots=True)
class _Texts:
    """What stands before the options, and they."""

    lead: str
    options: tuple[str, ...]

    def whole(self) -> list[str]:
        """Each as it is trained on."""
        return [f"{self.lead}{option}." for option in self.options]


def _with_offsets(
    texts: _Texts, *, tokenizer: Any, special: bool = True
) -> tuple[list[list[int]], list[int]]:
    """The tokens of each text to its option's last, and the first that touches its option."""
    encoding = tokenizer(texts.whole(), add_special_tokens=special, return_offsets_mapping=True)
    sequences, starts = [], []
    first = len(texts.lead)
    for option, ids, offsets in zip(
        texts.options, encoding["input_ids"], encoding["offset_mapping"], strict=True
    ):
        # Special tokens cover nothing.
        touching = [
            place
            for place, (start, stop) in enumerate(offsets)
            if first < stop and start < first + len(option) and start < stop
        ]
        sequences.append(list(ids[: touching[-1] + 1]) if touching else [])
        starts.append(touching[0] if touching else 0)
    return sequences, starts


def _cut_at_a_line(texts: _Texts, *, tokenizer: Any) -> tuple[list[list[int]], list[int]] | None:
    """The same, what stands in front of the last line that all texts share tokenized once.

    None where it is too short, or not sure to give the same. It is sure where the tokenizer splits
    texts there before it merges anything, as byte-level ones do at a line break: its expression
    reads from the left and looks ahead by a character, and behind the break the texts are the same
    for more. That what is behind gets no other tokens for standing alone, such as for a space that
    is put in front, is seen at one of them.
    """
    lead, options = texts.lead, texts.options
    cut = lead.rfind("\n", 0, max(0, len(lead) - _SEEN_BEHIND)) + 1
    if cut < LEAST_BEGINNING or len(options) < 2 or not _splits(lead, cut, tokenizer=tokenizer):
        return None
    [whole], _ = _with_offsets(_Texts(lead, options[:1]), tokenizer=tokenizer)
    last = _Texts(lead[cut:], options)
    behind, starts = _with_offsets(last, tokenizer=tokenizer, special=False)
    number = len(whole) - len(behind[0])
    if number <= 0 or whole[number:] != behind[0]:
        return None
    beginning = whole[:number]
    sequences = [beginning + ids if ids else [] for ids in behind]
    return sequences, [number + start for start in starts]


def _splits(text: str, cut: int, *, tokenizer: Any) -> bool:
    """Whether the tokenizer parts the text there, whatever its merges."""
    splitter = tokenizer.backend_tokenizer.pre_tokenizer
    if splitter is None:
        return False
    return any(start == cut for _, (start, _) in splitter.pre_tokenize_str(text))


def _without_end(ids: Sequence[int], *, tokenizer: Any) -> list[int]:
    tokens = list(ids)
    while tokens and tokens[-1] == tokenizer.eos_token_id:
        tokens.pop()
    return tokens


def _num_shared(sequences: Sequence[list[int]]) -> int:
    """How many tokens all sequences begin with."""
    # The least and the greatest share what all share.
    least, greatest = min(sequences), max(sequences)
    for index, (a, b) in enumerate(zip(least, greatest, strict=False)):
        if a != b:
            return index
    return min(len(least), len(greatest))
