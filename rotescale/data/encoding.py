"""From a text to tokens, spans and labels, all known by construction and never searched for."""

from __future__ import annotations

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
    over the border between prompt and object is part of the object: the model must predict it.
    Special tokens that the tokenizer puts in front (BOS) stay; one behind (EOS) is dropped, and
    set again only where ``end_token`` asks for it.

    Raises DataError where the tokenizer gives no offsets or no token for an entity.
    """
    if not tokenizer.is_fast:
        raise DataError(
            f"{type(tokenizer).__name__} gives no character offsets; use the model's fast tokenizer"
        )
    encoding = tokenizer(fact.text, return_offsets_mapping=True)
    tokens, offsets = list(encoding["input_ids"]), list(encoding["offset_mapping"])
    while tokens and offsets[-1][0] == offsets[-1][1]:
        tokens.pop()
        offsets.pop()
    subject = _token_span(offsets, fact.subject, text=fact.text)
    object_ = _token_span(offsets, fact.object, text=fact.text)
    if end_token:
        if tokenizer.eos_token_id is None:
            raise DataError("end_token: the tokenizer has no end-of-text token; set it to false")
        tokens.append(tokenizer.eos_token_id)
    counted = _counted(loss, num_tokens=len(tokens), subject=subject, object_=object_)
    labels = [token if i in counted else IGNORE for i, token in enumerate(tokens)]
    return Encoded(tuple(tokens), tuple(labels), subject, object_)


def _counted(
    loss: Loss, *, num_tokens: int, subject: tuple[int, int], object_: tuple[int, int]
) -> set[int]:
    """The positions that count in the loss; never position 0, which nothing predicts."""
    match loss:
        case "all":
            counted = set(range(num_tokens))
        case "subject_object":
            counted = set(range(*subject)) | set(range(*object_))
        case "object":
            counted = set(range(*object_))
    return counted - {0}


def _token_span(
    offsets: list[tuple[int, int]], characters: tuple[int, int], *, text: str
) -> tuple[int, int]:
    """The tokens that cover any of ``characters``; they are contiguous."""
    start, stop = characters
    covering = [i for i, (a, b) in enumerate(offsets) if a < b and b > start and a < stop]
    if not covering:
        raise DataError(f"{text!r}: no token covers {text[start:stop]!r}; change its spelling")
    return covering[0], covering[-1] + 1
