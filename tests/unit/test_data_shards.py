"""Encoded examples come back as they were written, and only from a published folder."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from rotescale.data.encoding import IGNORE, Encoded
from rotescale.data.examples import Example
from rotescale.data.order import Batches, Order, Source
from rotescale.data.shards import ExampleShards, read_manifest, write_shards
from rotescale.data.stream import Stream
from rotescale.errors import DataError, RotescaleError
from rotescale.spec import PhaseSpec, ReplaySpec


def examples(number: int) -> list[tuple[Example, Encoded]]:
    """Examples of growing length, whose last two tokens count."""
    made = []
    for i in range(number):
        tokens = tuple(range(i, i + 4 + i % 5))
        labels = (IGNORE,) * (len(tokens) - 2) + tokens[-2:]
        text = None
        made.append((Example(i, i % 3, text), Encoded(tokens, labels, (0, 1), (2, 4))))  # type: ignore[arg-type]
    return made


@dataclass
class Made:
    """Examples that any process can make."""

    number: int

    def __len__(self) -> int:
        return self.number

    def rows(self, start: int, stop: int) -> list[tuple[Example, Encoded]]:
        return examples(self.number)[start:stop]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """25 examples in three shards."""
    write_shards({"facts": examples(25)}, tmp_path / "data", digest="d", rows_per_shard=10)
    return tmp_path / "data"


def test_round_trip_over_several_shards(folder: Path) -> None:
    shards = ExampleShards(folder, digest="d")
    assert shards.num_rows == 25
    wanted = [24, 0, 13]
    found = list(shards.examples(wanted))
    made = examples(25)
    assert found == [(list(made[i][1].tokens), list(made[i][1].labels)) for i in wanted]
    assert shards.keys(wanted) == [(24, 0), (0, 0), (13, 1)]
    assert shards.num_tokens.tolist() == [len(e.tokens) for _, e in made]
    assert set(shards.num_targets.tolist()) == {2}


def test_processes_write_what_one_writes(tmp_path: Path) -> None:
    told: list[int] = []
    for folder, facts, number in (
        ("listed", examples(25), 1),
        ("alone", Made(25), 1),
        ("both", Made(25), 2),
    ):
        write_shards(
            {"facts": facts, "replay": iter(examples(7)), "none": Made(0)},
            tmp_path / folder,
            digest="d",
            rows_per_shard=10,
            num_processes=number,
            progress=told.append,
        )
    assert told == [10, 20, 25, 32] * 3
    listed, alone, both = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("listed", "alone", "both")
    )
    assert listed == alone == both
    shards = ExampleShards(tmp_path / "both", digest="d")
    assert shards.sources == {"facts": 25, "replay": 7, "none": 0}
    assert list(shards.examples(range(25, 32))) == list(shards.examples(range(7)))


@dataclass
class Broken(Made):
    """Examples the making of which ends badly: with an error, or with the process."""

    dies: bool = False

    def rows(self, start: int, stop: int) -> list[tuple[Example, Encoded]]:
        if start:
            return super().rows(start, stop)
        if self.dies:
            os.kill(os.getpid(), signal.SIGKILL)
        raise DataError("fact 3: no token covers it")


@pytest.mark.parametrize(
    ("dies", "error"), [(False, "fact 3: no token covers it"), (True, "was killed, for want of")]
)
def test_a_process_that_fails_ends_the_others(tmp_path: Path, dies: bool, error: str) -> None:
    broken, folder = Broken(25, dies=dies), tmp_path / "data"
    with pytest.raises(RotescaleError, match=error):
        write_shards({"f": broken}, folder, digest="d", rows_per_shard=10, num_processes=2)
    assert not multiprocessing.active_children()
    assert read_manifest(folder) is None
    write_shards({"f": Made(25)}, folder, digest="d", rows_per_shard=10)
    assert ExampleShards(folder, digest="d").num_rows == 25


def test_processes_do_not_outlive_the_one_that_started_them(tmp_path: Path) -> None:
    code = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_data_shards
from pathlib import Path

class Slow(test_data_shards.Made):
    def rows(self, start, stop):
        Path({str(tmp_path)!r}, str(__import__("os").getpid())).touch()
        time.sleep(600)

if __name__ == "__main__":
    test_data_shards.write_shards(
        {{"f": Slow(25)}}, Path({str(tmp_path)!r}) / "d", digest="d", rows_per_shard=10,
        num_processes=2,
    )
"""
    script = tmp_path / "encode.py"
    script.write_text(code)
    process = subprocess.Popen([sys.executable, str(script)])

    def workers() -> list[int]:
        return [int(path.name) for path in tmp_path.iterdir() if path.name.isdecimal()]

    wait_for(lambda: len(workers()) == 2, seconds=60)
    process.kill()
    process.wait()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers()), seconds=30)


