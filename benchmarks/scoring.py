"""Multiple choice among 100 answers: token trees beside the lm-evaluation-harness.

Run it from the repository: ``python benchmarks/scoring.py [--json PATH] [--models LIST]``, where
the harness is installed (``make .venv/.peers``).

Both ask the same model, loaded once, the same prompts with the same options, and must prefer the
same one; in turn, each with the threads that serve it best. The harness recomputes prompt and
option for each option; the best of several batch sizes counts. What it computes is counted at the
model's input, padding included. ``in_context`` prompts begin with 50 facts.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from report import CONSOLE, Detail, Row, print_details, print_rows, write_rows
from rotescale.evaluation.budget import pass_budget
from rotescale.evaluation.items import Item, build_items
from rotescale.evaluation.runner import Share, score_shares
from rotescale.evaluation.scoring import forward_of
from rotescale.evaluation.suites import Suites
from rotescale.evaluation.tree import build_tree
from rotescale.facts import Wording, load_shipped
from rotescale.model.sources import fetch
from rotescale.spec import EngineSpec, EvaluationSpec, RandomWeights
from subjects import SUBJECTS, only_test_prompts

_CACHE = Path("~/.cache/rotescale")
_RELATION = "author"
_BATCHES = {"short_prompts": (10, 25, 100), "in_context": (1, 2, 5)}
"""Options at once, of which the harness's best is taken."""
_TRIED_OPTIONS = {"short_prompts": 100, "in_context": 10}
"""Of the first prompt, by which the harness's batch size and threads are chosen."""
_FLOORS = {"short_prompts": 6.0, "in_context": 80.0}

Preferred = list[int]
"""The most probable option of each prompt."""


@dataclass
class Counter:
    """Tokens that go into a model, and rows of logits that come out."""

    tokens: int = 0
    logits: int = 0
    passes: int = 0

    def __str__(self) -> str:
        return f"{self.tokens:,} tokens and {self.logits:,} rows of logits in {self.passes} passes"


