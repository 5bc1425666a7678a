"""The driver dies, and with it Ray and all workers; the same command goes on as if it never had."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers import MICRO, ROOT, wait_until
from recovery_helpers import FAULTS, SAVING, assert_equal_runs

from rotescale.checkpoint.attempts import read_attempt
from rotescale.faults import VARIABLE
from rotescale.run_dir import Outcome, RunDir

# Tells the fault which process is the driver: the one that this becomes.
_BECOME = (
    "import json, os, sys; name = sys.argv[1]; fault = json.loads(os.environ[name]);"
    "os.environ[name] = json.dumps({**fault, 'victim': os.getpid()});"
    "os.execv(sys.executable, sys.argv[2:])"
)
_TAG = "ROTESCALE_TEST_TAG"


def tagged(tag: str) -> list[int]:
    """The living processes that have the tag in their environment, as children inherit it."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                if f"{_TAG}={tag}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
    return found


@contextmanager
def nothing_survives() -> Iterator[dict[str, str]]:
    """An environment for a driver that dies, whose every descendant must have followed it."""
    tag = uuid.uuid4().hex
    try:
        yield {**os.environ, _TAG: tag}
        wait_until(lambda: not tagged(tag), timeout_seconds=90)
    finally:
        for pid in tagged(tag):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_driver_killed_at_a_point_is_followed_by_one_that_ends_the_run(
    name: str, undisturbed: RunDir, tmp_path: Path, model_cache: Path
) -> None:
    fault, resumes_after = FAULTS[name]
    launch = tmp_path / "launch.yaml"
    launch.write_text(f"storage: {tmp_path / 'runs'}\nmodel_cache: {model_cache}\n")
    command = [sys.executable, "-m", "rotescale.cli", "run", str(MICRO), "--on", str(launch)]
    command += [argument for override in SAVING for argument in ("--set", override)]
    run_dir, marker = RunDir(tmp_path / "runs" / "micro"), tmp_path / "fired"
    with nothing_survives() as environment:
        environment[VARIABLE] = json.dumps({**fault, "attempt": 1, "marker": str(marker)})
        first = subprocess.run(
            [sys.executable, "-c", _BECOME, VARIABLE, *command],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=240,
            check=False,
        )
    assert marker.exists(), "the fault did not fire"
    assert first.returncode == -signal.SIGKILL
    assert Outcome.read(run_dir) is None
    assert run_dir.attempt_numbers() == [1]
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert second.returncode == 0, second.stdout[-2000:] + second.stderr[-2000:]
    resumed = read_attempt(run_dir, 2).resumes
    found = None if resumed is None else run_dir.manifest_name(resumed).step
    assert found in resumes_after
    assert_equal_runs(run_dir, undisturbed)
