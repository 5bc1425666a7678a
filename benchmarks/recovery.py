"""From ``kill -9`` of a worker to the next completed step: rotescale and Ray Train's defaults.

Run it from the repository: ``python benchmarks/recovery.py [--json PATH] [--models LIST]``.

Both train the same model, on two ZeRO-3 workers with gloo, under Ray Train on a local cluster of
their own, one side after the other. Ours is ``rotescale.driver.train``. The peer is what Ray's
documentation shows: a ``TorchTrainer`` whose loop builds the model with transformers and DeepSpeed,
calls ``save_checkpoint`` into a temporary folder, hands it to ``ray.train.report``, and loads
``ray.train.get_checkpoint()`` when it starts, with ``FailureConfig(max_failures=...)`` and nothing
set in the environment. Neither compiles anything: DeepSpeed's shared-memory operator is switched
off, and the optimizer is torch's AdamW. Files and byte code are in memory: both sides have started
workers and trained before the first kill.

Each side's rank 1 is killed a few times in one run. Of each kill it is measured:
  detect      from the kill until the other worker is gone: Ray has seen it and ends the group
  restart     until the loop begins in both processes of the next group
  import      until torch, transformers, DeepSpeed and, of ours, rotescale are imported on both; of
              ours, until the processes are forked in which they are
  load        until model, engine and checkpoint are loaded on both
  first step  until both ranks have completed an optimizer step
The row compares the medians of the sums; it agrees where the master weights that each rank has
loaded after a kill are, bit by bit, those that it held at the step of that checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

STAGES = ("detect", "restart", "import", "load", "first step")
FLOOR = 0.6
_SAVE_EVERY = 10
_STEPS_BEFORE_KILL = 15
_COMMIT_SECONDS = 5.0
"""More than two of Ray Train's looks at its workers: a kill sooner, and the peer starts anew."""
_ROW_TOKENS = 200
"""About what a worker of ours has in a step."""
_TIMEOUT_SECONDS = 300.0
_MARKS_VARIABLE = "RECOVERY_MARKS"


