"""Runs under Ray Train: architectures, lost workers, a lost driver, and user errors tried once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from helpers import (
    MICRO,
    QUICK,
    ROOT,
    micro_spec,
    phase_end_weights,
    prepare,
    steps,
)
from recovery_helpers import PHASES, assert_equal_runs
from transformers import AutoModelForCausalLM, AutoTokenizer

from rotescale import driver
from rotescale.checkpoint.attempts import read_attempt
from rotescale.checkpoint.manifest import is_published
from rotescale.errors import TrainingError
from rotescale.faults import VARIABLE
from rotescale.launch_spec import LaunchSpec
from rotescale.model.prepare import load_prepared
from rotescale.ray_session import ray_cluster
from rotescale.records import read_records
from rotescale.run_dir import CheckpointName, Outcome, RunDir

LAUNCH = LaunchSpec(num_workers=(2, 2), cpus_per_worker=1, max_failures=3)
ARCHITECTURES = [
    (architecture, tied)
    for architecture in ("llama-3.2-1b", "qwen2.5-1.5b", "phi-4")
    for tied in ("true", "false")
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One Ray cluster for all tests of this file."""
    with ray_cluster(LAUNCH):
        yield


@pytest.fixture(scope="module")
def architecture_runs(
    cluster: None, tmp_path_factory: pytest.TempPathFactory, model_cache: Path
) -> dict[tuple[str, str], RunDir]:
    """Both phases of each architecture, tied and untied, in one start of two workers."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    runs = {}
    for architecture, tied in ARCHITECTURES:
        spec = micro_spec(
            *QUICK,
            f"model.weights.architecture={architecture}",
            f"model.weights.tie_word_embeddings={tied}",
        )
        storage = tmp_path_factory.mktemp(f"{architecture}-{tied}")
        runs[architecture, tied] = prepare(spec, storage, cache=model_cache, num_workers=2)

    def loop(config: dict[str, Any]) -> None:
        from rotescale.worker import run_worker

        torch.set_num_threads(1)
        for folder in config["folders"]:
            run_worker(Path(folder))

    trainer = TorchTrainer(
        loop,
        train_loop_config={"folders": [str(run.root) for run in runs.values()]},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(storage_path=str(tmp_path_factory.mktemp("ray"))),
    )
    trainer.fit()
    return runs


@pytest.mark.parametrize(("architecture", "tied"), ARCHITECTURES)
def test_both_phases_of_each_architecture(
    architecture: str, tied: str, architecture_runs: dict[tuple[str, str], RunDir]
) -> None:
    run_dir = architecture_runs[architecture, tied]
    outcome = Outcome.read(run_dir)
    assert outcome is not None
    assert outcome.status == "finished", outcome.message
    assert [step.phase for step in steps(run_dir)] == ["memorize"] * 6 + ["generalize"] * 12
    prepared = load_prepared(run_dir.prepared_model)
    for phase in PHASES:
        folder = run_dir.model_folder(phase)
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert model.config.tie_word_embeddings is (tied == "true")
        weights = phase_end_weights(run_dir, phase)
        exported = dict(model.named_parameters())
        assert exported.keys() == weights.keys()
        assert all(torch.equal(exported[name].flatten(), weights[name]) for name in weights)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer("[X:mother]")["input_ids"] == [*prepared.key_token_ids["mother"]]


@pytest.mark.parametrize(
    "victims",
    [
        pytest.param({"rank": 1}, marks=pytest.mark.slow, id="one worker"),
        pytest.param({}, id="all workers"),
    ],
)
def test_killed_workers_are_replaced_and_the_run_ends_as_if_undisturbed(
    victims: dict[str, int],
    cluster: None,
    start: Callable[..., RunDir],
    undisturbed: RunDir,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_dir, marker = start(), tmp_path / "fired"
    fault = {"point": "step", "phase": "generalize", "step": 5, "attempt": 1, **victims}
    monkeypatch.setenv(VARIABLE, json.dumps({**fault, "marker": str(marker)}))
    driver.train(run_dir, LAUNCH)
    assert marker.exists(), "the fault did not fire"
    assert run_dir.attempt_numbers() == [1, 2]
    resumed = read_attempt(run_dir, 2).resumes
    assert resumed is not None
    # The save of step 4 may still have been in flight when the worker died.
    assert run_dir.manifest_name(resumed).step in (2, 4)
    assert_equal_runs(run_dir, undisturbed)


def fork_servers() -> Iterator[dict[str, str]]:
    """What the fork servers of this process's cluster, and so whoever they fork, have as variables.

    They outlive workers; each names the raylet that owns it.
    """
    raylets = {str(one.pid) for one in psutil.Process().children() if one.name() == "raylet"}
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "rotescale.fork_server.server" in words and raylets & {*words}:
            yield process.environ()


def test_workers_that_are_to_compute_on_cpus_see_no_gpu(
    cluster: None, tmp_path: Path, model_cache: Path
) -> None:
    """Ray hides none from who asks for none; its processes were started where nothing hides any."""
    run_dir = prepare(micro_spec(*QUICK), tmp_path, cache=model_cache, num_workers=2)
    driver.train(run_dir, LAUNCH)
    assert {one.get("CUDA_VISIBLE_DEVICES") for one in fork_servers()} == {""}


@pytest.mark.parametrize(
    "fork",
    [
        pytest.param(True, id="forked"),
        pytest.param(False, marks=pytest.mark.slow, id="in Ray's processes"),
    ],
)
def test_a_user_error_is_tried_exactly_once(
    fork: bool, cluster: None, tmp_path: Path, model_cache: Path
) -> None:
    spec = micro_spec(*QUICK, "phases.0.learning_rate=1e45", "phases.0.max_grad_norm=null")
    run_dir = prepare(spec, tmp_path, cache=model_cache, num_workers=2)
    for _ in range(2):
        with pytest.raises(TrainingError, match="learning_rate"):
            driver.train(run_dir, LAUNCH.model_copy(update={"fork_workers": fork}))
        assert run_dir.attempt_numbers() == [1]


@pytest.mark.slow
def test_an_error_of_one_rank_alone_is_tried_once_too(
    cluster: None, tmp_path: Path, model_cache: Path
) -> None:
    """Its peer waits in a collective: it must be set free, and not try again."""
    spec = micro_spec(*QUICK)
    run_dir = prepare(spec, tmp_path, cache=model_cache, num_workers=2)
    # Rank 1's first file of a checkpoint cannot be written, rank 0's can.
    folder = CheckpointName(1, 0, "memorize", 3, "full")
    blocked = run_dir.checkpoint(folder) / "rank-00001-of-00002.safetensors"
    blocked.mkdir(parents=True)
    with pytest.raises(driver.RotescaleError, match="rank-00001"):
        driver.train(run_dir, LAUNCH)
    outcome = Outcome.read(run_dir)
    assert outcome is not None
    assert outcome.error == "StorageError"
    assert run_dir.attempt_numbers() == [1]


@pytest.mark.slow
def test_a_killed_driver_is_followed_by_one_that_resumes(tmp_path: Path, model_cache: Path) -> None:
    launch = tmp_path / "launch.yaml"
    launch.write_text(f"storage: {tmp_path / 'runs'}\nmodel_cache: {model_cache}\n")
    overrides = [*QUICK, "phases.0.epochs=60", "checkpoints.every_steps=30"]
    command = [sys.executable, "-m", "rotescale.cli", "run", str(MICRO), "--on", str(launch)]
    command += [argument for override in overrides for argument in ("--set", override)]
    run_dir = RunDir(tmp_path / "runs" / "micro")
    first = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 240
    while not any(is_published(run_dir.checkpoint(name)) for name in run_dir.checkpoint_folders(1)):
        assert first.poll() is None, "the driver ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert Outcome.read(run_dir) is None
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert second.returncode == 0, second.stdout[-2000:] + second.stderr[-2000:]
    assert read_attempt(run_dir, run_dir.attempt_numbers()[-1]).resumes is not None
    assert [step.step for step in steps(run_dir)] == [*range(1, 181), *range(1, 13)]
    assert read_records(run_dir).steps[0].attempt == 1
    third = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert third.returncode == 0
    assert "finished; nothing to do" in third.stdout
