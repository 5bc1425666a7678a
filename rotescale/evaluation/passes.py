"""How questions share forward passes: side by side up to a budget, and a common beginning once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, pairwise

import torch

from rotescale.evaluation.tree import TokenTree

LEAST_SHARED_TOKENS = 64
"""Shorter beginnings cost less than the pass that would compute them."""

Placed = tuple[int, TokenTree]
"""A question's place, and its tree."""


@dataclass(frozen=True, slots=True)
class Prefill:
    """A pass over what the passes behind it begin with, which keeps its keys and values."""

    tokens: torch.Tensor
    """(num_tokens,) int64"""


@dataclass(frozen=True, slots=True)
class Pack:
    """A pass over several trees, none of which sees another."""

    placed: tuple[Placed, ...]
    num_shared: int
    """Of the last ``Prefill``, how many tokens stand in front of every tree's own nodes."""


def plan_passes(
    questions: Iterable[Placed], *, token_budget: int, share_beginnings: bool
) -> Iterator[Prefill | Pack]:
    """The passes over all questions, in order; held are the trees of the next one, and one more.

    A pass takes ``token_budget`` nodes at most, or one tree. Questions behind each other whose
    prompts begin with at least LEAST_SHARED_TOKENS alike share the keys and values of these.
    """
    pack: list[Placed] = []
    beginning = torch.empty(0, dtype=torch.int64)
    size = 0
    following: Iterable[Placed | None] = chain(questions, [None])
    for one, after in pairwise(following):
        assert one is not None  # only the last is
        tree = one[1]
        kept = _num_alike(beginning, tree.stem)
        if kept < len(beginning):
            if pack:
                yield Pack(tuple(pack), len(beginning))
            pack, size = [], 0
            beginning = beginning[: kept if kept >= LEAST_SHARED_TOKENS else 0]
        if share_beginnings and not len(beginning) and after is not None:
            alike = _num_alike(tree.stem, after[1].stem)
            if alike >= LEAST_SHARED_TOKENS:
                if pack:
                    yield Pack(tuple(pack), 0)
                pack, size = [], 0
                beginning = tree.stem[:alike]
                yield Prefill(beginning)
        own = len(tree.tokens) - len(beginning)
        if pack and size + own > token_budget:
            yield Pack(tuple(pack), len(beginning))
            pack, size = [], 0
        pack.append(one)
        size += own
    if pack:
        yield Pack(tuple(pack), len(beginning))


def _num_alike(one: torch.Tensor, other: torch.Tensor) -> int:
    """How many tokens both begin with."""
    most = min(len(one), len(other))
    differs = (one[:most] != other[:most]).nonzero()
    return int(differs[0]) if len(differs) else most
