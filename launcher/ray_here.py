"""Whether the Ray cluster can be used that this machine belongs to: no section ``ray``."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from launcher.doctor import Check, answer_of, local_checks, room_check
from launcher.job import last_line
from rotescale.credentials import hidden
from rotescale.launch_spec import LaunchSpec

START = "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=..., then ray start --head"
_SECONDS = 90.0
_OPEN = {"RAY_AUTH_MODE": "disabled"}

Ask = Callable[[str, Mapping[str, str]], dict[str, Any]]


def ray_here_checks(launch: LaunchSpec, *, ask: Ask | None = None) -> Iterator[Check]:
    """Of this machine, and of the cluster at the launch spec's address.

    ``ask`` is ``ask_nodes``: an address and variables to what ``rotescale.ray_probe`` says.
    """
    assert launch.address is not None, launch.name
    ask = ask or ask_nodes
    yield from local_checks(launch)
    found = ask(launch.address, {})
    if "error" in found:
        yield Check(
            "address",
            "fail",
            f"no Ray cluster is reached at {launch.address}: {found['error']}",
            f"start one, and look again in the same shell: {START}; on other nodes ray start "
            "--address=HOST:PORT with the same token",
        )
        return
    yield Check("address", "ok", f"the cluster at {launch.address} answers")
    if "error" in ask(launch.address, _OPEN):
        yield Check("token", "ok", "without one nothing is answered")
    else:
        yield Check(
            "token",
            "fail",
            "the cluster answers without one: whoever reaches it runs code there",
            f"ray stop; {START}, with the same token in each node's and this shell",
        )
    yield room_check(found["nodes"], launch)


def ask_nodes(address: str, variables: Mapping[str, str]) -> dict[str, Any]:
    """What ``rotescale.ray_probe`` says, in a process with these variables set."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "rotescale.ray_probe", address],
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no answer in {_SECONDS:.0f} s"}
    found = answer_of(done.stdout.splitlines())
    return found or {"error": hidden(last_line(done.stderr) or f"exit code {done.returncode}")}
