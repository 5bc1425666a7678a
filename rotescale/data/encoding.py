"""From a text to tokens, spans and labels, all known by construction and never searched for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rotescale.errors import DataError
from rotescale.facts import before_object

IGNORE = -100
"""The label of a token that does not count in the loss."""

Loss = Literal["all", "subject_object", "object"]


@dataclass(frozen=True, slots=True)
class FactText:
    """A training text and the characters ``[start, stop)`` that its subject and object take."""

    text: str
    subject: tuple[int, int]
    object: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Encoded:
    """Tokens of one text, the token spans ``[start, stop)`` of its entities, and the labels.

    ``labels[i]`` is ``tokens[i]`` where token i counts in the loss, else ``IGNORE``; the first
    token is never predicted, so its label is always ``IGNORE``.
    """

    tokens: tuple[int, ...]
    labels: tuple[int, ...]
    subject: tuple[int, int]
    object: tuple[int, int]


def prompt_text(subject: str, object_: str, *, prompt: str) -> FactText:
    """``{prompt} {object}.``, any fact's text; ``prompt`` holds ``{subject}`` once.

    Phase 1's prompt is ``{subject} {key token}``, or what the wording makes of it.
    """
    before, placeholder, after = prompt.partition("{subject}")
    if not placeholder or "{subject}" in after:
        raise DataError(f"prompt {prompt!r}: write {{subject}} exactly once")
    lead = before_object(f"{before}{subject}{after}")
    text = f"{lead}{object_}."
    subject_span = (len(before), len(before) + len(subject))
    return FactText(text, subject_span, (len(lead), len(lead) + len(object_)))


def encode(fact: FactText, *, tokenizer: Any, loss: Loss, end_token: bool) -> Encoded:
    """Tokenize a whole text and find its entities by the tokenizer's character offsets.

    A token belongs to an entity when it covers one of its characters, so that a token merged
    over the border between prompt and object is part of the object: the model must predict it. A
    token that is the space before the object is no part of it, but counts where the object does.
    Special tokens that the tokenizer puts in front (BOS) stay; one behind (EOS) is dropped, and
    set again only where ``end_token`` asks for it.

    Raises DataError where the tokenizer gives no offsets or no token for an entity.
    """
    [encoded] = encode_all([fact], tokenizer=tokenizer, loss=loss, end_token=end_token)
    return encoded


def encode_all(
    facts: Sequence[FactText], *, tokenizer: Any, loss: Loss, end_token: bool
) -> list[Encoded]:
    """Many texts, each as ``encode`` does it; much faster than one by one."""
    if not tokenizer.is_fast:
        raise DataError(
            f"{type(tokenizer).__name__} gives no character offsets; use the model's fast tokenizer"
        )
    if end_token and tokenizer.eos_token_id is None:
        raise DataError("end_token: the tokenizer has no end-of-text token; set it to false")
    end = (tokenizer.eos_token_id,) if end_token else ()
    # transformers would make a dict of each text, which takes longer than to tokenize it. As it
    # does, what tokenizer.json says of truncation and padding is left out.
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    found = backend.encode_batch([fact.text for fact in facts])
    return [
        _encoded(fact, one.ids, one.offsets, loss=loss, end=end)
        for fact, one in zip(facts, found, strict=True)
    ]


def _encoded(
    fact: FactText,
    tokens: list[int],
    offsets: list[tuple[int, int]],
    *,
    loss: Loss,
    end: tuple[int, ...],
) -> Encoded:
    length = len(tokens)
    while length and offsets[length - 1][0] == offsets[length - 1][1]:
        length -= 1
    subject = _token_span(offsets, fact.subject, text=fact.text)
    object_ = _token_span(offsets, fact.object, text=fact.text)
    kept = (*tokens[:length], *end)
    answer = (_answer_start(fact, offsets, object_[0]), object_[1])
    labels = _labels(kept, loss=loss, subject=subject, answer=answer)
    return Encoded(kept, labels, subject, object_)


def _answer_start(fact: FactText, offsets: list[tuple[int, int]], first: int) -> int:
    """Where what the model must say begins: ``first``, the object's first token, or the one before.

    Some tokenizers part the space from what follows, such as from digits. The prompt that is asked
    ends before it, so an answer begins with it.
    """
    start = fact.object[0]
    is_space = fact.text[start - 1 : start] == " "
    return first - 1 if first and is_space and offsets[first - 1] == (start - 1, start) else first


def _labels(
    tokens: tuple[int, ...], *, loss: Loss, subject: tuple[int, int], answer: tuple[int, int]
) -> tuple[int, ...]:
    """The tokens that count in the loss, and IGNORE; position 0 is never predicted."""
    match loss:
        case "all":
            spans = [(1, len(tokens))]
        case "subject_object":
            spans = [subject, answer]
        case "object":
            spans = [answer]
    labels = [IGNORE] * len(tokens)
    for start, stop in spans:
        labels[max(start, 1) : stop] = tokens[max(start, 1) : stop]
    return tuple(labels)


def _token_span(
    offsets: list[tuple[int, int]], characters: tuple[int, int], *, text: str
) -> tuple[int, int]:
    """The tokens that cover any of ``characters``; they are contiguous."""
    start, stop = characters
    first = last = -1
    for place, (begins, ends) in enumerate(offsets):
        if begins < ends and ends > start and begins < stop:
            last = place
            if first < 0:
                first = place
    if first < 0:
        raise DataError(f"{text!r}: no token covers {text[start:stop]!r}; change its spelling")
    return first, last + 1
