"""A Kubernetes cluster that is not the tests' own, for the tests that its API alone is enough for.

``ROTESCALE_TEST_CONTEXT`` names a context of the kubeconfig and ``ROTESCALE_TEST_NAMESPACE`` a
namespace there, on a cluster with KubeRay and the rights of ``k8s/base``. What the tests make waits
for a queue that there is not, so that nothing of it runs, and is deleted again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from kubernetes import config
from kubernetes.client import CoreV1Api, CustomObjectsApi
from kubernetes.client.exceptions import ApiException

Object = dict[str, Any]

CONTEXT = os.environ.get("ROTESCALE_TEST_CONTEXT")
"""Of the kubeconfig; None: the tests' own server."""
NAMESPACE = os.environ.get("ROTESCALE_TEST_NAMESPACE", "research")
QUEUE = "research" if CONTEXT is None else "rotescale-tests-never-admitted"
_RAY = ("ray.io", "v1")
_SECONDS = 60.0


class RealCluster:
    """The part of ``api_server.ApiServer`` that every cluster has; asked for more, it skips."""

    def __init__(self, context: str, run: str) -> None:
        self._context, self._labels = context, f"rotescale/run={run}"
        client = config.new_client_from_config(context=context)
        self._core, self._custom = CoreV1Api(client), CustomObjectsApi(client)

    def list(self, plural: str, *, namespace: str) -> list[Object]:
        """The objects of that kind that the tests have made."""
        if plural == "rayjobs":
            found = self._custom.list_namespaced_custom_object(
                *_RAY, namespace, plural, label_selector=self._labels
            )
            jobs: list[Object] = found["items"]
            return jobs
        assert plural == "configmaps", plural
        maps = self._core.list_namespaced_config_map(namespace, label_selector=self._labels)
        return [self._core.api_client.sanitize_for_serialization(one) for one in maps.items]

    def delete(self, plural: str, name: str, *, namespace: str) -> None:
        """Delete one that the tests have made."""
        own = [one["metadata"]["name"] for one in self.list(plural, namespace=namespace)]
        assert name in own, (name, own)
        # What has gone by itself is gone.
        try:
            if plural == "rayjobs":
                self._custom.delete_namespaced_custom_object(*_RAY, namespace, plural, name)
            else:
                self._core.delete_namespaced_config_map(name, namespace)
        except ApiException as error:
            if error.status != 404:
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
            time.sleep(0.5)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        pytest.skip(f"NOT RUN on {self._context}: {name!r} is of the tests' own API server alone")


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
