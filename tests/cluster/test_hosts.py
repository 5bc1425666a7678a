"""Three hosts: a cable is cut, a host comes back, the driver dies, a node is drained; one run."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import MICRO, QUICK, ROOT, micro_spec, prepare, run_workers, steps, wait_until
from namespaces import DEVICE, Host, hosts, why_not
from recovery_helpers import events

from rotescale import ray_session
from rotescale.faults import VARIABLE
from rotescale.run_dir import Outcome, RunDir

pytestmark = [pytest.mark.privileged, pytest.mark.slow, pytest.mark.timeout(1500)]

LONG = (*QUICK, "phases.0.epochs=400", "checkpoints.every_steps=25")
PORT = 6379
LIMIT = 240.0
"""Seconds for one change of the cluster to show in the run."""
STARTS = 3
RAY = (sys.executable, "-m", "ray.scripts.scripts")
ENVIRONMENT = {
    **ray_session.ENVIRONMENT,
    "GLOO_SOCKET_IFNAME": DEVICE,
    # A host that answers nothing is given up after some 8 s; Ray's defaults take longer.
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}


@pytest.fixture
def three_hosts() -> Iterator[list[Host]]:
    reason = why_not()
    if reason is not None:
        warnings.warn(f"NOT RUN, several hosts: {reason}", stacklevel=1)
        pytest.skip(reason)
    with hosts("head", "a", "b") as made:
        yield made


def join(host: Host, head: Host, folder: Path) -> None:
    """Start Ray on a host, with room for one worker, and wait until it has joined.

    Where a machine is slow, Ray may give up its own start; then it is tried again.
    """
    role = (
        ("--head", f"--port={PORT}", "--include-dashboard=false")
        if host is head
        else (f"--address={head.address}:{PORT}",)
    )
    log = folder / f"{host.name}.log"
    for _ in range(STARTS):
        before = log.stat().st_size if log.exists() else 0
        process = host.start(
            [
                *(*RAY, "start", "--block", *role, f"--node-ip-address={host.address}"),
                *("--num-cpus=1", "--disable-usage-stats"),
            ],
            log=log,
            environment=ENVIRONMENT,
        )
        while process.poll() is None:
            if b"will now block" in log.read_bytes()[before:]:
                return
            time.sleep(0.2)
        host.kill_all()
    raise AssertionError(f"Ray does not start on {host.name}: {log.read_text()[-3000:]}")


def drain(host: Host, head: Host, *, seconds: int) -> None:
    """Announce that the host will be taken away, as a cloud's handler does."""
    program = (
        "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False); "
        "print([n['NodeID'] for n in ray.nodes() "
        "if n['Alive'] and n['NodeManagerAddress'] == sys.argv[2]][0])"
    )
    inside = ["ip", "netns", "exec", head.name]
    address = f"{head.address}:{PORT}"
    found = subprocess.run(
        [*inside, sys.executable, "-c", program, address, host.address],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, **ENVIRONMENT},
    )
    subprocess.run(
        [
            *(*inside, *RAY, "drain-node", "--address", address),
            *("--node-id", found.stdout.split()[-1]),
            *("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"),
            *("--deadline-remaining-seconds", str(seconds)),
        ],
        check=True,
        capture_output=True,
        env={**os.environ, **ENVIRONMENT},
    )


def test_a_run_outlives_hosts_and_its_driver(
    three_hosts: list[Host], tmp_path: Path, model_cache: Path
) -> None:
    calm = prepare(micro_spec(*LONG), tmp_path / "calm", cache=model_cache)
    assert run_workers(calm, world_size=1) == [0]
    head, a, b = three_hosts
    for host in three_hosts:
        join(host, head, tmp_path)
    launch = tmp_path / "launch.yaml"
    launch.write_text(
        f"place: ray\naddress: {head.address}:{PORT}\nnum_workers: [1, 3]\n"
        f"resize_check_seconds: 5\nmax_failures: 10\n"
        f"storage: {tmp_path / 'runs'}\nmodel_cache: {model_cache}\n"
    )
    command = [sys.executable, "-m", "rotescale.cli", "run", str(MICRO), "--on", str(launch)]
    command += [argument for override in LONG for argument in ("--set", override)]
    slow = tmp_path / "slow"
    slow.touch()
    fault = json.dumps({"point": "step", "action": "delay", "while": str(slow)})
    environment = {**ENVIRONMENT, "PYTHONPATH": str(ROOT), "COLUMNS": "120", VARIABLE: fault}
    run_dir = RunDir(tmp_path / "runs" / "micro")

    def submit() -> subprocess.Popen[bytes]:
        return head.start(command, log=tmp_path / "driver.log", environment=environment)

    def trains_on(workers: int, *, after: int) -> bool:
        """Whether an attempt later than ``after`` has so many workers and has done a step."""
        wanted = f"on {workers} workers"
        attempts = {e.attempt for e in events(run_dir, "attempt") if e.message.endswith(wanted)}
        return any(step.attempt in attempts and step.attempt > after for step in steps(run_dir))

    def newest() -> int:
        return run_dir.newest_attempt() or 0

    running = submit()
    wait_until(lambda: trains_on(3, after=0), timeout_seconds=LIMIT)
    before = newest()
    b.cut()
    wait_until(lambda: trains_on(2, after=before), timeout_seconds=LIMIT)
    before = newest()
    b.kill_all()
    b.connect()
    join(b, head, tmp_path)
    wait_until(lambda: trains_on(3, after=before), timeout_seconds=LIMIT)
    before = newest()
    running.send_signal(signal.SIGKILL)
    running.wait()
    running = submit()
    wait_until(lambda: trains_on(3, after=before), timeout_seconds=LIMIT)
    before = newest()
    drain(a, head, seconds=10)
    wait_until(lambda: trains_on(2, after=before), timeout_seconds=LIMIT)
    slow.unlink()
    assert running.wait(600) == 0, (tmp_path / "driver.log").read_text()[-3000:]
    outcome = Outcome.read(run_dir)
    assert outcome is not None
    assert outcome.status == "finished", outcome.message
    assert events(run_dir, "preemption")
    ours, theirs = steps(run_dir), steps(calm)
    assert [(s.phase, s.step, s.example_ids) for s in ours] == [
        (s.phase, s.step, s.example_ids) for s in theirs
    ]
    # Near zero a loss has no more than the absolute precision of float32 logits.
    assert [s.loss for s in ours] == [pytest.approx(s.loss, rel=1e-5, abs=1e-7) for s in theirs]
