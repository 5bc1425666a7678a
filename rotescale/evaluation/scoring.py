"""Log-probabilities of all options of prompts, by one forward pass over their token trees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from rotescale.errors import DataError, TrainingError
from rotescale.evaluation.logits import logits_in_fp32
from rotescale.evaluation.tree import (
    TokenTree,
    attention_window,
    build_tree,
    tree_mask,
)
from rotescale.model.context import context_length, require_context

__all__ = [
    "Forward",
    "OptionScores",
    "TokenTree",
    "attention_window",
    "build_tree",
    "forward_of",
    "score_tree",
    "score_trees",
    "tree_mask",
]

_ROWS_AT_ONCE = 256
"""Rows of logits that are made fp32 together, which bounds memory with a large vocabulary."""


class Pass(Protocol):
    """One forward pass of a model; moves its inputs to where the model is."""

    def __call__(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: torch.Tensor,
        beginning: Any = None,
    ) -> torch.Tensor:
        """(1, N) int64, (1, N) int64, (1, 1, N, S + N) float32, (K,) int64 -> logits (1, K, V).

        The S tokens in front are the first of ``beginning``, which ``prefill`` has returned; a
        later pass may use it again, with as many tokens of it or fewer.
        """
        ...


class Forward(Pass, Protocol):
    """A model's forward passes, of which several may share a beginning."""

    shares_beginnings: bool
    """Whether ``prefill`` can be used."""

    def prefill(self, tokens: torch.Tensor) -> Any:
        """(S,) int64 -> their keys and values, for passes behind them."""
        ...


@dataclass(frozen=True, slots=True)
class OptionScores:
    """What a model says about the options of one prompt."""

    log_probabilities: torch.Tensor
    """(num_options,) float64: summed over the option's own tokens"""
    num_option_tokens: torch.Tensor
    """(num_options,) int64"""
    is_greedy: torch.Tensor
    """(num_options,) bool: whether each of its tokens is the most probable one"""


def forward_of(model: Any) -> Forward:
    """The passes of a transformers causal model; collective where its parameters are sharded.

    Raises DataError where the model's attention takes no tree mask, and from the pass where a
    prompt with its options is longer than the model's context, or than the window of a model of
    which only some layers have one.
    """
    _check_attention(model.config)
    return _ModelForward(model)


class _ModelForward:
    """As ``forward_of``."""

    def __init__(self, model: Any) -> None:
        self._model = model
        window = attention_window(model.config)
        # The cache of a layer with a window forgets what its window leaves.
        self.shares_beginnings = window is None
        is_mixed = len(set(getattr(model.config, "layer_types", None) or ())) > 1
        self._longest = window if is_mixed else None
        self._context = context_length(model.config)

    def __call__(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: torch.Tensor,
        beginning: Any = None,
    ) -> torch.Tensor:
        model = self._model
        length = int(position_ids.max()) + 1
        require_context(self._context, length, what="a prompt with its options")
        if self._longest is not None and length > self._longest:
            raise DataError(
                f"a prompt of {length} tokens is longer than the model's "
                f"sliding window of {self._longest}, which only some layers have; shorten the "
                "prompt"
            )
        if beginning is not None:
            # The pass before has left its own behind.
            num_shared = attention_mask.shape[-1] - input_ids.shape[-1]
            surplus = beginning.get_seq_length() - num_shared
            if surplus:
                beginning.crop(-surplus)
        # sdpa wants the mask in the dtype of the activations, whose minimum may lie higher.
        mask = attention_mask.clamp(min=torch.finfo(model.dtype).min)
        with logits_in_fp32(model):
            output = model(
                input_ids=input_ids.to(model.device),
                position_ids=position_ids.to(model.device),
                attention_mask=mask.to(device=model.device, dtype=model.dtype),
                logits_to_keep=logits_to_keep.to(model.device),
                past_key_values=beginning,
                use_cache=beginning is not None,
            )
        logits: torch.Tensor = output.logits
        return logits

    def prefill(self, tokens: torch.Tensor) -> Any:
        require_context(self._context, len(tokens), what="what prompts begin with")
        return self._model(
            input_ids=tokens[None].to(self._model.device), use_cache=True, logits_to_keep=1
        ).past_key_values