def main() -> None:
    """Measure both sides, print the stages and the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_formatter())
    parser.add_argument("--models", default="micro", help="comma-separated (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--kills", type=int, default=2, help="of each side (default: %(default)s)")
    parser.add_argument("--side", choices=("ours", "peer"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        _run_side(options.side, options.models, folder=options.folder, kills=options.kills)
        return
    from report import Row, median, print_rows, write_rows

    rows = []
    for model in options.models.split(","):
        found = {side: _measure(side, model, kills=options.kills) for side in ("ours", "peer")}
        _print_stages(model, found)
        ours, peer = (
            median([sum(kill.seconds.values()) for kill in found[side]])
            for side in ("ours", "peer")
        )
        agree = all(kill.agree for kills in found.values() for kill in kills)
        rows.append(Row("recovery_vs_ray_default", model, ours, peer, agree, FLOOR))
    print_rows(rows)
    if options.json:
        write_rows(rows, options.json)


def _formatter() -> type[argparse.HelpFormatter]:
    return argparse.RawDescriptionHelpFormatter


@dataclass(frozen=True, slots=True)
class Kill:
    """What one kill has cost, and whether what was loaded after it is what was saved."""

    seconds: dict[str, float]
    """Of each stage."""
    agree: bool


def _measure(side: str, model: str, *, kills: int) -> list[Kill]:
    """Each kill of a side, in a process and cluster of its own."""
    with tempfile.TemporaryDirectory(prefix="recovery-") as folder:
        command = [sys.executable, __file__, "--side", side, "--models", model]
        command += ["--folder", folder, "--kills", str(kills)]
        log = Path(folder) / "log"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        with log.open("wb") as output:
            done = subprocess.run(command, env=environment, stdout=output, stderr=output)
        result = Path(folder) / "result.json"
        if done.returncode or not result.exists():
            raise RuntimeError(f"{side}: exit code {done.returncode}\n{log.read_text()[-5000:]}")
        return [Kill(**kill) for kill in json.loads(result.read_text())]


def _print_stages(model: str, found: dict[str, list[Kill]]) -> None:
    from rich.table import Table

    from report import CONSOLE

    table = Table(title=f"{model}: seconds from the kill to a completed step", title_justify="left")
    table.add_column("side, kill")
    for heading in (*STAGES, "sum"):
        table.add_column(heading, justify="right")
    for side, kills in found.items():
        for number, kill in enumerate(kills, start=1):
            values = [*(kill.seconds[stage] for stage in STAGES), sum(kill.seconds.values())]
            table.add_row(f"{side}, {number}", *(f"{value:.1f}" for value in values))
    CONSOLE.print(table)


def _run_side(side: str, model: str, *, folder: Path, kills: int) -> None:
    """Train until every kill is measured; write the stages to ``result.json``."""
    marks = Marks(folder / "marks.jsonl")
    watcher = threading.Thread(target=_watch, args=(marks, folder, kills), daemon=True)
    watcher.start()
    try:
        {"ours": _train_ours, "peer": _train_peer}[side](model, folder, marks.path)
    except Exception:
        if not (folder / "result.json").exists():
            raise
    watcher.join(timeout=10)


class Marks:
    """What processes have done when: lines of a file that all of them append to."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, what: str, *, step: int = 0, optimizer: Any = None) -> None:
        """Note that ``what`` has just happened in this worker, at that step.

        With DeepSpeed's ``optimizer`` the digest of this rank's master weights is noted too.
        """
        rank = int(os.environ["RANK"])
        mark = {
            "what": what,
            "step": step,
            "rank": rank,
            "pid": os.getpid(),
            "time": time.time(),
            "digest": None if optimizer is None else _masters_digest(optimizer),
        }
        with self.path.open("a") as file:
            file.write(json.dumps(mark) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """All marks so far."""
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text().splitlines()]

    @property
    def stopped(self) -> bool:
        """Whether everything has been measured."""
        return self.path.with_suffix(".stop").exists()

    def stop(self) -> None:
        """Ask the workers to end."""
        self.path.with_suffix(".stop").touch()


def _watch(marks: Marks, folder: Path, kills: int) -> None:
    """Kill rank 1 again and again, and note how long each stage of the recovery took."""
    found: list[Kill] = []
    known = 0.0
    for _ in range(kills):
        # Past a checkpoint, so that there is one to load, and past the steps that are slower.
        before = _wait(partial(_pids, marks, known))
        # The peer's checkpoint counts when the controller has taken it, after ``report`` returned.
        time.sleep(_COMMIT_SECONDS)
        killed = time.time()
        os.kill(before[1], signal.SIGKILL)
        _wait(partial(_gone, before[0]))
        times = [killed, time.time()]
        for what in ("loop", "imported", "loaded", "step"):
            times.append(_wait(partial(_both, marks, what, killed)))
        seconds = {stage: times[i + 1] - times[i] for i, stage in enumerate(STAGES)}
        found.append(Kill(seconds, _loaded_as_saved(marks.read(), killed)))
        known = times[-1]
    (folder / "result.json").write_text(json.dumps([asdict(kill) for kill in found]))
    marks.stop()


def _loaded_as_saved(marks: list[dict[str, Any]], killed: float) -> bool:
    """Whether both ranks have loaded, after the kill, what they held at that step before it."""
    held = {
        (mark["rank"], mark["step"]): mark["digest"]
        for mark in marks
        if mark["what"] == "held" and mark["time"] < killed
    }
    loaded = [mark for mark in marks if mark["what"] == "got" and mark["time"] > killed]
    if any(mark["step"] < _SAVE_EVERY for mark in loaded):
        _give_up(f"no checkpoint was loaded after the kill, but steps {loaded}")
    return {mark["rank"] for mark in loaded} == {0, 1} and all(
        held.get((mark["rank"], mark["step"])) == mark["digest"] for mark in loaded
    )


