"""Log-probabilities of all options of a prompt, by one forward pass over their token tree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from rotescale.errors import DataError, TrainingError
from rotescale.evaluation.tree import (
    TokenTree,
    attention_window,
    build_tree,
    encode,
    tree_mask,
)

__all__ = [
    "Forward",
    "OptionScores",
    "TokenTree",
    "attention_window",
    "build_tree",
    "encode",
    "forward_of",
    "score_tree",
    "tree_mask",
]

_ROWS_AT_ONCE = 256
"""Rows of logits that are made fp32 together, which bounds memory with a large vocabulary."""


class Forward(Protocol):
    """One forward pass of a model; moves its inputs to where the model is."""

    def __call__(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: torch.Tensor,
    ) -> torch.Tensor:
        """(1, N) int64, (1, N) int64, (1, 1, N, N) float32, (K,) int64 -> logits (1, K, V)."""
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
    """The forward pass of a transformers causal model; collective where its parameters are sharded.

    Raises DataError where the model's attention takes no tree mask, and from the pass where a
    prompt is longer than the window of a model of which only some layers have one.
    """
    _check_attention(model.config)
    window = None
    if len(set(getattr(model.config, "layer_types", None) or ())) > 1:
        window = attention_window(model.config)

    def forward(
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: torch.Tensor,
    ) -> torch.Tensor:
        if window is not None and int(position_ids.max()) >= window:
            raise DataError(
                f"a prompt of {int(position_ids.max()) + 1} tokens is longer than the model's "
                f"sliding window of {window}, which only some layers have; shorten the prompt"
            )
        # sdpa wants the mask in the dtype of the activations, whose minimum may lie higher.
        mask = attention_mask.clamp(min=torch.finfo(model.dtype).min)
        output = model(
            input_ids=input_ids.to(model.device),
            position_ids=position_ids.to(model.device),
            attention_mask=mask.to(device=model.device, dtype=model.dtype),
            logits_to_keep=logits_to_keep.to(model.device),
            use_cache=False,
        )
        logits: torch.Tensor = output.logits
        return logits

    return forward


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


@torch.no_grad()
def score_tree(forward: Forward, tree: TokenTree, *, num_tokens: int) -> OptionScores:
    """Score every option of a tree; exactly one forward pass.

    Collective where ``forward`` is: every rank calls this. Only the first ``num_tokens`` rows of
    the vocabulary are tokens; the softmax, in fp32, leaves out the padding behind them.

    Raises TrainingError where the model's output is not finite.
    """
    if int(tree.targets.max()) >= num_tokens or int(tree.tokens.max()) >= num_tokens:
        raise DataError(
            f"the tokenizer gives token {int(torch.cat([tree.targets, tree.tokens]).max())}, but "
            f"num_tokens is {num_tokens}; the tokenizer is not this model's"
        )
    # Only nodes that predict a token of an option need the LM head, each once.
    kept, rows = torch.unique(tree.predictors, return_inverse=True)
    logits = forward(
        tree.tokens[None], tree.depths[None], attention_mask=tree_mask(tree), logits_to_keep=kept
    )[0, :, :num_tokens]
    normalisers = torch.cat(
        [some.float().logsumexp(dim=-1) for some in torch.split(logits, _ROWS_AT_ONCE)]
    )
    rows, targets = rows.to(logits.device), tree.targets.to(logits.device)
    missed = (logits.argmax(dim=-1)[rows] != targets).cpu()
    log_probabilities = (logits[rows, targets].float() - normalisers[rows]).double().cpu()
    if not bool(torch.isfinite(log_probabilities).all()):
        raise TrainingError(
            "the model gives a log-probability that is not finite; its weights hold NaN or have "
            "diverged: lower the learning rate, or start from an earlier checkpoint"
        )
    sums = torch.zeros(tree.num_options, dtype=torch.float64)
    sums.index_add_(0, tree.owners, log_probabilities)
    num_own = tree.owners.bincount(minlength=tree.num_options)
    num_missed = tree.owners[missed].bincount(minlength=tree.num_options)
    return OptionScores(sums, num_own, is_greedy=num_missed == 0)
