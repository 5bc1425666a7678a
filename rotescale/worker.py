"""The composition root of one rank: from a prepared run folder to a finished run.

It starts under Ray Train, or without it from RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT by
``python -m rotescale.worker RUN_FOLDER``.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from torch import nn

from rotescale.checkpoint.attempts import start_attempt
from rotescale.checkpoint.saver import CheckpointSaver
from rotescale.checkpoint.store import CheckpointStore
from rotescale.data.examples import memorized_facts, trained_facts
from rotescale.data.order import Batches, Order, Source
from rotescale.data.shards import ExampleShards
from rotescale.data.stream import Stream
from rotescale.engine.base import Engine, OptimizerSettings
from rotescale.errors import (
    RotescaleError,
    StorageError,
    StorageUnavailableError,
    TrainingError,
)
from rotescale.evaluation.items import build_items
from rotescale.evaluation.stage import RunEvaluator
from rotescale.facts.saved import load_saved
from rotescale.faults import fault_point
from rotescale.launch_spec import LaunchSpec, StageLimits
from rotescale.local_copy import local_copy
from rotescale.model.build import build_model, model_layout
from rotescale.model.frozen import freeze, frozen_names
from rotescale.model.prepare import PreparedModel, load_prepared
from rotescale.notices import Notices, Preemption
from rotescale.persistence import DamagedCheckpointError, Persistence, SupersededError
from rotescale.phase_plan import PhasePlan
from rotescale.phases import Training
from rotescale.preparation import Resolved, versions
from rotescale.records import RecordWriter
from rotescale.run_dir import Outcome, RunDir
from rotescale.spec import ExperimentSpec
from rotescale.spec_file import load_spec
from rotescale.storage import StoragePath, writing
from rotescale.team import Team
from rotescale.watchdog import Watchdog

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_PROGRESS_SECONDS = 2.0
_MAX_DAMAGED = 3
"""How many damaged checkpoints the same processes set aside before they are replaced."""


def run_worker(
    run_folder: StoragePath, *, preemption: Callable[[], Preemption | None] = lambda: None
) -> None:
    """Collective: every rank calls this. Train what is left of the run, as one attempt.

    ``preemption`` tells of nodes that the run is about to lose; it is asked in the background.

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
    watchdog: Watchdog | None = None
    try:
        spec = load_spec(ExperimentSpec, run_dir.spec_json)
        launch = load_spec(LaunchSpec, run_dir.launch_json)
        log = _log_of_next_attempt(run_dir)
        watchdog = Watchdog(log, launch.limits)
        watchdog.arm("start")
        prepared = load_prepared(run_dir.prepared_model)
        engine = make_engine(spec, prepared)
        for left in reversed(range(_MAX_DAMAGED + 1)):
            attempt = _agree_on_attempt(engine, run_dir)
            try:
                _train(
                    *(spec, run_dir, prepared),
                    engine=engine,
                    attempt=attempt,
                    watchdog=watchdog,
                    limits=launch.limits,
                    preemption=preemption,
                )
                break
            except DamagedCheckpointError:
                # Where nothing reads well, it is this machine: other processes may do better.
                if not left:
                    raise
            except SupersededError:
                break
    except Exception as error:
        if not _leaves_quietly(run_dir, error, attempt=attempt):
            raise
    else:
        engine.close()
    finally:
        if watchdog is not None:
            watchdog.close()
            with suppress(StorageError):
                run_dir.upload_log(log)


def _leaves_quietly(run_dir: RunDir, error: Exception, *, attempt: int) -> bool:
    """Say what has ended this rank's part; whether it should then return as if nothing were."""
    if _is_superseded(run_dir, attempt):
        # Whatever it met, its successor may have removed; an error would make Ray Train start it
        # again, as the newest attempt, and the two would chase each other.
        _log_traceback(run_dir, attempt=attempt)
        return True
    if isinstance(error, RotescaleError) and not isinstance(error, StorageUnavailableError):
        _fail(run_dir, error, attempt=attempt)
        # All ranks have agreed on a TrainingError, so none waits for another. Of others peers may
        # not know and wait in a collective: the error makes Ray Train end them all, and when they
        # are started again they find the outcome.
        return isinstance(error, TrainingError)
    # Workers will be replaced, storage will be back, and then the run resumes.
    _log_traceback(run_dir, attempt=attempt)
    return False


def _is_superseded(run_dir: RunDir, attempt: int) -> bool:
    with suppress(OSError, StorageError):
        return bool(attempt) and (run_dir.newest_attempt() or 0) > attempt
    return False


def _log_of_next_attempt(run_dir: RunDir) -> Path:
    """The log of this rank in the attempt that it is about to take part in."""
    rank = int(os.environ.get("RANK", "0"))
    return run_dir.worker_log(attempt=(run_dir.newest_attempt() or 0) + 1, rank=rank)