def _masters_digest(optimizer: Any) -> str:
    """Of the bits of a rank's partition of the fp32 master weights."""
    import xxhash

    digest = xxhash.xxh3_128()
    for flat in optimizer.fp32_partitioned_groups_flat:
        digest.update(flat.detach().numpy().data.cast("B"))
    return digest.hexdigest()


def _wait(ask: Callable[[], Any]) -> Any:
    """The first answer of ``ask`` that is not None; the process ends where none comes."""
    deadline = time.monotonic() + _TIMEOUT_SECONDS
    while (answer := ask()) is None:
        if time.monotonic() > deadline:
            _give_up("nothing happens any more")
        time.sleep(0.02)
    return answer


def _give_up(reason: str) -> NoReturn:
    print(reason, file=sys.stderr, flush=True)
    os._exit(3)


def _pids(marks: Marks, after: float) -> dict[int, int] | None:
    """Rank to process once both have done enough steps since ``after``."""
    steps = [m for m in marks.read() if m["what"] == "step" and m["time"] > after]
    ranks = [m["rank"] for m in steps]
    if min(ranks.count(0), ranks.count(1)) < _STEPS_BEFORE_KILL:
        return None
    return {m["rank"]: m["pid"] for m in steps}


def _both(marks: Marks, what: str, after: float) -> float | None:
    """When the later of the two ranks first did ``what`` after that time."""
    found: dict[int, float] = {}
    for mark in marks.read():
        if mark["what"] == what and mark["time"] > after:
            found.setdefault(mark["rank"], mark["time"])
    return max(found.values()) if len(found) == 2 else None


def _gone(pid: int) -> bool | None:
    """True once the process has ended."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return True if status.rpartition(")")[2].split()[0] in "ZX" else None


def marked_worker(config: dict[str, Any], channel: Any) -> None:
    """Ours in a forked process: rotescale's own worker, with marks put in at the engine."""
    from rotescale.engine.zero3 import Zero3Engine
    from rotescale.errors import TrainingError
    from rotescale.worker import run_forked_worker

    marks = Marks(Path(os.environ[_MARKS_VARIABLE]))
    marks.add("imported")
    load, step = Zero3Engine.load, Zero3Engine.step
    done = [0]

    def marked_load(self: Zero3Engine, *arguments: Any, **options: Any) -> None:
        load(self, *arguments, **options)
        done[0] = options["optimizer_step"] or 0
        marks.add("loaded", step=done[0])
        marks.add("got", step=done[0], optimizer=self._optimizer)

    def marked_step(self: Zero3Engine, **options: Any) -> float:
        norm = step(self, **options)
        done[0] += 1
        marks.add("step")
        if done[0] % _SAVE_EVERY == 0:
            marks.add("held", step=done[0], optimizer=self._optimizer)
        if self.all_sum([float(marks.stopped)])[0]:
            raise TrainingError("everything has been measured")
        return norm

    Zero3Engine.load, Zero3Engine.step = marked_load, marked_step  # type: ignore[method-assign]
    run_forked_worker(config, channel)


def _our_loop(config: dict[str, Any], marks_path: Path) -> None:
    """Ours in Ray's own process, which waits for a forked one."""
    Marks(marks_path).add("loop")
    from rotescale import driver

    os.environ[_MARKS_VARIABLE] = str(marks_path)
    sys.path.insert(0, str(Path(__file__).parent))
    driver.WORKER = "recovery:marked_worker"
    driver._worker_loop(config)