def _check_attention(config: Any) -> None:
    attention = getattr(config, "_attn_implementation", None)
    if attention not in ("sdpa", "eager"):
        raise DataError(
            f"attention {attention!r} takes no tree mask; call "
            "model.set_attn_implementation('sdpa') for the evaluation"
        )
    layers = set(getattr(config, "layer_types", None) or ())
    unfit = sorted(layers - {"full_attention", "sliding_attention"})
    if unfit:
        raise DataError(
            f"layers of type {unfit} cannot read a token tree; choose a model whose layers all "
            "have full or sliding attention"
        )


def score_tree(forward: Pass, tree: TokenTree, *, num_tokens: int) -> OptionScores:
    """Score every option of one tree, as ``score_trees``."""
    return score_trees(forward, [tree], num_tokens=num_tokens)[0]


@torch.no_grad()
def score_trees(
    forward: Pass,
    trees: Sequence[TokenTree],
    *,
    num_tokens: int,
    num_shared: int = 0,
    beginning: Any = None,
) -> list[OptionScores]:
    """Score every option of all trees; exactly one forward pass.

    Collective where ``forward`` is: every rank calls this. Only the first ``num_tokens`` rows of
    the vocabulary are tokens; the softmax, in fp32, leaves out the padding behind them. Every tree
    begins with the first ``num_shared`` tokens of ``beginning``, and shares no more of its stem.

    Raises TrainingError where the model's output is not finite.
    """
    highest = max(int(torch.cat([tree.targets, tree.tokens]).max()) for tree in trees)
    if highest >= num_tokens:
        raise DataError(
            f"the tokenizer gives token {highest}, but num_tokens is {num_tokens}; the tokenizer "
            "is not this model's"
        )
    sizes = [len(tree.tokens) - num_shared for tree in trees]
    firsts = [sum(sizes[:number]) - num_shared for number in range(len(trees))]
    predictors = [tree.predictors + first for tree, first in zip(trees, firsts, strict=True)]
    # Only nodes that predict a token of an option need the LM head, each once.
    kept, rows = torch.unique(torch.cat(predictors), return_inverse=True)
    logits = forward(
        torch.cat([tree.tokens[num_shared:] for tree in trees])[None],
        torch.cat([tree.depths[num_shared:] for tree in trees])[None],
        attention_mask=tree_mask(trees, num_shared=num_shared),
        logits_to_keep=kept,
        beginning=beginning,
    )[0, :, :num_tokens]
    normalisers = torch.cat(
        [some.float().logsumexp(dim=-1) for some in torch.split(logits, _ROWS_AT_ONCE)]
    )
    rows = rows.to(logits.device)
    targets = torch.cat([tree.targets for tree in trees]).to(logits.device)
    missed = (logits.argmax(dim=-1)[rows] != targets).cpu()
    log_probabilities = (logits[rows, targets].float() - normalisers[rows]).double().cpu()
    if not bool(torch.isfinite(log_probabilities).all()):
        raise TrainingError(
            "the model gives a log-probability that is not finite; its weights hold NaN or have "
            "diverged: lower the learning rate, or start from an earlier checkpoint"
        )
    lengths = [len(tree.targets) for tree in trees]
    return [
        _scores(tree, of_tree, missed=its_missed)
        for tree, of_tree, its_missed in zip(
            trees,
            torch.split(log_probabilities, lengths),
            torch.split(missed, lengths),
            strict=True,
        )
    ]


def _scores(
    tree: TokenTree, log_probabilities: torch.Tensor, *, missed: torch.Tensor
) -> OptionScores:
    """Sums by option, of log-probabilities by target."""
    sums = torch.zeros(tree.num_options, dtype=torch.float64)
    sums.index_add_(0, tree.owners, log_probabilities)
    num_own = tree.owners.bincount(minlength=tree.num_options)
    num_missed = tree.owners[missed].bincount(minlength=tree.num_options)
    return OptionScores(sums, num_own, is_greedy=num_missed == 0)
