"""Per rank: what a save costs training and how long an export takes, ours and the peers'."""

from __future__ import annotations

import mmap
import os
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch.distributed.device_mesh import init_device_mesh

from peers import AsyncDcp, dcp_save, quiet, sharded_state
from ranks import PeakMemory, Timing, note, resident, settle, timed
from report import Detail
from restoring import state_digest
from rotescale.checkpoint.manifest import MANIFEST, load_manifest
from rotescale.checkpoint.saver import CheckpointSaver, SaveReport, SaveRequest
from rotescale.checkpoint.slices import CheckpointReader
from rotescale.direct import DirectFile
from rotescale.engine.zero3 import Zero3Engine
from rotescale.model.export import MAX_SHARD_BYTES, finish_export, plan_shards, write_shard
from rotescale.model.prepare import load_prepared
from rotescale.run_dir import CheckpointKind
from rotescale.tensors import PARTS
from subjects import SETTINGS, Subject, batch, builder, header

_LEARNING_RATE = 1e-4
_WRITE_BYTES = 16 << 20


@dataclass(slots=True)
class Saved:
    """What one rank has measured."""

    details: list[Detail] = field(default_factory=list)
    reports: list[SaveReport] = field(default_factory=list)
    """Of our saves beside training."""
    slice_bytes: int = 0
    """Of this rank's masters and moments."""
    digest: str = ""
    """Of this rank's slices as they were when the checkpoints that stay were written."""
    snapshot_bytes: int = 0
    """Resident memory that a save of ours added at most, while nothing else went on."""
    left_bytes: int = 0
    """Of that, what was left after the host memory was released."""


def measure_saving(subject: Subject, prepared: Path, folder: Path) -> Saved:
    """Collective: every rank calls this. All savers in turn; leaves checkpoints in ``folder``."""
    bench = _Bench(subject, prepared, folder)
    bench.steps(2, lambda: None)
    bench.snapshot_memory()
    bench.stall_of_ours()
    for kind in subject.dcp_kinds:
        bench.stall_of_dcp(kind)
    bench.stall_of_bare_write()
    bench.blocking_saves()
    bench.exports()
    bench.saved.digest = state_digest(bench.engine.state(PARTS))
    return bench.saved


