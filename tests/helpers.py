"""What several test files need: workers as real processes, and comparisons of what they left."""

from __future__ import annotations

import multiprocessing
import multiprocessing.context
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from rotescale.checkpoint.attempts import open_checkpoint
from rotescale.checkpoint.slices import CheckpointReader
from rotescale.launch_spec import LaunchSpec, Preflight, ProfileSpec, StageLimits
from rotescale.model.prepare import load_prepared
from rotescale.preparation import prepare_run
from rotescale.records import StepRow, read_records
from rotescale.run_dir import RunDir
from rotescale.spec import ExperimentSpec
from rotescale.spec_file import load_spec
from rotescale.worker import run_worker

ROOT = Path(__file__).resolve().parent.parent
MICRO = ROOT / "configs" / "experiments" / "micro.yaml"


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def micro_spec(*overrides: str) -> ExperimentSpec:
    """The shipped micro experiment with overrides."""
    return load_spec(ExperimentSpec, MICRO, overrides)


def prepare(
    spec: ExperimentSpec,
    storage: Path | str,
    *,
    cache: Path,
    num_workers: int = 1,
    limits: StageLimits | None = None,
    preflight: Preflight | None = None,
    allow_task_code: bool = False,
    profile: ProfileSpec | None = None,
) -> RunDir:
    """A run folder that is ready for workers."""
    launch = LaunchSpec(
        storage=str(storage),
        model_cache=str(cache),
        num_workers=(num_workers, num_workers),
        cpus_per_worker=1,
        limits=limits or StageLimits(),
        preflight=preflight,
        allow_task_code=allow_task_code,
        profile=profile,
    )
    return prepare_run(spec, launch)


# A few seconds of training without evaluation: two phases of some steps on twelve facts.
QUICK = (
    "phases.0.facts_per_relation=12",
    "phases.0.epochs=2",
    "phases.0.global_batch=5",
    "phases.1.facts_per_relation=6",
    "phases.1.epochs=2",
    "phases.1.global_batch=2",
    "phases.1.num_prompts=2",
    "evaluation.base=false",
    "evaluation.trained_facts=0",
    "evaluation.held_out_facts=1",
    "evaluation.key_token_facts=0",
    "evaluation.test_prompts=0",
    "evaluation.unrelated_prompts=0",
    "evaluation.control_facts=0",
    "evaluation.generation_facts=0",
)


Worker = multiprocessing.context.ForkServerProcess

# Imports take ten seconds a process, so workers are forked off a server that has done them.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["rotescale.worker", "rotescale.engine.zero3", "helpers"])


def _rank(
    target: Callable[..., None],
    arguments: tuple[object, ...],
    environment: dict[str, str],
    log: Path,
) -> None:
    os.environ.update(environment)
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    torch.set_num_threads(1)
    target(*arguments)


def run_workers(
    run_dir: RunDir,
    *,
    world_size: int,
    environment: Mapping[str, str] | None = None,
    timeout_seconds: float = 240.0,
) -> list[int]:
    """Run a worker process per rank, without Ray, to their end; their exit codes."""
    workers = start_workers(run_dir, world_size=world_size, environment=environment)
    return join_workers(run_dir, workers, timeout_seconds=timeout_seconds)


def start_workers(
    run_dir: RunDir, *, world_size: int, environment: Mapping[str, str] | None = None
) -> list[Worker]:
    """Start a worker process per rank, without Ray."""
    return start_ranks(
        run_worker,
        run_dir.root,
        world_size=world_size,
        logs=run_dir.node_dir / "logs",
        environment=environment,
    )


def run_ranks(
    target: Callable[..., None],
    *arguments: object,
    world_size: int,
    logs: Path,
    environment: Mapping[str, str] | None = None,
    timeout_seconds: float = 240.0,
) -> list[int]:
    """Call ``target`` in a process per rank, with torch's variables set; their exit codes."""
    workers = start_ranks(
        target, *arguments, world_size=world_size, logs=logs, environment=environment
    )
    return _join(workers, logs=logs, timeout_seconds=timeout_seconds, grace_seconds=10.0)


