"""What a run is made of, kept in a bucket as on a disk; and a listing that lags behind."""

from __future__ import annotations

import math
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from checkpoint_helpers import (
    SHAPES,
    begin,
    header,
    published,
    rank_slices,
    save,
    save_at,
    values,
)
from object_stores import Proxy
from test_run_dir import open_spec, spec

from rotescale.checkpoint.attempts import (
    lineage,
    newest,
    read_attempt,
    start_attempt,
    visible,
)
from rotescale.checkpoint.manifest import DamagedManifestError, is_published, load_manifest
from rotescale.checkpoint.slices import CheckpointReader
from rotescale.checkpoint.store import CheckpointStore
from rotescale.checkpoint.writer import publish, write_rank_file
from rotescale.errors import CheckpointError, SpecError, StorageError
from rotescale.object_store import RemotePath
from rotescale.ranges import WINDOW_BYTES
from rotescale.records import EventRow, RecordWriter, read_records
from rotescale.run_dir import Outcome, RunDir
from rotescale.spec_file import dump_json
from rotescale.storage import StoragePath, write_atomic
from rotescale.tensors import PARTS, TensorSlice


def newest_step(run_dir: RunDir, number: int) -> int | None:
    found = newest(run_dir, number)
    return None if found is None else found.manifest.step


def event(message: str, *, attempt: int = 1) -> EventRow:
    return EventRow(attempt=attempt, time="2026-01-01", name="test", message=message)


def test_a_run_is_created_and_opened_again(folder: StoragePath) -> None:
    run_dir = open_spec(folder / "tiny", spec())
    assert run_dir.spec_json.read_text() == dump_json(spec())
    changed = spec(checkpoints={"keep_last": 5})
    assert open_spec(folder / "tiny", changed) == run_dir
    assert run_dir.spec_json.read_text() == dump_json(changed)
    with pytest.raises(SpecError, match="choose another run folder"):
        open_spec(folder / "tiny", spec(seed=1))
    assert Outcome.read(run_dir) is None
    failed = Outcome(status="failed", attempt=2, exit_code=3, error="TrainingError", message="NaN")
    assert failed.write(run_dir)
    saved = Outcome.read(run_dir)
    assert saved is not None
    assert saved.time is not None
    assert saved == failed.model_copy(update={"time": saved.time})
    Outcome.clear(run_dir)
    assert Outcome.read(run_dir) is None


def test_records_are_segments_each_created_once(folder: StoragePath) -> None:
    run_dir = RunDir(folder)
    writer = RecordWriter(run_dir, attempt=1, rank=0, flush_seconds=1e9)
    for number in range(3):
        writer.append(event(str(number)))
        writer.flush()
    other = RecordWriter(run_dir, attempt=1, rank=0, flush_seconds=1e9)
    other.append(event("of another process"))
    with pytest.raises(StorageError, match="another process records"):
        other.flush()
    assert [row.message for row in read_records(run_dir).events] == ["0", "1", "2"]


def test_starts_at_once_get_numbers_of_their_own(folder: StoragePath) -> None:
    run_dir = RunDir(folder)
    begin(run_dir)
    save_at(run_dir, attempt=1, step=50)
    with ThreadPoolExecutor(8) as threads:
        started = list(
            threads.map(lambda n: start_attempt(run_dir, world_size=1, host=f"host-{n}"), range(16))
        )
    assert sorted(one.number for one in started) == list(range(2, 18))
    for one in started:
        assert read_attempt(run_dir, one.number) == one
        assert [a.number for a in lineage(run_dir, one.number)] == [1, one.number]


def test_a_zombie_is_invisible_and_prunes_nothing(folder: StoragePath) -> None:
    run_dir = RunDir(folder)
    first = begin(run_dir)
    for step in (10, 20):
        save_at(run_dir, attempt=1, step=step)
    second = begin(run_dir)
    save_at(run_dir, attempt=1, step=30)
    assert first.prune(1) == []
    assert not first.set_aside(run_dir.checkpoint(visible(run_dir, 1)[0]))
    assert newest_step(run_dir, 2) == 20
    assert not run_dir.is_newest(1)
    save_at(run_dir, attempt=2, step=25)
    assert [name.step for name in second.prune(1)] == [10, 20]
    assert [name.step for name in second.collect_orphans()] == [30]
    assert published(run_dir) == [(2, 25)]
    assert run_dir.checkpoint_folders(1, listed_only=True) == []


