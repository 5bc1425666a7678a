"""What a node of a place finds: versions, storage, memory. A program that prints one line of JSON.

``python -m rotescale.probe [LAUNCH_SPEC]``: the launcher's doctor runs it where workers would run.
Without a file the launch spec is taken from the variable ``ROTESCALE_PROBE``, as JSON.
No torch is imported: its version is what the installed package says.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import sys
import uuid
from importlib import metadata
from itertools import takewhile
from pathlib import Path
from typing import Any

from rotescale.credentials import hidden
from rotescale.launch_spec import LaunchSpec
from rotescale.object_store import RemotePath
from rotescale.spec_file import load_spec, parse_spec
from rotescale.storage import StoragePath, create_exclusive, make_folder, remove, storage_path

MARK = "rotescale-probe: "
"""What the line begins with, among whatever else is printed."""
VARIABLE = "ROTESCALE_PROBE"
PACKAGES = ("rotescale", "ray", "torch", "deepspeed", "transformers")
DEVICES = Path("/dev")
_IN_A_POD = "KUBERNETES_SERVICE_HOST"
_CLUSTER_NAME = "kubernetes.default.svc"
"""A name that each cluster's DNS knows."""


def probe(launch: LaunchSpec) -> dict[str, Any]:
    """``versions`` of packages, None where one is missing; ``storage`` and ``model_cache``: an
    empty text where they can be used, or what is wrong; ``names``: the same of DNS in a pod, None
    outside; free bytes of ``/dev/shm``; ``gpus``: how many of NVIDIA's a process here may use."""
    return {
        "python": platform.python_version(),
        "names": _unresolved(_CLUSTER_NAME) if _IN_A_POD in os.environ else None,
        "versions": {name: _version(name) for name in PACKAGES},
        "storage": _problem(storage_path(launch.storage)),
        "model_cache": _problem(Path(launch.model_cache).expanduser()),
        "shared_memory": _free(Path("/dev/shm")),
        "gpus": len(visible_gpus(DEVICES, os.environ.get("CUDA_VISIBLE_DEVICES"))),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _problem(folder: StoragePath) -> str:
    """What goes wrong when a file is created there once, refused a second time, and removed."""
    path = folder / f".rotescale-probe-{uuid.uuid4().hex}"
    try:
        if not isinstance(folder, RemotePath):
            make_folder(folder)
        if not create_exclusive(path, b"probe"):
            return "a new file is said to be there already"
        if create_exclusive(path, b"again"):
            return "a file is created twice: this storage cannot tell attempts apart"
        if path.read_bytes() != b"probe":
            return "what was written is not what is read"
        remove(path)
    except Exception as error:  # noqa: BLE001 (whatever it is, it is the answer)
        return hidden(f"{type(error).__name__}: {error}")
    return ""


def _unresolved(name: str) -> str:
    """Why there is no address of that name; empty where there is one."""
    try:
        socket.getaddrinfo(name, 443)
    except OSError as error:
        return f"{name}: {error.strerror}"
    return ""


def visible_gpus(devices: Path, visible: str | None) -> list[str]:
    """The GPUs that have a device file, as far as ``CUDA_VISIBLE_DEVICES`` leaves them.

    By the names that this variable takes: CUDA counts from 0 whatever the files are called, and
    else what the variable says itself.
    """
    number = sum(path.name.removeprefix("nvidia").isdecimal() for path in devices.glob("nvidia*"))
    if visible is None:
        return [str(index) for index in range(number)]
    # The first that does not exist, such as -1, ends the list.
    chosen = [one.strip() for one in visible.split(",") if one.strip()]
    return [*takewhile(lambda one: one != "-1", chosen)][:number]


def _free(folder: Path) -> int | None:
    return shutil.disk_usage(folder).free if folder.is_dir() else None


def main() -> None:
    """The program."""
    if len(sys.argv) > 1:
        launch = load_spec(LaunchSpec, Path(sys.argv[1]))
    else:
        launch = parse_spec(LaunchSpec, json.loads(os.environ[VARIABLE]), where=VARIABLE)
    print(f"{MARK}{json.dumps(probe(launch))}", flush=True)


if __name__ == "__main__":
    main()