def wait_for(holds: Callable[[], bool], *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def test_another_digest_a_missing_and_a_short_file_are_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="expected encoded data other"):
        ExampleShards(folder, digest="other")
    shard = folder / "shard-00001.arrow"
    shard.write_bytes(shard.read_bytes()[:-8])
    with pytest.raises(DataError, match=r"shard-00001\.arrow"):
        ExampleShards(folder, digest="d")


def test_a_folder_without_manifest_is_written_anew(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "shard-00000.arrow").write_bytes(b"half")
    assert read_manifest(tmp_path / "data") is None
    write_shards({"facts": examples(3)}, tmp_path / "data", digest="d")
    assert ExampleShards(tmp_path / "data", digest="d").num_rows == 3


def test_another_version_of_the_format_is_refused(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 99}))
    with pytest.raises(DataError, match="version 99"):
        ExampleShards(folder, digest="d")


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_the_union_over_ranks_of_an_epoch_is_every_example_once(
    folder: Path, world_size: int
) -> None:
    """Fault 3 of the released code: each rank shuffled with a generator of its own."""
    shards = ExampleShards(folder, digest="d")
    order = Order(0, "memorize", (Source("memorize", shards.num_rows),))
    stream = Stream(shards, order, Batches(order.epoch_size, 4), row_tokens=12)
    seen: list[int] = []
    for step in range(stream.batches.steps_per_epoch):
        ranks = [stream.step(step, rank=r, world_size=world_size) for r in range(world_size)]
        assert len({data.example_ids for data in ranks}) == 1
        assert len({len(data.rows) for data in ranks}) == 1
        targets = np.concatenate([row.targets for data in ranks for row in data.rows])
        assert len(targets) == ranks[0].target_tokens
        # Example i ends in i + 2 + i % 5 and the next number: what is computed is what is named.
        ends = sorted(targets.tolist())
        assert ends == sorted(
            t for i in ranks[0].example_ids for t in (i + 2 + i % 5, i + 3 + i % 5)
        )
        seen += ranks[0].example_ids
    assert sorted(seen) == list(range(25))


def budgeted(folder: Path, *, tokens: int, replay: bool) -> tuple[Stream, PhaseSpec]:
    """A phase of that many tokens about the examples in ``folder``."""
    phase = PhaseSpec(
        name="memorize",
        text="key_token",
        token_budget=tokens,
        global_batch=4,
        learning_rate=1.0,
        replay=ReplaySpec(share=0.3) if replay else None,
    )
    return Stream.open(folder, digest="d", phase=phase, seed=5, row_tokens=12), phase


@pytest.mark.parametrize("replay", [False, True])
def test_a_budget_ends_with_the_first_step_that_reaches_it(tmp_path: Path, replay: bool) -> None:
    sources = {"facts": examples(25)} | ({"replay": examples(7)} if replay else {})
    write_shards(sources, tmp_path, digest="d")
    stream, _ = budgeted(tmp_path, tokens=1, replay=replay)
    per_epoch = stream.batches.steps_per_epoch
    # What the records will count, step by step, over four epochs and a bit.
    trained = np.cumsum(
        [stream.step(n, rank=0, world_size=1).num_tokens for n in range(4 * per_epoch + 3)]
    )
    for step, reached in enumerate(trained.tolist(), start=1):
        before = 0 if step == 1 else int(trained[step - 2])
        for tokens in (before + 1, reached):
            found, phase = budgeted(tmp_path, tokens=tokens, replay=replay)
            assert found.num_steps(phase) == step
