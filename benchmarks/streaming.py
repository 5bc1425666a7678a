"""Ten million facts: encoded to shards, gone through in an epoch's order, begun in its middle.

Run it from the repository: ``python benchmarks/streaming.py [--json PATH] [--facts LIST]``.

For each number of facts a fresh process encodes them as ``rotescale run`` does, with SmolLM2's
tokenizer and a process to a core where there is a shard for each, opens them, and goes through the
epoch's global batches. Memory is what its processes hold of their own (anonymous, sampled): the one
that holds most, which is compared over the numbers of facts, and all together, which is compared
where as many processes encode. Pages of the mapped shards, which the system takes back when it
needs them, do not count.

The peer is Hugging Face ``datasets``: ``from_generator`` and ``map`` for the encoding (up to
``--peer-facts``), and over the same shards ``to_iterable_dataset`` with its shuffle buffer for an
epoch. It begins in the middle by ``skip``; its ``load_state_dict`` finds the shard again, but not
what the shuffle buffer held, so it shows other examples: told beside, and not a row.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from encoded import BATCH, SEED, encode_facts, open_facts
from report import CONSOLE, Row, print_rows, write_rows
from rotescale.data.stream import Stream
from rotescale.phase_data import encoding_processes
from streams import Peer, encode_with_datasets, stream_with_datasets
from subjects import SUBJECTS, make_folder

_SAMPLE_SECONDS = 0.05
_SAMPLE = 100
_FIRST_BATCH_SECONDS = 5.0
_MIDDLE_SECONDS = 2.0
_MEMORY_FLOOR = 1.1


@dataclass(frozen=True, slots=True)
class Held:
    """The most that processes held at a time, in bytes of their own."""

    one: int = 0
    """Of the process that held most."""
    all: int = 0
    """Of all together."""

    def or_more(self, other: Held) -> Held:
        return Held(max(self.one, other.one), max(self.all, other.all))


@dataclass(frozen=True, slots=True)
class Ours:
    """What one process has seen of so many facts."""

    num_facts: int
    encode_seconds: float
    first_batch_seconds: float
    """From the published shards to the first batch."""
    middle_seconds: float
    """The same, to the batch in the middle of the epoch."""
    epoch_seconds: float
    each_once: bool
    """Whether the epoch showed every example once, and the middle began where it should."""
    disk_bytes: int
    sample: tuple[list[list[int]], list[list[int]]]
    """Tokens and labels of the first facts."""


def main() -> None:
    """Measure each number of facts in a process of its own, and the peer beside it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--facts", default="100000,1000000,10000000", help="%(default)s")
    parser.add_argument(
        "--peer-facts", type=int, default=1_000_000, help="that the peer encodes: %(default)s"
    )
    parser.add_argument("--model", default="smollm2-135m", help="whose tokenizer: %(default)s")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    sizes = sorted(int(number) for number in options.facts.split(","))
    rows: list[Row] = []
    peaks: dict[int, Held] = {}
    whole = True
    with tempfile.TemporaryDirectory(prefix="rotescale-streaming-") as folder:
        prepared = make_folder(SUBJECTS[options.model], out=Path(folder)).folder
        for number in sizes:
            run = Path(folder) / f"run-{number}"
            ours, peaks[number] = _alone(_measure, prepared, run, number)
            _tell(ours, peaks[number])
            whole = whole and ours.each_once
            if number <= options.peer_facts:
                (seconds, *theirs), _ = _alone(
                    *(encode_with_datasets, prepared, Path(folder) / "peer", number, SEED, _SAMPLE)
                )
                rows.append(_rate(ours, number / seconds, same=theirs == [*ours.sample]))
            if number in (sizes[0], sizes[-1]):
                peer, _ = _alone(stream_with_datasets, run, number, SEED, BATCH)
                rows += _streaming_rows(ours, peer)
    rows += _memory_rows(peaks, whole=whole)
    print_rows(rows)
    if options.json:
        write_rows(rows, options.json)


def _memory_rows(peaks: dict[int, Held], *, whole: bool) -> list[Row]:
    """The most facts beside the fewest; of all processes, beside the fewest that as many encode.

    ``whole``: whether all of them were gone through once.
    """
    sizes = sorted(peaks)
    last = sizes[-1]
    alike = next(n for n in sizes if encoding_processes(n) == encoding_processes(last))
    rows = [("peak_memory_vs_fewest", sizes[0], peaks[last].one, peaks[sizes[0]].one)]
    if alike != last:
        rows.append(("peak_memory_of_all", alike, peaks[last].all, peaks[alike].all))
    return [
        Row(
            name,
            f"{last:,} against {number:,}",
            ours=most / 1e6,
            peer=least / 1e6,
            agree=whole,
            floor=_MEMORY_FLOOR,
            unit="MB",
        )
        for name, number, most, least in rows
    ]


