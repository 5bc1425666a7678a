"""Mistakes in a pod's template that a custom resource's schema lets pass, and privileges."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

Manifest = dict[str, Any]
Rule = Callable[[Manifest], Iterator[str]]

_CAPABILITIES = {
    "ray-worker": {"IPC_LOCK"},
    "tcpxo-daemon": {"NET_ADMIN", "NET_BIND_SERVICE"},
}
_HOST_PATHS = {"/home/kubernetes/bin/nvidia/lib64", "/dev/aperture_devices", "/sys", "/proc/sys"}


def _mounts(template: Manifest) -> Iterator[str]:
    spec = template["spec"]
    names = [volume["name"] for volume in spec.get("volumes", [])]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"volume {name} is given twice"
    for container in _containers(template):
        mounts = container.get("volumeMounts", [])
        for mount in mounts:
            if mount["name"] not in names:
                yield f"volumeMount {mount['name']} of {container['name']} has no volume; add it"
        paths = sorted(mount["mountPath"] for mount in mounts)
        for one, other in pairwise(paths):
            if one == other:
                yield f"two volumes are mounted at {one} in {container['name']}"


def _restart_policy(template: Manifest) -> Iterator[str]:
    policy = template["spec"].get("restartPolicy", "Always")
    if policy != "Never":
        yield f"restartPolicy {policy}: a container that comes back is another Ray node; set Never"


def _requests_are_limits(template: Manifest) -> Iterator[str]:
    for container in _containers(template):
        resources = container.get("resources", {})
        missing = {"cpu", "memory"} - set(resources.get("limits", {}))
        if missing or resources.get("requests") != resources.get("limits"):
            yield f"requests and limits of {container['name']} differ or lack cpu or memory"


def _privileges(template: Manifest) -> Iterator[str]:
    spec = template["spec"]
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field):
            yield f"{field} is set; leave it out"
    if spec.get("automountServiceAccountToken") is not False:
        yield "a token for Kubernetes is mounted; set automountServiceAccountToken: false"
    for container in _containers(template):
        context = container.get("securityContext", {})
        capabilities = context.get("capabilities", {})
        if "ALL" not in capabilities.get("drop", []):
            yield f"{container['name']} keeps capabilities; drop ALL"
        extra = set(capabilities.get("add", [])) - _CAPABILITIES.get(container["name"], set())
        if extra:
            names = ", ".join(sorted(extra))
            yield f"{container['name']} adds {names}; its fabric does not need it"
        if context.get("privileged") or context.get("allowPrivilegeEscalation") is not False:
            yield f"{container['name']} may gain privileges; set allowPrivilegeEscalation: false"


def _host_paths(template: Manifest) -> Iterator[str]:
    allowed = set() if len(template["spec"]["containers"]) == 1 else _HOST_PATHS
    for volume in template["spec"].get("volumes", []):
        path = volume.get("hostPath", {}).get("path")
        if path is not None and path not in allowed:
            yield f"host path {path} is mounted; its fabric does not need it"


def _not_root(template: Manifest) -> Iterator[str]:
    if template["spec"].get("securityContext", {}).get("runAsNonRoot") is not True:
        yield "runs as root where the image does; set runAsNonRoot: true"
    if template["spec"]["containers"][0].get("securityContext", {}).get("runAsUser") == 0:
        yield "the container of Ray runs as root; leave runAsUser to the pod"


def _image_stays_as_it_is(template: Manifest) -> Iterator[str]:
    # The first is ours; what Google's daemon writes is not known here.
    container = template["spec"]["containers"][0]
    if container.get("securityContext", {}).get("readOnlyRootFilesystem") is not True:
        yield f"{container['name']} may change its image; set readOnlyRootFilesystem: true"
    mounted = {mount["mountPath"] for mount in container.get("volumeMounts", [])}
    home = next((one["value"] for one in container.get("env", []) if one["name"] == "HOME"), "")
    for folder in ("/tmp", home):
        if folder not in mounted:
            yield (
                f"{container['name']} has nowhere to write {folder or 'HOME'}; mount an emptyDir"
            )


def _secrets_by_reference(template: Manifest) -> Iterator[str]:
    for container in _containers(template):
        for variable in container.get("env", []):
            name = variable["name"]
            if name.startswith("RAY_AUTH"):
                yield f"{name} is set by the operator; leave it out"
            if "valueFrom" in variable and "value" in variable:
                yield f"{name} has a value and a reference; leave the value out"


def _containers(template: Manifest) -> list[Manifest]:
    spec = template["spec"]
    return [*spec.get("initContainers", []), *spec["containers"]]


POD_RULES: tuple[Rule, ...] = (
    _mounts,
    _restart_policy,
    _requests_are_limits,
    _privileges,
    _host_paths,
    _not_root,
    _image_stays_as_it_is,
    _secrets_by_reference,
)