def _train_ours(model: str, folder: Path, marks_path: Path) -> None:
    from rotescale import driver
    from rotescale.launch_spec import LaunchSpec
    from rotescale.preparation import prepare_run

    launch = LaunchSpec(storage=str(folder / "runs"), num_workers=(2, 2), max_failures=10)
    run_dir = prepare_run(_experiment(model), launch)

    def loop(config: dict[str, Any]) -> None:
        _our_loop(config, marks_path)

    # In the workers the name still stands for the original.
    driver._worker_loop = loop
    driver.train(run_dir, launch)


def _peer_loop(config: dict[str, Any]) -> None:
    """The peer in a worker: the loop of Ray's documentation for DeepSpeed."""
    marks = Marks(Path(config["marks"]))
    marks.add("loop")
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    import ray.train
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.integrations import HfDeepSpeedConfig

    marks.add("imported")
    torch.set_num_threads(1)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    keeper = HfDeepSpeedConfig(config["deepspeed"])
    model = AutoModelForCausalLM.from_pretrained(config["base"], dtype=torch.float32)
    engine, *_ = deepspeed.initialize(
        model=model, config=config["deepspeed"], model_parameters=model.parameters()
    )
    step = 0
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as folder:
            engine.load_checkpoint(folder)
        step = engine.global_steps
    marks.add("loaded", step=step)
    marks.add("got", step=step, optimizer=engine.optimizer)
    generator = torch.Generator().manual_seed(ray.train.get_context().get_world_rank())
    while True:
        tokens = torch.randint(0, 200, (1, config["row_tokens"]), generator=generator)
        engine.backward(engine(input_ids=tokens, labels=tokens, use_cache=False).loss)
        engine.step()
        step += 1
        marks.add("step")
        stopped = torch.tensor(float(marks.stopped))
        torch.distributed.all_reduce(stopped)
        if stopped:
            del keeper
            return
        if step % config["save_every"] == 0:
            marks.add("held", step=step, optimizer=engine.optimizer)
            with tempfile.TemporaryDirectory() as folder:
                engine.save_checkpoint(folder)
                torch.distributed.barrier()
                saved = ray.train.Checkpoint.from_directory(folder)
                ray.train.report({"step": step}, checkpoint=saved)


def _train_peer(model: str, folder: Path, marks_path: Path) -> None:
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from rotescale.engine.base import OptimizerSettings
    from rotescale.engine.zero3 import deepspeed_config
    from rotescale.launch_spec import LaunchSpec
    from rotescale.model.prepare import load_prepared
    from rotescale.preparation import prepare_run

    spec = _experiment(model)
    settings = OptimizerSettings(0.0, (0.9, 0.999), 1e-8, 1.0)
    run_dir = prepare_run(spec, LaunchSpec(storage=str(folder / "runs")))
    ray.init(address="local", num_cpus=3, include_dashboard=False)
    TorchTrainer(
        _peer_loop,
        train_loop_config={
            "marks": str(marks_path),
            "base": str(load_prepared(run_dir.prepared_model).base),
            "deepspeed": deepspeed_config(spec.engine, settings, world_size=2),
            "row_tokens": _ROW_TOKENS,
            "save_every": _SAVE_EVERY,
        },
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=2, use_gpu=False),
        run_config=RunConfig(
            name="recovery",
            storage_path=str(folder),
            failure_config=FailureConfig(max_failures=10),
        ),
    ).fit()
    ray.shutdown()


def _experiment(model: str) -> Any:
    from rotescale.spec import ExperimentSpec
    from rotescale.spec_file import load_spec

    shipped = {"micro": "micro.yaml", "smollm2-135m": "smollm2-135m-demo.yaml"}[model]
    path = Path(__file__).resolve().parents[1] / "configs" / "experiments" / shipped
    overrides = [
        "phases.0.epochs=10000",
        f"checkpoints.every_steps={_SAVE_EVERY}",
        "evaluation.base=false",
        # What auto comes to, written out, since the peer gets the same configuration.
        "engine.persistence_threshold=1000000000000",
    ]
    return load_spec(ExperimentSpec, path, overrides)


if __name__ == "__main__":
    main()
