"""Models whose answers are known, in place of a transformers model behind the real runner."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rotescale.evaluation.items import Item
from rotescale.evaluation.metrics import Outcome
from rotescale.evaluation.runner import evaluate

SURE = 20.0
"""The logit of a token that a model expects; all others have 0."""

UNKNOWN = 1
"""The token of any word that the tokenizer was not told."""

_LINE_END = "\n"


def word_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A token per word of the texts, full stop and line end; 0 ends a text, UNKNOWN is any other.

    A training text ends with a full stop, which is no part of its object; that of ``D.C.`` is.
    """
    splitter = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_LINE_END, "isolated"),
            pre_tokenizers.Split(Regex("(?<!\\.\\w)\\.(?=\\s|$)"), "isolated"),
            pre_tokenizers.Split(Regex("[^\\S\n]+"), "removed"),
        ]
    )
    words = {word for text in texts for word, _ in splitter.pre_tokenize_str(text)}
    first = ("<end>", "<unknown>", _LINE_END, ".")
    vocabulary = {word: i for i, word in enumerate((*first, *sorted(words - {*first})))}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    raw.pre_tokenizer = splitter
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>")


class KnownModel:
    """Expects the token that ``following`` tells, and where it tells none all of them alike.

    Reads what came before a token from the attention mask alone.
    """

    device = torch.device("cpu")
    config = SimpleNamespace()
    generation_config = None
    training = True

    def __init__(self, tokenizer: Any) -> None:
        self.num_rows = len(tokenizer)
        self.num_passes = 0
        self.prefills: list[tuple[int, ...]] = []

    def following(self, seen: tuple[int, ...]) -> int | None:
        """The token that comes after these."""
        return None

    def eval(self) -> None:
        self.training = False

    def train(self, mode: bool) -> None:
        self.training = mode

    def logits(self, seen: list[tuple[int, ...]]) -> torch.Tensor:
        """(1, len(seen), num_rows) float32: what follows each of the token sequences."""
        logits = torch.zeros(1, len(seen), self.num_rows)
        for row, tokens in enumerate(seen):
            token = self.following(tokens)
            if token is not None:
                logits[0, row, token] = SURE
        return logits

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: torch.Tensor,
        beginning: Sequence[int] | None = None,
    ) -> torch.Tensor:
        assert not self.training
        self.num_passes += 1
        num_shared = attention_mask.shape[-1] - input_ids.shape[-1]
        tokens = [*(beginning or ())[:num_shared], *input_ids[0].tolist()]
        depths = [*range(num_shared), *position_ids[0].tolist()]
        visible = (attention_mask[0, 0] == 0).tolist()
        seen = []
        for node in logits_to_keep.tolist():
            path = sorted((depths[i], tokens[i]) for i, sees in enumerate(visible[node]) if sees)
            assert [depth for depth, _ in path] == list(range(len(path)))
            seen.append(tuple(token for _, token in path))
        return self.logits(seen)

    def __call__(self, **inputs: Any) -> Any:
        self.num_passes += 1
        rows = inputs["input_ids"].tolist()
        if inputs["past_key_values"] is None:
            masks = inputs["attention_mask"].bool().tolist()
            rows = [
                tuple(t for t, kept in zip(row, mask, strict=True) if kept)
                for row, mask in zip(rows, masks, strict=True)
            ]
        else:
            rows = [(*a, *b) for a, b in zip(inputs["past_key_values"], rows, strict=True)]
        return SimpleNamespace(logits=self.logits(rows).transpose(0, 1), past_key_values=rows)


class Knowing(KnownModel):
    """Knows what follows some texts, at the beginning or behind a line's end."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer)
        self._next: dict[tuple[int, ...], int] = {}
        [self._line_end] = tokenizer.convert_tokens_to_ids([_LINE_END])

    def learn(self, question: Sequence[int], answer: Sequence[int]) -> None:
        """Know the answer to the question, both tokens; one question has one answer."""
        for place, token in enumerate(answer):
            seen = (*question, *answer[:place])
            assert self._next.setdefault(seen, token) == token, seen

    def following(self, seen: tuple[int, ...]) -> int | None:
        if seen in self._next:
            return self._next[seen]
        ends = [place for place, token in enumerate(seen) if token == self._line_end]
        return self._next.get(seen[ends[-1] + 1 :]) if ends else None


class Monotonous(KnownModel):
    """Answers every text with the same tokens."""

    def __init__(self, tokenizer: Any, answer: Sequence[int]) -> None:
        super().__init__(tokenizer)
        self._answer = [*answer, tokenizer.eos_token_id]

    def following(self, seen: tuple[int, ...]) -> int | None:
        said = [n for n in range(len(self._answer)) if seen[-n:] == (*self._answer[:n],)]
        return self._answer[max(said, default=0)]


class Passes:
    """A known model's passes over token trees."""

    shares_beginnings = True

    def __init__(self, model: KnownModel) -> None:
        self.model = model

    def __call__(self, *inputs: Any, **named: Any) -> torch.Tensor:
        return self.model.forward(*inputs, **named)

    def prefill(self, tokens: torch.Tensor) -> list[int]:
        self.model.num_passes += 1
        found: list[int] = tokens.tolist()
        self.model.prefills.append(tuple(found))
        return found


def ask(
    model: KnownModel, items: Sequence[Item], tokenizer: Any, *, max_new_tokens: int, **changes: Any
) -> list[Outcome]:
    """What the runner makes of the model's answers, on one rank unless ``changes`` say more."""
    options: dict[str, Any] = {
        "rank": 0,
        "world_size": 1,
        "collective": False,
        "gather": lambda mine: [mine],
        "all_done": bool,
        "progress": lambda done: None,
        "generation_batch": 4,
        **changes,
    }
    return evaluate(
        Passes(model),
        model,
        items,
        tokenizer=tokenizer,
        num_tokens=len(tokenizer),
        max_new_tokens=max_new_tokens,
        **options,
    )
