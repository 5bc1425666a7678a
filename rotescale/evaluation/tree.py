"""A prompt and all its options as one token tree, so that one forward pass scores every option."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rotescale.errors import DataError
from rotescale.evaluation.tokens import encode_options


@dataclass(frozen=True, slots=True)
class TokenTree:
    """Token nodes, parents before children: first the path that all options share, then the forks.

    An option's last token is predicted but predicts nothing, so it needs no node.
    """

    tokens: torch.Tensor
    """(num_nodes,) int64"""
    depths: torch.Tensor
    """(num_nodes,) int64: the node's position in its own sequence"""
    parents: torch.Tensor
    """(num_nodes,) int64: -1 for the root"""
    predictors: torch.Tensor
    """(num_targets,) int64: the node that predicts each of the options' own tokens"""
    targets: torch.Tensor
    """(num_targets,) int64: that token"""
    owners: torch.Tensor
    """(num_targets,) int64: the option that it belongs to"""
    num_options: int
    num_trunk: int
    """Nodes in front that all options share, each the child of the one before"""
    window: int | None = None
    """The model's sliding attention window, in tokens."""

    @property
    def stem(self) -> torch.Tensor:
        """(num_trunk - 1,) int64: the tokens in front that predict nothing of an option"""
        return self.tokens[: self.num_trunk - 1]


def build_tree(
    prompt: str, options: Sequence[str], *, tokenizer: Any, window: int | None = None
) -> TokenTree:
    """The tree of prompt and option for every option, each tokenized as a whole.

    A space parts the two, unless the prompt ends with white space. Tokenizing the whole is right
    where a tokenizer merges over the border. The options' own tokens begin at the first token that
    touches an option, or where the options part if that is earlier: then every option is judged
    given the same tokens, and the sums compare.

    Raises DataError for an empty option, or one that merges with the whole prompt.
    """
    if not options or not all(options):
        raise DataError(f"{prompt!r}: options must be non-empty texts; got {list(options)!r}")
    sequences, start = encode_options(prompt, options, tokenizer=tokenizer)
    if start == 0:
        raise DataError(
            f"{prompt!r}: the tokenizer leaves no token before the options; use a longer prompt"
        )
    return grow(sequences, start=start, window=window)


def text_tree(tokens: Sequence[int], *, window: int | None = None) -> TokenTree:
    """A text as a tree of one branch: every token but the first is predicted."""
    return grow([tokens], start=1, window=window)


def grow(sequences: Sequence[Sequence[int]], *, start: int, window: int | None) -> TokenTree:
    """The tree of sequences that share their first ``start`` tokens, each with more behind."""
    tokens, depths = list(sequences[0][:start]), list(range(start))
    parents = list(range(-1, start - 1))
    nodes: dict[tuple[int, int], int] = {}
    predictors, targets, owners = [], [], []
    for option, sequence in enumerate(sequences):
        node = start - 1
        for depth in range(start, len(sequence)):
            token = sequence[depth]
            predictors.append(node)
            targets.append(token)
            owners.append(option)
            if depth == len(sequence) - 1:
                break
            child = nodes.setdefault((node, token), len(tokens))
            if child == len(tokens):
                tokens.append(token)
                parents.append(node)
                depths.append(depth)
            node = child
    return TokenTree(
        tokens=torch.tensor(tokens),
        depths=torch.tensor(depths),
        parents=torch.tensor(parents),
        predictors=torch.tensor(predictors),
        targets=torch.tensor(targets),
        owners=torch.tensor(owners),
        num_options=len(sequences),
        num_trunk=start,
        window=window,
    )


def tree_mask(trees: Sequence[TokenTree], *, num_shared: int = 0) -> torch.Tensor:
    """(1, 1, N, S + N) float32: 0 where a node sees another, else the dtype's minimum.

    N counts the nodes of all trees, but for the S = ``num_shared`` in front of each that all of
    them share: those come first, once. A node sees its ancestors and itself.

    A mask that is given to a model replaces its own, its sliding window too, so the window is
    drawn here, by depth.
    """
    num_nodes = sum(len(tree.tokens) - num_shared for tree in trees)
    sees = torch.zeros(num_nodes, num_shared + num_nodes, dtype=torch.bool)
    first = 0
    for tree in trees:
        own = _sees(tree)[num_shared:]
        last = first + len(own)
        sees[first:last, :num_shared] = own[:, :num_shared]
        sees[first:last, num_shared + first : num_shared + last] = own[:, num_shared:]
        first = last
    mask = torch.full((1, 1, *sees.shape), torch.finfo(torch.float32).min)
    mask.masked_fill_(sees, 0.0)
    return mask


def _sees(tree: TokenTree) -> torch.Tensor:
    """(num_nodes, num_nodes) bool: whether the one sees the other."""
    sees = torch.eye(len(tree.tokens), dtype=torch.bool)
    trunk = tree.num_trunk
    sees[:trunk, :trunk] = torch.ones(trunk, trunk, dtype=torch.bool).tril()
    for node, parent in enumerate(tree.parents[trunk:].tolist(), start=trunk):
        sees[node] |= sees[parent]
    if tree.window is not None:
        sees &= tree.depths[:, None] - tree.depths[None, :] < tree.window
    return sees


def attention_window(config: Any) -> int | None:
    """The sliding window of a model's attention, from its config; None where it sees everything."""
    layer_types = getattr(config, "layer_types", None)
    if layer_types and "sliding_attention" not in layer_types:
        return None
    window = getattr(config, "sliding_window", None)
    return None if window is None else int(window)
