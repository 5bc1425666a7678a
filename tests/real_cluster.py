"""A Kubernetes cluster that is not the tests' own, for the tests that its API alone is enough for.

``ROTESCALE_TEST_CONTEXT`` names a context of the kubeconfig and ``ROTESCALE_TEST_NAMESPACE`` a
namespace there, on a cluster with KubeRay and the rights of ``k8s/base``. What the tests make waits
for a queue that there is not, so that nothing of it runs, and is deleted again; each session's runs
have a name of their own, so that it is nobody else's.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from api_server import ApiServer
from kubernetes import config
from kubernetes.client import CoreV1Api, CustomObjectsApi
from kubernetes.client.exceptions import ApiException

from launcher.kuberay.names import RUN_LABEL

Object = dict[str, Any]

CONTEXT = os.environ.get("ROTESCALE_TEST_CONTEXT") or None
"""Of the kubeconfig; None: the tests' own server."""
if CONTEXT is None:
    NAMESPACE, QUEUE, STORAGE = "research", "research", "/checkpoints/tests"
else:
    NAMESPACE, QUEUE = os.environ["ROTESCALE_TEST_NAMESPACE"], "rotescale-tests-never-admitted"
    STORAGE = f"/checkpoints/tests-{uuid.uuid4().hex[:8]}"
_RAY = ("ray.io", "v1")
_QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
_SECONDS = 60.0
_WAITS = {"_request_timeout": 30.0}
_NOT_FOUND = 404


class RealCluster:
    """The part of ``ApiServer`` that every cluster has; asked for more of it, the test skips."""

    def __init__(self, context: str, run: str) -> None:
        self._context, self._labels = context, f"{RUN_LABEL}={run}"
        client = config.new_client_from_config(context=context)
        self._core, self._custom = CoreV1Api(client), CustomObjectsApi(client)

    def list(self, plural: str, *, namespace: str) -> list[Object]:
        """The objects of that kind that the tests have made."""
        if plural == "rayjobs":
            found = self._custom.list_namespaced_custom_object(
                *_RAY, namespace, plural, label_selector=self._labels, **_WAITS
            )
            jobs: list[Object] = found["items"]
            return jobs
        assert plural == "configmaps", plural
        maps = self._core.list_namespaced_config_map(
            namespace, label_selector=self._labels, **_WAITS
        )
        return [self._core.api_client.sanitize_for_serialization(one) for one in maps.items]

    def delete(self, plural: str, name: str, *, namespace: str) -> None:
        """Delete one that the tests have made, unless it has gone by itself."""
        own = (one for one in self.list(plural, namespace=namespace))
        found = next((one for one in own if one["metadata"]["name"] == name), None)
        if found is None:
            return
        if plural == "rayjobs":
            assert found["metadata"]["labels"][_QUEUE_LABEL] == QUEUE, "it is somebody else's"
        try:
            if plural == "rayjobs":
                self._custom.delete_namespaced_custom_object(
                    *_RAY, namespace, plural, name, **_WAITS
                )
            else:
                self._core.delete_namespaced_config_map(name, namespace, **_WAITS)
        except ApiException as error:
            if error.status != _NOT_FOUND:
                raise

    def clear(self, namespace: str) -> None:
        """Delete all that the tests have made, and wait until it is gone."""
        deadline = time.monotonic() + _SECONDS
        while left := [
            (plural, one["metadata"]["name"])
            for plural in ("rayjobs", "configmaps")
            for one in self.list(plural, namespace=namespace)
        ]:
            assert time.monotonic() < deadline, f"still there: {left}"
            for plural, name in left:
                self.delete(plural, name, namespace=namespace)
            time.sleep(0.1)

    def __getattr__(self, name: str) -> Any:
        if name not in _OWN:
            raise AttributeError(name)
        pytest.skip(f"NOT RUN on {self._context}: {name!r} is of the tests' own API server alone")


_OWN = {name for name in [*dir(ApiServer), *vars(ApiServer())] if not name.startswith("_")}
"""What the tests' own server has."""


@contextmanager
def real_cluster(run: str) -> Iterator[RealCluster]:
    """The cluster that the environment names, without the tests' run before and after."""
    assert CONTEXT is not None
    cluster = RealCluster(CONTEXT, run)
    cluster.clear(NAMESPACE)
    try:
        yield cluster
    finally:
        cluster.clear(NAMESPACE)
