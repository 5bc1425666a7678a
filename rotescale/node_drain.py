"""What a pod runs before it is stopped: a worker's leaves Ray in order, the head's outlives them.

``python -m rotescale.node_drain leave --seconds 285`` tells Ray that this node is taken away in
that time, so that training saves, and returns when Ray has left the node. ``outlive`` returns when
this node is the last. Both return after ``--seconds`` at the latest. Linux only.
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_RAY = (sys.executable, "-m", "ray.scripts.scripts")
_POLL_SECONDS = 1.0
_ANSWER_SECONDS = 60.0
"""How long Ray may take to answer."""


@dataclass(frozen=True, slots=True)
class Raylet:
    """The process that stands for a node in Ray."""

    pid: int
    node_id: str
    gcs_address: str

    def is_alive(self) -> bool:
        """Whether that very process is at work."""
        return self in _raylet(_PROC / str(self.pid))


def raylets() -> list[Raylet]:
    """The raylets of this machine; in a pod, one."""
    return [raylet for folder in _PROC.iterdir() for raylet in _raylet(folder)]


def leave(node: Raylet, *, seconds: int) -> bool:
    """Drain the node and wait until its raylet has ended; False where time was up."""
    subprocess.run(
        (
            *(*_RAY, "drain-node", "--address", node.gcs_address, "--node-id", node.node_id),
            *("--reason", "DRAIN_NODE_REASON_PREEMPTION"),
            *("--reason-message", "the pod is taken away"),
            *("--deadline-remaining-seconds", str(seconds)),
        ),
        check=True,
        timeout=_ANSWER_SECONDS,
    )
    deadline = time.monotonic() + seconds
    while node.is_alive():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def outlive(node: Raylet, *, seconds: int) -> bool:
    """Wait until no other node is alive; False where time was up."""
    import ray

    deadline = time.monotonic() + seconds
    ray.init(address=node.gcs_address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        while sum(one["Alive"] for one in ray.nodes()) > 1:
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_SECONDS)
    finally:
        ray.shutdown()
    return True


def _raylet(process: Path) -> Iterator[Raylet]:
    try:
        command = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        # Not a process, or one that has just ended.
        return
    if not command[0].endswith("/raylet"):
        return
    given = dict(part.removeprefix("--").split("=", 1) for part in command[1:] if "=" in part)
    given = {name.replace("_", "-"): value for name, value in given.items()}
    if {"node-id", "gcs-address"} <= given.keys():
        yield Raylet(int(process.name), given["node-id"], given["gcs-address"])


def main() -> None:
    """The entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=("leave", "outlive"))
    parser.add_argument("--seconds", type=int, required=True)
    arguments = parser.parse_args()
    nodes = raylets()
    if len(nodes) != 1:
        sys.exit(f"{len(nodes)} raylets run here; this is for a pod, which has one")
    action = leave if arguments.action == "leave" else outlive
    done = action(nodes[0], seconds=arguments.seconds)
    print(f"{arguments.action}: {'done' if done else 'time is up'}")


if __name__ == "__main__":
    main()
