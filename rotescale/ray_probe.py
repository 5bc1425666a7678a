"""Which nodes a running Ray cluster has. A program that prints one line of JSON.

``python -m rotescale.ray_probe ADDRESS``: the launcher's doctor, which imports no Ray, runs it in
the environment in which a run's driver would be started.
"""

from __future__ import annotations

import json
import logging
import socket
import sys
from typing import Any

from rotescale.credentials import hidden
from rotescale.probe import MARK
from rotescale.ray_nodes import alive_nodes

_SECONDS = 10.0


def ask_nodes(address: str) -> dict[str, Any]:
    """``nodes``: the resources of each that is alive; or ``error``: why there is no answer."""
    import ray

    try:
        _require_listener(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        return {"nodes": [dict(node["Resources"]) for node in alive_nodes()]}
    except Exception as error:  # noqa: BLE001 (whatever it is, it is the answer)
        return {"error": hidden(f"{type(error).__name__}: {error}")}
    finally:
        ray.shutdown()


def _require_listener(address: str) -> None:
    """OSError where nobody listens at HOST:PORT; Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS).close()


def main() -> None:
    """The program."""
    print(f"{MARK}{json.dumps(ask_nodes(sys.argv[1]))}", flush=True)


if __name__ == "__main__":
    main()
