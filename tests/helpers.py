"""What several test files need: workers as real processes, and comparisons of what they left."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from rotescale.checkpoint.attempts import open_checkpoint
from rotescale.checkpoint.slices import CheckpointReader
from rotescale.launch_spec import LaunchSpec
from rotescale.preparation import prepare_run
from rotescale.records import StepRow, read_records
from rotescale.run_dir import RunDir
from rotescale.spec import ExperimentSpec, load_spec

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


def prepare(spec: ExperimentSpec, storage: Path, *, cache: Path, num_workers: int = 1) -> RunDir:
    """A run folder that is ready for workers."""
    launch = LaunchSpec(
        storage=str(storage), model_cache=str(cache), num_workers=(num_workers, num_workers)
    )
    return prepare_run(spec, launch)


def start_workers(
    run_dir: RunDir, *, world_size: int, environment: Mapping[str, str] | None = None
) -> list[subprocess.Popen[str]]:
    """Start a worker process per rank, without Ray."""
    port = free_port()
    workers = []
    for rank in range(world_size):
        variables = {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            **(environment or {}),
        }
        workers.append(
            subprocess.Popen(
                [sys.executable, "-m", "rotescale.worker", str(run_dir.root)],
                env=variables,
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return workers


def run_workers(
    run_dir: RunDir, *, world_size: int, environment: Mapping[str, str] | None = None
) -> list[int]:
    """Run workers to their end; their exit codes. A failing worker's peers are ended."""
    workers = start_workers(run_dir, world_size=world_size, environment=environment)
    try:
        codes = []
        for worker in workers:
            output, _ = worker.communicate(timeout=300)
            codes.append(worker.returncode)
            if worker.returncode:
                print(output[-4000:])
        return codes
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.kill()
                worker.wait()


def steps(run_dir: RunDir) -> tuple[StepRow, ...]:
    """The run's steps, each once."""
    return read_records(run_dir).steps


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
