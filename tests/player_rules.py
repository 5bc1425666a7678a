"""What KubeRay's operator refuses after the API server has accepted it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

Object = dict[str, Any]
QUEUE = "kueue.x-k8s.io/queue-name"
MODES = ("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode")
_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_MOST_GROUPS_OF_KUEUE = 17


def refusals(job: Object) -> Iterator[str]:
    """Why a RayJob is refused; the first is the one that is told."""
    yield from _about_its_name(job["metadata"]["name"])
    spec = job["spec"]
    yield from _about_its_end(spec)
    yield from _about_its_mode(spec)
    cluster = spec.get("rayClusterSpec")
    if cluster is None and not spec.get("clusterSelector"):
        yield "one of RayClusterSpec or ClusterSelector must be set"
    if cluster is not None:
        yield from _about_its_cluster(cluster)


def _about_its_name(name: str) -> Iterator[str]:
    if len(name) > 47:
        yield "RayJob name should be no more than 47 characters"
    if not _DNS_1035.fullmatch(name):
        yield f"RayJob name should be a valid DNS1035 label: {name}"


def _about_its_end(spec: Object) -> Iterator[str]:
    shutdown, seconds = spec.get("shutdownAfterJobFinishes"), spec.get("ttlSecondsAfterFinished", 0)
    if spec.get("suspend") and not shutdown:
        yield "a RayJob with shutdownAfterJobFinishes set to false is not allowed to be suspended"
    if seconds < 0:
        yield "ttlSecondsAfterFinished must be a non-negative integer"
    if seconds > 0 and not shutdown:
        yield (
            "a RayJob with shutdownAfterJobFinishes set to false cannot have "
            "ttlSecondsAfterFinished"
        )
    if spec.get("deletionStrategy", {}).get("deletionRules") and (shutdown or seconds > 0):
        yield "deletionRules go with neither shutdownAfterJobFinishes nor ttlSecondsAfterFinished"
    if spec.get("activeDeadlineSeconds", 1) <= 0:
        yield "activeDeadlineSeconds must be a positive integer"


def _about_its_mode(spec: Object) -> Iterator[str]:
    mode, limit = spec.get("submissionMode", "K8sJobMode"), spec.get("backoffLimit", 0)
    if limit < 0:
        yield "backoffLimit must be a positive integer"
    if limit and spec.get("clusterSelector"):
        yield "BackoffLimit is incompatible with clusterSelector"
    if limit and mode == "InteractiveMode":
        yield "BackoffLimit is incompatible with InteractiveMode"
    if mode != "SidecarMode":
        return
    for field in ("clusterSelector", "submitterPodTemplate", "submitterConfig"):
        if spec.get(field):
            yield f"{field} is not supported in SidecarMode"
    head = spec.get("rayClusterSpec", {}).get("headGroupSpec", {}).get("template", {})
    if head.get("spec", {}).get("restartPolicy", "Never") != "Never":
        yield "restartPolicy for head Pod should be Never or unset when using SidecarMode"


def _about_its_cluster(cluster: Object) -> Iterator[str]:
    groups = [("head", cluster["headGroupSpec"])]
    groups += [(one["groupName"], one) for one in cluster.get("workerGroupSpecs", [])]
    for name, group in groups:
        parameters = group.get("rayStartParams") or {}
        if "labels" in parameters:
            yield f"rayStartParams of group {name} must not contain labels; use the group's labels"
        if group.get("resources") and parameters.keys() & {
            *("num-cpus", "num-gpus", "memory", "resources"),
        }:
            yield f"resources of group {name} are set both in rayStartParams and in resources"
    for name, group in groups[1:]:
        if not cluster.get("enableInTreeAutoscaling") and (
            group.get("minReplicas") is None or group.get("maxReplicas") is None
        ):
            yield f"worker group {name} must set both minReplicas and maxReplicas"
    for field in ("networkPolicy", "tlsOptions"):
        if field in cluster:
            yield f"{field} is set, but its feature gate is not enabled"
    if cluster.get("gcsFaultToleranceOptions", {}).get("backend") == "rocksdb":
        yield "backend rocksdb is set, but its feature gate is not enabled"
    if cluster.get("authOptions", {}).get("mode") == "token":
        numbers = re.findall(r"\d+", str(cluster.get("rayVersion", "")))[:2]
        if tuple(map(int, numbers)) < (2, 52):
            version = cluster.get("rayVersion")
            yield f"authOptions.mode token needs Ray 2.52.0 or later, not {version}"


def never_admitted(job: Object) -> str | None:
    """Why Kueue leaves a RayJob alone for ever."""
    spec = job["spec"]
    if spec.get("clusterSelector"):
        return "a kueue managed job should not use an existing cluster"
    if not spec.get("shutdownAfterJobFinishes"):
        return "a kueue managed job should delete the cluster after finishing"
    groups = len(spec.get("rayClusterSpec", {}).get("workerGroupSpecs", []))
    if groups > _MOST_GROUPS_OF_KUEUE:
        return f"{groups} worker groups; must have at most {_MOST_GROUPS_OF_KUEUE} items"
    return None
