"""Asks a model every item, each rank its share; where passes are collective, as many on each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from rotescale.ahead import made_ahead
from rotescale.evaluation.dealing import deal
from rotescale.evaluation.generation import generate
from rotescale.evaluation.items import Item
from rotescale.evaluation.metrics import Outcome, outcome_of
from rotescale.evaluation.passes import Prefill, plan_passes
from rotescale.evaluation.scoring import Forward, OptionScores, score_trees
from rotescale.evaluation.tree import TokenTree, attention_window, build_tree, text_tree

_Question = TypeVar("_Question")


def evaluate(
    model_forward: Forward,
    model: Any,
    items: Sequence[Item],
    *,
    tokenizer: Any,
    num_tokens: int,
    rank: int,
    world_size: int,
    collective: bool,
    gather: Callable[[list[Any]], list[list[Any]]],
    all_done: Callable[[bool], bool],
    progress: Callable[[int], None],
    max_new_tokens: int,
    token_budget: int = 1,
    generation_batch: int = 32,
) -> list[Outcome]:
    """The outcomes of all items, in order, on every rank; each asks its share of them.

    Which share that is, ``deal`` says: neighbours behind one context mostly share a rank, which
    computes the context once.

    Collective: every rank calls this, with the same items. Where ``collective`` is true the
    forward passes are collective too, and as many on all ranks: before each they agree whether
    one has anything left, and a rank that has nothing makes an empty one. Else ``all_done`` is not
    called.

    ``token_budget`` is as ``score_shares`` has it. ``gather`` brings every rank's list to every
    rank, in rank order; ``all_done`` is true on all ranks once it was told true on all.
    ``progress`` is called after each pass with the number of questions and generations done so
    far, over all ranks, as far as this one knows.
    """
    share = Share(rank, world_size, collective)
    agree = all_done if collective else bool
    was_training = model.training
    model.eval()
    try:
        scores = score_shares(
            model_forward,
            items,
            share=share,
            mine=deal([item.text for item in items], world_size)[rank],
            build=partial(_tree, tokenizer=tokenizer, window=attention_window(model.config)),
            num_tokens=num_tokens,
            token_budget=token_budget,
            all_done=agree,
            progress=progress,
        )
        texts = continue_shares(
            [item.text for item in items if item.generate],
            share=share,
            batch=generation_batch,
            continue_all=lambda texts: generate(
                model,
                texts,
                tokenizer=tokenizer,
                num_tokens=num_tokens,
                max_new_tokens=max_new_tokens,
                all_done=agree,
            ),
            progress=lambda done: progress(len(items) + done),
        )
    finally:
        model.train(was_training)
    return _join(items, answers=gather([scores, texts]))


def _tree(item: Item, *, tokenizer: Any, window: int | None) -> TokenTree:
    """The options behind the prompt, or a piece of text as the one branch that it is."""
    if item.tokens:
        return text_tree(item.tokens, window=window)
    return build_tree(item.text, item.options, tokenizer=tokenizer, window=window)


@dataclass(frozen=True, slots=True)
class Share:
    """Which units of work are this rank's, and how many passes it makes."""

    rank: int
    world_size: int
    collective: bool

    def mine(self, num_units: int) -> range:
        """The places of this rank's units: every ``world_size``-th."""
        return range(self.rank, num_units, self.world_size)

    def num_passes(self, num_units: int, *, batch: int = 1) -> int:
        """Passes over this rank's units; in a collective the same number on every rank."""
        most = -(-num_units // self.world_size)
        return -(-(most if self.collective else len(self.mine(num_units))) // batch)


def score_shares(
    forward: Forward,
    questions: Sequence[_Question],
    *,
    share: Share,
    build: Callable[[_Question], TokenTree],
    num_tokens: int,
    token_budget: int,
    all_done: Callable[[bool], bool],
    progress: Callable[[int], None],
    mine: Sequence[int] | None = None,
) -> dict[int, OptionScores]:
    """Place of the question to its scores, for this rank's questions.

    Collective, where the share says so: every rank calls this, with the same questions, and
    ``all_done`` tells whether all ranks are done, given whether this one is. One pass takes
    questions up to ``token_budget`` nodes of their trees, or one question. ``build`` is called in a
    thread, for the next pass while one is computed. ``mine`` are the places of this rank's
    questions, where they are others than ``share`` says.
    """
    scores: dict[int, OptionScores] = {}
    places = share.mine(len(questions)) if mine is None else mine
    planned = plan_passes(
        ((place, build(questions[place])) for place in places),
        token_budget=token_budget,
        share_beginnings=forward.shares_beginnings,
    )
    beginning = None
    # To tokenize a question's options and grow its tree takes milliseconds.
    with made_ahead(planned) as passes:
        while not all_done((one := next(passes, None)) is None):
            if one is None:
                # The others have more: the pass takes place, for nothing.
                score_trees(forward, [text_tree([0, 0])], num_tokens=num_tokens)
            elif isinstance(one, Prefill):
                beginning = forward.prefill(one.tokens)
            else:
                scored = score_trees(
                    forward,
                    [tree for _, tree in one.placed],
                    num_tokens=num_tokens,
                    num_shared=one.num_shared,
                    beginning=beginning if one.num_shared else None,
                )
                scores.update(zip((place for place, _ in one.placed), scored, strict=True))
                progress(min(len(scores) * share.world_size, len(questions)))
    return scores


def continue_shares(
    prompts: Sequence[_Question],
    *,
    share: Share,
    batch: int,
    continue_all: Callable[[Sequence[_Question]], list[str]],
    progress: Callable[[int], None],
) -> dict[int, str]:
    """Place of the prompt to its continuation, for this rank's prompts.

    Collective, where the share says so: every rank calls this, with the same prompts.
    """
    continued: dict[int, str] = {}
    mine = share.mine(len(prompts))
    for number in range(share.num_passes(len(prompts), batch=batch)):
        places = mine[number * batch : (number + 1) * batch]
        made = continue_all([prompts[place] for place in places])
        continued.update(zip(places, made, strict=True))
        progress(min((number + 1) * batch * share.world_size, len(prompts)))
    return continued


def _join(items: Sequence[Item], *, answers: Sequence[Sequence[Any]]) -> list[Outcome]:
    """The outcomes of all items, from the scores and continuations of all ranks."""
    scores: dict[int, OptionScores] = {}
    texts: dict[int, str] = {}
    for scores_of_rank, texts_of_rank in answers:
        scores.update(scores_of_rank)
        texts.update(texts_of_rank)
    generated = (texts[place] for place in range(len(texts)))
    return [
        outcome_of(
            item,
            log_probabilities=scores[place].log_probabilities.numpy(),
            num_option_tokens=scores[place].num_option_tokens.numpy(),
            generated=next(generated) if item.generate else None,
        )
        for place, item in enumerate(items)
    ]
