"""What the numbers of ``gpu_check.py`` were taken on."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from rotescale.cores import cpu_cores

_PACKAGES = ("torch", "deepspeed", "transformers", "ray", "flash-attn")
DRIVER = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
_HERE = Path(__file__).parent


def machine() -> dict[str, Any]:
    """Devices, versions and cores, and the commit of the code; null is what is not there."""
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    nccl: Any = torch.cuda.nccl
    driver = told_by(*DRIVER)
    changed = told_by("git", "-C", str(_HERE), "status", "--porcelain", "--untracked-files=no")
    return {
        "gpus": names,
        "gpu_memory_bytes": [
            torch.cuda.get_device_properties(i).total_memory for i in range(len(names))
        ],
        "driver": driver.splitlines()[0] if driver else None,
        "cuda": torch.version.cuda,
        "nccl": list(nccl.version()) if names else None,
        "cores": {"machine": os.cpu_count(), "usable": cpu_cores()},
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: installed(name) for name in _PACKAGES},
        "commit": told_by("git", "-C", str(_HERE), "rev-parse", "HEAD"),
        "changed_since": None if changed is None else bool(changed),
    }


def installed(package: str) -> str | None:
    """Its version; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def told_by(*command: str) -> str | None:
    """What a command prints; None where it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
