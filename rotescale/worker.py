"""The life of one rank: from a prepared run folder to a finished run, attempt by attempt.

It starts from RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT: under Ray Train, which sets them, or
by ``python -m rotescale.worker RUN_FOLDER``.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rotescale.checkpoint.attempts import start_attempt
from rotescale.composition import make_engine, make_training
from rotescale.devices import require_flash_attention, require_flash_capability, require_gpu
from rotescale.engine.base import Engine
from rotescale.errors import (
    NodeError,
    RotescaleError,
    SpecError,
    StorageError,
    StorageUnavailableError,
    TrainingError,
)
from rotescale.faults import fault_point
from rotescale.fork_server.server import Channel
from rotescale.launch_spec import LaunchSpec
from rotescale.log_uploads import UPLOAD_SECONDS, LogUploads
from rotescale.memory_gauge import MemoryGauge
from rotescale.model.prepare import load_prepared
from rotescale.nodes import (
    Node,
    describe_left_out,
    is_hardware_error,
    left_out,
    read_faults,
    record_fault,
)
from rotescale.notices import Preemption
from rotescale.phases import Training
from rotescale.preflight.fabric import listen
from rotescale.preflight.run import preflight
from rotescale.preparation import Resolved
from rotescale.run_dir import Outcome, RunDir
from rotescale.spec import ExperimentSpec
from rotescale.spec_file import load_spec
from rotescale.storage import StoragePath, writing
from rotescale.team import Team
from rotescale.team_checkpoints import DamagedCheckpointError, SupersededError
from rotescale.utilisation import EVENT as DEVICE_EVENT
from rotescale.watchdog import Watchdog

_MAX_DAMAGED = 3
"""How many damaged checkpoints the same processes set aside before they are replaced."""


def run_worker(
    run_folder: StoragePath,
    *,
    preemption: Callable[[], Preemption | None] = lambda: None,
    upload_seconds: float = UPLOAD_SECONDS,
) -> None:
    """Collective: every rank calls this. Train what is left of the run, as one attempt.

    ``preemption`` tells of nodes that the run is about to lose; it is asked in the background.
    Where the run is in a bucket, this rank's log goes there every ``upload_seconds``.

    A damaged checkpoint, once set aside, ends the attempt, and the next goes on without it. An
    attempt that finds a later one started leaves the run to it.

    A user error becomes the run's outcome, which every later start reads before anything else:
    so it is tried once, whoever restarts workers. Anything else is raised without an outcome, so
    that the workers are replaced and the run resumes.
    """
    run_dir = RunDir(run_folder)
    if Outcome.read(run_dir) is not None:
        return
    attempt = 0
    nodes: tuple[Node, ...] = ()
    watchdog: Watchdog | None = None
    uploads: LogUploads | None = None
    try:
        spec = Resolved.read(run_dir).applied_to(load_spec(ExperimentSpec, run_dir.spec_json))
        launch = load_spec(LaunchSpec, run_dir.launch_json)
        watchdog = Watchdog(_log_of_next_attempt(run_dir), launch.limits)
        watchdog.arm("start")
        _require_devices(spec, launch, run_dir)
        prepared = load_prepared(run_dir.prepared_model)
        nccl_log = _nccl_log(run_dir, launch)
        logs = [log for log in (watchdog.log, nccl_log) if log is not None]
        uploads = LogUploads(run_dir, logs, every_seconds=upload_seconds)
        check = partial(preflight, run_dir=run_dir, launch=launch, nccl_log=nccl_log)
        memory = MemoryGauge()
        engine = make_engine(spec, prepared, limits=launch.limits)
        if spec.model.attention == "flash_attention_2":
            require_flash_capability(engine.device, node=Node.here().name)
        for left in reversed(range(_MAX_DAMAGED + 1)):
            attempt, nodes = _agree_on_attempt(engine, run_dir)
            training = make_training(
                *(spec, run_dir, prepared),
                engine=engine,
                attempt=attempt,
                nodes=nodes,
                watchdog=watchdog,
                launch=launch,
                preemption=preemption,
                memory=memory,
            )
            try:
                # The nodes are the same in a later attempt of these processes.
                first = left == _MAX_DAMAGED
                _train(training, run_dir, check=check if first else lambda team: None)
                break
            except DamagedCheckpointError:
                # Where nothing reads well, it is this machine: other processes may do better.
                if not left:
                    raise
            except SupersededError:
                break
    except Exception as error:
        _blame(run_dir, error, attempt=attempt, nodes=nodes)
        if not _leaves_quietly(run_dir, error, attempt=attempt):
            raise
    else:
        engine.close()
    finally:
        if watchdog is not None:
            watchdog.close()
        if uploads is not None:
            uploads.close()


def run_forked_worker(config: dict[str, Any], channel: Channel) -> None:
    """Collective: every rank calls this. ``run_worker`` in a process of the fork server.

    ``config`` holds ``run_folder`` and the number of ``threads``; ``channel`` tells of preemption.
    """
    run_dir = RunDir.at(config["run_folder"])
    if torch.cuda._is_in_bad_fork():
        error = SpecError(
            "fork_workers: something that was imported has opened the GPUs, which a forked process "
            "cannot use then; set fork_workers: false in the launch spec"
        )
        _fail(run_dir, error, attempt=0)
        return
    torch.set_num_threads(config["threads"])
    run_worker(run_dir.root, preemption=lambda: Preemption.from_json(channel.latest()))


def _require_devices(spec: ExperimentSpec, launch: LaunchSpec, run_dir: RunDir) -> None:
    """Raise where this rank lacks what it is to compute with, before it meets the others."""
    here = Node.here().name
    if launch.gpus_per_worker:
        require_gpu(launch, node=here, has_begun=run_dir.newest_attempt() is not None)
    if spec.model.attention == "flash_attention_2":
        require_flash_attention(here)


def _leaves_quietly(run_dir: RunDir, error: Exception, *, attempt: int) -> bool:
    """Say what has ended this rank's part; whether it should then return as if nothing were."""
    if _is_superseded(run_dir, attempt):
        # Whatever it met, its successor may have removed; an error would make Ray Train start it
        # again, as the newest attempt, and the two would chase each other.
        _log_traceback(run_dir, attempt=attempt)
        return True
    passing = (StorageUnavailableError, NodeError)
    if isinstance(error, RotescaleError) and not isinstance(error, passing):
        _fail(run_dir, error, attempt=attempt)
        # Of an error that is not agreed on peers may not know, and wait in a collective: it makes
        # Ray Train end them all, and when they are started again they find the outcome.
        return isinstance(error, TrainingError) and error.is_agreed
    # Workers will be replaced, on other nodes where need be, storage will be back, and then the
    # run resumes.
    _log_traceback(run_dir, attempt=attempt)
    return False


