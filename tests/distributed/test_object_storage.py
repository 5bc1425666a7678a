"""A run at a URL, on a store that fails for a while, ends as one on a quiet disk, bit for bit."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from helpers import QUICK, micro_spec, prepare, run_workers, start_ranks, wait_until
from object_stores import ENVIRONMENT, Proxy
from recovery_helpers import PHASES, assert_equal_runs

from launcher import cli
from rotescale.checkpoint.attempts import read_attempt
from rotescale.checkpoint.store import CheckpointStore
from rotescale.faults import VARIABLE
from rotescale.object_store import RemotePath
from rotescale.run_dir import Outcome, RunDir
from rotescale.worker import run_worker

SPEC = micro_spec(*QUICK, "checkpoints.every_steps=2", "checkpoints.keep_last=1")


def exported(run_dir: RunDir, phase: str) -> dict[str, bytes]:
    """Name and content of the export's files, as if attempt 1 had written them all."""
    folder = run_dir.model_folder(phase)
    return {
        path.name: path.read_bytes().replace(b"attempt-0002", b"attempt-0001")
        for path in folder.iterdir()
    }


@pytest.mark.slow
def test_a_killed_run_in_a_bucket_equals_an_undisturbed_one_on_the_disk(
    remote: RemotePath, proxy: Proxy, model_cache: Path, tmp_path: Path
) -> None:
    quiet = prepare(SPEC, tmp_path / "quiet", cache=model_cache, num_workers=2)
    assert run_workers(quiet, world_size=2) == [0, 0]

    # Every fourth request fails: it is refused, or its answer is cut, or lost.
    proxy.every = 4
    environment = {name: os.environ[name] for name in (*ENVIRONMENT, "AWS_ENDPOINT_URL")}
    environment["ROTESCALE_LOCAL"] = str(tmp_path / "node")
    run_dir = prepare(SPEC, str(remote), cache=model_cache, num_workers=2)
    assert isinstance(run_dir.root, RemotePath)
    where = {"point": "write", "phase": "memorize", "step": 4, "rank": 1, "attempt": 1}
    fault = json.dumps({**where, "marker": str(tmp_path / "fired")})
    codes = run_workers(run_dir, world_size=2, environment={**environment, VARIABLE: fault})
    assert (tmp_path / "fired").exists(), "the fault did not fire"
    assert codes[1] == -9
    assert Outcome.read(run_dir) is None
    assert run_workers(run_dir, world_size=2, environment=environment) == [0, 0]

    outcome = Outcome.read(run_dir)
    assert outcome is not None
    assert outcome.status == "finished", outcome.message
    resumed = read_attempt(run_dir, 2).resumes
    assert resumed is not None
    assert run_dir.manifest_name(resumed).step == 2
    assert_equal_runs(run_dir, quiet)
    for phase in PHASES:
        # So do the exports, file by file, and what was measured, but for which attempt's they are.
        assert exported(run_dir, phase) == exported(quiet, phase)
        measured = (
            run_dir.evaluation(phase, None).read_text().replace("attempt-0002", "attempt-0001")
        )
        assert measured == quiet.evaluation(phase, None).read_text()
    # Pruned and collected as on a disk, and what the survivor of the kill had to say is kept.
    assert CheckpointStore(run_dir, 2).collect_orphans() == []
    kept = [name.step for name in run_dir.checkpoint_folders(2, listed_only=True)]
    assert kept == [name.step for name in quiet.checkpoint_folders(1)]
    assert b"Traceback" in (run_dir.logs_dir / "attempt-0001-rank-00000.log").read_bytes()
    assert not (tmp_path / "node" / "runs").joinpath("checkpoints").exists()
    assert min(proxy.counts[fault] for fault in ("refused", "cut", "lost")) >= 20


def work(root: RemotePath) -> None:
    run_worker(root, upload_seconds=0.2)


def test_what_a_worker_had_logged_before_it_was_killed_is_shown(
    remote: RemotePath,
    model_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_dir = prepare(SPEC, str(remote), cache=model_cache)
    fault = json.dumps({"point": "step", "action": "delay", "seconds": 600})
    logs = run_dir.node_dir / "logs"
    (worker,) = start_ranks(
        *(work, run_dir.root),
        world_size=1,
        logs=logs,
        environment={
            **{name: os.environ[name] for name in (*ENVIRONMENT, "AWS_ENDPOINT_URL")},
            **{"ROTESCALE_LOCAL": str(tmp_path / "node"), VARIABLE: fault},
        },
    )
    try:
        log = run_dir.worker_log(attempt=1, rank=0)
        wait_until(log.exists)
        # As NCCL does, or the timer that writes stacks.
        with log.open("a") as file:
            file.write("a line of rank 0\n")
        kept = run_dir.logs_dir / log.name
        wait_until(kept.exists)
    finally:
        worker.kill()
        worker.join()
    assert worker.exitcode == -9
    # From a machine that has none of the worker's files.
    monkeypatch.setenv("ROTESCALE_LOCAL", str(tmp_path / "laptop"))
    monkeypatch.setenv("ROTESCALE_STATE", str(tmp_path / "state"))
    monkeypatch.setattr(sys, "argv", ["rotescale-launch", "logs", str(run_dir.root), "--rank", "0"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert not stopped.value.code
    assert capsys.readouterr().out == "a line of rank 0\n"
