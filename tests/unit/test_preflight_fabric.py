"""Which network NCCL has taken is told from its log: lines as NCCL and its plugins write them."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from rotescale.preflight.fabric import fabric_of, listen

HEAD = "node-1:310:352 [0] NCCL INFO "


def log(*lines: str) -> str:
    return "".join(f"{HEAD}{line}\n" for line in lines)


NO_PLUGIN = (
    "NET/Plugin: Could not find: libnccl-net.so. Using internal network plugin.",
    "NET/Plugin : Plugin load (libnccl-net.so) returned 2 : cannot open shared object file",
)
IB = "NET/IB : Using [0]mlx5_0:1/IB [1]mlx5_1:1/IB [RO]; OOB eth0:10.0.0.1<0>"
SOCKET = "NET/Socket : Using [0]eth0:10.0.0.1<0>"
OFI = (
    "NET/Plugin: Loaded net plugin Libfabric (v10)",
    "NET/OFI Initializing aws-ofi-nccl 1.16.2",
    "NET/OFI Selected provider is efa, fabric is efa-direct (found 32 nics)",
)
FASTRAK = ("NET/Plugin: Loaded net plugin FasTrak (v7)", "NET/FasTrak v1.0.17")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("", None, id="nothing"),
        pytest.param(log("cudaDriverVersion 12040", *NO_PLUGIN), None, id="not yet"),
        pytest.param(log(*NO_PLUGIN, IB), "infiniband", id="begun"),
        pytest.param(log(*NO_PLUGIN, IB, "Using network IB"), "infiniband", id="used"),
        pytest.param(
            log(IB, "Initialized NET plugin IB", "Assigned NET plugin IB to comm"),
            "infiniband",
            id="of NCCL 2.27",
        ),
        pytest.param(
            log(
                IB, "Using network IB", "Channel 00/0 : 7[7] -> 8[0] [receive] via NET/IB/0/GDRDMA"
            ),
            "infiniband",
            id="channels",
        ),
        pytest.param(
            log("Channel 00/0 : 7[7] -> 8[0] [send] via NET/IB/0(1)/GDRDMA"),
            "infiniband",
            id="through another GPU",
        ),
        pytest.param(
            log("NET/IB : Using [0]mlx5_4:1/RoCE [RO]; OOB eth0:10.0.0.1<0>", "Using network IB"),
            "infiniband",
            id="RoCE",
        ),
        pytest.param(
            log("P2P plugin IBext", "Using network IBext"), "infiniband", id="HPC-X plugin"
        ),
        pytest.param(
            log("P2P plugin v10 IBext_v10", "Using network IBext_v10"), "infiniband", id="newer"
        ),
        pytest.param(
            log("NET/IB : No device found.", SOCKET, "Using network Socket"), "socket", id="sockets"
        ),
        pytest.param(log("NET/IB : No device found.", SOCKET), "socket", id="sockets, begun"),
        pytest.param(
            log(
                IB,
                "Using network IB",
                "Channel 00/0 : 0[0] -> 8[0] [send] via NET/IB/0/GDRDMA",
                "Channel 01/0 : 0[0] -> 8[0] [send] via NET/Socket/0",
            ),
            "socket",
            id="the slowest channel",
        ),
        pytest.param(log(*OFI), "efa", id="EFA, begun"),
        pytest.param(log(*OFI, "Using network AWS Libfabric"), "efa", id="EFA, older name"),
        pytest.param(log(*OFI, "Using network Libfabric"), "efa", id="EFA"),
        pytest.param(
            log("Channel 05/0 : 0[0] -> 1[1] [receive] via NET/AWS Libfabric/1/GDRDMA"),
            "efa",
            id="EFA, channels",
        ),
        pytest.param(
            log("NET/OFI Selected Provider is tcp (found 2 nics)", "Using network AWS Libfabric"),
            "ofi",
            id="libfabric over TCP",
        ),
        pytest.param(
            log("NET/OFI Initializing aws-ofi-nccl 1.14.0", SOCKET, "Using network Socket"),
            "socket",
            id="EFA that failed",
        ),
        pytest.param(log(*FASTRAK), "tcpxo", id="TCPXO, begun"),
        pytest.param(log(*FASTRAK, "Using network FasTrak"), "tcpxo", id="TCPXO"),
        pytest.param(
            log("Channel 00/0 : 0[0] -> 8[0] [send] via NET/FasTrak/0/GDRDMA"),
            "tcpxo",
            id="TCPXO, channels",
        ),
        pytest.param(log("Using network GPUDirectTCPX_v7"), "gpudirecttcpx_v7", id="another"),
        pytest.param(log("Using network FastSocket"), "fastsocket", id="Google's sockets"),
    ],
)
def test_which_network_was_taken(text: str, expected: str | None) -> None:
    assert fabric_of(text) == expected


VARIABLES = ("NCCL_DEBUG", "NCCL_DEBUG_SUBSYS", "NCCL_DEBUG_FILE")


@pytest.mark.parametrize(
    ("given", "level", "subsystems", "file"),
    [
        ({}, "INFO", "INIT,NET", None),
        ({"NCCL_DEBUG": "WARN", "NCCL_DEBUG_SUBSYS": "TUNING"}, "INFO", "TUNING,INIT,NET", None),
        ({"NCCL_DEBUG": "TRACE", "NCCL_DEBUG_SUBSYS": "ALL"}, "TRACE", "ALL", None),
        ({"NCCL_DEBUG_FILE": "/tmp/nccl-%h-%p"}, "INFO", "INIT,NET", "/tmp/nccl-{host}-{pid}"),
    ],
)
def test_nccl_is_asked_to_say_so(
    given: dict[str, str],
    level: str,
    subsystems: str,
    file: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, given.get(name, ""))
    found = listen(tmp_path / "logs" / "nccl.log")
    assert (os.environ["NCCL_DEBUG"], os.environ["NCCL_DEBUG_SUBSYS"]) == (level, subsystems)
    if file is None:
        assert found == tmp_path / "logs" / "nccl.log"
        assert found.parent.is_dir()
        assert os.environ["NCCL_DEBUG_FILE"] == str(found)
    else:
        assert str(found) == file.format(host=socket.gethostname(), pid=os.getpid())
        assert os.environ["NCCL_DEBUG_FILE"] == given["NCCL_DEBUG_FILE"]