def _is_superseded(run_dir: RunDir, attempt: int) -> bool:
    with suppress(OSError, StorageError):
        return bool(attempt) and not run_dir.is_newest(attempt)
    return False


def _log_of_next_attempt(run_dir: RunDir) -> Path:
    """The log of this rank in the attempt that it is about to take part in."""
    rank = int(os.environ.get("RANK", "0"))
    return run_dir.worker_log(attempt=(run_dir.newest_attempt() or 0) + 1, rank=rank)


def _nccl_log(run_dir: RunDir, launch: LaunchSpec) -> Path | None:
    """Have NCCL say there which network it takes; None where nobody asks, or there is no GPU."""
    if launch.preflight is None or not torch.cuda.is_available():
        return None
    rank = int(os.environ.get("RANK", "0"))
    return listen(run_dir.nccl_log(attempt=(run_dir.newest_attempt() or 0) + 1, rank=rank))


def _agree_on_attempt(engine: Engine, run_dir: RunDir) -> tuple[int, tuple[Node, ...]]:
    """Collective: every rank calls this. Rank 0 starts the attempt; all get its number and nodes.

    The nodes are those of the ranks, in their order.
    """
    number = 0
    if engine.rank == 0:
        number = start_attempt(run_dir, world_size=engine.world_size).number
    gathered = engine.all_gather((number, Node.here()))
    return gathered[0][0], tuple(node for _, node in gathered)


def _blame(run_dir: RunDir, error: Exception, *, attempt: int, nodes: tuple[Node, ...]) -> None:
    """Note in the run's ledger what says by itself that this node's hardware is broken."""
    if attempt and is_hardware_error(error):
        with suppress(StorageError, OSError):
            record_fault(
                *(run_dir, Node.here()),
                attempt=attempt,
                reason="hardware",
                message=str(error).splitlines()[0],
                num_nodes=len({node.name for node in nodes}),
            )


def _tell_who_is_left_out(team: Team, run_dir: RunDir) -> None:
    """On rank 0: record which nodes get no more workers, and which has some all the same."""
    for node, faults in left_out(read_faults(run_dir)).items():
        message = describe_left_out(run_dir, node, faults)
        used = node in {one.name for one in team.nodes}
        if used:
            message += "; here it has workers all the same: only a start by Ray Train leaves it out"
        team.event("node-excluded", message, node=node, used=used)


def _train(training: Training, run_dir: RunDir, *, check: Callable[[Team], None]) -> None:
    """Collective: every rank calls this. One attempt, to the run's outcome.

    ``check`` is called first, and raises what must end the attempt before the model is loaded.
    """
    team, engine = training.team, training.team.engine
    fault_point("start", **team.where)
    names = [node.name for node in team.nodes]
    team.event("attempt", f"attempt {team.attempt} on {engine.world_size} workers", nodes=names)
    process = {"pid": os.getpid(), "threads": torch.get_num_threads()}
    team.event("worker", f"rank {team.rank}", every_rank=True, **process)
    if training.device is not None:
        team.event(DEVICE_EVENT, training.device.describe(), **training.device.model_dump())
    try:
        if team.rank == 0:
            _tell_who_is_left_out(team, run_dir)
        check(team)
        with training.notices:
            training.run()
        team.records.close()
        # All that any rank had to write is on storage, or it would have left its peers here.
        engine.all_sum([0.0])
        if team.rank == 0:
            Outcome(status="finished", attempt=team.attempt).write(run_dir)
    finally:
        training.persistence.saver.close()
        team.records.close()


def _fail(run_dir: RunDir, error: RotescaleError, *, attempt: int) -> None:
    """Make the error the run's outcome, once."""
    if Outcome.read(run_dir) is None:
        Outcome(
            status="failed",
            # Before it has a number, an attempt speaks for the newest there is.
            attempt=attempt or run_dir.newest_attempt() or 0,
            exit_code=error.exit_code,
            error=type(error).__name__,
            message=str(error),
        ).write(run_dir)


def _log_traceback(run_dir: RunDir, *, attempt: int) -> None:
    path = run_dir.worker_log(attempt=attempt, rank=int(os.environ.get("RANK", "0")))
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as log:
            traceback.print_exc(file=log)
    with suppress(StorageError):
        run_dir.upload_log(path)


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    run_worker(RunDir.at(sys.argv[1]).root)
