"""What a pod says of itself while the player runs it."""

from __future__ import annotations

import math
import re
import signal
from collections.abc import Mapping
from typing import Any

from player_api import Object, condition, now

SUBMITTER = "ray-job-submitter"
KILLED = 128 + signal.SIGKILL


def pod_status(
    pod: Object,
    phase: str,
    *,
    address: str | None = None,
    waiting: str | None = None,
    terminated: Object | None = None,
    submitter: int | None = None,
) -> Object:
    """Its status: ``waiting`` is a reason, ``terminated`` how its first container ended.

    ``submitter`` is the exit code of the job's submitter, once that has ended.
    """
    old = pod.get("status", {})
    began = pod["metadata"]["creationTimestamp"]
    states = []
    for number, container in enumerate(pod["spec"]["containers"]):
        state: Object = {"running": {"startedAt": began}}
        if waiting is not None:
            state = {"waiting": {"reason": waiting}}
        elif terminated is not None and number == 0:
            state = {"terminated": {**terminated, "startedAt": began, "finishedAt": now()}}
        elif container["name"] == SUBMITTER and submitter is not None:
            code = submitter
            reason = "Error" if code else "Completed"
            ended = {"exitCode": code, "reason": reason, "finishedAt": now()}
            state = {"terminated": ended}
        elif terminated is not None:
            state = {"terminated": {"exitCode": KILLED, "reason": "Error"}}
        states.append(
            {
                "name": container["name"],
                "image": container["image"],
                "imageID": "",
                "ready": "running" in state,
                "started": "running" in state,
                "restartCount": 0,
                "state": state,
            }
        )
    ready = phase == "Running" and all(one["ready"] for one in states)
    conditions = [
        condition("PodScheduled", True, "", old=old.get("conditions")),
        condition("Ready", ready, "" if ready else "ContainersNotReady"),
    ]
    status: Object = {"phase": phase, "conditions": conditions, "containerStatuses": states}
    status |= {"startTime": began, "hostIP": "127.0.0.1"}
    if address is not None:
        status["podIP"] = address
    return status


def said(status: Object) -> Any:
    """What tells one status from another; times do not."""
    return status.get("phase"), [
        (one["name"], sorted(one["state"]), one["state"].get("waiting"))
        for one in status.get("containerStatuses", [])
    ]


def cores(text: str) -> int:
    """Whole CPUs of an amount such as ``500m``."""
    if text.endswith("m"):
        return math.ceil(int(text[:-1]) / 1000)
    return math.ceil(float(text))


def expanded(value: str, known: Mapping[str, str]) -> str:
    """``$(NAME)`` replaced and ``$$`` undone, as Kubernetes does."""

    def replaced(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return known.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_]*)\)", replaced, value)
