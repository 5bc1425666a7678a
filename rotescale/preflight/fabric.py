"""Which network NCCL has taken between nodes, read from its own log. No torch."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

from rotescale.storage import writing

_CHANNEL = re.compile(r"Channel \S+ : .* via NET/(.+?)/\d")
_NETWORK = re.compile(r"(?:Using network|Assigned NET plugin) (\S.*?)(?: to comm.*)?\s*$", re.M)
_PROVIDER = re.compile(r"NET/OFI Selected [Pp]rovider is ([\w-]+)")
_BEGUN = (
    (re.compile(r"NET/FasTrak"), "fastrak"),
    (re.compile(r"NET/OFI (?:Initializing|Selected)"), "ofi"),
    (re.compile(r"NET/IB : Using"), "ib"),
    (re.compile(r"NET/Socket : Using"), "socket"),
)
"""Lines of a network that has begun, that which NCCL would take first comes first."""


def listen(log: Path) -> Path:
    """Have NCCL write to ``log`` what it takes; before the first process group of this process.

    Returns the file that it writes: another, where somebody has set ``NCCL_DEBUG_FILE`` already.
    Raises StorageError where the log's folder cannot be made.
    """
    if os.environ.get("NCCL_DEBUG", "").upper() not in ("INFO", "TRACE"):
        os.environ["NCCL_DEBUG"] = "INFO"
    wanted = os.environ.get("NCCL_DEBUG_SUBSYS", "")
    if wanted.upper() != "ALL":
        os.environ["NCCL_DEBUG_SUBSYS"] = ",".join(filter(None, [wanted, "INIT", "NET"]))
    given = os.environ.get("NCCL_DEBUG_FILE")
    if given:
        return Path(given.replace("%h", socket.gethostname()).replace("%p", str(os.getpid())))
    with writing(log):
        log.parent.mkdir(parents=True, exist_ok=True)
    os.environ["NCCL_DEBUG_FILE"] = str(log)
    return log


def fabric_of(log_text: str) -> str | None:
    """Which network NCCL has taken, by its log of INIT and NET; None where it says none.

    ``infiniband`` (RoCE too), ``efa``, ``tcpxo``, ``socket``, ``ofi`` for another provider of
    libfabric than efa, or a plugin's own name in lower case. What channels go through counts first,
    and sockets before anything else there; then what NCCL says that it uses; then what has begun.
    """
    found = _PROVIDER.search(log_text)
    provider = found[1] if found else "efa"
    for pattern in (_CHANNEL, _NETWORK):
        taken = {_kind(name, provider) for name in pattern.findall(log_text)}
        if taken:
            return "socket" if "socket" in taken else min(taken)
    return next((_kind(name, provider) for line, name in _BEGUN if line.search(log_text)), None)


def _kind(network: str, provider: str) -> str:
    """Our name for what NCCL calls a network."""
    name = network.lower()
    if name == "ofi" or "libfabric" in name:
        return "efa" if provider == "efa" else "ofi"
    if name == "ib" or name.startswith("ibext"):
        return "infiniband"
    return "tcpxo" if name.startswith("fastrak") else name
