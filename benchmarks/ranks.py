"""Runs a function on several ranks, as real processes with gloo, and measures time and memory."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import socket
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

# Imports take ten seconds a process, so ranks are forked off a server that has done them.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["peers", "transformers.models.llama.modeling_llama"])


_terminal = -1


def run_ranks(
    task: Callable[..., Any], *arguments: Any, world_size: int, logs: Path, threads: int = 1
) -> list[Any]:
    """What ``task(*arguments)`` returns on each rank; RuntimeError with the traceback of one.

    Each rank computes with ``threads``. What libraries print goes into files in ``logs``.
    """
    port = str(_free_port())
    workers = []
    for rank in range(world_size):
        variables = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        receiver, sender = PROCESSES.Pipe(duplex=False)
        # Not a daemon: the peers start processes of their own.
        process = PROCESSES.Process(
            target=_rank,
            args=(task, arguments, variables, threads, sender, logs / f"rank-{rank}.log"),
        )
        process.start()
        sender.close()
        workers.append((process, receiver))
    patience = 0.0
    try:
        found = [_result(receiver, logs) for _, receiver in workers]
        patience = 30.0
        return found
    finally:
        for process, _ in workers:
            process.join(timeout=patience)
            if process.is_alive():
                process.kill()
                process.join()


def _result(receiver: multiprocessing.connection.Connection[Any, Any], logs: Path) -> Any:
    try:
        value, problem = receiver.recv()
    except EOFError:
        told = "".join(log.read_text()[-3000:] for log in sorted(logs.glob("rank-*.log")))
        raise RuntimeError(f"a rank died:\n{told}") from None
    if problem:
        raise RuntimeError(f"a rank failed:\n{problem}")
    return value


def _rank(
    task: Callable[..., Any],
    arguments: tuple[Any, ...],
    variables: dict[str, str],
    threads: int,
    sender: multiprocessing.connection.Connection[Any, Any],
    log: Path,
) -> None:
    global _terminal
    os.environ.update(variables)
    _terminal = os.dup(1)
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    import torch

    torch.set_num_threads(threads)
    try:
        sender.send((task(*arguments), None))
    except BaseException:
        sender.send((None, traceback.format_exc()))
        raise
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def note(text: str) -> None:
    """Print a line of progress, on rank 0."""
    if os.environ["RANK"] == "0":
        os.write(_terminal, f"{text}\n".encode())


class Timing(NamedTuple):
    """Of one run of something."""

    seconds: float
    """Until all ranks have done it."""
    cpu_seconds: float
    """Processor time of all threads of this rank; other processes of a peer's do not count."""


def timed(action: Callable[[], object]) -> Timing:
    """Collective: every rank calls this."""
    import torch.distributed

    torch.distributed.barrier()
    started, busy = time.perf_counter(), time.process_time()
    action()
    torch.distributed.barrier()
    return Timing(time.perf_counter() - started, time.process_time() - busy)


class PeakMemory:
    """Resident memory of this process from here on, in bytes (Linux)."""

    def __init__(self) -> None:
        # 5 sets the peak that the kernel keeps back to what is resident now.
        Path("/proc/self/clear_refs").write_text("5")
        self.before = resident("VmRSS")

    @property
    def peak(self) -> int:
        """The most that was resident at a time."""
        return resident("VmHWM")

    @property
    def extra(self) -> int:
        """How much more that was than at the start."""
        return self.peak - self.before


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def settle() -> None:
    """Let the disk write what earlier measurements have left to it."""
    os.sync()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
