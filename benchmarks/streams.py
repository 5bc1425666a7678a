"""The peer of ``streaming.py``: Hugging Face ``datasets``, as its guides stream and shuffle."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rotescale.cores import cpu_cores
from rotescale.data.shards import read_manifest
from rotescale.facts import generate
from rotescale.model.prepare import load_prepared

_SHUFFLE_BUFFER = 10_000
_PEER_EXAMPLES = 20_000
"""Of an epoch, once the buffer is full, from which the peer's rate is told."""


@dataclass(frozen=True, slots=True)
class Peer:
    """What ``datasets`` took over the same shards."""

    examples_per_second: float
    first_seconds: float
    skip_seconds: float
    state_seconds: float
    """By ``load_state_dict``, to the first example."""
    same: bool
    """Whether it showed after skipping what it shows without."""


def encode_with_datasets(
    prepared: Path, out: Path, num_facts: int, seed: int, sample: int
) -> tuple[float, list[list[int]], list[list[int]]]:
    """Seconds until ``datasets`` has the same texts, tokens and labels on the disk.

    And the tokens and labels of the first ``sample`` facts.
    """
    from datasets import Dataset

    tokenizer = load_prepared(prepared).tokenizer()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    cores = cpu_cores()

    def made_texts(shards: list[range]) -> Iterator[dict[str, str]]:
        facts = generate("mother", num_facts=num_facts, seed=seed)
        for places in shards:
            for place in places:
                subject, object_ = facts.pair(place)
                yield {"text": f"{subject} [X] {object_}."}

    def tokenize(texts: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        tokens = tokenizer(texts["text"], return_attention_mask=False)["input_ids"]
        return {"tokens": tokens, "labels": [[-100, *one[1:]] for one in tokens]}

    share = -(-num_facts // cores)
    began = time.perf_counter()
    made = Dataset.from_generator(
        made_texts,
        gen_kwargs={
            "shards": [range(num_facts)[i * share : (i + 1) * share] for i in range(cores)]
        },
        num_proc=cores,
        cache_dir=str(out),
    )
    encoded = made.map(tokenize, batched=True, num_proc=cores, remove_columns=["text"])
    seconds = time.perf_counter() - began
    return seconds, encoded[:sample]["tokens"], encoded[:sample]["labels"]


def stream_with_datasets(root: Path, num_facts: int, seed: int, batch: int) -> Peer:
    """Go through a part of an epoch, and begin in its middle."""
    from datasets import Dataset, concatenate_datasets

    [folder] = [path.parent for path in root.rglob("index.bin")]
    manifest = read_manifest(folder)
    assert manifest is not None, folder
    began = time.perf_counter()
    shards = [Dataset.from_file(str(folder / shard["name"])) for shard in manifest["shards"]]
    table = concatenate_datasets(shards).select_columns(["fact", "tokens", "labels"])

    def epoch() -> Any:
        streamed = table.to_iterable_dataset(num_shards=len(shards))
        return streamed.shuffle(seed=seed, buffer_size=_SHUFFLE_BUFFER)

    next(iter(epoch()))
    first = time.perf_counter() - began
    rate = _rate(epoch().batch(batch), most=max(1, min(_PEER_EXAMPLES, num_facts) // batch))
    start = time.perf_counter()
    skipped = next(iter(epoch().skip(num_facts // 2)))
    skip = time.perf_counter() - start
    seconds, same = _by_state(epoch, num_facts, skipped["fact"])
    return Peer(rate, first, skip, seconds, same)


def _rate(batches: Any, *, most: int) -> float:
    """Examples a second of so many batches, counted from the first, before which a buffer fills.

    It is that of reading for more examples than the buffer holds; of fewer all are read by then.
    """
    stream = iter(batches)
    next(stream)
    start = time.perf_counter()
    shown = sum(len(one["fact"]) for one in islice(stream, most))
    return shown / (time.perf_counter() - start)


def _by_state(epoch: Callable[[], Any], num_facts: int, fact: int) -> tuple[float, bool]:
    """Seconds to begin again from a state of the middle, and what the middle showed was right."""
    stream = epoch()
    same = False
    state: dict[str, Any] = {}
    for number, example in enumerate(stream):
        if number == num_facts // 2:
            same = example["fact"] == fact
            state = stream.state_dict()
            break
    again = epoch()
    start = time.perf_counter()
    again.load_state_dict(state)
    next(iter(again))
    return time.perf_counter() - start, same
