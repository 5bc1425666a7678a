"""Two places that keep one run going at once: the newer has it, the other ends, and it finishes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
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


def supervise(
    folder: Path, name: str, *, cache: Path, fault: object = None
) -> subprocess.Popen[str]:
    """A supervisor of the micro run in ``folder``, at a place of that name."""
    spec, launch = folder / "spec.json", folder / f"{name}.yaml"
    spec.write_text(dump_json(micro_spec(*SAVING)))
    launch.write_text(f"name: {name}\nstorage: {folder / 'runs'}\nmodel_cache: {cache}\n")
    given = {} if fault is None else {VARIABLE: json.dumps(fault)}
    return subprocess.Popen(
        [sys.executable, "-m", "launcher.cli", "supervise", str(spec), "--on", str(launch)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **given},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=_WAIT_SECONDS)
    return process.returncode, output


def test_a_run_that_is_begun_elsewhere_is_left_where_it_was(
    undisturbed: RunDir, tmp_path: Path, model_cache: Path
) -> None:
    run_dir, slow = RunDir(tmp_path / "runs" / "micro"), tmp_path / "slow"
    slow.touch()
    delay = {"point": "step", "action": "delay", "while": str(slow), "seconds": 20}
    old = supervise(tmp_path, "old", cache=model_cache, fault=delay)
    wait_until(lambda: run_dir.newest_attempt() == 1, timeout_seconds=_WAIT_SECONDS)
    new = supervise(tmp_path, "new", cache=model_cache)
    wait_until(lambda: run_dir.newest_attempt() == 2, timeout_seconds=_WAIT_SECONDS)
    slow.unlink()
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
    undisturbed: RunDir, tmp_path: Path, model_cache: Path
) -> None:
    run_dir = RunDir(tmp_path / "runs" / "micro")
    both = [supervise(tmp_path, name, cache=model_cache) for name in ("one", "other")]
    ends = [ended(one) for one in both]
    kinds = [one.kind for one in history.endings(run_dir)]
    told = "\n".join(said for _, said in ends)
    assert 0 in [code for code, _ in ends], told
    # The other has found it finished, if it was slow enough.
    assert {code for code, _ in ends} <= {0, 4}, told
    assert kinds.count("superseded") <= 1, told
    assert kinds[-1] in ("finished", "superseded"), told
    assert len(kinds) <= 3, told
    assert_equal_runs(run_dir, undisturbed)
