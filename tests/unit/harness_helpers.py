"""Tasks of the tests' own and what asks them, for the tests of the harness."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from known_models import Passes

from rotescale.evaluation.harness.requests import Asker
from rotescale.evaluation.runner import Share
from rotescale.evaluation.scoring import forward_of

NEEDS_HARNESS = (
    "lm-eval is not installed: `make test-harness`, or pip install --constraint constraints.txt "
    "-e '.[harness]', and run the tests again"
)

DOCUMENTS: Sequence[dict[str, Any]] = [
    {
        "question": f"Who is number {number}?",
        "options": ["Ann Lee", "Cody Ross", f"Eve {number}"],
        "gold": number % 3,
    }
    for number in range(7)
]

TASKS: dict[str, dict[str, Any]] = {
    "own_choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{options}}",
        "doc_to_target": "{{gold}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "own_choice_with_examples": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{options}}",
        "doc_to_target": "{{gold}}",
        "fewshot_split": "test",
        "num_fewshot": 2,
        "metric_list": [{"metric": "acc"}],
    },
    "own_word": {
        "output_type": "loglikelihood",
        "doc_to_text": "",
        "doc_to_target": " {{question}}",
        "metric_list": [{"metric": "acc"}, {"metric": "perplexity"}],
    },
    "own_text": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}} {{options | join(', ')}}. {{question * 20}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    },
    "own_answer": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{options[0]}}",
        "generation_kwargs": {"until": ["e", "\n\n"], "max_gen_toks": 12, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}


def write_tasks(folder: Path, **more: dict[str, Any]) -> Path:
    """A folder with the tasks above, and ``more``, and their data."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "documents.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in DOCUMENTS))
    for name, task in {**TASKS, **more}.items():
        own = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(folder / "hf")},
            "test_split": "test",
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(own | task))
    return folder


def asker_of(model: Any, tokenizer: Any, **changes: Any) -> Asker:
    """Asks a model in this process."""
    parts: dict[str, Any] = {
        "forward": forward_of(model) if hasattr(model, "base_model") else Passes(model),
        "model": model,
        "tokenizer": tokenizer,
        "num_tokens": len(tokenizer),
        "share": Share(0, 1, False),
        "gather": lambda mine: [mine],
        "all_done": bool,
        **changes,
    }
    return Asker(**parts)


class Ranks:
    """Collectives between threads, one a rank."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self._barrier = threading.Barrier(world_size, timeout=60)
        self._slots: list[Any] = [None] * world_size

    def gather(self, rank: int) -> Callable[[Any], list[Any]]:
        """The collective of one rank."""

        def gather(mine: Any) -> list[Any]:
            self._slots[rank] = mine
            self._barrier.wait()
            everything = list(self._slots)
            self._barrier.wait()
            return everything

        return gather

    def run(self, of_rank: Callable[[int], Any]) -> list[Any]:
        """What it returns on each rank."""
        results: list[Any] = [None] * self.world_size
        errors: list[BaseException] = []

        def call(rank: int) -> None:
            try:
                results[rank] = of_rank(rank)
            except BaseException as error:
                errors.append(error)
                self._barrier.abort()
                raise

        threads = [threading.Thread(target=call, args=(rank,)) for rank in range(self.world_size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=120)
        assert not errors
        return results


def skip_without_harness() -> Any:
    """The harness; skips aloud without it."""
    return pytest.importorskip("lm_eval", reason=NEEDS_HARNESS)
