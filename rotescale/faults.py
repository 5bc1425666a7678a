"""Fault injection: kills this very process at a named point, where the environment asks for it.

``ROTESCALE_FAULT`` holds JSON such as ``{"point": "step", "phase": "memorize", "step": 3,
"rank": 1, "attempt": 1, "marker": "/tmp/fired"}``: every key but ``marker`` must match. Recovery is
proven by tests that kill real processes; unset, which is always but in tests, nothing happens.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

VARIABLE = "ROTESCALE_FAULT"


def fault_point(point: str, **where: Any) -> None:
    """Die by SIGKILL if this is the point; ``marker`` is written first, as evidence."""
    text = os.environ.get(VARIABLE)
    if not text:
        return
    wanted = json.loads(text)
    marker = wanted.pop("marker", None)
    here = {"point": point, **where}
    if all(here.get(key) == value for key, value in wanted.items()):
        if marker:
            Path(marker).write_text(json.dumps(here), encoding="utf-8")
        os.kill(os.getpid(), signal.SIGKILL)
