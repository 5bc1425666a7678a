"""How KubeRay places a run on Kubernetes: pods, queue, storage, secrets, fabric, deadlines."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from rotescale.credentials import names_one
from rotescale.spec import CONFIDENTIAL, Part

RAY_VERSION = "2.60.0"
"""The Ray of the shipped image."""

MOST_GRACE_SECONDS = 3600
_INT32 = 2**31 - 1
_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_SUBDOMAIN = rf"{_LABEL}(\.{_LABEL})*"
_VALUE = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_TAG = r":[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_DIGEST = r"@sha256:[0-9a-f]{64}"
_IMAGE = rf"[a-z0-9][a-z0-9._-]*(:[0-9]{{1,5}})?(/[a-z0-9][a-z0-9._-]*)*({_TAG})?({_DIGEST})?"
_QUANTITY = re.compile(r"([1-9][0-9]{0,5})(Mi|Gi|Ti)")
_UNITS = {"Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}

Label = Annotated[str, StringConstraints(pattern=f"^{_LABEL}$")]
"""A name as DNS allows it: lower-case letters, digits and dashes."""
ObjectName = Annotated[str, StringConstraints(pattern=f"^{_SUBDOMAIN}$", max_length=253)]
"""The name of a Kubernetes object."""
QualifiedName = Annotated[
    str, StringConstraints(pattern=f"^({_SUBDOMAIN}/)?{_VALUE}$", max_length=253)
]
"""The key of a label, a taint or a resource, such as ``nvidia.com/gpu``."""
LabelValue = Annotated[str, StringConstraints(pattern=f"^({_VALUE})?$", max_length=63)]
Image = Annotated[str, StringConstraints(pattern=f"^{_IMAGE}$", max_length=255)]
Quantity = Annotated[str, StringConstraints(pattern=f"^{_QUANTITY.pattern}$")]
"""Memory, such as ``32Gi``."""
VariableName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=128)
]
PlainText = Annotated[str, StringConstraints(pattern=r"^[ -~]*$", max_length=2048)]
"""Printable ASCII, on one line."""
ContextName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]*$", max_length=253)
]
FolderPath = Annotated[
    str, StringConstraints(pattern=r"^(/[A-Za-z0-9][A-Za-z0-9._-]*)+$", max_length=512)
]
"""An absolute path without ``..``, of letters, digits and ``. _ -``."""
Version = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,4}\.[0-9]{1,4}\.[0-9]{1,4}$")]
Seconds = Annotated[int, Field(ge=1, le=_INT32)]

_RESERVED = re.compile(
    r"RAY_(?!TRAIN_)|KUBERAY_|KUBERNETES_|LD_|PYTHON(PATH|HOME|STARTUP)|PATH$|BASH_ENV$"
    r"|ROTESCALE_(HOST|NODE|RAY_NODE)$"
)
_OURS = ("/etc/rotescale", "/dev", "/proc", "/sys", "/tmp", "/local", "/home", "/usr", "/bin")


def bytes_of(quantity: str) -> int:
    """How many bytes a ``Quantity`` is."""
    match = _QUANTITY.fullmatch(quantity)
    assert match is not None, quantity
    return int(match[1]) * _UNITS[match[2]]


class SecretKey(Part):
    """One key of a Kubernetes secret: a credential by reference, the only way to give one."""

    secret: Annotated[ObjectName, CONFIDENTIAL]
    """Name of the secret, in the run's namespace."""
    key: Annotated[str, CONFIDENTIAL, StringConstraints(pattern=r"^[-._a-zA-Z0-9]{1,253}$")]
    """The key in it."""


class VolumeMount(Part):
    """A persistent volume claim that all pods see; ReadWriteMany unless it is read only."""

    claim: ObjectName
    """Name of the claim."""
    path: FolderPath
    """Where the pods see it."""
    read_only: bool = False
    """For models that nobody writes."""

    @field_validator("path")
    @classmethod
    def _not_in_our_way(cls, value: str) -> str:
        taken = next((folder for folder in _OURS if f"{value}/".startswith(f"{folder}/")), None)
        if taken is not None:
            raise ValueError(f"{taken} is the container's own; mount it elsewhere, such as /shared")
        return value


