"""Saving while training goes on: a copy during the next step, then a thread that writes."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import torch

from rotescale.checkpoint.manifest import ManifestHeader
from rotescale.checkpoint.writer import SliceData, publish, write_rank_file
from rotescale.direct import ALIGNMENT
from rotescale.faults import fault_point
from rotescale.storage import StoragePath
from rotescale.tensors import Part, TensorSlice

_NICENESS = 10


@dataclass(frozen=True, slots=True)
class SaveReport:
    """What a save has cost on this rank, in bytes and seconds."""

    num_bytes: int
    """Of this rank's file; on rank 0 of all files."""
    stall_seconds: float
    """How long training has waited for it."""
    copy_stall_seconds: float
    """Of these until the state was copied; all, where nothing waits for the file to be written."""
    copy_seconds: float
    write_seconds: float
    """From the end of the copy until the file is synced."""
    total_seconds: float
    """From the request until the file is synced; on rank 0 until the manifest is published."""
    pinned: bool
    """Whether the copy lay in pinned memory, which a GPU copies to beside its computation."""


@dataclass(frozen=True, slots=True)
class SaveRequest:
    """A checkpoint to be written, on one rank."""

    directory: StoragePath
    header: ManifestHeader
    state: Sequence[tuple[TensorSlice, Part, torch.Tensor]]
    """This rank's slices: views of the training state, (n,) float32, on any device."""
    before_publish: Callable[[], None]
    """Called in the background on rank 0, when this rank's file is there."""
    after_publish: Callable[[], None]
    """Called in the background on rank 0, when the manifest is there."""
    done: Callable[[SaveReport], None]
    """Called in the training thread, by the first call that finds the save ended."""


