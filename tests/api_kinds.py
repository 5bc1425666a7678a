"""The kinds that the tests' Kubernetes API server knows, and how it tells its clients of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

Object = dict[str, Any]
VERBS = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
KUBERNETES = {"major": "1", "minor": "34", "gitVersion": "v1.34.1", "platform": "linux/amd64"}
_EVENT_FIELDS = ("apiVersion", "kind", "namespace", "name", "uid", "resourceVersion", "fieldPath")


@dataclass(frozen=True)
class Kind:
    """A kind of object: where it is served, and what sets it apart from the others."""

    plural: str
    kind: str
    group: str = ""
    version: str = "v1"
    namespaced: bool = True
    custom: bool = False
    """Defined by a custom resource definition: served only while that definition exists."""
    has_status: bool = False
    """Status is written through its own subresource, and ordinary writes leave it."""
    counts_generations: bool = False
    short: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    """Field selectors beside metadata.name and metadata.namespace."""
    columns: tuple[tuple[str, str], ...] = field(default=())
    """Titles and paths of what `kubectl get` prints beside name and age."""

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def singular(self) -> str:
        return self.kind.lower()

    @property
    def full_name(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def prefix(self) -> str:
        """The path below which its group and version are served."""
        return f"apis/{self.api_version}" if self.group else f"api/{self.version}"


def _core(plural: str, kind: str, **more: Any) -> Kind:
    return Kind(plural, kind, **more)


def _ray(plural: str, kind: str, *columns: tuple[str, str]) -> Kind:
    return Kind(
        *(plural, kind, "ray.io", "v1"),
        custom=True,
        has_status=True,
        counts_generations=True,
        columns=columns,
    )


def _kueue(plural: str, kind: str, *, has_status: bool = True, **more: Any) -> Kind:
    return Kind(
        *(plural, kind, "kueue.x-k8s.io", "v1beta2"),
        custom=True,
        has_status=has_status,
        counts_generations=True,
        **more,
    )


def _rbac(plural: str, kind: str, *, namespaced: bool = True) -> Kind:
    return Kind(plural, kind, "rbac.authorization.k8s.io", namespaced=namespaced)


CRDS = Kind(
    *("customresourcedefinitions", "CustomResourceDefinition", "apiextensions.k8s.io"),
    namespaced=False,
    has_status=True,
    counts_generations=True,
    short=("crd", "crds"),
)
NAMESPACES = _core(
    "namespaces",
    "Namespace",
    namespaced=False,
    has_status=True,
    short=("ns",),
    fields=("status.phase",),
    columns=(("Status", "status.phase"),),
)
PODS = _core(
    "pods",
    "Pod",
    has_status=True,
    short=("po",),
    columns=(("Status", "status.phase"), ("Node", "spec.nodeName")),
    fields=(
        *("spec.nodeName", "spec.restartPolicy", "spec.schedulerName", "spec.serviceAccountName"),
        *("status.phase", "status.podIP", "status.nominatedNodeName"),
    ),
)
RAYJOBS = _ray(
    "rayjobs",
    "RayJob",
    ("Job Status", "status.jobStatus"),
    ("Deployment Status", "status.jobDeploymentStatus"),
    ("Ray Cluster Name", "status.rayClusterName"),
)
RAYCLUSTERS = _ray("rayclusters", "RayCluster", ("Status", "status.state"))
WORKLOADS = _kueue(
    "workloads",
    "Workload",
    short=("wl",),
    columns=(("Queue", "spec.queueName"), ("Reserved In", "status.admission.clusterQueue")),
)
KINDS: tuple[Kind, ...] = (
    PODS,
    _core(
        "events",
        "Event",
        short=("ev",),
        columns=(("Type", "type"), ("Reason", "reason"), ("Message", "message")),
        fields=(
            *(f"involvedObject.{name}" for name in _EVENT_FIELDS),
            *("reason", "reportingComponent", "source", "type"),
        ),
    ),
    _core("configmaps", "ConfigMap", short=("cm",)),
    _core("secrets", "Secret", fields=("type",)),
    _core("services", "Service", has_status=True, short=("svc",)),
    _core("serviceaccounts", "ServiceAccount", short=("sa",)),
    _core("nodes", "Node", namespaced=False, has_status=True, fields=("spec.unschedulable",)),
    NAMESPACES,
    _core(
        "persistentvolumeclaims",
        "PersistentVolumeClaim",
        has_status=True,
        short=("pvc",),
        columns=(("Status", "status.phase"),),
    ),
    _core("persistentvolumes", "PersistentVolume", namespaced=False, has_status=True),
    Kind("jobs", "Job", "batch", has_status=True, counts_generations=True),
    Kind("deployments", "Deployment", "apps", has_status=True, counts_generations=True),
    Kind("storageclasses", "StorageClass", "storage.k8s.io", namespaced=False),
    Kind("networkpolicies", "NetworkPolicy", "networking.k8s.io", counts_generations=True),
    _rbac("roles", "Role"),
    _rbac("rolebindings", "RoleBinding"),
    _rbac("clusterroles", "ClusterRole", namespaced=False),
    _rbac("clusterrolebindings", "ClusterRoleBinding", namespaced=False),
    CRDS,
    RAYJOBS,
    RAYCLUSTERS,
    WORKLOADS,
    _kueue("localqueues", "LocalQueue", columns=(("Cluster Queue", "spec.clusterQueue"),)),
    _kueue("clusterqueues", "ClusterQueue", namespaced=False),
    _kueue("resourceflavors", "ResourceFlavor", namespaced=False, has_status=False),
    _kueue("topologies", "Topology", namespaced=False, has_status=False),
    _kueue("workloadpriorityclasses", "WorkloadPriorityClass", namespaced=False, has_status=False),
)
_REVIEWS = ("selfsubjectaccessreviews", "SelfSubjectAccessReview", "authorization.k8s.io", "v1")
BY_PLURAL = {kind.plural: kind for kind in KINDS}


def kind_of(document: Object) -> Kind | None:
    """The kind of a document by its apiVersion and kind."""
    for kind in KINDS:
        if (kind.api_version, kind.kind) == (document.get("apiVersion"), document.get("kind")):
            return kind
    return None


def definition_of(kind: Kind) -> Object:
    """The custom resource definition of a kind, without its schema."""
    names = {
        "plural": kind.plural,
        "singular": kind.singular,
        "kind": kind.kind,
        "listKind": f"{kind.kind}List",
    }
    version: Object = {"name": kind.version, "served": True, "storage": True}
    if kind.has_status:
        version["subresources"] = {"status": {}}
    version["schema"] = {
        "openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": kind.full_name},
        "spec": {
            "group": kind.group,
            "names": names,
            "scope": "Namespaced" if kind.namespaced else "Cluster",
            "versions": [version],
        },
        "status": {
            "acceptedNames": names,
            "storedVersions": [kind.version],
            "conditions": [
                {"type": "NamesAccepted", "status": "True", "reason": "NoConflicts"},
                {"type": "Established", "status": "True", "reason": "InitialNamesAccepted"},
            ],
        },
    }


def group_list(kinds: list[Kind]) -> Object:
    """The answer to ``/apis``."""
    groups = dict.fromkeys(kind.group for kind in kinds if kind.group)
    groups["authorization.k8s.io"] = None
    return {
        "kind": "APIGroupList",
        "apiVersion": "v1",
        "groups": [group for name in groups if (group := group_of(kinds, name))],
    }


def group_of(kinds: list[Kind], name: str) -> Object | None:
    """The answer to ``/apis/NAME``."""
    versions = dict.fromkeys(kind.version for kind in kinds if kind.group == name)
    if name == "authorization.k8s.io":
        versions = {"v1": None}
    if not versions:
        return None
    listed = [{"groupVersion": f"{name}/{one}", "version": one} for one in versions]
    return {
        "kind": "APIGroup",
        "apiVersion": "v1",
        "name": name,
        "versions": listed,
        "preferredVersion": listed[0],
    }


def resource_list(kinds: list[Kind], api_version: str) -> Object | None:
    """The answer to ``/api/v1`` and ``/apis/GROUP/VERSION``."""
    resources: list[Object] = []
    for kind in kinds:
        if kind.api_version == api_version:
            resources += _resources(kind)
    if api_version == f"{_REVIEWS[2]}/{_REVIEWS[3]}":
        resources.append(
            {
                "name": _REVIEWS[0],
                "singularName": _REVIEWS[1].lower(),
                "namespaced": False,
                "kind": _REVIEWS[1],
                "verbs": ["create"],
            }
        )
    if not resources:
        return None
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": api_version,
        "resources": resources,
    }


def _resources(kind: Kind) -> list[Object]:
    base: Object = {"singularName": kind.singular, "namespaced": kind.namespaced, "kind": kind.kind}
    found = [{"name": kind.plural, **base, "verbs": VERBS, "shortNames": list(kind.short)}]
    if kind.plural in ("pods", "rayjobs", "rayclusters"):
        found[0]["categories"] = ["all"]
    if kind.has_status:
        verbs = ["get", "patch", "update"]
        found.append({**base, "name": f"{kind.plural}/status", "singularName": "", "verbs": verbs})
    if kind is PODS:
        found.append({**base, "name": "pods/log", "singularName": "", "verbs": ["get"]})
    return found


def openapi_index(kinds: list[Kind]) -> Object:
    """The answer to ``/openapi/v3``."""
    prefixes = dict.fromkeys(kind.prefix for kind in kinds)
    return {"paths": {one: {"serverRelativeURL": f"/openapi/v3/{one}?hash=1"} for one in prefixes}}


def openapi_of(kinds: list[Kind], prefix: str) -> Object | None:
    """The answer to ``/openapi/v3/PREFIX``: what `kubectl` asks it, without schemas of fields."""
    served = [kind for kind in kinds if kind.prefix == prefix]
    if not served:
        return None
    query = [
        {"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": True}}
        for name in ("dryRun", "fieldManager", "fieldValidation", "force")
    ]
    paths: Object = {}
    for kind in served:
        known = {"group": kind.group, "version": kind.version, "kind": kind.kind}
        place = "/namespaces/{namespace}" if kind.namespaced else ""
        verbs = {"patch": "patch", "put": "put", "delete": "delete", "get": "get"}
        paths[f"/{prefix}{place}/{kind.plural}/{{name}}"] = {
            method: {
                "x-kubernetes-action": action,
                "x-kubernetes-group-version-kind": known,
                "parameters": query,
                "responses": {"200": {"description": "OK"}},
            }
            for method, action in verbs.items()
        }
    return {
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": KUBERNETES["gitVersion"]},
        "paths": paths,
        "components": {"schemas": {}},
    }


def table(kind: Kind, objects: list[Object], version: str) -> Object:
    """What `kubectl get` asks for in place of the objects."""
    titles = ["Name", *(title for title, _ in kind.columns), "Age"]
    rows = []
    for one in objects:
        cells = [one["metadata"]["name"]]
        cells += [str(value_at(one, path) or "") for _, path in kind.columns]
        cells.append(_age(one["metadata"]["creationTimestamp"]))
        known = {"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata"}
        rows.append({"cells": cells, "object": {**known, "metadata": one["metadata"]}})
    formats = {"Name": "name"}
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {"resourceVersion": version},
        "columnDefinitions": [
            {
                "name": title,
                "type": "date" if title == "Age" else "string",
                "format": formats.get(title, ""),
                "description": title,
                "priority": 0,
            }
            for title in titles
        ],
        "rows": rows,
    }


def _age(created: str) -> str:
    seconds = int((datetime.now(UTC) - datetime.fromisoformat(created)).total_seconds())
    for size, letter in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{seconds // size}{letter}"
    return f"{seconds}s"


def value_at(document: Any, path: str) -> Any:
    """The value at a dotted path, or None."""
    for key in path.split("."):
        document = document.get(key) if isinstance(document, dict) else None
    return document