def start_ranks(
    target: Callable[..., None],
    *arguments: object,
    world_size: int,
    logs: Path,
    environment: Mapping[str, str] | None = None,
) -> list[Worker]:
    """Start a process per rank that calls ``target``, with torch's variables set."""
    logs.mkdir(parents=True, exist_ok=True)
    port = str(free_port())
    workers = []
    for rank in range(world_size):
        variables = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            **(environment or {}),
        }
        log = logs / f"test-rank-{rank}.log"
        worker = _PROCESSES.Process(target=_rank, args=(target, arguments, variables, log))
        worker.start()
        workers.append(worker)
    return workers


def join_workers(
    run_dir: RunDir,
    workers: Sequence[Worker],
    *,
    timeout_seconds: float = 240.0,
    grace_seconds: float = 10.0,
) -> list[int]:
    """Wait for the end of all workers; their exit codes, by rank."""
    return _join(
        workers,
        logs=run_dir.node_dir / "logs",
        timeout_seconds=timeout_seconds,
        grace_seconds=grace_seconds,
    )


def _join(
    workers: Sequence[Worker], *, logs: Path, timeout_seconds: float, grace_seconds: float
) -> list[int]:
    """When one worker fails, its peers are given a moment to notice and are then killed."""
    deadline = time.monotonic() + timeout_seconds
    try:
        while any(worker.is_alive() for worker in workers) and time.monotonic() < deadline:
            time.sleep(0.05)
            if any(worker.exitcode for worker in workers):
                deadline = min(deadline, time.monotonic() + grace_seconds)
    finally:
        for worker in workers:
            if worker.is_alive():
                worker.kill()
            worker.join()
    codes = [int(worker.exitcode or 0) for worker in workers]
    for rank, code in enumerate(codes):
        if code:
            print(
                f"rank {rank}: {code}",
                (logs / f"test-rank-{rank}.log").read_text()[-3000:],
            )
    return codes


def wait_until(condition: Callable[[], bool], *, timeout_seconds: float = 300.0) -> None:
    """Return when the condition holds; an error if it does not in time."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def steps(run_dir: RunDir) -> tuple[StepRow, ...]:
    """The run's steps, each once."""
    return read_records(run_dir, example_ids=True).steps


def phase_end_weights(run_dir: RunDir, phase: str) -> dict[str, torch.Tensor]:
    """The fp32 master weights that the phase left, flat, by name."""
    for attempt in reversed(run_dir.checkpoint_attempts()):
        for name in reversed(run_dir.checkpoint_folders(attempt)):
            if name.phase != phase or not run_dir.manifest(name).exists():
                continue
            found = open_checkpoint(run_dir, name)
            if found.manifest.phase_end:
                with CheckpointReader(found.directory, found.manifest) as reader:
                    return {
                        tensor: reader.read(
                            tensor, part="master", start=0, stop=torch.Size(shape).numel()
                        )
                        for tensor, shape in reader.shapes.items()
                    }
    raise AssertionError(f"{run_dir.root}: phase {phase} has not ended")


def key_token_rows(run_dir: RunDir, phase: str | None) -> dict[str, torch.Tensor]:
    """The key tokens' rows that the phase left, or of the base; by matrix."""
    prepared = load_prepared(run_dir.prepared_model)
    weights = {} if phase is None else phase_end_weights(run_dir, phase)
    found = {}
    with prepared.reader() as base:
        for name, rows in prepared.key_rows().items():
            size = torch.Size(base.shapes[name]).numel()
            flat = weights[name] if phase else base.read(name, "master", 0, size)
            found[name] = flat.view(base.shapes[name])[list(rows)]
    return found


def assert_key_tokens_frozen(run_dir: RunDir) -> None:
    """Learnt while memorizing, and from then on the same bit for bit."""
    start, memorized, end = (key_token_rows(run_dir, p) for p in (None, "memorize", "generalize"))
    assert start
    for name, rows in memorized.items():
        assert not torch.equal(rows, start[name])
        assert torch.equal(rows, end[name])
