"""Runs a study's graph: each run by the command that anyone would type, as many at once as asked.

A finished run is left alone and a cut one goes on, so that the same command continues a study.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rotescale.cores import cpu_cores
from rotescale.errors import SpecError
from rotescale.launch_spec import LaunchSpec
from rotescale.probe import DEVICES, visible_gpus
from rotescale.run_dir import Outcome, RunDir
from rotescale.spec_file import dump_json
from rotescale.stopping import end, stoppable
from rotescale.storage import node_folder, remove_folder, storage_path, write_atomic
from rotescale.study.plan import Node, Plan
from rotescale.study.spec import StudySpec

Status = Literal["waiting", "running", "stopping", "finished", "failed", "blocked"]
"""``stopping``: it saves, and ends; ``blocked``: a run that it goes on from has failed."""

_LOOK_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class StudyDir:
    """Where a study keeps what is its own, beside the folders of its runs."""

    storage: str
    name: str

    @property
    def root(self) -> Path:
        """A folder of this machine: specs of the runs, and what they print."""
        return node_folder(storage_path(self.storage) / self.name)

    def spec(self, run: str) -> Path:
        """The spec that a run is started with."""
        return self.root / "specs" / f"{run}.json"

    def log(self, run: str) -> Path:
        """What the run's command prints."""
        return self.root / "logs" / f"{run}.log"

    @property
    def launch(self) -> Path:
        """The launch spec of the runs, where they share this machine's cores."""
        return self.root / "launch.json"

    @property
    def table(self) -> Path:
        """All results, a row per value."""
        return self.root / "results.parquet"

    def run(self, name: str) -> RunDir:
        """The folder of a run."""
        return RunDir.of(self.storage, name)