class Toleration(Part):
    """A taint that does not keep the pods away."""

    key: QualifiedName
    """The taint's key."""
    operator: Literal["Exists", "Equal"] = "Exists"
    """Any value of it, or this one."""
    value: LabelValue | None = None
    """For ``Equal``."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = "NoSchedule"
    """null: any."""

    @model_validator(mode="after")
    def _value_where_compared(self) -> Toleration:
        if (self.operator == "Equal") != (self.value is not None):
            raise ValueError(f"operator {self.operator}: a value goes with Equal, and only with it")
        return self


class PodShape(Part):
    """What a pod asks for, and where it may run. Requests are limits."""

    cpus: Annotated[int, Field(ge=1, le=1024)] = 8
    """CPU cores."""
    memory: Quantity = "32Gi"
    """Host memory; shared memory counts against it."""
    node_selector: dict[QualifiedName, LabelValue] = Field(default={}, max_length=32)
    """Labels that the node must have."""
    tolerations: tuple[Toleration, ...] = Field(default=(), max_length=32)
    """Taints that do not keep the pod away."""


class WorkerShape(PodShape):
    """A pod of workers, one per node."""

    per_node: Annotated[int, Field(ge=1, le=64)] = 8
    """Workers on a node; with GPUs, as many as it has."""
    shared_memory: Quantity = "16Gi"
    """Size of /dev/shm, through which NCCL and Ray pass data inside a node."""
    gpu_resource: QualifiedName = "nvidia.com/gpu"
    """What the device plugin calls a GPU."""


class Topology(Part):
    """How close together Kueue places the nodes."""

    level: QualifiedName
    """The node label that says where a node stands, of a level of the Kueue Topology."""
    required: bool = True
    """Wait until all nodes fit into one such place; else prefer it."""


class NoFabric(Part):
    """Nodes talk over the pods' own network, or there is one node."""

    kind: Literal["none"] = "none"


class InfinibandFabric(Part):
    """InfiniBand through a device plugin. NCCL registers memory, for which pods get IPC_LOCK."""

    kind: Literal["infiniband"]
    resource: QualifiedName = "rdma/ib"
    """What the device plugin calls the adapters."""
    adapters: Annotated[str, StringConstraints(pattern=r"^[\^=]?[a-z0-9_,:]{1,200}$")] = "mlx5"
    """NCCL_IB_HCA: the adapters that NCCL uses."""
    interface: Annotated[str, StringConstraints(pattern=r"^[\^=]?[a-z0-9_.,]{1,100}$")] = "eth0"
    """NCCL_SOCKET_IFNAME: the interface over which NCCL meets."""


class EfaFabric(Part):
    """AWS Elastic Fabric Adapter through its device plugin."""

    kind: Literal["efa"]
    num_adapters: Annotated[int, Field(ge=1, le=64)] = 32
    """Adapters of a node: 32 of a p5.48xlarge."""
    huge_pages: Quantity = "5120Mi"
    """Pages of 2 MiB that EFA takes."""


