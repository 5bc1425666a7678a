"""Whether a Kubernetes cluster can run an experiment: what it serves, holds and allows."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from launcher.doctor import Check, Verdict, answer_of, inside_checks
from launcher.kuberay.cluster import (
    CONFIG_MAPS,
    EVENTS,
    FORBIDDEN,
    PODS,
    RAY_JOBS,
    WORKLOADS,
    Kind,
    KubernetesCluster,
    RefusedError,
)
from launcher.kuberay.kueue_doctor import queue_checks
from launcher.kuberay.pods import head_pod, probe_pod, worker_pod
from launcher.kuberay.render import render
from launcher.kuberay.room import SUBMITTER_REQUESTS, Pod, room_beside
from launcher.kuberay.situation import situation
from rotescale.errors import SpecError
from rotescale.kuberay_spec import KubeRaySpec
from rotescale.launch_spec import LaunchSpec
from rotescale.spec import ExperimentSpec
from rotescale.spec_file import dump_json, parse_spec

Object = dict[str, Any]

NEEDED: tuple[tuple[str, Kind], ...] = (
    *((verb, RAY_JOBS) for verb in ("get", "list", "create", "delete")),
    *((verb, CONFIG_MAPS) for verb in ("list", "create", "patch", "delete")),
    ("list", PODS),
    ("get", Kind("v1", "pods/log")),
    ("list", EVENTS),
)
"""Every call that the launcher makes for a run."""
NEEDED_WITH_QUEUE: tuple[tuple[str, Kind], ...] = (("list", WORKLOADS),)
NEEDED_TO_PROBE: tuple[tuple[str, Kind], ...] = (
    *((verb, PODS) for verb in ("get", "create", "delete")),
)

_CLAIMS = Kind("v1", "persistentvolumeclaims")
_ACCOUNTS = Kind("v1", "serviceaccounts")
_SECRETS = Kind("v1", "secrets")
_PRIORITIES = Kind("kueue.x-k8s.io/v1beta2", "workloadpriorityclasses", is_namespaced=False)
_NODES = Kind("v1", "nodes", is_namespaced=False)
_TRIAL: Object = {
    "model": {"weights": {"kind": "random", "architecture": "llama-3.2-1b"}},
    "facts": {"source": "shipped", "relations": ["mother"]},
    "phases": [
        {
            **{"name": "memorize", "text": "key_token", "loss": "all", "epochs": 1},
            **{"global_batch": 1, "learning_rate": 1e-3, "schedule": "linear"},
        }
    ],
}
"""The least experiment: to Kubernetes all look alike."""
_ON_DEMAND = "fine where nodes are made on demand; else ask for less, or correct {selector}"
_PROBE_SECONDS = 600.0
_POLL_SECONDS = 1.0


def kuberay_checks(
    launch: LaunchSpec,
    *,
    with_probe: bool,
    cluster: KubernetesCluster | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Check]:
    """Of the cluster that the launch spec names. May raise what KubernetesCluster raises."""
    kuberay = launch.kuberay
    assert kuberay is not None, launch.name
    cluster = cluster or KubernetesCluster(kuberay.context, kuberay.namespace, patience_seconds=5.0)
    version = cluster.raw("/version") or {}
    yield Check("API server", "ok", f"Kubernetes {version.get('gitVersion', 'of unknown version')}")
    served = _served(cluster, "KubeRay", RAY_JOBS, "install KubeRay 1.7 or later with its CRDs")
    yield served
    yield from _rights(cluster, kuberay, with_probe=with_probe)
    if served.verdict == "ok" and cluster.may("create", RAY_JOBS):
        yield _trial(cluster, launch)
    if kuberay.queue is not None:
        yield _served(cluster, "Kueue", WORKLOADS, "install Kueue 0.19, or leave out kuberay.queue")
        yield from _as_far_as_allowed("queue", queue_checks(cluster, kuberay))
    yield from _as_far_as_allowed("claims", _claims(cluster, kuberay))
    yield from _named(cluster, kuberay)
    yield from _nodes(cluster, launch, kuberay)
    if with_probe:
        yield from _as_far_as_allowed("inside", _probe(cluster, launch, sleep), verdict="fail")
    else:
        yield Check(
            "inside",
            "warn",
            "image, secrets and storage were not tried from a pod",
            "add --probe, which runs a small pod of the run's image",
        )


def _served(cluster: KubernetesCluster, name: str, kind: Kind, remedy: str) -> Check:
    found = cluster.raw(f"/apis/{kind.group}")
    names = [] if found is None else [one["name"] for one in found.get("resources", [])]
    if kind.plural in names:
        return Check(name, "ok", f"{kind.plural} of {kind.group} are served")
    return Check(name, "fail", f"{kind.plural} of {kind.group} are not served", remedy)


def _as_far_as_allowed(
    name: str, checks: Iterator[Check], *, verdict: Verdict = "warn"
) -> Iterator[Check]:
    """The checks, up to one that this account may not make: a line says so, and others follow."""
    try:
        yield from checks
    except RefusedError as error:
        if error.status != FORBIDDEN:
            raise
        yield Check(
            name,
            verdict,
            f"this account may not do what it takes to look: {error}",
            "bind the role of k8s/base/rbac.yaml to it, or ask whoever runs the cluster",
        )


def _trial(cluster: KubernetesCluster, launch: LaunchSpec) -> Check:
    """What the server says of a RayJob for this place, of which it creates nothing."""
    name = f"rotescale-doctor-{uuid.uuid4().hex[:8]}"
    spec = parse_spec(ExperimentSpec, {"name": name, **_TRIAL}, where="doctor")
    try:
        cluster.create(render(spec, launch)[1], dry_run=True)
    except RefusedError as error:
        return Check(
            "RayJob",
            "fail",
            str(error),
            "bring KubeRay's CRDs to 1.7 or later; helm upgrade leaves them as they are, so "
            "kubectl apply --server-side them",
        )
    except SpecError as error:
        return Check("RayJob", "fail", str(error), "correct the launch spec")
    return Check("RayJob", "ok", "the server would take one of this place, field by field")


def _rights(
    cluster: KubernetesCluster, kuberay: KubeRaySpec, *, with_probe: bool
) -> Iterator[Check]:
    needed = [
        *NEEDED,
        *(NEEDED_WITH_QUEUE if kuberay.queue is not None else ()),
        *(NEEDED_TO_PROBE if with_probe else ()),
    ]
    missing = [f"{verb} {kind.plural}" for verb, kind in needed if not cluster.may(verb, kind)]
    if missing:
        yield Check(
            "rights",
            "fail",
            f"this account may not {', '.join(missing)} in {kuberay.namespace}",
            "bind the role of k8s/base/rbac.yaml to it",
        )
    else:
        yield Check("rights", "ok", f"all {len(needed)} calls are allowed in {kuberay.namespace}")


def _claims(cluster: KubernetesCluster, kuberay: KubeRaySpec) -> Iterator[Check]:
    for volume in kuberay.volumes:
        name = f"claim {volume.claim}"
        claim = cluster.get(_CLAIMS, volume.claim)
        if claim is None:
            yield Check(
                name,
                "fail",
                f"there is none in {kuberay.namespace}",
                "create it (k8s/base/storage.yaml shows one)",
            )
            continue
        modes = claim["spec"].get("accessModes", [])
        wanted = {"ReadWriteMany", "ReadOnlyMany"} if volume.read_only else {"ReadWriteMany"}
        phase = claim.get("status", {}).get("phase", "unknown")
        if not wanted & set(modes):
            yield Check(
                name,
                "fail",
                f"its access modes are {', '.join(modes)}, and several nodes mount it",
                f"take a storage class that offers {' or '.join(sorted(wanted))}, such as NFS",
            )
        elif phase not in ("Bound", "Pending"):
            yield Check(name, "fail", f"it is {phase}", "kubectl describe pvc says why")
        else:
            yield Check(name, "ok", f"{phase}, {', '.join(modes)}, at {volume.path}")


def _named(cluster: KubernetesCluster, kuberay: KubeRaySpec) -> Iterator[Check]:
    """What the pods refer to by name."""
    account = kuberay.service_account
    yield from _exists(cluster, _ACCOUNTS, account, "ServiceAccount", "kuberay.service_account")
    secrets = {one.secret for one in kuberay.secrets.values()}
    secrets |= {one for one in (kuberay.pull_secret, kuberay.auth_secret) if one is not None}
    for secret in sorted(secrets):
        yield from _exists(cluster, _SECRETS, secret, "Secret", "its name in kuberay")
    if kuberay.priority is not None:
        kind = "WorkloadPriorityClass"
        yield from _exists(cluster, _PRIORITIES, kuberay.priority, kind, "kuberay.priority")


def _exists(
    cluster: KubernetesCluster, kind: Kind, name: str, what: str, field: str
) -> Iterator[Check]:
    try:
        found = cluster.get(kind, name)
    except RefusedError:
        yield Check(
            f"{what} {name}",
            "warn",
            "this account may not look",
            "that is as it should be for secrets; --probe tries it from a pod",
        )
        return
    if found is None:
        yield Check(f"{what} {name}", "fail", "there is none", f"create it, or correct {field}")
    else:
        yield Check(f"{what} {name}", "ok", "it is there")


def _nodes(cluster: KubernetesCluster, launch: LaunchSpec, kuberay: KubeRaySpec) -> Iterator[Check]:
    """Whether the cluster's nodes, empty, could hold the pods as they are rendered."""
    try:
        nodes = cluster.find(_NODES)
    except RefusedError:
        yield Check(
            "nodes", "warn", "this account may not list nodes", "ask whoever runs the cluster"
        )
        return
    head = Pod.of(head_pod(kuberay, labels={}, spec_map=""), added=SUBMITTER_REQUESTS)
    workers = Pod.of(worker_pod(kuberay, gpus_per_worker=launch.gpus_per_worker, labels={}))
    wanted = launch.num_workers[1] // kuberay.workers.per_node
    yield _room("nodes", workers, nodes, wanted=wanted, selector="workers.node_selector")
    alone, room = workers.room(nodes), room_beside(head, workers, nodes)
    if alone >= wanted > room:
        yield Check(
            "head's node",
            "warn",
            f"the head's pod of {head.words} takes a node of the workers: beside it there is room "
            f"for {room} of their pods; {wanted} are wanted",
            _ON_DEMAND.format(selector="head.node_selector"),
        )
    else:
        yield _room("head's node", head, nodes, wanted=1, selector="head.node_selector")


