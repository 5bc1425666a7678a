"""The pods of a run: Ray's head with the driver, and one pod of workers per node."""

from __future__ import annotations

from typing import Any

from launcher.kuberay import fabric
from rotescale.kuberay_spec import KubeRaySpec, PodShape, WorkerShape
from rotescale.nodes import HOST_VARIABLE
from rotescale.probe import VARIABLE

SPEC_FOLDER = "/etc/rotescale"
"""Where the driver finds the experiment and the launch spec."""
LOCAL_FOLDER = "/local"
"""A folder of each pod, for copies of what lies in a bucket."""
HOME_FOLDER = "/home/rotescale"
"""The user's home: caches of libraries, such as Triton's kernels and matplotlib's fonts."""
_OWN_FOLDERS = {"local": LOCAL_FOLDER, "tmp": "/tmp", "home": HOME_FOLDER}
"""What a pod may write to beside its claims, on the node's own disk, by the volume's name. Ray's
sessions, logs and spilled objects are in /tmp."""
USER_ID = 1000
"""The image's user, who is not root."""
HEAD = "ray-head"
"""The head's container."""
HEAD_GRACE_SECONDS = 60
"""How much longer than the workers' the head's grace is: they save through it."""
_MARGIN_SECONDS = 15
"""What a hook leaves of the grace for the container to end."""

_ENVIRONMENT = {
    "HOME": HOME_FOLDER,
    "NCCL_DEBUG": "WARN",
    "PYTHONUNBUFFERED": "1",
    "ROTESCALE_LOCAL": LOCAL_FOLDER,
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
}


def head_pod(kuberay: KubeRaySpec, *, labels: dict[str, str], spec_map: str) -> dict[str, Any]:
    """The template of the head's pod; ``spec_map`` is the ConfigMap that it reads."""
    grace = kuberay.grace_seconds + HEAD_GRACE_SECONDS
    container: dict[str, Any] = {
        **_container(kuberay, name=HEAD),
        "ports": [
            {"containerPort": 6379, "name": "gcs-server"},
            {"containerPort": 8265, "name": "dashboard"},
        ],
        "env": _variables(kuberay, {}),
        "resources": _resources(kuberay.head, {}),
        # The workers cannot save without it.
        "lifecycle": _before_stop("outlive", grace - _MARGIN_SECONDS),
        "volumeMounts": [
            *_mounts(kuberay),
            {"name": "spec", "mountPath": SPEC_FOLDER, "readOnly": True},
        ],
    }
    _set_command(container, fabric.plain_command(kuberay.fabric))
    spec = {
        **_pod(kuberay, kuberay.head, grace=grace),
        "containers": [container],
        "volumes": [*_volumes(kuberay), {"name": "spec", "configMap": {"name": spec_map}}],
    }
    return {"metadata": {"labels": labels}, "spec": spec}


