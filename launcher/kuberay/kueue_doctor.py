"""Whether Kueue would let a run in: its queue, and the flavors and the topology behind it."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.doctor import Check
from launcher.kuberay.cluster import FORBIDDEN, Kind, KubernetesCluster, Object, RefusedError
from rotescale.kuberay_spec import KubeRaySpec

_GROUP = "kueue.x-k8s.io/v1beta2"
_QUEUES = Kind(_GROUP, "localqueues")
_CLUSTER_QUEUES = Kind(_GROUP, "clusterqueues", is_namespaced=False)
_FLAVORS = Kind(_GROUP, "resourceflavors", is_namespaced=False)
_TOPOLOGIES = Kind(_GROUP, "topologies", is_namespaced=False)


def queue_checks(cluster: KubernetesCluster, kuberay: KubeRaySpec) -> Iterator[Check]:
    """Of the LocalQueue that the launch spec names, and of what it leads to."""
    assert kuberay.queue is not None, "asked for only where there is one"
    queue = cluster.get(_QUEUES, kuberay.queue)
    if queue is None:
        yield Check(
            "queue",
            "fail",
            f"there is no LocalQueue {kuberay.queue} in {kuberay.namespace}",
            "create it (k8s/kueue shows one), or name another in kuberay.queue",
        )
        return
    conditions = queue.get("status", {}).get("conditions", [])
    active = next((one for one in conditions if one["type"] == "Active"), None)
    if active is not None and active["status"] != "True":
        yield Check(
            "queue",
            "fail",
            f"{kuberay.queue} admits nothing: {active.get('message', '')}",
            "kubectl describe clusterqueue says what it lacks",
        )
    else:
        waiting = queue.get("status", {}).get("pendingWorkloads", 0)
        yield Check("queue", "ok", f"{kuberay.queue}, {waiting} workload(s) wait in it")
    try:
        yield from _behind(cluster, kuberay, str(queue["spec"].get("clusterQueue", "")))
    except RefusedError as error:
        if error.status != FORBIDDEN:
            raise
        yield Check(
            "flavors",
            "warn",
            "this account may not look at the cluster's queues, flavors and topologies",
            "ask whoever runs the cluster",
        )


def _behind(cluster: KubernetesCluster, kuberay: KubeRaySpec, name: str) -> Iterator[Check]:
    """Of the ClusterQueue of that name."""
    found = cluster.get(_CLUSTER_QUEUES, name)
    if found is None:
        yield Check(
            "flavors",
            "fail",
            f"{kuberay.queue} leads to ClusterQueue {name}, and there is none",
            "create it (k8s/kueue shows one), or correct the LocalQueue",
        )
        return
    groups = found.get("spec", {}).get("resourceGroups", [])
    names = [one["name"] for group in groups for one in group["flavors"]]
    flavors = {one: cluster.get(_FLAVORS, one) for one in names}
    missing = [one for one, flavor in flavors.items() if flavor is None]
    if missing or not names:
        words = f"ResourceFlavor {', '.join(missing)} not there" if missing else "no flavor"
        yield Check(
            "flavors",
            "fail",
            f"ClusterQueue {name}: {words}",
            "create it (k8s/kueue shows two), or correct the ClusterQueue",
        )
    else:
        yield Check("flavors", "ok", f"{', '.join(names)} of ClusterQueue {name}")
    if kuberay.topology is not None:
        there = [flavor for flavor in flavors.values() if flavor is not None]
        yield _topology(cluster, there, level=kuberay.topology.level)


def _topology(cluster: KubernetesCluster, flavors: list[Object], *, level: str) -> Check:
    """Whether a flavor places pods by that level."""
    names = {one.get("spec", {}).get("topologyName") for one in flavors} - {None}
    levels: list[str] = []
    for name in sorted(names):
        topology = cluster.get(_TOPOLOGIES, name)
        levels += [one["nodeLabel"] for one in (topology or {}).get("spec", {}).get("levels", [])]
    if level in levels:
        return Check("topology", "ok", f"{level} is a level of {', '.join(sorted(names))}")
    return Check(
        "topology",
        "fail",
        f"{level} is no level of a Topology that a flavor of the queue names "
        f"({', '.join(levels) or 'they name none'})",
        "name one as topologyName in the ResourceFlavor (k8s/kueue shows it, and k8s/kueue-eks and "
        "k8s/kueue-gke the levels of their clouds), or correct kuberay.topology.level",
    )