def _room(name: str, pod: Pod, nodes: list[Object], *, wanted: int, selector: str) -> Check:
    labelled = pod.labelled(nodes)
    holding = sum(pod.on(node) > 0 for node in labelled)
    room = pod.room(nodes)
    words = f"{holding} of {len(labelled)} nodes with the labels hold a pod of {pod.words}"
    words = "; ".join((words, *pod.obstacles(labelled), f"room for {room}, {wanted} wanted"))
    if room >= wanted:
        return Check(name, "ok", words)
    return Check(name, "warn", words, _ON_DEMAND.format(selector=selector))


def _probe(
    cluster: KubernetesCluster, launch: LaunchSpec, sleep: Callable[[float], None]
) -> Iterator[Check]:
    kuberay = launch.kuberay
    assert kuberay is not None, launch.name
    name = f"rotescale-probe-{uuid.uuid4().hex[:8]}"
    pod = probe_pod(kuberay, name=name, launch=dump_json(launch.inside_the_cluster()))
    cluster.create(pod)
    try:
        found = _wait_for_answer(cluster, name, sleep)
        if isinstance(found, str):
            yield Check(
                "inside", "fail", found, "kubectl describe pod, while --probe runs, has more"
            )
            return
        yield Check("image", "ok", f"{kuberay.image} was pulled, and its secrets are there")
        yield from inside_checks(found, launch, ray_version=kuberay.ray_version)
    finally:
        cluster.delete(PODS, name)


def _wait_for_answer(
    cluster: KubernetesCluster, name: str, sleep: Callable[[float], None]
) -> dict[str, Any] | str:
    """What the probe found, or why there is nothing."""
    deadline = time.monotonic() + _PROBE_SECONDS
    reason = ""
    while time.monotonic() < deadline:
        pod = cluster.get(PODS, name)
        if pod is None:
            return "the probe's pod was deleted by somebody else"
        if pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
            found = answer_of(cluster.log(name, "probe"))
            return found or "the probe's pod ended without an answer; is rotescale in the image?"
        events = [
            one for one in cluster.find(EVENTS) if one.get("involvedObject", {}).get("name") == name
        ]
        reason = why_it_waits(pod, events)
        if any(word in reason for word in ("ImagePull", "InvalidImage", "CreateContainer")):
            return reason
        sleep(_POLL_SECONDS)
    return f"the probe's pod has not ended in {_PROBE_SECONDS:.0f} s: {reason}"


def why_it_waits(pod: Object, events: list[Object]) -> str:
    """Why a pod does not run, as a run's status would say it."""
    stand_in = {"metadata": {"name": "", "labels": {}}, "spec": {}}
    return situation(stand_in, pods=[pod], events=events).reason