class TcpxoFabric(Part):
    """Google's GPUDirect-TCPXO: a daemon beside the workers, and eight networks more.

    The daemon runs as root with NET_ADMIN and NET_BIND_SERVICE, and pods mount folders of the host.
    """

    kind: Literal["tcpxo"]
    daemon_image: Image = "us-docker.pkg.dev/gce-ai-infra/gpudirect-tcpxo/tcpgpudmarxd-dev:v1.0.17"
    """Must be of the version of the plugin that the node pool has."""
    networks: tuple[Label, ...] = tuple(f"gpu-nic-{number}" for number in range(8))
    """The cluster's Network objects, one per GPU, in the order of the adapters."""

    @field_validator("networks")
    @classmethod
    def _eight(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != 8:
            raise ValueError(f"{len(set(value))} networks; an a3-megagpu-8g has 8, name each once")
        return value


Fabric = Annotated[
    NoFabric | InfinibandFabric | EfaFabric | TcpxoFabric, Field(discriminator="kind")
]


class KubeRaySpec(Part):
    """A Kubernetes cluster with KubeRay, and how much of it a run gets."""

    context: Annotated[ContextName | None, CONFIDENTIAL] = None
    """The kubeconfig's context; default: its current one. It stands in no manifest."""
    namespace: Label = "rotescale"
    """Where everything is created, and where secrets, claims and queue are."""
    image: Image
    """The container image, with a tag or a digest."""
    pull_secret: Annotated[ObjectName | None, CONFIDENTIAL] = None
    """Name of the secret with which the image is pulled."""
    ray_version: Version = RAY_VERSION
    """The image's Ray; 2.52 or later, which knows token authentication."""
    head: PodShape = PodShape()
    """The pod of Ray's head and the driver; it has no GPU and trains nothing."""
    workers: WorkerShape = WorkerShape()
    """The pods that train; there are as many as ``num_workers`` needs."""
    fabric: Fabric = NoFabric()
    """What connects the nodes' GPUs."""
    queue: Label | None = None
    """Kueue's LocalQueue; null: the pods are created at once."""
    priority: Label | None = None
    """Kueue's WorkloadPriorityClass."""
    topology: Topology | None = None
    """How close together the nodes must be; null: anywhere."""
    volumes: tuple[VolumeMount, ...] = Field(default=(), max_length=16)
    """What ``storage`` and ``model_cache`` lie on, unless it is a bucket."""
    service_account: ObjectName = "rotescale-run"
    """Whose cloud role reads and writes the bucket; it has no rights in Kubernetes."""
    environment: Annotated[dict[VariableName, PlainText], CONFIDENTIAL] = Field(
        default={}, max_length=64
    )
    """Variables of all pods that are no secret."""
    secrets: Annotated[dict[VariableName, SecretKey], CONFIDENTIAL] = Field(
        default={}, max_length=32
    )
    """Variables of all pods that are taken from secrets of the namespace."""
    auth_secret: Annotated[ObjectName | None, CONFIDENTIAL] = None
    """Secret with Ray's token under ``auth_token``; default: the operator makes one per cluster."""
    deadline_seconds: Seconds = 7 * 24 * 3600
    """The run is ended after this time, from its start."""
    start_deadline_seconds: Seconds | None = None
    """It is ended if it does not run after this time; null: it waits."""
    retries: Annotated[int, Field(ge=0, le=100)] = 3
    """How often a lost driver or cluster is started again; each time it resumes."""
    ttl_seconds: Annotated[int, Field(ge=0, le=_INT32)] = 600
    """How long the pods of a finished run stay, for their logs."""
    grace_seconds: Annotated[int, Field(ge=60, le=MOST_GRACE_SECONDS)] = 300
    """How long a pod that is taken away may go on, to save: longer than a save takes."""

    @field_validator("image")
    @classmethod
    def _pinned(cls, value: str) -> str:
        name = value.rpartition("/")[2]
        if "@" not in name and (":" not in name or name.endswith(":latest")):
            raise ValueError("no version; pin it by a tag other than latest, or by a digest")
        return value

    @field_validator("ray_version")
    @classmethod
    def _knows_tokens(cls, value: str) -> str:
        major, minor, _ = (int(part) for part in value.split("."))
        if (major, minor) < (2, 52):
            raise ValueError("before 2.52 Ray has no token authentication; use a newer image")
        return value

    @field_validator("environment")
    @classmethod
    def _no_secrets(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if names_one(name):
                raise ValueError(
                    f"{name} looks like a credential; put it into a secret of the namespace and "
                    "name that under secrets, as NAME: {secret: ..., key: ...}"
                )
        return value

    @field_validator("environment", "secrets")
    @classmethod
    def _not_reserved(cls, value: dict[str, Any]) -> dict[str, Any]:
        taken = [name for name in value if _RESERVED.match(name)]
        if taken:
            raise ValueError(f"{taken[0]} is set by Ray, KubeRay or the image; leave it out")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> KubeRaySpec:
        if self.queue is None and (self.priority is not None or self.topology is not None):
            raise ValueError("priority and topology are Kueue's; name its queue, or leave them out")
        twice = set(self.environment) & set(self.secrets)
        if twice:
            raise ValueError(f"{sorted(twice)[0]} is in environment and in secrets; give it once")
        paths = sorted((f"{volume.path}/" for volume in self.volumes), key=lambda p: p.split("/"))
        for outer, inner in pairwise(paths):
            if inner.startswith(outer):
                raise ValueError(f"volumes {outer} and {inner} lie in each other; move one")
        if bytes_of(self.workers.shared_memory) >= bytes_of(self.workers.memory):
            raise ValueError(
                f"workers.shared_memory {self.workers.shared_memory} counts against "
                f"workers.memory {self.workers.memory}; leave room for the workers"
            )
        return self