class CheckpointSaver:
    """One save at a time, on one rank. No collective, so nothing waits for another rank but rank 0.

    The copy into host memory, which is kept for the next save, runs beside the next forward and
    backward; ``before_update`` waits for its end. File, digests and marker come from a background
    thread, on rank 0 the manifest too. What goes wrong there is raised by the next call.
    """

    def __init__(self, *, rank: int, world_size: int, publish_seconds: float = 1800.0) -> None:
        """Rank 0 waits ``publish_seconds`` for the others' files."""
        self._publish_seconds = publish_seconds
        self._rank = rank
        self._world_size = world_size
        self._buffer = torch.empty(0)
        self._request: SaveRequest | None = None
        self._thread: threading.Thread | None = None
        self._copied = threading.Event()
        self._report: SaveReport | None = None
        self._error: BaseException | None = None
        self._stall = self._copy_stall = 0.0
        self._stopped = threading.Event()

    @property
    def busy(self) -> bool:
        """Whether a save is in flight on this rank."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, request: SaveRequest) -> None:
        """Begin a save; waits for the one before. The state may change after ``before_update``."""
        self.finish()
        started = time.perf_counter()
        buffers = self._buffers(request.state)
        stream = None
        if torch.cuda.is_available():
            # Beside the computation, but after the update that has just been queued.
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
        self._copied.clear()
        self._request = request
        self._thread = threading.Thread(
            target=self._run, args=(request, buffers, stream, started), name="save", daemon=True
        )
        self._thread.start()
        self._stall = self._copy_stall = time.perf_counter() - started

    def before_update(self) -> None:
        """Wait until the state in flight, if any, is copied; call it before it changes."""
        if self._thread is None:
            return
        if not self._copied.is_set():
            started = time.perf_counter()
            self._copied.wait()
            waited = time.perf_counter() - started
            self._stall += waited
            self._copy_stall += waited
        if not self._thread.is_alive():
            self.finish()

    def finish(self, timeout_seconds: float | None = None) -> None:
        """Wait until the save in flight, if any, is written, and published by rank 0.

        Raises what went wrong in the background, and TimeoutError at the limit.
        """
        if self._thread is None:
            return
        started = time.perf_counter()
        copied = 0.0
        if not self._copied.is_set():
            self._copied.wait(timeout_seconds)
            copied = time.perf_counter() - started
            self._copy_stall += copied
        self._thread.join(None if timeout_seconds is None else max(0.0, timeout_seconds - copied))
        self._stall += time.perf_counter() - started
        if self._thread.is_alive():
            raise TimeoutError(f"the save in flight did not end within {timeout_seconds:g} s")
        request, report, error = self._request, self._report, self._error
        self._thread = self._request = self._report = self._error = None
        if error is not None:
            raise error
        if request is not None and report is not None:
            request.done(
                replace(report, stall_seconds=self._stall, copy_stall_seconds=self._copy_stall)
            )

    def release(self) -> None:
        """Wait for the save in flight, and free the host memory until the next."""
        self.finish()
        self._buffer = torch.empty(0)

    def close(self) -> None:
        """Free the host memory. A save in flight ends its own file, and waits for no other rank."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._buffer = torch.empty(0)

    def _sleep(self, seconds: float) -> None:
        if self._stopped.wait(seconds):
            raise InterruptedError("closed while other ranks were still writing")

    def _buffers(self, state: Sequence[tuple[TensorSlice, Part, torch.Tensor]]) -> list[SliceData]:
        """A place in host memory for every slice, in memory that is used again."""
        size = sum(tensor.numel() for _, _, tensor in state)
        if self._buffer.numel() < size:
            self._buffer = torch.empty(0)
            self._buffer = _aligned_memory(size)
        buffers: list[SliceData] = []
        offset = 0
        for piece, part, tensor in state:
            buffers.append((piece, part, self._buffer[offset : offset + tensor.numel()]))
            offset += tensor.numel()
        return buffers

    def _run(
        self,
        request: SaveRequest,
        buffers: Sequence[SliceData],
        stream: torch.cuda.Stream | None,
        started: float,
    ) -> None:
        try:
            copying = time.perf_counter()
            self._copy(request, buffers, stream)
            self._copied.set()
            copied = time.perf_counter()
            _give_way()
            marker = write_rank_file(
                request.directory,
                rank=self._rank,
                world_size=self._world_size,
                slices=buffers,
                halfway=lambda: self._fault("write", request),
            )
            written = time.perf_counter()
            num_bytes, ended = marker.file.num_bytes, written
            self._fault("save", request)
            if self._rank == 0:
                request.before_publish()
                manifest = publish(
                    request.directory,
                    header=request.header,
                    timeout_seconds=self._publish_seconds,
                    sleep=self._sleep,
                )
                num_bytes = sum(file.num_bytes for file in manifest.files)
                ended = time.perf_counter()
                self._fault("published", request)
                request.after_publish()
            self._report = SaveReport(
                num_bytes=num_bytes,
                stall_seconds=0.0,
                copy_stall_seconds=0.0,
                copy_seconds=copied - copying,
                write_seconds=written - copied,
                total_seconds=ended - started,
                pinned=self._buffer.is_pinned(),
            )
        except BaseException as error:  # noqa: BLE001 (raised again in the training thread)
            self._error = error
        finally:
            self._copied.set()

    def _copy(
        self,
        request: SaveRequest,
        buffers: Sequence[SliceData],
        stream: torch.cuda.Stream | None,
    ) -> None:
        half = len(buffers) // 2
        if stream is not None:
            # A thread begins on GPU 0, where leaving the stream would open a context.
            torch.cuda.set_device(stream.device)
        with torch.cuda.stream(stream):
            for number, (source, target) in enumerate(zip(request.state, buffers, strict=True)):
                if number == half:
                    self._fault("copy", request)
                target[2].copy_(source[2], non_blocking=stream is not None)
        if stream is not None:
            stream.synchronize()

    def _fault(self, point: str, request: SaveRequest) -> None:
        header = request.header
        fault_point(
            point, phase=header.phase, step=header.step, rank=self._rank, attempt=header.attempt
        )


def _aligned_memory(size: int) -> torch.Tensor:
    """(size,) float32, not set, in memory that a file can be written from directly."""
    spare = ALIGNMENT // torch.float32.itemsize
    memory = torch.empty(size + spare, pin_memory=torch.cuda.is_available())
    start = -memory.data_ptr() % ALIGNMENT // torch.float32.itemsize
    return memory[start : start + size]


def _give_way() -> None:
    """Let this thread, which nobody waits for, take what processor time training leaves.

    On Linux each thread has a priority of its own. Where all is busy it still gets a tenth.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with suppress(OSError):
            niceness = max(_NICENESS, os.getpriority(os.PRIO_PROCESS, thread))
            os.setpriority(os.PRIO_PROCESS, thread, niceness)
