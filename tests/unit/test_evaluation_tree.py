"""The token tree: its nodes, its mask, and tokenizers without offsets."""

from __future__ import annotations

from typing import Any

from rotescale.evaluation.tokens import encode
from rotescale.evaluation.tree import build_tree, tree_mask


class SlowTokenizer:
    """One token per character, no offsets."""

    is_fast = False
    eos_token_id = None

    def __call__(self, texts: list[str], add_special_tokens: bool) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(character) % 500 for character in text] for text in texts]}


def test_tree_shares_prefixes_and_leaves_out_last_tokens() -> None:
    class Words(SlowTokenizer):
        def __call__(self, texts: list[str], add_special_tokens: bool) -> Any:
            return {"input_ids": [[len(word) for word in text.split()] for text in texts]}

    tree = build_tree("a bb", ("ccc dddd", "ccc eeeee", "ccc"), tokenizer=Words())
    assert tree.tokens.tolist() == [1, 2, 3]
    assert tree.depths.tolist() == [0, 1, 2]
    assert tree.parents.tolist() == [-1, 0, 1]
    assert tree.predictors.tolist() == [1, 2, 1, 2, 1]
    assert tree.targets.tolist() == [3, 4, 3, 5, 3]
    assert tree.owners.tolist() == [0, 0, 1, 1, 2]


def test_mask_shows_ancestors_only() -> None:
    tree = build_tree("ab", ("cd", "ef"), tokenizer=SlowTokenizer())
    sees = tree_mask([tree])[0, 0] == 0
    assert sees.tolist() == [
        [True, False, False, False, False],
        [True, True, False, False, False],
        [True, True, True, False, False],
        [True, True, True, True, False],
        [True, True, True, False, True],
    ]


def test_slow_tokenizers_are_compared_with_the_prompts_tokens() -> None:
    tree = build_tree("ab", ("cd", "ce"), tokenizer=SlowTokenizer())
    own = tree.targets[tree.owners == 0].tolist()
    assert own == [ord(character) for character in " cd"]


def test_window_is_drawn_by_depth() -> None:
    tree = build_tree("ab", ("cd", "ef"), tokenizer=SlowTokenizer(), window=2)
    sees = tree_mask([tree])[0, 0] == 0
    assert sees.tolist() == [
        [True, False, False, False, False],
        [True, True, False, False, False],
        [False, True, True, False, False],
        [False, False, True, True, False],
        [False, False, True, False, True],
    ]


def test_no_texts_encode_to_nothing() -> None:
    assert encode([], tokenizer=SlowTokenizer()) == []
