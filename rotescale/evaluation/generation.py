"""Greedy decoding of many prompts at once, in as many passes on every rank."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch

from rotescale.evaluation.answers import answer_of, generation_contains, generation_exact
from rotescale.evaluation.tokens import encode
from rotescale.model.context import context_length, require_context

__all__ = [
    "Continuations",
    "answer_of",
    "continue_greedily",
    "end_tokens",
    "generate",
    "generation_contains",
    "generation_exact",
]


class Continuations(ABC):
    """The tokens that several prompts at once are continued with, and which of them have ended."""

    def __init__(self, num_prompts: int, *, tokenizer: Any, ends: frozenset[int]) -> None:
        """``ends``: tokens that end a continuation and are no part of it."""
        self._tokenizer = tokenizer
        self._ends = ends
        self._made: list[list[int]] = [[] for _ in range(num_prompts)]
        self._ended = [False] * num_prompts

    @property
    def done(self) -> bool:
        """Whether every one has ended; so it is where there are none."""
        return all(self._ended)

    def add(self, tokens: Sequence[int]) -> None:
        """Take the next token of each; what follows an end is dropped."""
        for row, token in zip(range(len(self._made)), tokens, strict=False):
            if self._ended[row]:
                continue
            if token in self._ends:
                self._ended[row] = True
                continue
            self._made[row].append(token)
            self._ended[row] = self._is_over(row, token)

    @abstractmethod
    def _is_over(self, row: int, token: int) -> bool:
        """Whether the continuation has ended with ``token``, which it holds by now."""


def generate(
    model: Any,
    texts: Sequence[str],
    *,
    tokenizer: Any,
    num_tokens: int,
    max_new_tokens: int,
    all_done: Callable[[bool], bool],
) -> list[str]:
    """Continue each text greedily, to the end of its first line that is not empty.

    Collective: every rank calls this, as ``continue_greedily``. The continuation comes back
    without the end-of-text token, cut at the line's end, white space around it stripped.
    """
    lines = _FirstLines(len(texts), tokenizer=tokenizer, ends=end_tokens(model, tokenizer))
    continue_greedily(
        model,
        encode(texts, tokenizer=tokenizer),
        into=lines,
        num_tokens=num_tokens,
        max_new_tokens=max_new_tokens,
        all_done=all_done,
    )
    return lines.texts()


@torch.no_grad()
def continue_greedily(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    into: Continuations,
    num_tokens: int,
    max_new_tokens: int,
    all_done: Callable[[bool], bool],
) -> None:
    """Continue each prompt of tokens greedily, until ``into`` is done.

    Collective: every rank calls this, with any number of prompts, even none. ``all_done`` tells
    whether all ranks are done, given whether this one is: so all make the same number of passes.
    Only the first ``num_tokens`` rows of the vocabulary are tokens.

    Raises DataError where a prompt and its continuation may be longer than the model's context.
    """
    longest = max(map(len, prompts), default=0) + max_new_tokens
    what = f"a prompt with {max_new_tokens} new tokens (evaluation.max_new_tokens)"
    require_context(context_length(model.config), longest, what=what)
    tokens, attention = _pad_left(prompts or [[0]])
    tokens, attention = tokens.to(model.device), attention.to(model.device)
    positions = (attention.cumsum(dim=-1) - 1).clamp(min=0)
    cache = None
    for num_made in range(1, max_new_tokens + 1):
        output = model(
            input_ids=tokens,
            attention_mask=attention,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = output.past_key_values
        tokens = output.logits[:, -1:, :num_tokens].float().argmax(dim=-1)
        into.add(tokens[:, 0].tolist())
        if num_made < max_new_tokens and all_done(into.done):
            break
        attention = torch.cat([attention, torch.ones_like(attention[:, :1])], dim=1)
        positions = positions[:, -1:] + 1


class _FirstLines(Continuations):
    """Each ends with its first line that is not empty."""

    def __init__(self, num_prompts: int, *, tokenizer: Any, ends: frozenset[int]) -> None:
        super().__init__(num_prompts, tokenizer=tokenizer, ends=ends)
        self._has_text = [False] * num_prompts
        self._decoded: dict[int, str] = {}

    def _is_over(self, row: int, token: int) -> bool:
        piece = self._decode([token]) if token not in self._decoded else self._decoded[token]
        self._decoded[token] = piece
        # Line ends in front of the answer do not end it.
        text = piece if self._has_text[row] else piece.lstrip()
        self._has_text[row] |= bool(text)
        return "\n" in text

    def texts(self) -> list[str]:
        """The first line of each continuation that is not empty."""
        return [self._decode(made).strip().partition("\n")[0].strip() for made in self._made]

    def _decode(self, tokens: list[int]) -> str:
        # Special tokens stay visible: a key token in front of an answer is part of the answer.
        text: str = self._tokenizer.decode(
            tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text


def _pad_left(prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and attention mask, both (num_prompts, longest) int64.

    Padding is masked, so any token will do: not every tokenizer has one for it.
    """
    longest = max(len(prompt) for prompt in prompts)
    tokens = torch.zeros(len(prompts), longest, dtype=torch.int64)
    attention = torch.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
        tokens[row, longest - len(prompt) :] = torch.tensor(prompt)
        attention[row, longest - len(prompt) :] = 1
    return tokens, attention


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens after which a text is over: end and beginning of text, padding, the model's own."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = set(configured) if isinstance(configured, list | tuple) else {configured}
    ends |= {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id}
    return frozenset(int(token) for token in ends if token is not None)
