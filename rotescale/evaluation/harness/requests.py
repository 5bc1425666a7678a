"""Answers requests that are tokens, each rank its share; rank 0 has them, the others follow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rotescale.evaluation.generation import Continuations, continue_greedily, end_tokens
from rotescale.evaluation.runner import Share, continue_shares, score_shares
from rotescale.evaluation.scoring import Forward, OptionScores
from rotescale.evaluation.tree import TokenTree, attention_window, grow

Tokens = tuple[int, ...]
Pair = tuple[Tokens, Tokens]
"""A context and its continuation, neither of them empty."""

_TREE_TOKENS = 1024
"""Tokens of continuations that share one pass, where a context has more than fit."""

_GENERATION_BATCH = 32


@dataclass(frozen=True)
class Asker:
    """A model and the ranks that share the work on it."""

    forward: Forward
    model: Any
    tokenizer: Any
    num_tokens: int
    share: Share
    gather: Callable[[Any], list[Any]]
    """Brings every rank's value to every rank, in rank order."""
    all_done: Callable[[bool], bool]
    """True on all ranks once it was told true on all."""
    token_budget: int = 1
    """Nodes of token trees that one pass takes, or one tree."""

    def log_likelihoods(
        self, pairs: Sequence[Pair], *, progress: Callable[[int, int], None]
    ) -> list[tuple[float, bool]]:
        """Summed log-probability of each continuation, and whether it is the greedy one.

        Collective: every rank calls this, with the same pairs. ``progress`` is told how many of
        how many are answered, over all ranks.
        """
        # Long ones first: so the passes that ranks make together are alike.
        batches = sorted(_by_context(pairs), key=lambda batch: -batch.num_tokens)
        answered = [0]
        for batch in batches:
            answered.append(answered[-1] + len(batch.places))
        scores = score_shares(
            self.forward,
            batches,
            share=self.share,
            build=self._tree,
            num_tokens=self.num_tokens,
            token_budget=self.token_budget,
            all_done=self._agree,
            progress=lambda done: progress(answered[done], len(pairs)),
        )
        found: dict[int, tuple[float, bool]] = {}
        for of_rank in self.gather(_plain(scores)):
            for number, answers in of_rank.items():
                found.update(zip(batches[number].places, answers, strict=True))
        return [found[place] for place in range(len(pairs))]

    def continuations(
        self,
        prompts: Sequence[Tokens],
        *,
        stops: Sequence[str],
        max_new_tokens: int,
        progress: Callable[[int, int], None],
    ) -> list[str]:
        """What each prompt is continued with, greedily, up to the first of the stops.

        Collective: every rank calls this, with the same prompts.
        """
        ends = end_tokens(self.model, self.tokenizer)

        def continue_all(mine: Sequence[Tokens]) -> list[str]:
            into = _UntilStop(len(mine), tokenizer=self.tokenizer, ends=ends, stops=stops)
            continue_greedily(
                self.model,
                mine,
                into=into,
                num_tokens=self.num_tokens,
                max_new_tokens=max_new_tokens,
                all_done=self._agree,
            )
            return into.texts()

        # Alike lengths together, so that little is padding.
        order = sorted(range(len(prompts)), key=lambda place: -len(prompts[place]))
        made = continue_shares(
            [prompts[place] for place in order],
            share=self.share,
            batch=_GENERATION_BATCH,
            continue_all=continue_all,
            progress=lambda done: progress(done, len(prompts)),
        )
        found: dict[int, str] = {}
        for of_rank in self.gather(made):
            found.update({order[number]: text for number, text in of_rank.items()})
        return [found[place] for place in range(len(prompts))]

    def _agree(self, done: bool) -> bool:
        """Whether all ranks are done; alone, a rank decides for itself."""
        return self.all_done(done) if self.share.collective else done

    def _tree(self, batch: _Batch) -> TokenTree:
        sequences = [[*batch.context, *continuation] for continuation in batch.continuations]
        window = attention_window(self.model.config)
        return grow(sequences, start=len(batch.context), window=window)


@dataclass(frozen=True)
class Leader:
    """What rank 0 asks through: the others answer with it, in ``follow``, until it ends."""

    asker: Asker

    def log_likelihoods(
        self, pairs: Sequence[Pair], *, progress: Callable[[int, int], None]
    ) -> list[tuple[float, bool]]:
        """As ``Asker.log_likelihoods``."""
        self.asker.gather(("log_likelihoods", pairs))
        return self.asker.log_likelihoods(pairs, progress=progress)

    def continuations(
        self,
        prompts: Sequence[Tokens],
        *,
        stops: Sequence[str],
        max_new_tokens: int,
        progress: Callable[[int, int], None],
    ) -> list[str]:
        """As ``Asker.continuations``."""
        self.asker.gather(("continuations", prompts, stops, max_new_tokens))
        return self.asker.continuations(
            prompts, stops=stops, max_new_tokens=max_new_tokens, progress=progress
        )

    def end(self) -> None:
        """Let the others go."""
        self.asker.gather(None)


def follow(asker: Asker, *, progress: Callable[[int, int], None]) -> None:
    """Collective: every rank but 0 calls this while rank 0 asks. Answer with it to its end."""
    while True:
        match asker.gather(None)[0]:
            case None:
                return
            case "log_likelihoods", pairs:
                asker.log_likelihoods(pairs, progress=progress)
            case "continuations", prompts, stops, max_new_tokens:
                asker.continuations(
                    prompts, stops=stops, max_new_tokens=max_new_tokens, progress=progress
                )


@dataclass(frozen=True, slots=True)
class _Batch:
    """Continuations of one context that share a pass."""

    context: Tokens
    continuations: list[Tokens]
    places: list[int]
    """Of the pairs, in the same order."""

    @property
    def num_tokens(self) -> int:
        """Of the tree, where its branches share nothing."""
        return len(self.context) + sum(map(len, self.continuations))


def _by_context(pairs: Sequence[Pair]) -> Iterator[_Batch]:
    """Neighbours of one context together, as the options of a question are."""
    batch = _Batch((), [], [])
    held = 0
    for place, (context, continuation) in enumerate(pairs):
        if context != batch.context or held + len(continuation) > _TREE_TOKENS:
            if batch.places:
                yield batch
            batch, held = _Batch(context, [], []), 0
        batch.continuations.append(continuation)
        batch.places.append(place)
        held += len(continuation)
    if batch.places:
        yield batch


def _plain(scores: dict[int, OptionScores]) -> dict[int, list[tuple[float, bool]]]:
    return {
        number: list(zip(one.log_probabilities.tolist(), one.is_greedy.tolist(), strict=True))
        for number, one in scores.items()
    }


class _UntilStop(Continuations):
    """Each ends with a stop, a text of the task's."""

    def __init__(
        self, num_prompts: int, *, tokenizer: Any, ends: frozenset[int], stops: Sequence[str]
    ) -> None:
        super().__init__(num_prompts, tokenizer=tokenizer, ends=ends)
        self._stops = [stop for stop in stops if stop]

    def _is_over(self, row: int, token: int) -> bool:
        text = self._decode(self._made[row], skip_special_tokens=False)
        return any(stop in text for stop in self._stops)

    def texts(self) -> list[str]:
        """Each continuation without special tokens, cut before the first stop in it."""
        return [self._cut(self._decode(made, skip_special_tokens=True)) for made in self._made]

    def _cut(self, text: str) -> str:
        for stop in self._stops:
            text = text.partition(stop)[0]
        return text

    def _decode(self, tokens: list[int], *, skip_special_tokens: bool) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens)
        return text