class _Bench:
    """The engine that is saved, and everything measured so far."""

    def __init__(self, subject: Subject, prepared: Path, folder: Path) -> None:
        self.subject = subject
        self.folder = folder
        self.prepared = load_prepared(prepared)
        self.engine = Zero3Engine(builder(prepared), spec=subject.engine, settings=SETTINGS)
        with self.prepared.reader() as reader:
            self.engine.load(reader, optimizer_step=None)
        self.saved = Saved()
        self.row = batch(subject, rank=self.engine.rank)
        self.mesh = init_device_mesh("cpu", (self.engine.world_size,))
        self._number = 0

    def steps(self, count: int, before_update: Callable[[], None]) -> None:
        """Collective: every rank calls this. Train for ``count`` steps."""
        for _ in range(count):
            self.engine.backward(self.row, scale=1 / self.subject.row_tokens, last=True)
            before_update()
            self.engine.step(learning_rate=_LEARNING_RATE)

    def snapshot_memory(self) -> None:
        """Collective: every rank calls this. A save with no step beside it, whose memory varies."""
        self.saved.slice_bytes = sum(t.nbytes for _, _, t in self.engine.state(PARTS))
        memory = PeakMemory()
        saver = CheckpointSaver(rank=self.engine.rank, world_size=self.engine.world_size)
        target = self.folder / "snapshot"
        saver.start(self.request(target, kind="full"))
        saver.finish()
        self.saved.snapshot_bytes = memory.extra
        saver.close()
        self.saved.left_bytes = resident("VmRSS") - memory.before
        self._remove(target)

    def stall_of_ours(self) -> None:
        """Collective: every rank calls this."""
        saver = CheckpointSaver(rank=self.engine.rank, world_size=self.engine.world_size)

        def save(target: Path) -> None:
            saver.start(self.request(target, kind="full", done=self.saved.reports.append))
            self.steps(self.subject.num_steps, saver.before_update)
            saver.finish()

        self._stall("ours", save)
        saver.close()

    def stall_of_dcp(self, kind: str) -> None:
        """Collective: every rank calls this. DCP's async_save, by thread or process."""
        saver = AsyncDcp(kind)
        # The stager finds its memory again by the storages of these very tensors.
        state = sharded_state(self.engine.state(PARTS), self.mesh)

        def save(target: Path) -> None:
            saver.start(state, target)
            self.steps(self.subject.num_steps, saver.before_update)
            saver.finish()

        self._stall(f"dcp async_save ({kind})", save)
        saver.close()

    def stall_of_bare_write(self) -> None:
        """Collective: every rank calls this. What the disk alone takes from training.

        A thread writes as many bytes as a checkpoint has, from one buffer, directly, and syncs.
        """
        num_bytes = self.saved.slice_bytes
        memory = memoryview(mmap.mmap(-1, _WRITE_BYTES))
        memory[:] = os.urandom(_WRITE_BYTES)

        def write(path: Path) -> None:
            with DirectFile(path) as file:
                for start in range(0, num_bytes, _WRITE_BYTES):
                    file.write(memory[: num_bytes - start])
                file.sync()

        def save(target: Path) -> None:
            target.mkdir(exist_ok=True)
            thread = threading.Thread(target=write, args=(target / f"{self.engine.rank}",))
            thread.start()
            self.steps(self.subject.num_steps, lambda: None)
            thread.join()

        self._stall("bare write", save)

    def _stall(self, name: str, save: Callable[[Path], None]) -> None:
        """Collective: every rank calls this. N steps with and without a save, by turns.

        A stall is the time with a save less the mean of the times without, before and after it.
        """
        subject = self.subject
        plain_memory = PeakMemory()
        self._plain()
        plain_peak = plain_memory.peak
        memory = PeakMemory()
        # The first save allocates, starts processes and groups: a warm-up for all.
        self._once(save)
        peak = memory.peak
        plain, saves, num_bytes = [self._plain()], [], 0
        for _ in range(subject.repeats):
            timing, num_bytes = self._once(save)
            saves.append(timing)
            plain.append(self._plain())
        stalls = [
            t.seconds - (plain[i].seconds + plain[i + 1].seconds) / 2 for i, t in enumerate(saves)
        ]
        steps = f"{subject.num_steps} steps"
        self._add(f"{name}: {steps} without a save", plain, peak_bytes=plain_peak)
        self._add(
            f"{name}: {steps} and a save",
            saves,
            num_bytes=num_bytes,
            peak_bytes=peak,
            extra_bytes=peak - plain_peak,
        )
        least = [min(t.cpu_seconds for t in timings) for timings in (saves, plain)]
        self._add(f"{name}: stall", [Timing(stall, least[0] - least[1]) for stall in stalls])

    def _plain(self) -> Timing:
        """Collective: every rank calls this. N steps without a save."""
        return timed(lambda: self.steps(self.subject.num_steps, lambda: None))

    def _add(self, what: str, timings: Sequence[Timing], **measured: int) -> None:
        seconds = [timing.seconds for timing in timings]
        cpu_seconds = min(timing.cpu_seconds for timing in timings)
        self.saved.details.append(Detail(what, seconds, cpu_seconds=cpu_seconds, **measured))
        runs = " ".join(f"{value:.2f}" for value in seconds)
        note(f"{self.subject.name}: {what}: {runs} s (CPU at least {cpu_seconds:.2f} s)")

    def _once(self, save: Callable[[Path], None]) -> tuple[Timing, int]:
        """Collective: every rank calls this. Timing and bytes of one save that does not stay."""
        self._number += 1
        target = self.folder / f"trial-{self._number}"
        timing = timed(lambda: save(target))
        num_bytes = folder_bytes(target)
        self._remove(target)
        return timing, num_bytes

    def _remove(self, *targets: Path) -> None:
        torch.distributed.barrier()
        if self.engine.rank == 0:
            for target in targets:
                shutil.rmtree(target)
            settle()
        torch.distributed.barrier()

    def request(
        self,
        target: Path,
        *,
        kind: CheckpointKind,
        done: Callable[[SaveReport], None] = lambda _: None,
    ) -> SaveRequest:
        """A save of the engine's state as it is."""
        return SaveRequest(
            directory=target,
            header=header(kind=kind, step=self._number, world_size=self.engine.world_size),
            state=self.engine.state(PARTS if kind == "full" else PARTS[:1]),
            before_publish=lambda: None,
            after_publish=lambda: None,
            done=done,
        )

    def blocking_saves(self) -> None:
        """Collective: every rank calls this. Saves that training waits for, in turn; the last stay.

        No step is done any more, so all of them hold the same state.
        """
        saver = CheckpointSaver(rank=self.engine.rank, world_size=self.engine.world_size)

        def ours(target: Path, kind: CheckpointKind = "full") -> None:
            saver.start(self.request(target, kind=kind))
            saver.finish()

        def deepspeed(target: Path) -> None:
            with quiet():
                self.engine._engine.save_checkpoint(str(target), tag="saved")

        def deepspeed_synced(target: Path) -> None:
            deepspeed(target)
            for path in target.rglob("*"):
                if f"rank_{self.engine.rank}_" in path.name and path.is_file():
                    with path.open("rb") as file:
                        os.fsync(file.fileno())

        def dcp(target: Path) -> None:
            dcp_save(sharded_state(self.engine.state(PARTS), self.mesh), target)

        actions = {
            "ours": ours,
            "ours, weights only": lambda target: ours(target, "weights"),
            "deepspeed": deepspeed,
            "deepspeed, synced": deepspeed_synced,
            "dcp": dcp,
        }
        names = ("ours", "weights", "deepspeed", "deepspeed-synced", "dcp")
        self._in_turn(actions, "save: ", names)
        saver.close()

    def exports(self) -> None:
        """Collective: every rank calls this. A whole model, float32 as it is trained, in turn."""
        # The peer's switch; our engine never gathers, so its configuration does not have it.
        self.engine._engine._config.zero_config.gather_16bit_weights_on_model_save = True

        def theirs(target: Path) -> None:
            with quiet():
                self.engine._engine.save_16bit_model(str(target))

        actions = {
            "ours": self._export,
            "deepspeed": theirs,
        }
        self._in_turn(actions, "export: ", ("export", "16bit"))

    def _export(self, target: Path) -> None:
        source = self.folder / "weights"
        with CheckpointReader(source, load_manifest(source / MANIFEST)) as reader:
            shards = plan_shards(reader.shapes, dtype="float32", max_shard_bytes=MAX_SHARD_BYTES)
            for shard in shards[self.engine.rank :: self.engine.world_size]:
                write_shard(shard, reader=reader, out=target, dtype="float32")
        torch.distributed.barrier()
        if self.engine.rank == 0:
            finish_export(self.prepared, shards, out=target, dtype="float32")

    def _in_turn(
        self,
        actions: Mapping[str, Callable[[Path], None]],
        prefix: str,
        names: tuple[str, ...],
    ) -> None:
        """Collective: every rank calls this. Each action in turn, after a warm-up of each."""
        runs: dict[str, list[Timing]] = {name: [] for name in actions}
        memory: dict[str, PeakMemory] = {}
        peaks: dict[str, tuple[int, int]] = {}
        targets = [self.folder / name for name in names]
        for repeat in range(self.subject.repeats + 1):
            for (name, action), target in zip(actions.items(), targets, strict=True):
                if repeat:
                    self._remove(target)
                memory[name] = PeakMemory()
                timing = timed(partial(action, target))
                if repeat:
                    runs[name].append(timing)
                else:
                    peaks[name] = memory[name].peak, memory[name].extra
        for name, target in zip(actions, targets, strict=True):
            peak, extra = peaks[name]
            self._add(
                prefix + name,
                runs[name],
                num_bytes=folder_bytes(target),
                peak_bytes=peak,
                extra_bytes=extra,
            )


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below ``folder``."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
