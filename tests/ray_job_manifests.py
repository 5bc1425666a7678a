"""A small RayJob by hand, for tests of what runs one."""

from __future__ import annotations

import copy
from typing import Any

Object = dict[str, Any]
QUEUE = "kueue.x-k8s.io/queue-name"


def ray_job(
    name: str = "run",
    *,
    entrypoint: str = "true",
    environment: dict[str, str] | None = None,
    spec_map: str | None = None,
    queue: str | None = None,
    num_workers: int = 1,
    **spec: Any,
) -> Object:
    """A RayJob with a head, and workers of one CPU each; the ConfigMap is mounted in the head."""
    head = _template("ray-head", environment or {})
    if spec_map is not None:
        head["spec"]["volumes"] = [{"name": "spec", "configMap": {"name": spec_map}}]
        mount = {"name": "spec", "mountPath": "/etc/rotescale", "readOnly": True}
        head["spec"]["containers"][0]["volumeMounts"] = [mount]
    workers = {
        "groupName": "workers",
        "replicas": num_workers,
        "minReplicas": num_workers,
        "maxReplicas": num_workers,
        "rayStartParams": {},
        "template": _template("ray-worker", environment or {}),
    }
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {
            "name": name,
            "namespace": "default",
            "labels": {} if queue is None else {QUEUE: queue},
        },
        "spec": {
            "entrypoint": entrypoint,
            "submissionMode": "SidecarMode",
            "shutdownAfterJobFinishes": True,
            "suspend": queue is not None,
            "rayClusterSpec": {
                "rayVersion": "2.60.0",
                "authOptions": {"mode": "token"},
                "headGroupSpec": {"rayStartParams": {"num-cpus": "0"}, "template": head},
                "workerGroupSpecs": [workers],
            },
            **spec,
        },
    }


def _template(container: str, environment: dict[str, str]) -> Object:
    variables = [{"name": name, "value": value} for name, value in environment.items()]
    amounts = {"cpu": "1", "memory": "1Gi"}
    return copy.deepcopy(
        {
            "metadata": {"labels": {}},
            "spec": {
                "restartPolicy": "Never",
                "containers": [
                    {
                        "name": container,
                        "image": "rotescale:test",
                        "env": variables,
                        "resources": {"limits": amounts, "requests": amounts},
                    }
                ],
            },
        }
    )


def queues(name: str = "research", *, namespace: str = "default") -> list[Object]:
    """A ClusterQueue and the LocalQueue of that name before it."""
    api_version = "kueue.x-k8s.io/v1beta2"
    return [
        {
            "apiVersion": api_version,
            "kind": "ClusterQueue",
            "metadata": {"name": name},
            "spec": {},
        },
        {
            "apiVersion": api_version,
            "kind": "LocalQueue",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"clusterQueue": name},
        },
    ]