@dataclass(frozen=True)
class Model:
    """A model in this process, and how its work is counted."""

    model: Any
    tokenizer: Any
    counter: Counter = field(default_factory=Counter)

    @classmethod
    def load(cls, name: str, *, texts: Sequence[str]) -> Model:
        """Fetched or made, float32."""
        weights = SUBJECTS[name].weights
        folder = fetch(weights, cache=_CACHE, texts=texts if _is_random(name) else ())
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        return cls(model.eval(), AutoTokenizer.from_pretrained(folder))

    @contextmanager
    def counted(self) -> Iterator[Counter]:
        """Counts what is computed inside."""
        counter = Counter()

        def count(_: Any, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            tokens = named["input_ids"] if "input_ids" in named else inputs[0]
            counter.tokens += tokens.numel()
            counter.logits += output.logits.shape[0] * output.logits.shape[1]
            counter.passes += 1

        handle = self.model.register_forward_hook(count, with_kwargs=True)
        try:
            yield counter
        finally:
            handle.remove()


@dataclass(frozen=True, slots=True)
class Settings:
    """How a side computes."""

    threads: int
    batch: int = 1

    def __str__(self) -> str:
        return f"{self.batch} at once, {self.threads} threads"


def main() -> None:
    """Ask both, and print what they said and took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="smollm2-135m", help="comma-separated: %(default)s")
    parser.add_argument("--work", default=",".join(_FLOORS), help="%(default)s")
    parser.add_argument("--prompts", type=int, default=20, help="short ones: %(default)s")
    parser.add_argument("--in-context", type=int, default=2, help="long ones: %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="of the short ones: %(default)s")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    rows: list[Row] = []
    for name in options.models.split(","):
        short, long = _short_prompts(options.prompts), _in_context(options.in_context)
        texts = [text for item in (*short, *long) for text in (item.text, *item.options)]
        model = Model.load(name, texts=texts)
        if "short_prompts" in options.work.split(","):
            rows.append(_compare("short_prompts", name, model, short, repeats=options.repeats))
        if "in_context" in options.work.split(","):
            rows.append(_compare("in_context", name, model, long, repeats=1))
    print_rows(rows)
    if options.json:
        write_rows(rows, options.json)


def _compare(kind: str, name: str, model: Model, items: Sequence[Item], *, repeats: int) -> Row:
    """Both sides on the same prompts, in turn."""
    best = _best_for_the_harness(kind, model, items[0])
    ours_at = _best_of_ours(model, items[:2])
    ours_seconds, peer_seconds = [], []
    for _ in range(repeats):
        ours, ours_counter, seconds = _timed(model, ours_at, lambda: _ask_trees(model, items))
        ours_seconds.append(seconds)
        peer, peer_counter, seconds = _timed(
            model, best, lambda: _ask_harness(model, items, batch=best.batch)
        )
        peer_seconds.append(seconds)
    CONSOLE.print(f"{name}, {kind}, {len(items)} prompts with {len(items[0].options)} options each")
    CONSOLE.print(f"  ours ({ours_at.threads} threads): {ours_counter}")
    CONSOLE.print(f"  lm-evaluation-harness ({best}): {peer_counter}")
    print_details(
        f"{name}, {kind}: all prompts",
        [Detail("ours", ours_seconds), Detail("lm-evaluation-harness", peer_seconds)],
    )
    return Row(
        f"{kind}_vs_lm_eval",
        name,
        ours=len(items) / min(ours_seconds),
        peer=len(items) / min(peer_seconds),
        agree=ours == peer,
        floor=_FLOORS[kind],
        unit="prompts/s",
    )


def _best_for_the_harness(kind: str, model: Model, item: Item) -> Settings:
    """Of every batch size and number of threads, by a part of the first prompt's options."""
    some = [_first_options(item, _TRIED_OPTIONS[kind])]
    tried: dict[Settings, float] = {}
    for threads in _threads():
        for batch in _BATCHES[kind]:
            settings = Settings(threads, batch)
            _, _, seconds = _timed(model, settings, partial(_ask_harness, model, some, batch=batch))
            tried[settings] = seconds
            CONSOLE.print(f"  lm-evaluation-harness, {settings}: {seconds:.2f} s to choose by")
    return min(tried, key=lambda settings: tried[settings])


def _best_of_ours(model: Model, items: Sequence[Item]) -> Settings:
    tried = {
        Settings(threads): _timed(model, Settings(threads), lambda: _ask_trees(model, items))[2]
        for threads in _threads()
    }
    return min(tried, key=lambda settings: tried[settings])


def _timed(
    model: Model, settings: Settings, ask: Callable[[], Preferred]
) -> tuple[Preferred, Counter, float]:
    torch.set_num_threads(settings.threads)
    with model.counted() as counter, torch.inference_mode():
        before = time.perf_counter()
        preferred = ask()
        seconds = time.perf_counter() - before
    return preferred, counter, seconds


def _ask_trees(model: Model, items: Sequence[Item]) -> Preferred:
    """As an evaluation on a CPU does, texts to log-probabilities."""
    scores = score_shares(
        forward_of(model.model),
        items,
        share=Share(0, 1, collective=False),
        build=lambda item: build_tree(item.text, item.options, tokenizer=model.tokenizer),
        num_tokens=len(model.tokenizer),
        token_budget=pass_budget(EngineSpec().row_tokens, on_gpu=False, collective=False),
        all_done=bool,
        progress=lambda done: None,
    )
    return [int(scores[place].log_probabilities.argmax()) for place in range(len(items))]


def _ask_harness(model: Model, items: Sequence[Item], *, batch: int) -> Preferred:
    """As its multiple-choice tasks do, texts to log-likelihoods."""
    asker = HFLM(pretrained=model.model, tokenizer=model.tokenizer, batch_size=batch, device="cpu")
    requests = [
        Instance(
            request_type="loglikelihood", doc={}, arguments=(item.text, f" {option}"), idx=number
        )
        for item in items
        for number, option in enumerate(item.options)
    ]
    answers = asker.loglikelihood(requests, disable_tqdm=True)
    values = torch.tensor([value for value, _ in answers], dtype=torch.float64)
    return [
        int(of_item.argmax())
        for of_item in torch.split(values, [len(item.options) for item in items])
    ]


def _short_prompts(number: int) -> tuple[Item, ...]:
    """The first test prompt about as many facts."""
    spec = only_test_prompts(number)
    facts, wording = load_shipped([_RELATION]), Wording.placeholder([_RELATION])
    return build_items(facts, trained=(), wording=wording, spec=spec, seed=0)


def _in_context(number: int) -> tuple[Item, ...]:
    """As many prompts behind 50 facts, the one asked about among them."""
    spec = EvaluationSpec(in_context=(50,), in_context_facts=-(-number // 2))
    facts, wording = load_shipped([_RELATION]), Wording.placeholder([_RELATION])
    suites = Suites(facts, (), None, wording, spec, seed=0)
    found = [item for item in suites.items() if item.suite == "in_context_50"]
    return tuple(found[:number])


def _first_options(item: Item, number: int) -> Item:
    return replace(item, options=item.options[:number], gold=0)


def _threads() -> list[int]:
    cores = os.cpu_count() or 1
    return sorted({1, cores})


def _is_random(name: str) -> bool:
    return isinstance(SUBJECTS[name].weights, RandomWeights)


if __name__ == "__main__":
    main()
