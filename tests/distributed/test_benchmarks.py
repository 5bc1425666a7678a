"""The benchmarks run end to end on the micro model, and ours and the peers agree."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT

WANTED = {
    "stall_vs_deepspeed_save",
    "stall_vs_dcp_async_save",
    "resume_vs_universal",
    "load_vs_transformers",
    "export_vs_save_16bit_model",
}


def rows_of(benchmark: str, folder: Path, *options: str) -> set[str]:
    """The names of the rows that a benchmark writes of the micro model, all of which agree."""
    rows_json = folder / "rows.json"
    command = [sys.executable, str(ROOT / "benchmarks" / benchmark), "--models", "micro"]
    command += ["--json", str(rows_json), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    rows = json.loads(rows_json.read_text())
    for row in rows:
        assert set(row) == {"name", "model", "unit", "ours", "peer", "ratio", "agree"}
        assert row["model"] == "micro"
        assert row["agree"], row["name"]
        assert row["ratio"] is None or row["ratio"] == row["ours"] / row["peer"]
    return {row["name"] for row in rows}


def test_collectives_on_the_micro_model(tmp_path: Path) -> None:
    assert rows_of("collectives.py", tmp_path) == {"reduce_vs_gloo", "gather_vs_gloo"}


@pytest.mark.slow
def test_recovery_on_the_micro_model(tmp_path: Path) -> None:
    assert rows_of("recovery.py", tmp_path, "--kills", "1") == {"recovery_vs_ray_default"}


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None,
    reason="lm-eval is not installed: `make .venv/.peers` fetches it",
)
def test_scoring_on_the_micro_model(tmp_path: Path) -> None:
    named = rows_of("scoring.py", tmp_path, "--prompts", "3", "--repeats", "1")
    assert named == {"short_prompts_vs_lm_eval", "in_context_vs_lm_eval"}


@pytest.mark.slow
def test_training_on_the_micro_model(tmp_path: Path) -> None:
    has_trl = importlib.util.find_spec("trl") is not None
    assert rows_of("training.py", tmp_path, "--steps", "2") == {
        *(["memorize_64_vs_sft_packed"] if has_trl else []),
        *("memorize_64_vs_trainer", "generalize_64_vs_trainer", "memorize_8_vs_trainer"),
        *("mixed_64_vs_trainer", "matmul_share_512"),
    }


def gpu_check(folder: Path, *options: str) -> dict[str, dict[str, Any]]:
    """The findings of the GPU's checks, as far as they can be made here; none has failed."""
    report = folder / "gpu-check.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_check.py"), "--out", str(report)]
    if not torch.cuda.is_available():
        command.append("--cpu")
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    found = json.loads(report.read_text())
    assert found["machine"]["packages"]["torch"] == torch.__version__
    return {finding["check"]: finding for finding in found["findings"]}


def test_the_checks_for_gpus_of_one_process(tmp_path: Path) -> None:
    checks = "precision,packing,flash-attention,fused-loss,optimizer,scoring"
    found = gpu_check(tmp_path, "--model", "micro", "--checks", checks)
    assert list(found) == checks.split(",")
    if not torch.cuda.is_available():
        assert found["flash-attention"]["status"] == "left out"
    assert found["precision"]["numbers"]["bf16_against_fp32"] > 0
    # What must not agree is told from what must.
    for name, agrees in (("packing", "packed_against_alone"), ("scoring", "trees_against_alone")):
        numbers = found[name]["numbers"]
        assert numbers["control_against_alone"] > 1000 * numbers[agrees]
    assert found["scoring"]["numbers"]["in_context_prompts_per_second"] > 0


def test_the_checks_for_gpus_of_one_run(tmp_path: Path) -> None:
    checks = "preflight,training,memory,stall"
    found = gpu_check(tmp_path, "--model", "micro", "--checks", checks)
    assert list(found) == checks.split(",")
    numbers = {name: finding["numbers"] for name, finding in found.items()}
    assert numbers["preflight"]["slowest_tflops"] > 0
    assert numbers["training"]["tokens_per_second"] > 0
    assert numbers["memory"]["measured"] > 0
    assert numbers["stall"]["saves"] == 4
    assert 0 <= numbers["stall"]["copy_stall_seconds"] <= numbers["stall"]["stall_seconds"]
    assert 0 < numbers["stall"]["write_seconds"] <= numbers["stall"]["total_seconds"]
    assert numbers["stall"]["pinned"] == torch.cuda.is_available()


@pytest.mark.slow
def test_the_checks_for_gpus_of_several_runs(tmp_path: Path) -> None:
    found = gpu_check(tmp_path, "--model", "micro", "--checks", "fast-training,resume")
    numbers = {name: finding["numbers"] for name, finding in found.items()}
    assert numbers["resume"]["attempts"] == [1, 2]
    assert (numbers["resume"]["workers_before"], numbers["resume"]["workers_after"]) == (2, 1)
    # The steps from the last checkpoint on, and so not from the base.
    assert numbers["resume"]["first_step_after_restart"] == 9
    assert numbers["resume"]["fallen_until_restart"] > 0
    assert numbers["fast-training"]["tokens_per_second"] > 0


@pytest.mark.slow
def test_growth_of_few_points(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "growth.py"), "--small"]
    command += ["--json", str(tmp_path / "cells.json"), "--picture", str(tmp_path / "growth.png")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    cells = json.loads((tmp_path / "cells.json").read_text())
    found = {(cell["what"], cell["by"]) for cell in cells}
    steps = {("step", by) for by in ("examples", "workers", "parameters")}
    prompts = {("prompt", by) for by in ("options", "prompt tokens", "workers", "parameters")}
    assert found == {*steps, *prompts, ("reading", "facts")}
    assert all(cell["seconds"] > 0 for cell in cells)
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_plan_of_memory_of_a_small_model(tmp_path: Path) -> None:
    rows_json = tmp_path / "rows.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "memory.py"), "--models", "llama-100m"]
    command += ["--json", str(rows_json)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    rows = json.loads(rows_json.read_text())
    cases = [(row["name"], row["workers"]) for row in rows]
    assert cases == [(name, n) for n in (1, 2) for name in ("training", "measuring")]
    for row in rows:
        assert abs(row["error"]) <= 0.15, row


@pytest.mark.slow
def test_streaming_of_few_facts(tmp_path: Path) -> None:
    rows_json = tmp_path / "rows.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "streaming.py"), "--model", "micro"]
    command += ["--facts", "300,3000", "--json", str(rows_json)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    rows = json.loads(rows_json.read_text())
    assert all(row["agree"] for row in rows)
    names = [row["name"] for row in rows]
    each = ["encode_vs_map", "first_batch", "middle_vs_skip", "epoch_vs_iterable"]
    assert names == [*each, *each, "peak_memory_vs_fewest", "peak_memory_of_all"]


@pytest.mark.slow
def test_checkpoint_on_the_micro_model(tmp_path: Path) -> None:
    assert rows_of("checkpoint.py", tmp_path, "--folder", str(tmp_path)) >= WANTED
    assert [path.name for path in tmp_path.iterdir()] == ["rows.json"], "something was left behind"