def make_engine(spec: ExperimentSpec, prepared: PreparedModel) -> Engine:
    """Collective: every rank calls this."""
    # Also imports the architecture's code, which ZeRO's context would disturb.
    config = prepared.config()
    frozen = frozen_names(spec.model.frozen, model_layout(config))

    def build() -> nn.Module:
        model = build_model(
            config,
            attention=spec.model.attention,
            dtype=_DTYPES[spec.engine.precision],
            activation_checkpointing=spec.model.activation_checkpointing,
        )
        return freeze(model, frozen)

    first = spec.phases[0]
    settings = OptimizerSettings(
        first.weight_decay, first.adam_betas, first.adam_epsilon, first.max_grad_norm
    )
    match spec.engine.kind:
        case "zero3":
            # DeepSpeed takes seconds to import, and the reference engine does without.
            from rotescale.engine.zero3 import Zero3Engine

            return Zero3Engine(build, spec=spec.engine, settings=settings)
        case "eager":
            from rotescale.engine.eager import EagerEngine

            return EagerEngine(build, spec=spec.engine, settings=settings)


def _agree_on_attempt(engine: Engine, run_dir: RunDir) -> int:
    """Collective: every rank calls this. Rank 0 starts the attempt; all get its number."""
    number = 0
    if engine.rank == 0:
        number = start_attempt(run_dir, world_size=engine.world_size).number
    return int(engine.all_gather(number)[0])


def _train(
    spec: ExperimentSpec,
    run_dir: RunDir,
    prepared: PreparedModel,
    *,
    engine: Engine,
    attempt: int,
    watchdog: Watchdog,
    limits: StageLimits,
    preemption: Callable[[], Preemption | None],
) -> None:
    """Collective: every rank calls this. One attempt, from its parts to the run's outcome."""
    fault_point("start", rank=engine.rank, attempt=attempt)
    records = RecordWriter(run_dir, attempt=attempt, rank=engine.rank)
    team = Team(engine, records, attempt)
    saver = CheckpointSaver(
        rank=engine.rank, world_size=engine.world_size, publish_seconds=limits.save_seconds
    )
    store = CheckpointStore(run_dir, attempt)
    notices = Notices(
        run_dir,
        rank=engine.rank,
        is_newest=store.is_newest,
        preemption=preemption,
        report=team.event,
    )
    resolved = Resolved.read(run_dir)
    training = Training(
        spec=spec,
        engine=engine,
        team=team,
        persistence=Persistence(
            spec=spec,
            run_dir=run_dir,
            team=team,
            engine=engine,
            store=store,
            saver=saver,
            prepared=prepared,
            records=records,
            versions=versions(),
        ),
        plans=_plans(spec, resolved, run_dir),
        evaluator=_evaluator(spec, resolved, run_dir, prepared, team=team),
        records=records,
        watchdog=watchdog,
        notices=notices,
    )
    watchdog.on_hang = partial(_record_hang, team, run_dir, watchdog.log)
    team.event("attempt", f"attempt {attempt} on {engine.world_size} workers")
    team.event("worker", f"rank {engine.rank}", every_rank=True, pid=os.getpid())
    try:
        with notices:
            training.run()
        records.close()
        # All that any rank had to write is on storage, or it would have left its peers here.
        engine.all_sum([0.0])
        if engine.rank == 0:
            Outcome(status="finished", attempt=attempt).write(run_dir)
    finally:
        saver.close()
        records.close()


def _record_hang(team: Team, run_dir: RunDir, log: Path, message: str) -> None:
    team.event("hang", f"rank {team.rank}: {message}", every_rank=True)
    team.records.flush()
    run_dir.upload_log(log)


def _evaluator(
    spec: ExperimentSpec,
    resolved: Resolved,
    run_dir: RunDir,
    prepared: PreparedModel,
    *,
    team: Team,
) -> RunEvaluator:
    fact_set = load_saved(run_dir.facts_json)
    items = build_items(
        fact_set,
        trained=trained_facts(fact_set, spec.phases, seed=spec.seed),
        asked=memorized_facts(fact_set, spec.phases, seed=spec.seed),
        key_tokens=prepared.key_tokens,
        spec=spec.evaluation,
        seed=spec.seed,
    )
    return RunEvaluator(
        engine=team.engine,
        items=items,
        tokenizer=prepared.tokenizer(),
        num_tokens=prepared.num_tokens,
        mode=resolved.evaluation_mode,
        spec=spec.evaluation,
        seed=spec.seed,
        run_dir=run_dir,
        attempt=team.attempt,
        records=team.records,
        progress=_progress(team),
    )


def _plans(spec: ExperimentSpec, resolved: Resolved, run_dir: RunDir) -> tuple[PhasePlan, ...]:
    plans = []
    for index, phase in enumerate(spec.phases):
        digest = resolved.data[phase.name]
        shards = ExampleShards(local_copy(run_dir.data_dir(digest)), digest=digest)
        order = Order(spec.seed, phase.name, (Source(phase.name, shards.num_rows),))
        stream = Stream(
            shards, order, Batches(order.epoch_size, phase.global_batch), spec.engine.row_tokens
        )
        plans.append(PhasePlan.of(index, phase, stream))
    return tuple(plans)


def _progress(team: Team) -> Callable[[str, int, int], None]:
    """Records how far an evaluation is, on rank 0, every few seconds and at its end."""
    last = 0.0

    def progress(stage: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < _PROGRESS_SECONDS and done < total:
            return
        last = now
        message = f"{stage}: {done} of {total} questions"
        team.event("evaluation", message, stage=stage, done=done, total=total)

    return progress


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
