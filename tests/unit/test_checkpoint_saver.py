"""A save copies beside training, writes behind it, and raises what went wrong in the next call."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_helpers import header, rank_slices, values

from rotescale.checkpoint import saver as saver_module
from rotescale.checkpoint.manifest import Manifest, is_published, load_manifest
from rotescale.checkpoint.saver import CheckpointSaver, SaveReport, SaveRequest
from rotescale.checkpoint.slices import CheckpointReader
from rotescale.checkpoint.writer import SliceData
from rotescale.direct import ALIGNMENT
from rotescale.errors import StorageError


@pytest.fixture
def saver() -> Iterator[CheckpointSaver]:
    made = CheckpointSaver(rank=0, world_size=1)
    yield made
    made.close()


def request(
    directory: Path,
    *,
    world_size: int = 1,
    rank: int = 0,
    state: list[SliceData] | None = None,
    before_publish: Callable[[], None] = lambda: None,
    done: Callable[[SaveReport], None] = lambda report: None,
) -> SaveRequest:
    return SaveRequest(
        directory=directory,
        header=header(world_size=world_size),
        state=rank_slices(rank, world_size) if state is None else state,
        before_publish=before_publish,
        after_publish=lambda: None,
        done=done,
    )


def assert_whole(directory: Path) -> None:
    with CheckpointReader(directory, load_manifest(directory / "manifest.json")) as reader:
        for name in ("embed.weight", "bias"):
            whole = values(name, "exp_avg")
            assert torch.equal(reader.read(name, "exp_avg", 0, len(whole)), whole)


def test_what_was_there_at_the_start_is_saved_whatever_changes_later(
    saver: CheckpointSaver, tmp_path: Path
) -> None:
    state = rank_slices(0, 1)
    reports: list[SaveReport] = []
    saver.start(request(tmp_path, state=state, done=reports.append))
    saver.before_update()
    for _, _, tensor in state:
        tensor.fill_(-1.0)
    saver.finish()
    assert_whole(tmp_path)
    [report] = reports
    assert report.num_bytes == sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert report.stall_seconds >= 0
    assert report.pinned == torch.cuda.is_available()
    assert report.copy_seconds + report.write_seconds <= report.total_seconds


def test_training_goes_on_while_the_file_is_written(saver: CheckpointSaver, tmp_path: Path) -> None:
    may_publish = threading.Event()
    saver.start(request(tmp_path, before_publish=lambda: may_publish.wait(30)))
    saver.before_update()
    assert saver.busy
    assert not is_published(tmp_path)
    may_publish.set()
    saver.finish()
    assert not saver.busy
    assert is_published(tmp_path)


def test_a_second_save_waits_for_the_first_and_uses_its_memory_again(
    saver: CheckpointSaver, tmp_path: Path
) -> None:
    order: list[str] = []

    def slowly() -> None:
        time.sleep(0.2)
        order.append("first before publish")

    saver.start(request(tmp_path / "a", before_publish=slowly))
    saver.before_update()
    memory = saver._buffer.data_ptr()
    saver.start(request(tmp_path / "b", before_publish=lambda: order.append("second")))
    saver.finish()
    assert order == ["first before publish", "second"]
    assert saver._buffer.data_ptr() == memory
    assert saver._buffer.numel() == sum(t.numel() for _, _, t in rank_slices(0, 1))
    assert_whole(tmp_path / "a")
    assert_whole(tmp_path / "b")


@pytest.mark.parametrize("call", ["before_update", "finish", "start"])
def test_an_error_in_the_background_is_raised_in_training(
    call: str, saver: CheckpointSaver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr(saver_module, "write_rank_file", full)
    saver.start(request(tmp_path))
    while saver.busy:
        time.sleep(0.01)
    calls: dict[str, Callable[[], None]] = {
        "before_update": saver.before_update,
        "finish": saver.finish,
        "start": lambda: saver.start(request(tmp_path)),
    }
    with pytest.raises(StorageError, match="the disk is full"):
        calls[call]()
    assert not is_published(tmp_path)
    saver.finish()


def test_the_snapshot_is_written_from_where_it_lies(saver: CheckpointSaver, tmp_path: Path) -> None:
    saver.start(request(tmp_path))
    saver.finish()
    assert saver._buffer.data_ptr() % ALIGNMENT == 0
    manifest = load_manifest(tmp_path / "manifest.json")
    assert min(entry.begin for entry in manifest.slices) % ALIGNMENT == 0


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads share a priority")
def test_writing_gives_way_to_training_and_the_copy_does_not(
    saver: CheckpointSaver, tmp_path: Path
) -> None:
    mine = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    found: list[int] = []

    def look() -> None:
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    saver.start(request(tmp_path, before_publish=look))
    saver.finish()
    assert found == [max(mine, saver_module._NICENESS)]
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == mine


def test_rank_0_publishes_when_the_last_rank_has_written(tmp_path: Path) -> None:
    savers = [CheckpointSaver(rank=rank, world_size=2) for rank in range(2)]
    savers[0].start(request(tmp_path, world_size=2, rank=0))
    savers[0].before_update()
    time.sleep(0.1)
    assert not is_published(tmp_path)
    savers[1].start(request(tmp_path, world_size=2, rank=1))
    for saver in savers:
        saver.finish()
        saver.close()
    assert isinstance(load_manifest(tmp_path / "manifest.json"), Manifest)
    assert_whole(tmp_path)


def test_what_training_waits_for_is_counted_as_its_save(
    saver: CheckpointSaver, tmp_path: Path
) -> None:
    reports: list[SaveReport] = []
    may_publish = threading.Event()
    slow = request(tmp_path / "a", before_publish=lambda: may_publish.wait(60), done=reports.append)
    saver.start(slow)
    saver.before_update()
    before = saver._stall
    assert reports == []
    threading.Timer(0.2, may_publish.set).start()
    saver.start(request(tmp_path / "b", done=reports.append))
    [waited] = reports
    assert waited.stall_seconds > before == waited.copy_stall_seconds
    saver.finish()
    assert len(reports) == 2


def test_who_finishes_before_an_update_waits_for_the_copy_too(
    saver: CheckpointSaver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: list[SaveReport] = []
    waited_for = threading.Event()

    class Copied(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waited_for.set()
            return super().wait(timeout)

    copy = saver._copy

    def copy_once_waited_for(*arguments: Any) -> None:
        assert waited_for.wait(60)
        copy(*arguments)

    monkeypatch.setattr(saver, "_copied", Copied())
    monkeypatch.setattr(saver, "_copy", copy_once_waited_for)
    saver.start(request(tmp_path, done=reports.append))
    begun = saver._copy_stall
    saver.finish()
    [report] = reports
    assert begun < report.copy_stall_seconds <= report.stall_seconds
    assert_whole(tmp_path)


def test_a_save_that_has_ended_is_reported_by_the_next_step(
    saver: CheckpointSaver, tmp_path: Path
) -> None:
    reports: list[SaveReport] = []
    saver.start(request(tmp_path, done=reports.append))
    while saver.busy:
        time.sleep(0.01)
    saver.before_update()
    assert len(reports) == 1
    saver.release()
    assert saver._buffer.numel() == 0
    assert len(reports) == 1


def test_closing_waits_for_no_other_rank_and_keeps_no_memory(tmp_path: Path) -> None:
    saver = CheckpointSaver(rank=0, world_size=2)
    saver.start(request(tmp_path, world_size=2))
    started = time.monotonic()
    saver.close()
    assert time.monotonic() - started < 60
    assert not is_published(tmp_path)
    assert saver._buffer.numel() == 0