def test_a_manifest_that_stepped_aside_comes_back(
    folder: StoragePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = RunDir(folder)
    store = begin(run_dir)
    for step in (10, 20):
        save_at(run_dir, attempt=1, step=step)
    seen: list[list[tuple[int, int]]] = []

    def superseded(*_: object) -> bool:
        seen.append(published(run_dir))
        return len(seen) == 1

    monkeypatch.setattr(CheckpointStore, "is_newest", superseded)
    assert store.prune(1) == []
    # While it was asked whether a newer attempt had started, the checkpoint was out of sight.
    assert seen == [[(1, 10), (1, 20)], [(1, 20)]]
    assert published(run_dir) == [(1, 10), (1, 20)]
    seen.clear()
    assert not store.set_aside(run_dir.checkpoint(visible(run_dir, 1)[1]))
    assert seen[1] == [(1, 10)]
    assert published(run_dir) == [(1, 10), (1, 20)]


def test_a_damaged_checkpoint_is_set_aside(folder: StoragePath) -> None:
    run_dir = RunDir(folder)
    store = begin(run_dir)
    for step in (10, 20):
        save_at(run_dir, attempt=1, step=step)
    found = store.newest()
    assert found is not None
    assert store.set_aside(found.directory)
    assert (found.directory / "manifest.json.damaged").exists()
    assert newest_step(run_dir, 1) == 10


def big_checkpoint(directory: StoragePath) -> dict[str, torch.Tensor]:
    """A checkpoint of two ranks with 18 MB each in several windows and parts; its masters."""
    tensors = {"big": torch.randn(3_000_001), "small": torch.randn(5)}
    for rank in range(2):
        slices = []
        for part in PARTS:
            for name, tensor in tensors.items():
                half = -(-tensor.numel() // 2)
                start, stop = rank * half, min((rank + 1) * half, tensor.numel())
                piece = TensorSlice(name, (tensor.numel(),), start, stop)
                slices.append((piece, part, tensor[start:stop] + PARTS.index(part)))
        write_rank_file(directory, rank=rank, world_size=2, slices=slices)
    publish(directory, header=header(), timeout_seconds=0)
    return tensors


def test_a_checkpoint_of_many_windows_is_read_at_any_place(folder: StoragePath) -> None:
    directory = folder / "checkpoints" / "attempt-0001" / "01-memorize-step-000050-full"
    tensors = big_checkpoint(directory)
    run_dir = RunDir(folder)
    [name] = run_dir.checkpoint_folders(1)
    found = newest(run_dir, start_attempt(run_dir, world_size=1).number)
    assert found is not None
    assert found.directory == run_dir.checkpoint(name) == directory
    with CheckpointReader(directory, found.manifest) as reader:
        for part in PARTS:
            big, small = (tensors[name] + PARTS.index(part) for name in ("big", "small"))
            for start, stop in ((0, 3_000_001), (7, 8), (1_400_000, 1_600_000)):
                assert torch.equal(reader.read("big", part, start, stop), big[start:stop])
            assert torch.equal(reader.read("small", part, 0, 5), small)
        reader.verify()


def test_reading_costs_few_requests(remote: RemotePath, proxy: Proxy) -> None:
    directory = remote / "checkpoint"
    big_checkpoint(directory)
    small = save(remote / "small", head=header())
    manifest = load_manifest(directory / "manifest.json")
    proxy.methods.clear()
    wanted = 4 * 3_000_001
    with CheckpointReader(directory, manifest) as reader:
        reader.read("big", "master", 0, 3_000_001)
        assert wanted <= reader.bytes_read <= wanted + 4 * WINDOW_BYTES
    assert len(proxy.methods) <= -(-wanted // WINDOW_BYTES) + 2
    proxy.methods.clear()
    with CheckpointReader(remote / "small", small) as reader:
        for part in PARTS:
            for name, shape in SHAPES.items():
                found = reader.read(name, part, 0, math.prod(shape))
                assert torch.equal(found, values(name, part))
    # Fifteen tensors in two files, and one request for each file.
    assert len(proxy.methods) == 2


@pytest.mark.parametrize("how", ["flip", "truncate", "remove"])
def test_damage_is_found_by_ranged_reads(folder: StoragePath, how: str) -> None:
    directory = folder / "checkpoint"
    manifest = save(directory, head=header())
    entry = next(e for e in manifest.slices if e.tensor == "mlp.weight" and e.part == "exp_avg")
    file = directory / entry.file
    data = bytearray(file.read_bytes())
    match how:
        case "flip":
            data[entry.begin] ^= 1
            write_atomic(file, bytes(data))
        case "truncate":
            write_atomic(file, bytes(data[: entry.end - 1]))
        case "remove":
            file.unlink(missing_ok=True)
    damage: list[str] = []
    with CheckpointReader(directory, manifest, on_damage=damage.append) as reader:
        reader.read("mlp.weight", "exp_avg", 0, 24)
    assert len(damage) == 1
    assert str(file) in damage[0]
    assert "exp_avg of mlp.weight" in damage[0]
    with CheckpointReader(directory, manifest) as reader:
        with pytest.raises(CheckpointError, match=re.escape(str(file))):
            reader.read("mlp.weight", "exp_avg", 0, 24)
        with pytest.raises(CheckpointError, match=re.escape(str(file))):
            reader.verify()


def test_half_a_manifest_is_set_aside(folder: StoragePath) -> None:
    run_dir = RunDir(folder)
    store = begin(run_dir)
    save_at(run_dir, attempt=1, step=10)
    path = run_dir.manifest(save_at(run_dir, attempt=1, step=20))
    write_atomic(path, path.read_bytes()[:100])
    with pytest.raises(DamagedManifestError, match=re.escape(str(path))) as found:
        store.newest()
    assert store.set_aside(found.value.path.parent)
    assert newest_step(run_dir, 1) == 10


def test_a_listing_that_lags_hides_no_attempt(remote: RemotePath, proxy: Proxy) -> None:
    run_dir = RunDir(remote)
    begin(run_dir)
    proxy.hidden = re.compile(r"attempts/0*[2-9]")
    for number in (2, 3, 4):
        assert start_attempt(run_dir, world_size=1).number == number
        assert run_dir.newest_attempt() == number
        assert not run_dir.is_newest(number - 1)
    proxy.hidden = re.compile("attempts/")
    assert run_dir.attempt_numbers() == [1, 2, 3, 4]
    assert proxy.counts["hidden"] > 0


def test_a_listing_that_lags_hides_no_checkpoint(remote: RemotePath, proxy: Proxy) -> None:
    run_dir = RunDir(remote)
    store = begin(run_dir)
    save_at(run_dir, attempt=1, step=10)
    # From here on nothing that is saved is listed.
    proxy.hidden = re.compile(r"step-0000[2-9]|attempt-0002")
    for step in (20, 30, 40):
        save_at(run_dir, attempt=1, step=step)
        assert newest_step(run_dir, 1) == step
        store.prune(1)
    save_at(run_dir, attempt=1, step=40, kind="weights", phase_end=True)
    assert store.phase_end("memorize") is not None
    assert proxy.counts["hidden"] > 0
    second = begin(run_dir)
    assert newest_step(run_dir, 2) == 40
    save_at(run_dir, attempt=2, step=5, phase_index=1)
    found = second.newest()
    assert found is not None
    assert found.manifest.phase == "generalize"
    # What cannot be listed is not removed as an orphan either.
    second.collect_orphans()
    proxy.hidden = None
    assert [(n.attempt, n.step) for n in visible(run_dir, 2)] == [(1, 40), (1, 40), (2, 5)]


def test_an_index_names_what_is_kept(remote: RemotePath) -> None:
    run_dir = RunDir(remote)
    store = begin(run_dir)
    for step in (10, 20, 30, 40):
        save_at(run_dir, attempt=1, step=step)
        store.prune(1)
    names = (run_dir.checkpoints_dir / "attempt-0001" / "index.json").read_text()
    # The one before the last was pruned after the last save had named it.
    assert re.findall(r"step-0000(\d+)-full", names) == ["30", "40"]


def test_a_listing_that_lags_hides_no_record_of_rank_0(remote: RemotePath, proxy: Proxy) -> None:
    run_dir = RunDir(remote)
    for attempt in (1, 2):
        begin(run_dir)
        writer = RecordWriter(run_dir, attempt=attempt, rank=0, flush_seconds=1e9)
        for number in range(3):
            writer.append(event(f"{attempt}.{number}", attempt=attempt))
            writer.flush()
    proxy.hidden = re.compile(r"attempt-0001/.*segment-00000[13]|records/attempt-0002")
    assert len(run_dir.record_segments()) == 1
    messages = [row.message for row in read_records(run_dir).events]
    assert messages == [f"{attempt}.{number}" for attempt in (1, 2) for number in range(3)]


def test_a_pruner_and_a_start_never_lose_the_newest(remote: RemotePath) -> None:
    """Many rounds of a zombie that saves and prunes while another attempt starts."""
    run_dir = RunDir(remote)
    store = begin(run_dir)
    save_at(run_dir, attempt=1, step=1)

    def save_and_prune() -> None:
        for step in range(2, 12):
            save_at(run_dir, attempt=1, step=step)
            store.prune(1)

    with ThreadPoolExecutor(2) as threads:
        saving = threads.submit(save_and_prune)
        started = [start_attempt(run_dir, world_size=1) for _ in range(6)]
        saving.result()
    for attempt in started:
        assert attempt.resumes is not None
        assert is_published(run_dir.checkpoint(run_dir.manifest_name(attempt.resumes)))


def test_slices_of_three_ranks_in_the_bucket(remote: RemotePath) -> None:
    directory = remote / "checkpoint"
    for rank in range(3):
        write_rank_file(directory, rank=rank, world_size=3, slices=rank_slices(rank, 3))
    manifest = publish(directory, header=header(world_size=3), timeout_seconds=0)
    assert sorted(path.name for path in directory.iterdir()) == [
        "manifest.json",
        *(file.name for file in manifest.files),
    ]
    with pytest.raises(CheckpointError, match="published already"):
        write_rank_file(directory, rank=0, world_size=3, slices=rank_slices(0, 3))
