"""What KubeRay, Kueue and Kubernetes refuse, or leave waiting for ever, though the API accepts it.

The API server checks types; the operator looks at what fields say together, after the object was
accepted, and where it refuses nothing starts. So each rule is checked here, on what was rendered.
A rule is a function from the RayJob to what is wrong with it and what to do; ``pod_rules`` has
those about a pod.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from launcher.kuberay.names import MAX_JOB_NAME, PRIORITY_LABEL, QUEUE_LABEL
from launcher.kuberay.pod_rules import POD_RULES, Manifest, Rule
from rotescale.credentials import found_in, hidden
from rotescale.errors import SpecError

SUBMISSION_MODES = ("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode")
MAX_WORKER_GROUPS = 17
_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_FIRST_VERSION_WITH_TOKENS = (2, 52)
_GATED = ("networkPolicy", "tlsOptions")
_MAX_MAP_BYTES = 1 << 20
_RESOURCE_PARAMETERS = ("num-cpus", "num-gpus", "memory", "resources")
_ENTRYPOINT = re.compile(
    r"rotescale-launch supervise [a-z/.]+ --on [a-z/.]+ --once --tell( --retry-before [0-9T:+-]+)?"
)


def check(manifests: list[Manifest]) -> None:
    """Raise SpecError that lists every rule which the manifests break."""
    broken = list(broken_rules(manifests))
    if broken:
        raise SpecError("; ".join(hidden(one) for one in broken))


def broken_rules(manifests: list[Manifest]) -> Iterator[str]:
    """What is wrong with the manifests, each with the object that it is about."""
    for manifest in manifests:
        where = f"{manifest['kind']} {manifest['metadata']['name']}"
        rules = JOB_RULES if manifest["kind"] == "RayJob" else OBJECT_RULES
        for rule in rules:
            yield from (f"{where}: {what}" for what in rule(manifest))
    for job in (one for one in manifests if one["kind"] == "RayJob"):
        for place, template in pod_templates(job):
            for rule in POD_RULES:
                yield from (f"{place}: {what}" for what in rule(template))
    yield from _spec_is_there(manifests)


def pod_templates(job: Manifest) -> Iterator[tuple[str, Manifest]]:
    """Place and template of every pod of the job."""
    cluster = job["spec"].get("rayClusterSpec", {})
    if "headGroupSpec" in cluster:
        yield "head pod", cluster["headGroupSpec"]["template"]
    for group in cluster.get("workerGroupSpecs", []):
        yield f"pod of group {group.get('groupName')}", group["template"]


def _name(job: Manifest) -> Iterator[str]:
    name = job["metadata"]["name"]
    if len(name) > MAX_JOB_NAME or not _DNS_1035.fullmatch(name):
        yield (
            f"name {name!r}: a RayJob's is at most {MAX_JOB_NAME} lower-case letters, digits and "
            "dashes, from a letter on; shorten the experiment's name"
        )


def _submission_mode(job: Manifest) -> Iterator[str]:
    mode = job["spec"].get("submissionMode", "K8sJobMode")
    if mode not in SUBMISSION_MODES:
        yield f"submissionMode {mode!r} never starts; use one of {', '.join(SUBMISSION_MODES)}"


def _suspend(job: Manifest) -> Iterator[str]:
    if job["spec"].get("suspend") and not job["spec"].get("shutdownAfterJobFinishes"):
        yield "suspend needs shutdownAfterJobFinishes: true"


def _time_to_live(job: Manifest) -> Iterator[str]:
    seconds = job["spec"].get("ttlSecondsAfterFinished", 0)
    if seconds < 0:
        yield f"ttlSecondsAfterFinished {seconds} is negative; give 0 or more"
    if seconds > 0 and not job["spec"].get("shutdownAfterJobFinishes"):
        yield f"ttlSecondsAfterFinished {seconds} needs shutdownAfterJobFinishes: true"


def _deletion_rules(job: Manifest) -> Iterator[str]:
    spec = job["spec"]
    if not spec.get("deletionStrategy", {}).get("deletionRules"):
        return
    if spec.get("shutdownAfterJobFinishes") or spec.get("ttlSecondsAfterFinished", 0) > 0:
        yield "deletionRules go with neither shutdownAfterJobFinishes nor ttlSecondsAfterFinished"
    if QUEUE_LABEL in job["metadata"].get("labels", {}):
        yield "deletionRules do not go with Kueue, which needs shutdownAfterJobFinishes"


def _sidecar(job: Manifest) -> Iterator[str]:
    spec = job["spec"]
    if spec.get("submissionMode") != "SidecarMode":
        return
    for field in ("clusterSelector", "submitterPodTemplate", "submitterConfig"):
        if field in spec:
            yield f"SidecarMode does not go with {field}; leave it out"
    head = spec.get("rayClusterSpec", {}).get("headGroupSpec", {}).get("template", {})
    policy = head.get("spec", {}).get("restartPolicy", "Never")
    if policy != "Never":
        yield f"SidecarMode: the head's restartPolicy is {policy}; set Never"


def _backoff(job: Manifest) -> Iterator[str]:
    spec = job["spec"]
    limit = spec.get("backoffLimit", 0)
    if limit < 0:
        yield f"backoffLimit {limit} is negative; give 0 or more"
    if limit and "clusterSelector" in spec:
        yield "backoffLimit does not go with clusterSelector; leave one out"
    if limit and spec.get("submissionMode") == "InteractiveMode":
        yield "backoffLimit does not go with InteractiveMode; leave one out"


def _replicas(job: Manifest) -> Iterator[str]:
    cluster = job["spec"].get("rayClusterSpec", {})
    if cluster.get("enableInTreeAutoscaling"):
        return
    for group in cluster.get("workerGroupSpecs", []):
        name = group.get("groupName")
        if "minReplicas" not in group or "maxReplicas" not in group:
            yield f"group {name}: without autoscaling both minReplicas and maxReplicas are needed"
        elif not group["minReplicas"] <= group.get("replicas", 0) <= group["maxReplicas"]:
            yield f"group {name}: replicas are not between minReplicas and maxReplicas"


def _start_parameters(job: Manifest) -> Iterator[str]:
    cluster = job["spec"].get("rayClusterSpec", {})
    groups = [("head", cluster.get("headGroupSpec", {}))]
    groups += [(one.get("groupName"), one) for one in cluster.get("workerGroupSpecs", [])]
    for name, group in groups:
        parameters = group.get("rayStartParams", {})
        if "labels" in parameters:
            yield f"group {name}: labels stand in rayStartParams; set the group's labels"
        given = [key for key in _RESOURCE_PARAMETERS if key in parameters]
        if given and group.get("resources"):
            yield f"group {name}: {given[0]} in rayStartParams beside resources; give one of them"


def _head_takes_no_work(job: Manifest) -> Iterator[str]:
    head = job["spec"].get("rayClusterSpec", {}).get("headGroupSpec", {})
    if head.get("rayStartParams", {}).get("num-cpus") != "0":
        yield 'the head takes work; set num-cpus: "0" in its rayStartParams'
    for field in ("entrypointNumCpus", "entrypointNumGpus", "entrypointResources"):
        if field in job["spec"]:
            yield f"{field} moves the driver off the head; leave it out"


def _authentication(job: Manifest) -> Iterator[str]:
    cluster = job["spec"].get("rayClusterSpec", {})
    if cluster.get("authOptions", {}).get("mode") != "token":
        yield "authOptions.mode is not token, so anyone who reaches the head runs code; write it"
    version = str(cluster.get("rayVersion", "0.0"))
    numbers = tuple(int(part) for part in re.findall(r"[0-9]+", version)[:2])
    if numbers < _FIRST_VERSION_WITH_TOKENS:
        yield f"rayVersion {version} has no token authentication; use 2.52 or later"


def _feature_gates(job: Manifest) -> Iterator[str]:
    cluster = job["spec"].get("rayClusterSpec", {})
    for field in _GATED:
        if field in cluster:
            yield f"{field} needs a feature gate of the operator; leave it out"
    if cluster.get("gcsFaultToleranceOptions", {}).get("backend") == "rocksdb":
        yield "gcsFaultToleranceOptions.backend rocksdb needs a feature gate; leave it out"


def _kueue(job: Manifest) -> Iterator[str]:
    labels, spec = job["metadata"].get("labels", {}), job["spec"]
    if QUEUE_LABEL not in labels:
        if PRIORITY_LABEL in labels:
            yield f"{PRIORITY_LABEL} without {QUEUE_LABEL}; name the queue"
        return
    if "clusterSelector" in spec:
        yield "Kueue takes no RayJob with clusterSelector; leave it out"
    if not spec.get("shutdownAfterJobFinishes"):
        yield "Kueue needs shutdownAfterJobFinishes: true"
    if not spec.get("suspend"):
        yield "Kueue starts what is suspended; set suspend: true"
    groups = len(spec.get("rayClusterSpec", {}).get("workerGroupSpecs", []))
    if groups > MAX_WORKER_GROUPS:
        yield f"{groups} worker groups; Kueue takes {MAX_WORKER_GROUPS}"


def _entrypoint(job: Manifest) -> Iterator[str]:
    if not _ENTRYPOINT.fullmatch(job["spec"].get("entrypoint", "")):
        yield "the entrypoint is not the fixed command; a shell reads it, so no value goes in"


def _grace(job: Manifest) -> Iterator[str]:
    graces = []
    for place, template in pod_templates(job):
        grace = template["spec"].get("terminationGracePeriodSeconds", 30)
        graces.append(grace)
        command = _before_stop(template["spec"]["containers"][0])
        if not command:
            yield f"{place} has no preStop hook; without it a save is cut off"
        elif not int(command[-1]) < grace:
            yield f"{place}: its preStop takes {command[-1]} s of a grace of {grace}; shorten it"
    if graces and any(grace >= graces[0] for grace in graces[1:]):
        yield f"the head's grace of {graces[0]} s ends before the workers'; make it longer"


def _before_stop(container: Manifest) -> list[str]:
    hook = container.get("lifecycle", {}).get("preStop", {})
    command: list[str] = hook.get("exec", {}).get("command", [])
    return command


def _no_credentials(manifest: Manifest) -> Iterator[str]:
    for place, text in _texts(manifest, ""):
        kind = found_in(text)
        if kind is not None:
            yield (
                f"{place} holds {kind}; put it into a secret of the namespace and name that under "
                "kuberay.secrets"
            )


def _texts(node: Any, place: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, dict):
        for key, value in node.items():
            inner = f"{place}.{key}".lstrip(".")
            yield f"a key in {place or 'it'}", str(key)
            yield from _texts(value, inner)
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from _texts(value, f"{place}.{number}")
    elif isinstance(node, str):
        yield place, node


def _map_size(manifest: Manifest) -> Iterator[str]:
    size = len(json.dumps(manifest, ensure_ascii=False).encode())
    if manifest["kind"] == "ConfigMap" and size > _MAX_MAP_BYTES:
        yield f"{size} bytes, and Kubernetes takes {_MAX_MAP_BYTES}; put lists of the spec in files"


def _spec_is_there(manifests: list[Manifest]) -> Iterator[str]:
    maps = {one["metadata"]["name"] for one in manifests if one["kind"] == "ConfigMap"}
    for job in (one for one in manifests if one["kind"] == "RayJob"):
        for place, template in pod_templates(job):
            for volume in template["spec"].get("volumes", []):
                name = volume.get("configMap", {}).get("name")
                if name is not None and name not in maps:
                    yield f"{place}: ConfigMap {name} is not among the manifests; add it"


OBJECT_RULES: tuple[Rule, ...] = (_no_credentials, _map_size)
JOB_RULES: tuple[Rule, ...] = (
    _name,
    _submission_mode,
    _suspend,
    _time_to_live,
    _deletion_rules,
    _sidecar,
    _backoff,
    _replicas,
    _start_parameters,
    _head_takes_no_work,
    _authentication,
    _feature_gates,
    _kueue,
    _entrypoint,
    _grace,
    _no_credentials,
)