def _seconds(seconds: float, limit: float) -> str:
    text = f"{seconds:.2f} s"
    return text if seconds <= limit else f"[red]{text}, above {limit:g} s[/red]"


def _tell(ours: Ours, peak: Held) -> None:
    number = ours.num_facts
    first = _seconds(ours.first_batch_seconds, _FIRST_BATCH_SECONDS)
    middle = _seconds(ours.middle_seconds, _MIDDLE_SECONDS)
    CONSOLE.print(
        f"{number:,} facts: encoded in {encoding_processes(number)} process(es), "
        f"{ours.encode_seconds:.1f} s "
        f"({number / ours.encode_seconds:,.0f} facts/s, {ours.disk_bytes / 1e6:,.0f} MB on the "
        f"disk); first batch after {first}, the one in the middle of the epoch after {middle}; an "
        f"epoch in {ours.epoch_seconds:.1f} s ({number / ours.epoch_seconds:,.0f} examples/s); "
        f"peak memory {peak.one / 1e6:,.0f} MB of one process, {peak.all / 1e6:,.0f} MB of all; "
        f"every example once: {'yes' if ours.each_once else '[red]no[/red]'}"
    )


def _rate(ours: Ours, peer: float, *, same: bool) -> Row:
    return Row(
        "encode_vs_map",
        f"{ours.num_facts:,}",
        ours=ours.num_facts / ours.encode_seconds,
        peer=peer,
        agree=ours.each_once and same,
        unit="facts/s",
    )


def _streaming_rows(ours: Ours, peer: Peer) -> list[Row]:
    what = f"{ours.num_facts:,}"
    CONSOLE.print(
        f"{what} facts, datasets: begins with the first example after {peer.first_seconds:.2f} s, "
        f"in the middle by skip after {peer.skip_seconds:.1f} s, by load_state_dict after "
        f"{peer.state_seconds:.2f} s (other examples)"
    )
    agree = ours.each_once and peer.same
    return [
        Row("first_batch", what, ours.first_batch_seconds, peer.first_seconds, agree),
        Row("middle_vs_skip", what, ours.middle_seconds, peer.skip_seconds, agree, floor=1.0),
        Row(
            "epoch_vs_iterable",
            what,
            ours=ours.num_facts / ours.epoch_seconds,
            peer=peer.examples_per_second,
            agree=agree,
            unit="examples/s",
        ),
    ]


def _alone(task: Callable[..., Any], *arguments: Any) -> tuple[Any, Held]:
    """What ``task(*arguments)`` returns in a fresh process, and the most that was held."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        future = pool.submit(task, *arguments)
        most = Held()
        done = threading.Event()
        future.add_done_callback(lambda _: done.set())
        while not done.wait(_SAMPLE_SECONDS):
            most = most.or_more(_anonymous())
        return future.result(), most


def _anonymous() -> Held:
    """What the processes below this one hold of their own now."""
    held = []
    for process in psutil.Process().children(recursive=True):
        try:
            text = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
        except OSError:
            continue
        held += [
            int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("RssAnon")
        ]
    return Held(max(held, default=0), sum(held))


def _measure(prepared_folder: Path, root: Path, num_facts: int) -> Ours:
    """Encode, begin, begin in the middle, and go through an epoch."""
    began = time.perf_counter()
    folder, digest = encode_facts(prepared_folder, root, num_facts)
    encoded = time.perf_counter()

    def first(step: Callable[[Stream], int]) -> tuple[float, tuple[int, ...]]:
        began = time.perf_counter()
        stream = open_facts(folder, digest)
        found = stream.step(step(stream), rank=0, world_size=1)
        return time.perf_counter() - began, found.example_ids

    first_seconds, _ = first(lambda stream: 0)
    middle_seconds, in_middle = first(lambda stream: stream.batches.steps_per_epoch // 2)
    stream = open_facts(folder, digest)
    shown = np.zeros(-(-num_facts // 8), dtype=np.uint8)
    told, follows = 0, False
    start = time.perf_counter()
    for step in range(stream.batches.steps_per_epoch):
        ids = np.array(stream.step(step, rank=0, world_size=1).example_ids)
        np.bitwise_or.at(shown, ids // 8, (1 << ids % 8).astype(np.uint8))
        told += len(ids)
        if step == stream.batches.steps_per_epoch // 2:
            follows = tuple(ids) == in_middle
    epoch = time.perf_counter() - start
    first_rows = list(stream.shards.examples(range(min(_SAMPLE, num_facts))))
    bits = int(np.unpackbits(shown).sum())
    return Ours(
        num_facts=num_facts,
        encode_seconds=encoded - began,
        first_batch_seconds=first_seconds,
        middle_seconds=middle_seconds,
        epoch_seconds=epoch,
        each_once=follows and told == bits == num_facts,
        disk_bytes=sum(path.stat().st_size for path in folder.iterdir()),
        sample=([tokens for tokens, _ in first_rows], [labels for _, labels in first_rows]),
    )


if __name__ == "__main__":
    main()
