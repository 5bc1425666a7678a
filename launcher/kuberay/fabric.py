"""What each fabric needs in the pods of workers, and nothing beyond it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from rotescale.kuberay_spec import EfaFabric, Fabric, InfinibandFabric, NoFabric, TcpxoFabric

OVERWRITE_COMMAND = "ray.io/overwrite-container-cmd"
"""Annotation: KubeRay leaves a container's command alone, and gives its own in a variable."""
START_RAY = "ulimit -n 65536; exec $KUBERAY_GEN_RAY_START_CMD"
"""What a container runs under that annotation. The variable is KubeRay's, and nobody's input."""
_SHELL = ["/bin/bash", "-c", "--"]
_PROFILE = "/usr/local/nvidia/lib64/nccl-env-profile.sh"
_DAEMON = "tcpxo-daemon"


@dataclass(frozen=True)
class FabricParts:
    """What a fabric adds to a worker pod."""

    environment: Mapping[str, str] = field(default_factory=dict)
    resources: Mapping[str, int | str] = field(default_factory=dict)
    capabilities: tuple[str, ...] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)
    mounts: tuple[dict[str, Any], ...] = ()
    volumes: tuple[dict[str, Any], ...] = ()
    sidecars: tuple[dict[str, Any], ...] = ()
    command: tuple[str, ...] = ()
    """What the container runs in place of KubeRay's own; every pod of the job then has one."""


def parts_of(fabric: Fabric) -> FabricParts:
    """What that fabric adds to a worker pod."""
    match fabric:
        case NoFabric():
            return FabricParts()
        case InfinibandFabric():
            return FabricParts(
                environment={
                    "NCCL_IB_HCA": fabric.adapters,
                    "NCCL_SOCKET_IFNAME": fabric.interface,
                },
                resources={fabric.resource: 1},
                capabilities=("IPC_LOCK",),
            )
        case EfaFabric():
            return FabricParts(
                environment={"FI_PROVIDER": "efa"},
                resources={
                    "vpc.amazonaws.com/efa": fabric.num_adapters,
                    "hugepages-2Mi": fabric.huge_pages,
                },
            )
        case TcpxoFabric():
            return _tcpxo(fabric)


def plain_command(fabric: Fabric) -> tuple[str, ...]:
    """The command of a pod without the fabric, such as the head's; empty: KubeRay's own."""
    return (*_SHELL, START_RAY) if parts_of(fabric).command else ()


def _tcpxo(fabric: TcpxoFabric) -> FabricParts:
    return FabricParts(
        environment={
            "LD_LIBRARY_PATH": "/usr/local/nvidia/lib64",
            "NCCL_FASTRAK_LLCM_DEVICE_DIRECTORY": "/dev/aperture_devices",
        },
        annotations={
            "networking.gke.io/default-interface": "eth0",
            "networking.gke.io/interfaces": _interfaces(fabric),
            f"devices.gke.io/container.{_DAEMON}": _devices(),
        },
        mounts=(
            {"name": "nvidia-libraries", "mountPath": "/usr/local/nvidia/lib64", "readOnly": True},
            {"name": "aperture-devices", "mountPath": "/dev/aperture_devices"},
        ),
        volumes=(
            _host("nvidia-libraries", "/home/kubernetes/bin/nvidia/lib64"),
            _host("aperture-devices", "/dev/aperture_devices"),
            _host("host-sys", "/sys"),
            _host("host-proc-sys", "/proc/sys"),
        ),
        sidecars=(_daemon(fabric),),
        # The node's own file says how NCCL is to be set; its settings change with the plugin.
        command=(*_SHELL, f"source {_PROFILE} || exit 1; {START_RAY}"),
    )


def _daemon(fabric: TcpxoFabric) -> dict[str, Any]:
    return {
        "name": _DAEMON,
        "image": fabric.daemon_image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["/fts/entrypoint_rxdm_container.sh"],
        "args": ["--num_hops=2", "--num_nics=8", "--uid=", "--alsologtostderr"],
        "env": [{"name": "LD_LIBRARY_PATH", "value": "/usr/local/nvidia/lib64"}],
        "resources": {
            "limits": {"cpu": "4", "memory": "4Gi"},
            "requests": {"cpu": "4", "memory": "4Gi"},
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_BIND_SERVICE"]},
            "runAsNonRoot": False,
            "runAsUser": 0,
        },
        "volumeMounts": [
            {"name": "nvidia-libraries", "mountPath": "/usr/local/nvidia/lib64", "readOnly": True},
            {"name": "host-sys", "mountPath": "/hostsysfs"},
            {"name": "host-proc-sys", "mountPath": "/hostprocsysfs"},
        ],
    }


def _host(name: str, path: str) -> dict[str, Any]:
    return {"name": name, "hostPath": {"path": path}}


def _interfaces(fabric: TcpxoFabric) -> str:
    names = ("default", *fabric.networks)
    return json.dumps(
        [{"interfaceName": f"eth{i}", "network": name} for i, name in enumerate(names)]
    )


def _devices() -> str:
    names = [*(f"nvidia{i}" for i in range(8)), "nvidiactl", "nvidia-uvm", "dmabuf_import_helper"]
    listed: str = yaml.safe_dump([{"path": f"/dev/{name}"} for name in names])
    return listed
