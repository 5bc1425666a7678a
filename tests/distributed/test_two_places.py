"""Two places that keep one run going at once: the newer has it, the other ends, and it finishes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import ROOT, micro_spec, wait_until
from recovery_helpers import SAVING, assert_equal_runs

from launcher import history
from rotescale.faults import VARIABLE
from rotescale.run_dir import Outcome, RunDir
from rotescale.spec_file import dump_json

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
_WAIT_SECONDS = 480
Supervisor = subprocess.Popen[str]


@pytest.fixture
def supervise(tmp_path: Path, model_cache: Path) -> Iterator[Callable[..., Supervisor]]:
    """Starts a supervisor of the micro run at a place of that name; what is left is ended."""
    started: list[Supervisor] = []
    spec = tmp_path / "spec.json"
    spec.write_text(dump_json(micro_spec(*SAVING)))

    def supervise(name: str, fault: object = None) -> Supervisor:
        launch = tmp_path / f"{name}.yaml"
        launch.write_text(
            f"name: {name}\nstorage: {tmp_path / 'runs'}\nmodel_cache: {model_cache}\n"
        )
        given = {} if fault is None else {VARIABLE: json.dumps(fault)}
        process = subprocess.Popen(
            [sys.executable, "-m", "launcher.cli", "supervise", str(spec), "--on", str(launch)],
            env={**os.environ, "OMP_NUM_THREADS": "1", **given},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield supervise
    for process in started:
        if process.poll() is None:
            process.terminate()
            process.communicate(timeout=_WAIT_SECONDS)


def ended(process: Supervisor) -> tuple[int, str]:
    output, _ = process.communicate(timeout=_WAIT_SECONDS)
    return process.returncode, output


def test_a_run_that_is_begun_elsewhere_is_left_where_it_was(
    undisturbed: RunDir, tmp_path: Path, supervise: Callable[..., Supervisor]
) -> None:
    run_dir = RunDir(tmp_path / "runs" / "micro")
    slow, waiting = tmp_path / "slow", tmp_path / "waiting"
    slow.touch()
    waiting.touch()
    delay = {"point": "step", "action": "delay"}
    old = supervise("old", {**delay, "while": str(slow), "seconds": 20})
    wait_until(lambda: run_dir.newest_attempt() == 1, timeout_seconds=_WAIT_SECONDS)
    # The run must not be over before the old one looks up.
    new = supervise("new", {**delay, "while": str(waiting), "seconds": 5})
    wait_until(lambda: run_dir.newest_attempt() == 2, timeout_seconds=_WAIT_SECONDS)
    slow.unlink()
    wait_until(
        lambda: [one.number for one in history.endings(run_dir)] == [1],
        timeout_seconds=_WAIT_SECONDS,
    )
    waiting.unlink()
    code, said = ended(new)
    assert code == 0, said
    code, said = ended(old)
    assert code == 4, said
    assert "not started again: start 2, at new (local) on " in said
    assert [one.launch for one in history.starts(run_dir)] == ["old", "new"]
    kinds = {one.number: one.kind for one in history.endings(run_dir)}
    assert kinds == {1: "superseded", 2: "finished"}
    assert Outcome.read(run_dir) is not None
    assert_equal_runs(run_dir, undisturbed)


def test_of_two_that_begin_at_once_one_has_the_run(
    undisturbed: RunDir, tmp_path: Path, supervise: Callable[..., Supervisor]
) -> None:
    run_dir = RunDir(tmp_path / "runs" / "micro")
    both = [supervise(name) for name in ("one", "other")]
    ends = [ended(one) for one in both]
    told = "\n".join(said for _, said in ends)
    assert 0 in [code for code, _ in ends], told
    # The other has left it, or has found it finished, if it was slow enough.
    for code, said in ends:
        assert code == 0 or "supervisor: not started" in said.splitlines()[-1], told
    assert [one.kind for one in history.endings(run_dir)].count("superseded") <= 1, told
    assert_equal_runs(run_dir, undisturbed)
