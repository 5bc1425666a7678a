"""Logs go into the bucket while they grow, so that a kill loses only the last of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from object_stores import Proxy

from rotescale.log_uploads import LogUploads
from rotescale.object_store import RemotePath
from rotescale.run_dir import RunDir

GROWING = """
import sys, time
from rotescale.log_uploads import LogUploads
from rotescale.run_dir import RunDir
run_dir = RunDir.at(sys.argv[1])
log = run_dir.worker_log(attempt=1, rank=3)
uploads = LogUploads(run_dir, [log], every_seconds=0.1)
log.parent.mkdir(parents=True)
log.write_text("first\\n")
print("ready", flush=True)
sys.stdin.readline()
with log.open("a") as file:
    file.write("second\\n")
time.sleep(600)
"""


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def text(run_dir: RunDir, log: Path) -> str:
    path = run_dir.logs_dir / log.name
    return path.read_text() if path.exists() else ""


def test_a_process_that_is_killed_has_left_what_it_wrote_before(remote: RemotePath) -> None:
    run_dir = RunDir(remote)
    log = run_dir.worker_log(attempt=1, rank=3)
    process = subprocess.Popen(
        [sys.executable, "-c", GROWING, str(remote)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    wait_for(lambda: text(run_dir, log) == "first\n")
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    wait_for(lambda: text(run_dir, log) == "first\nsecond\n")
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(timeout=60) == -signal.SIGKILL
    process.communicate()
    assert text(run_dir, log) == "first\nsecond\n"


def test_the_end_uploads_the_rest_and_what_did_not_change_is_put_once(
    remote: RemotePath, proxy: Proxy
) -> None:
    run_dir = RunDir(remote)
    logs = [run_dir.worker_log(attempt=1, rank=rank) for rank in (0, 1, 2)]
    logs[0].parent.mkdir(parents=True)
    logs[0].write_text("one")
    logs[1].write_text("")
    uploads = LogUploads(run_dir, logs, every_seconds=0.05)
    wait_for(lambda: text(run_dir, logs[0]) == "one")
    time.sleep(0.3)
    logs[2].write_text("late")
    uploads.close()
    assert [text(run_dir, log) for log in logs] == ["one", "", "late"]
    puts = [path for method, path in proxy.methods if method == "PUT"]
    assert len(puts) == 2


def test_a_store_that_refuses_fails_nothing(remote: RemotePath) -> None:
    run_dir = RunDir(RemotePath("s3://no-such-bucket-of-tests", remote.name))
    log = run_dir.worker_log(attempt=1, rank=0)
    log.parent.mkdir(parents=True)
    log.write_text("one")
    LogUploads(run_dir, [log], every_seconds=0.05).close()
    assert log.read_text() == "one"


def test_a_run_in_a_folder_has_its_logs_there_already(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    log = run_dir.worker_log(attempt=1, rank=0)
    uploads = LogUploads(run_dir, [log], every_seconds=0.01)
    assert not uploads._thread.is_alive()
    uploads.close()
