"""Fault injection: kills, hangs or slows this very process at a named point, where asked for.

``ROTESCALE_FAULT`` holds JSON such as ``{"point": "step", "phase": "memorize", "step": 3,
"rank": 1, "attempt": 1, "marker": "/tmp/fired"}``: every key but ``marker``, ``action``, ``while``,
``seconds`` and ``victim`` must match. Recovery is proven by tests that kill real processes; unset,
which is always but in tests, nothing happens.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

VARIABLE = "ROTESCALE_FAULT"
_DELAY_SECONDS = 0.2
_FOREVER_SECONDS = 1e6


def fault_point(point: str, **where: Any) -> None:
    """Where this is the point: die by SIGKILL, or what ``action`` says: ``stop`` until SIGCONT,
    ``hang`` or ``delay``, by ``seconds``.

    ``marker`` is written first, as evidence. With ``while``, a path, nothing happens unless that
    file is there. With ``victim``, a process's id, that process is
    killed, and this one gets no further.
    """
    text = os.environ.get(VARIABLE)
    if not text:
        return
    wanted = json.loads(text)
    marker, action = wanted.pop("marker", None), wanted.pop("action", "kill")
    victim = wanted.pop("victim", os.getpid())
    condition = wanted.pop("while", None)
    delay = wanted.pop("seconds", _DELAY_SECONDS)
    here = {"point": point, **where}
    if condition and not Path(condition).exists():
        return
    if any(here.get(key) != value for key, value in wanted.items()):
        return
    if marker:
        Path(marker).write_text(json.dumps(here), encoding="utf-8")
    match action:
        case "kill":
            os.kill(victim, signal.SIGKILL)
            time.sleep(_FOREVER_SECONDS)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "hang":
            time.sleep(_FOREVER_SECONDS)
        case "delay":
            time.sleep(delay)