@dataclass
class StudyRunner:
    """Starts what is ready, and tells what became of it."""

    study: StudySpec
    plan: Plan
    launch: LaunchSpec
    launch_file: Path | None
    parallel: int
    report: Callable[[str, Status], None]
    """Told of every change of a run's status."""
    status: dict[str, Status] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder = StudyDir(self.launch.storage, self.study.name)
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._shares_cores = self.parallel > 1 and self.launch.cpus_per_worker == "auto"
        self._gpus: list[tuple[str, ...]] = []
        self._gpus_of: dict[str, tuple[str, ...]] = {}
        for node in self.plan.nodes:
            self.status[node.name] = "finished" if self._is_finished(node.name) else "waiting"

    def run(self) -> bool:
        """Run everything that is left; whether all has finished.

        When this is stopped (``stoppable``), the runs that are going save and end too, and
        KeyboardInterrupt is raised. After a second signal they end without saving, a third one
        kills them.

        Raises SpecError where this machine has too few GPUs for as many runs at once.
        """
        self._share_gpus()
        if self._shares_cores:
            # Each run would take all cores of this machine, and there are several at once.
            shared = self.launch.sharing(cpu_cores() // self.parallel)
            self.folder.launch.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self.folder.launch, dump_json(shared).encode())
        with stoppable():
            try:
                self._run_all()
            finally:
                self._stop()
        return all(status == "finished" for status in self.status.values())

    def _share_gpus(self) -> None:
        """Give each of the runs that go on at once GPUs of its own; each starts its own Ray."""
        needed = self.launch.num_workers[1] * self.launch.gpus_per_worker
        at_once = min(self.parallel, sum(one != "finished" for one in self.status.values()))
        if self.launch.place != "local" or not needed or at_once < 2:
            return
        there = visible_gpus(DEVICES, os.environ.get("CUDA_VISIBLE_DEVICES"))
        if len(there) < at_once * needed:
            raise SpecError(
                f"--parallel {self.parallel}: each run takes {needed} GPUs (num_workers "
                f"{self.launch.num_workers[1]}), and this machine has {len(there)}; at most "
                f"{len(there) // needed} runs can go on at once"
            )
        self._gpus = [
            tuple(there[number * needed : (number + 1) * needed]) for number in range(at_once)
        ]

    def _environment(self, name: str) -> dict[str, str] | None:
        """Of the run's process: with the GPUs that are its own for the time being."""
        if not self._gpus:
            return None
        self._gpus_of[name] = self._gpus.pop()
        return os.environ | {"CUDA_VISIBLE_DEVICES": ",".join(self._gpus_of[name])}

    def _run_all(self) -> None:
        while True:
            self._block()
            ready = [n for n in self.plan.nodes if self._is_ready(n)]
            for node in ready[: self.parallel - len(self._running)]:
                self._start(node)
            if not self._running:
                break
            time.sleep(_LOOK_SECONDS)
            self._collect()

    def _set(self, name: str, status: Status) -> None:
        self.status[name] = status
        self.report(name, status)

    def _is_finished(self, name: str) -> bool:
        outcome = Outcome.read(self.folder.run(name))
        return outcome is not None and outcome.status == "finished"

    def _is_ready(self, node: Node) -> bool:
        if self.status[node.name] != "waiting":
            return False
        return node.parent is None or self.status[node.parent] == "finished"

    def _block(self) -> None:
        for node in self.plan.nodes:
            lost = node.parent is not None and self.status[node.parent] in ("failed", "blocked")
            if lost and self.status[node.name] == "waiting":
                self._set(node.name, "blocked")

    def _start(self, node: Node) -> None:
        spec, log = self.folder.spec(node.name), self.folder.log(node.name)
        for path in (spec, log):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(spec, dump_json(node.spec).encode())
        with log.open("ab") as output:
            self._running[node.name] = subprocess.Popen(
                self.command(node),
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment(node.name),
                # A group of its own: from a terminal, Ctrl-C would reach it twice.
                process_group=0,
            )
        self._set(node.name, "running")

    def command(self, node: Node) -> list[str]:
        """What runs that node, or what is left of it."""
        command = [sys.executable, "-m", "rotescale.cli", "run", str(self.folder.spec(node.name))]
        launch_file = self.folder.launch if self._shares_cores else self.launch_file
        if launch_file is not None:
            command += ["--on", str(launch_file)]
        if node.parent is not None:
            command += ["--branch-from", str(self.folder.run(node.parent).root)]
        return [*command, "--retry"]

    def _collect(self) -> None:
        for name, process in list(self._running.items()):
            code = process.poll()
            if code is None:
                continue
            del self._running[name]
            if name in self._gpus_of:
                self._gpus.append(self._gpus_of.pop(name))
            finished = code == 0 and self._is_finished(name)
            self._set(name, "finished" if finished else "failed")
            if finished:
                self._tidy()

    def _tidy(self) -> None:
        """Remove what nobody needs of finished runs whose branches have all finished."""
        if self.study.keep == "all":
            return
        for node in self.plan.nodes:
            branches = self.plan.branches(node.name)
            if all(self.status[name] == "finished" for name in (node.name, *branches)):
                tidy(self.folder.run(node.name), keep_weights=self.study.keep == "weights")

    def _stop(self) -> None:
        """End the runs that are still going; another time they go on from what is on storage."""
        for name in self._running:
            self._set(name, "stopping")
        end(self._running.values(), save_seconds=self.launch.resize_save_seconds)
        for name in self._running:
            self.status[name] = "waiting"
        self._running.clear()


def tidy(run_dir: RunDir, *, keep_weights: bool) -> None:
    """Remove full checkpoints of a finished run; without ``keep_weights`` all of them."""
    for attempt in run_dir.checkpoint_attempts():
        for name in run_dir.checkpoint_folders(attempt):
            if name.kind == "full" or not keep_weights:
                remove_folder(run_dir.checkpoint(name))


def failures(runner: StudyRunner) -> Sequence[str]:
    """A line for each run that failed, with the end of what it printed."""
    lines = []
    for name, status in runner.status.items():
        if status == "failed":
            log = runner.folder.log(name)
            told = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
            lines.append(f"{name}: {told[-1] if told else 'printed nothing'} ({log})")
    return lines
