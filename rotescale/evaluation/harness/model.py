"""A language model as the lm-evaluation-harness wants one, which asks through ``Leader``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import has_bos_prefix, normalize_gen_kwargs, resolve_max_length
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from rotescale.errors import DataError
from rotescale.evaluation.harness.requests import Leader, Pair
from rotescale.evaluation.tree import attention_window

MOST_TOKENS = 4096
"""Of a context with its continuation: a tree's mask grows with the square."""

_DEFAULT_NEW_TOKENS = 256
"""Where a task does not say how long an answer may be; the harness's own default."""


class HarnessModel(TemplateLM):  # type: ignore[misc]
    """Tokenizes as the harness's own ``hf`` model does; everything else is the asker's work.

    ``is_asking`` while it is; an error leaves it so.
    """

    def __init__(self, leader: Leader, *, progress: Callable[[int, int], None]) -> None:
        super().__init__()
        self.tokenizer = leader.asker.tokenizer
        self.max_length = _max_length(leader.asker.model.config, self.tokenizer)
        self.is_asking = False
        self._leader = leader
        self._progress = progress

    @property
    def eot_token_id(self) -> int:
        """The end of a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no context."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """The tokens of a text; the token that texts begin with is not put there twice."""
        if add_special_tokens is None:
            begins = has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id))
            add_special_tokens = not begins
        return list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens))

    def loglikelihood(
        self, requests: list[Any], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        """As the harness defines it."""
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return found

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        return self._ask([self._fitted(context, own) for _, context, own in requests])

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        """As the harness defines it: each token once, given as much as the windows hold."""
        pairs: list[Pair] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for context, own in map(make_disjoint_window, windows):
                pairs.append((tuple(context), tuple(own)))
                owners.append(number)
        sums = [0.0] * len(requests)
        for number, (value, _) in zip(owners, self._ask(pairs), strict=True):
            sums[number] += value
        return sums

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        """As the harness defines it, greedily."""
        alike: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            alike.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(place)
        found: dict[int, str] = {}
        for key, places in alike.items():
            contexts = [requests[place].args[0] for place in places]
            made = self._continue(contexts, how=json.loads(key))
            found.update(zip(places, made, strict=True))
        return [found[place] for place in range(len(requests))]

    def _continue(self, contexts: Sequence[str], *, how: dict[str, Any]) -> list[str]:
        """Those that are generated alike."""
        normal = normalize_gen_kwargs(how, _DEFAULT_NEW_TOKENS)
        num_new = normal["max_gen_toks"]
        room = self.max_length - num_new
        if room < 1:
            raise DataError(
                f"max_gen_toks: {num_new}, but context and answer have {self.max_length} tokens "
                "together; set a lower one in the task's generation_kwargs"
            )
        prompts = [tuple(self.tok_encode(context)[-room:]) for context in contexts]
        self.is_asking = True
        found = self._leader.continuations(
            prompts, stops=normal["until"], max_new_tokens=num_new, progress=self._progress
        )
        self.is_asking = False
        return found

    def _ask(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        self.is_asking = True
        found = self._leader.log_likelihoods(pairs, progress=self._progress)
        self.is_asking = False
        return found

    def _fitted(self, context: list[int], own: list[int]) -> Pair:
        """Cut from the left to what the model takes; the last token predicts nothing."""
        if not own or len(own) > self.max_length:
            raise DataError(
                f"a continuation of {len(own)} tokens, where the model takes 1 to "
                f"{self.max_length}; leave the task out"
            )
        kept = (context + own)[-(self.max_length + 1) :]
        return tuple(kept[: -len(own)]), tuple(own)


def _max_length(config: Any, tokenizer: Any) -> int:
    """How many tokens the model reads at once."""
    most = min(int(resolve_max_length(config, tokenizer)), MOST_TOKENS)
    window = attention_window(config)
    some_layers = len(set(getattr(config, "layer_types", None) or ())) > 1
    return min(most, window) if window is not None and some_layers else most
