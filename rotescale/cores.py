"""How many CPU cores this process may use: its machine's, or those of its container."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def cpu_cores(cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Whole cores, at least one; a container's quota (cgroup v2 and v1) counts."""
    cores = len(os.sched_getaffinity(0)) if platform.system() == "Linux" else os.cpu_count() or 1
    try:
        quota, period = (cgroups / "cpu.max").read_text(encoding="ascii").split()
    except OSError:
        try:
            quota, period = (
                (cgroups / "cpu" / f"cpu.cfs_{name}_us").read_text(encoding="ascii").strip()
                for name in ("quota", "period")
            )
        except OSError:
            return cores
    return max(1, min(cores, int(quota) // int(period))) if quota.isdecimal() else cores