def worker_pod(
    kuberay: KubeRaySpec, *, gpus_per_worker: int, labels: dict[str, str]
) -> dict[str, Any]:
    """The template of a node's pod of workers."""
    shape, added = kuberay.workers, fabric.parts_of(kuberay.fabric)
    num_gpus = shape.per_node * gpus_per_worker
    devices: dict[str, int | str] = {shape.gpu_resource: num_gpus} if num_gpus else {}
    grace = kuberay.grace_seconds
    container: dict[str, Any] = {
        **_container(kuberay, name="ray-worker", capabilities=added.capabilities),
        "env": [
            # A pod that is made again has a new name and address; its node's name stays.
            {"name": HOST_VARIABLE, "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
            *_variables(kuberay, dict(added.environment)),
        ],
        "resources": _resources(shape, {**devices, **added.resources}),
        "lifecycle": _before_stop("leave", grace - _MARGIN_SECONDS),
        "volumeMounts": [
            *_mounts(kuberay),
            {"name": "shared-memory", "mountPath": "/dev/shm"},
            *added.mounts,
        ],
    }
    _set_command(container, added.command)
    spec = {
        **_pod(kuberay, shape, grace=grace),
        "containers": [container, *added.sidecars],
        "volumes": [*_volumes(kuberay), _shared_memory(shape), *added.volumes],
    }
    annotations = {**added.annotations, **_topology(kuberay)}
    metadata = {"labels": labels, **({"annotations": annotations} if annotations else {})}
    return {"metadata": metadata, "spec": spec}


def probe_pod(kuberay: KubeRaySpec, *, name: str, launch: str) -> dict[str, Any]:
    """A pod that looks around where the head would run, and ends; ``launch`` is a spec as JSON."""
    shape = kuberay.head.model_copy(update={"cpus": 1, "memory": "2Gi"})
    container = {
        **_container(kuberay, name="probe"),
        "command": ["python", "-m", "rotescale.probe"],
        "env": _variables(kuberay, {VARIABLE: launch}),
        "resources": _resources(shape, {}),
        "volumeMounts": _mounts(kuberay),
    }
    spec = {
        **_pod(kuberay, shape, grace=30),
        "containers": [container],
        "volumes": _volumes(kuberay),
    }
    metadata = {
        "name": name,
        "namespace": kuberay.namespace,
        "labels": {"app.kubernetes.io/name": "rotescale"},
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def _pod(kuberay: KubeRaySpec, shape: PodShape, *, grace: int) -> dict[str, Any]:
    """What head and workers have in common."""
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": grace,
        "serviceAccountName": kuberay.service_account,
        # Nothing in a run talks to Kubernetes.
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    if kuberay.pull_secret is not None:
        pod["imagePullSecrets"] = [{"name": kuberay.pull_secret}]
    if shape.node_selector:
        pod["nodeSelector"] = dict(shape.node_selector)
    if shape.tolerations:
        pod["tolerations"] = [one.model_dump(exclude_none=True) for one in shape.tolerations]
    return pod


def _container(
    kuberay: KubeRaySpec, *, name: str, capabilities: tuple[str, ...] = ()
) -> dict[str, Any]:
    allowed = {"add": list(capabilities)} if capabilities else {}
    return {
        "name": name,
        "image": kuberay.image,
        "imagePullPolicy": "IfNotPresent",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"], **allowed},
        },
    }


def _set_command(container: dict[str, Any], command: tuple[str, ...]) -> None:
    if command:
        container["command"], container["args"] = list(command[:-1]), [command[-1]]


def _variables(kuberay: KubeRaySpec, added: dict[str, str]) -> list[dict[str, Any]]:
    plain = {**_ENVIRONMENT, **added, **kuberay.environment}
    references = {
        name: {"secretKeyRef": {"name": one.secret, "key": one.key}}
        for name, one in kuberay.secrets.items()
    }
    return [
        # Kubernetes would put another variable's value in place of $(NAME); $$ is a dollar.
        *({"name": name, "value": text.replace("$", "$$")} for name, text in plain.items()),
        *({"name": name, "valueFrom": reference} for name, reference in references.items()),
    ]


def _resources(shape: PodShape, devices: dict[str, int | str]) -> dict[str, Any]:
    amounts = {"cpu": str(shape.cpus), "memory": shape.memory}
    amounts |= {name: str(amount) for name, amount in devices.items()}
    return {"limits": amounts, "requests": dict(amounts)}


def _mounts(kuberay: KubeRaySpec) -> list[dict[str, Any]]:
    claims: list[dict[str, Any]] = [
        {"name": f"volume-{number}", "mountPath": volume.path, "readOnly": volume.read_only}
        for number, volume in enumerate(kuberay.volumes)
    ]
    own = [{"name": name, "mountPath": folder} for name, folder in _OWN_FOLDERS.items()]
    return [*claims, *own]


def _volumes(kuberay: KubeRaySpec) -> list[dict[str, Any]]:
    claims: list[dict[str, Any]] = [
        {
            "name": f"volume-{number}",
            "persistentVolumeClaim": {"claimName": volume.claim, "readOnly": volume.read_only},
        }
        for number, volume in enumerate(kuberay.volumes)
    ]
    return [*claims, *({"name": name, "emptyDir": {}} for name in _OWN_FOLDERS)]


def _shared_memory(shape: WorkerShape) -> dict[str, Any]:
    return {
        "name": "shared-memory",
        "emptyDir": {"medium": "Memory", "sizeLimit": shape.shared_memory},
    }


def _topology(kuberay: KubeRaySpec) -> dict[str, str]:
    if kuberay.topology is None:
        return {}
    how = "required" if kuberay.topology.required else "preferred"
    return {f"kueue.x-k8s.io/podset-{how}-topology": kuberay.topology.level}


def _before_stop(action: str, seconds: int) -> dict[str, Any]:
    command = ["python", "-m", "rotescale.node_drain", action, "--seconds", str(seconds)]
    return {"preStop": {"exec": {"command": command}}}
