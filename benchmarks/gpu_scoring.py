"""Scoring on one device: token trees beside one option at a time, and prompts per second."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from gpu_kernels import apart, model_of
from rotescale.evaluation.budget import pass_budget
from rotescale.evaluation.items import Item
from rotescale.evaluation.runner import Share, score_shares
from rotescale.evaluation.scoring import Forward, OptionScores, forward_of
from rotescale.evaluation.suites import Suites
from rotescale.evaluation.tree import TokenTree, build_tree
from rotescale.facts import Wording, load_shipped
from rotescale.model.prepare import PreparedModel
from rotescale.spec import EngineSpec
from subjects import only_test_prompts

_RELATION = "author"
_IN_CONTEXT = "in_context_10"
_COMPARED_ITEMS, _EVERY_NTH_OPTION = 4, 10
_ASKED_ON_GPU, _ASKED_ON_CPU = 200, 12


def scoring(prepared: PreparedModel, device: torch.device, *, dtype: str) -> dict[str, Any]:
    """How far options in trees are from options alone, per token; prompts per second of both kinds.

    The control: trees whose nodes see all nodes before them, those of other options too.
    """
    on_gpu = device.type == "cuda"
    short, behind = _items(_ASKED_ON_GPU if on_gpu else _ASKED_ON_CPU)
    model: Any = model_of(prepared, device, "sdpa", dtype).eval()
    tokenizer = prepared.tokenizer()
    ask = partial(_ask, tokenizer=tokenizer, on_gpu=on_gpu)
    # Also what makes the first passes slow is done by then.
    compared = [*short[:_COMPARED_ITEMS], *behind[:_COMPARED_ITEMS]]
    alone = torch.cat(
        [
            _alone(model, _tree(item, tokenizer=tokenizer), num_tokens=len(tokenizer))
            for item in compared
        ]
    )
    trees = _some(ask(forward_of(model), compared))
    control = _some(ask(_SeesAll(forward_of(model)), compared))
    seconds = {}
    for kind, items in (("short", short), ("in_context", behind)):
        began = time.perf_counter()
        ask(forward_of(model), items)
        seconds[kind] = time.perf_counter() - began
    return {
        "options_compared": len(alone),
        "trees_against_alone": apart(trees, alone),
        "control_against_alone": apart(control, alone),
        "short_prompts_per_second": len(short) / seconds["short"],
        "in_context_prompts_per_second": len(behind) / seconds["in_context"],
    }


class _SeesAll:
    """Passes with the usual causal mask in place of the tree's."""

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self.shares_beginnings = forward.shares_beginnings

    def __call__(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: torch.Tensor,
        beginning: Any = None,
    ) -> torch.Tensor:
        num_nodes, width = attention_mask.shape[-2:]
        behind = torch.ones(num_nodes, width, dtype=torch.bool).triu(width - num_nodes + 1)
        causal = torch.zeros_like(attention_mask).masked_fill(
            behind, torch.finfo(attention_mask.dtype).min
        )
        return self._forward(input_ids, position_ids, causal, logits_to_keep, beginning)

    def prefill(self, tokens: torch.Tensor) -> Any:
        return self._forward.prefill(tokens)


def _items(number: int) -> tuple[list[Item], list[Item]]:
    """Short prompts, and prompts behind ten facts: about as many as asked for of each."""
    spec = only_test_prompts(number, in_context=(10,), in_context_facts=number // 2)
    suites = Suites(
        load_shipped([_RELATION]), (), None, Wording.placeholder([_RELATION]), spec, seed=0
    )
    behind = [item for item in suites.items() if item.suite == _IN_CONTEXT]
    return list(suites.core()), behind


def _tree(item: Item, *, tokenizer: Any) -> TokenTree:
    return build_tree(item.text, item.options, tokenizer=tokenizer)


@torch.inference_mode()
def _ask(
    forward: Forward, items: Sequence[Item], *, tokenizer: Any, on_gpu: bool
) -> list[OptionScores]:
    """As an evaluation does, texts to log-probabilities."""
    scores = score_shares(
        forward,
        items,
        share=Share(0, 1, collective=False),
        build=partial(_tree, tokenizer=tokenizer),
        num_tokens=len(tokenizer),
        token_budget=pass_budget(EngineSpec().row_tokens, on_gpu=on_gpu, collective=False),
        all_done=bool,
        progress=lambda done: None,
    )
    return [scores[place] for place in range(len(items))]


def _some(scores: Sequence[OptionScores]) -> torch.Tensor:
    """Log-probability per token of the options that are compared: float64."""
    means = [one.log_probabilities / one.num_option_tokens for one in scores]
    return torch.cat([mean[::_EVERY_NTH_OPTION] for mean in means])


@torch.inference_mode()
def _alone(model: Any, tree: TokenTree, *, num_tokens: int) -> torch.Tensor:
    """As ``_some``, each option behind the prompt by a plain forward pass of its own."""
    means = []
    for option in range(0, tree.num_options, _EVERY_NTH_OPTION):
        own = (tree.owners == option).nonzero()[:, 0]
        node, path = int(tree.predictors[own[-1]]), [int(tree.targets[own[-1]])]
        while node >= 0:
            path.append(int(tree.tokens[node]))
            node = int(tree.parents[node])
        text = torch.tensor(path[::-1], device=model.device)[None]
        logits = model(input_ids=text, use_cache=False).logits[0, -len(own) - 1 : -1, :num_tokens]
        chosen = logits.float().log_softmax(dim=-1).gather(1, text[0, -len(own) :, None])
        means.append(chosen.double().mean())
    return torch.stack(means).cpu()
