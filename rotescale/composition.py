"""The composition root of one rank: the engine, and the parts of an attempt, from specs and run."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import nn

from rotescale.checkpoint.saver import CheckpointSaver
from rotescale.checkpoint.store import CheckpointStore
from rotescale.data.examples import memorized_facts, trained_facts
from rotescale.data.stream import Stream
from rotescale.engine.base import Engine, OptimizerSettings
from rotescale.errors import SpecError, StorageError
from rotescale.evaluation.harness.benchmarks import Benchmarks
from rotescale.evaluation.representations import RunRepresentations
from rotescale.evaluation.stage import RunEvaluator
from rotescale.evaluation.states import build_texts
from rotescale.evaluation.suites import all_items
from rotescale.facts.saved import load_saved
from rotescale.launch_spec import LaunchSpec, StageLimits
from rotescale.local_copy import local_copy
from rotescale.memory_gauge import MemoryGauge
from rotescale.model.build import build_model
from rotescale.model.prepare import PreparedModel
from rotescale.model.trained import trainable_part
from rotescale.nodes import Node, record_fault
from rotescale.notices import Notices, Preemption
from rotescale.pace import Pace
from rotescale.persistence import Persistence
from rotescale.phase_plan import PhasePlan
from rotescale.phases import StageEvaluator, Training
from rotescale.planning.architecture import architecture_of
from rotescale.planning.counting import count_parameters, flops_per_target, flops_per_token
from rotescale.preparation import Resolved, versions
from rotescale.profiling import StepProfiler
from rotescale.records import RecordWriter
from rotescale.run_dir import RunDir
from rotescale.spec import ExperimentSpec
from rotescale.team import Team
from rotescale.team_checkpoints import TeamCheckpoints
from rotescale.utilisation import Device, peak_flops
from rotescale.watchdog import Watchdog

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_PROGRESS_SECONDS = 2.0
_AFTER_WATCHDOG_SECONDS = 120.0


def make_engine(
    spec: ExperimentSpec, prepared: PreparedModel, *, limits: StageLimits | None = None
) -> Engine:
    """Collective: every rank calls this.

    A rank waits for the others for longer than any of the ``limits``: it is the watchdog that ends
    who hangs, with its stacks, and torch would end those who wait for it first.
    """
    assert spec.model.attention != "auto", "preparation chooses one"
    # Also imports the architecture's code, which ZeRO's context would disturb.
    config = prepared.config()
    only_trainable = trainable_part(spec.model, config)

    def build() -> nn.Module:
        model = build_model(
            config,
            attention=spec.model.attention,
            dtype=_DTYPES[spec.engine.precision],
            # auto, where preparation has decided nothing, is off.
            activation_checkpointing=spec.model.activation_checkpointing is True,
        )
        return only_trainable(model)

    first = spec.phases[0]
    settings = OptimizerSettings(
        first.weight_decay, first.adam_betas, first.adam_epsilon, first.max_grad_norm
    )
    match spec.engine.kind:
        case "zero3":
            # DeepSpeed takes seconds to import, and the reference engine does without.
            from rotescale.engine.zero3 import Zero3Engine

            longest = (limits or StageLimits()).longest
            return Zero3Engine(
                build,
                spec=spec.engine,
                settings=settings,
                timeout_seconds=longest + _AFTER_WATCHDOG_SECONDS,
            )
        case "eager":
            from rotescale.engine.eager import EagerEngine

            return EagerEngine(build, spec=spec.engine, settings=settings)


def make_training(
    spec: ExperimentSpec,
    run_dir: RunDir,
    prepared: PreparedModel,
    *,
    engine: Engine,
    attempt: int,
    nodes: tuple[Node, ...],
    watchdog: Watchdog,
    launch: LaunchSpec,
    preemption: Callable[[], Preemption | None],
    memory: MemoryGauge,
) -> Training:
    """The parts of one attempt on this rank, put together."""
    records = RecordWriter(run_dir, attempt=attempt, rank=engine.rank)
    team = Team(engine, records, attempt, nodes)
    store = CheckpointStore(run_dir, attempt)
    resolved = Resolved.read(run_dir)
    checkpoints = TeamCheckpoints(run_dir, team, store, prepared, spec.model)
    saver = CheckpointSaver(
        rank=engine.rank, world_size=engine.world_size, publish_seconds=launch.limits.save_seconds
    )
    watchdog.on_hang = partial(_record_hang, team, run_dir, watchdog)
    return Training(
        spec=spec,
        team=team,
        checkpoints=checkpoints,
        persistence=Persistence(spec, team, checkpoints, saver, versions()),
        plans=_plans(spec, resolved, run_dir, prepared),
        evaluators=_evaluators(
            *(spec, resolved, run_dir, prepared),
            team=team,
            watchdog=watchdog,
            allow_code=launch.allow_task_code,
        ),
        watchdog=watchdog,
        notices=Notices(
            run_dir,
            rank=engine.rank,
            is_newest=store.is_newest,
            preemption=preemption,
            report=team.event,
        ),
        pace=Pace(),
        memory=memory,
        profiler=StepProfiler(
            launch.profile,
            run_dir,
            rank=engine.rank,
            device=engine.device,
            report=lambda told: team.event("profile", told),
        ),
        device=_device(spec, launch, prepared, engine=engine),
    )


def _device(
    spec: ExperimentSpec, launch: LaunchSpec, prepared: PreparedModel, *, engine: Engine
) -> Device | None:
    """What the ranks compute on; None for a model whose arithmetic is not known."""
    config = prepared.folder / "config.json"
    try:
        architecture = architecture_of(spec.model.weights, config=config)
    except SpecError:
        return None
    on_gpu = engine.device.type == "cuda"
    name = torch.cuda.get_device_name(engine.device) if on_gpu else "CPU"
    precision = spec.engine.precision
    return Device(
        device=name,
        num_devices=engine.world_size,
        flops_per_token=flops_per_token(count_parameters(spec.model, architecture)),
        flops_per_target=flops_per_target(architecture),
        peak_flops=peak_flops(name, precision=precision, node=launch.node) if on_gpu else None,
        attention=spec.model.attention,
    )


def _record_hang(team: Team, run_dir: RunDir, watchdog: Watchdog, message: str) -> None:
    node = team.nodes[team.rank]
    if watchdog.is_alone:
        # Said first: once a peer has failed, this process is ended too.
        with suppress(StorageError, OSError):
            record_fault(
                *(run_dir, node),
                attempt=team.attempt,
                reason="hang",
                message=f"rank {team.rank}: {message}, in what it does alone",
                num_nodes=team.num_nodes,
            )
    details = {"node": node.name, "alone": watchdog.is_alone}
    team.event("hang", f"rank {team.rank}: {message}", every_rank=True, **details)
    team.records.flush()
    run_dir.upload_log(watchdog.log)


def _evaluators(
    spec: ExperimentSpec,
    resolved: Resolved,
    run_dir: RunDir,
    prepared: PreparedModel,
    *,
    team: Team,
    watchdog: Watchdog,
    allow_code: bool,
) -> tuple[StageEvaluator, ...]:
    """Questions, and hidden states where the spec wants them, of the same facts."""
    fact_set = load_saved(run_dir.facts_json)
    tokenizer = prepared.tokenizer()
    sample: dict[str, Any] = {
        "trained": trained_facts(fact_set, spec.phases, seed=spec.seed),
        "asked": memorized_facts(fact_set, spec.phases, seed=spec.seed),
        "wording": prepared.wording,
        "spec": spec.evaluation,
        "seed": spec.seed,
    }
    shared: dict[str, Any] = {
        "engine": team.engine,
        "tokenizer": tokenizer,
        "mode": resolved.evaluation_mode,
        "spec": spec.evaluation,
        "seed": spec.seed,
        "run_dir": run_dir,
        "attempt": team.attempt,
        "records": team.records,
    }
    questions = RunEvaluator(
        items=all_items(fact_set, phases=spec.phases, tokenizer=tokenizer, **sample),
        num_tokens=prepared.num_tokens,
        row_tokens=spec.engine.row_tokens,
        progress=_progress(team, watchdog, "questions"),
        benchmarks=_benchmarks(spec, resolved, team=team, watchdog=watchdog, allow_code=allow_code),
        **shared,
    )
    if spec.evaluation.representation_facts == 0:
        return (questions,)
    texts = build_texts(fact_set, **sample)
    states = RunRepresentations(
        texts=texts, progress=_progress(team, watchdog, "hidden states"), **shared
    )
    return questions, states


def _benchmarks(
    spec: ExperimentSpec,
    resolved: Resolved,
    *,
    team: Team,
    watchdog: Watchdog,
    allow_code: bool,
) -> Benchmarks | None:
    """What the spec names of the harness; loaded now, as an error should not wait for phase 1."""
    if not spec.evaluation.harness_tasks:
        return None
    folder = resolved.harness_folder
    asked = spec.evaluation.model_copy(update={"harness_folder": folder})
    progress = _progress(team, watchdog, "benchmark requests")
    return Benchmarks.load(asked, rank=team.rank, allow_code=allow_code, progress=progress)


def _plans(
    spec: ExperimentSpec, resolved: Resolved, run_dir: RunDir, prepared: PreparedModel
) -> tuple[PhasePlan, ...]:
    plans = []
    key_rows = prepared.key_rows()
    for index, phase in enumerate(spec.phases):
        digest = resolved.data[phase.name]
        stream = Stream.open(
            local_copy(run_dir.data_dir(digest)),
            digest=digest,
            phase=phase,
            seed=spec.seed,
            row_tokens=spec.engine.row_tokens,
        )
        plans.append(PhasePlan.of(index, phase, stream, key_rows=key_rows))
    return tuple(plans)


def _progress(team: Team, watchdog: Watchdog, what: str) -> Callable[[str, int, int], None]:
    """Records how far an evaluation is, on rank 0, every few seconds and at its end.

    What comes further does not hang, however long all of it takes.
    """
    last = 0.0

    def progress(stage: str, done: int, total: int) -> None:
        nonlocal last
        watchdog.arm("evaluation")
        now = time.monotonic()
        if now - last < _PROGRESS_SECONDS and done < total:
            return
        last = now
        message = f"{stage}: {done} of {total} {what}"
        team.event("evaluation", message, stage=stage, done=done, total=total, what=what)

    return progress
