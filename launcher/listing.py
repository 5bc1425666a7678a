"""The runs that a place has, whoever has submitted them."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.jobs_api import JobsApi
from launcher.kuberay.cluster import RAY_JOBS, KubernetesCluster
from launcher.kuberay.render import FOLDER_ANNOTATION, MANAGED_BY
from launcher.ray_jobs import FOLDER_KEY
from launcher.target import Target
from rotescale.launch_spec import LaunchSpec
from rotescale.object_store import RemotePath
from rotescale.run_dir import RunDir
from rotescale.storage import entries, storage_path


def runs_at(launch: LaunchSpec) -> list[Target]:
    """A cluster's runs by the jobs that it still has, this machine's by the folders in storage.

    By experiment and folder. Raises PlaceUnavailableError where the cluster does not answer.
    """
    found = []
    for folder in sorted(set(_folders(launch))):
        root = RunDir.at(folder).root
        storage = str(root.parent)
        found.append(Target(root.name, launch.model_copy(update={"storage": storage})))
    return sorted(found, key=lambda one: (one.experiment, one.launch.storage))


def _folders(launch: LaunchSpec) -> Iterator[str]:
    if launch.kuberay is not None:
        cluster = KubernetesCluster(launch.kuberay.context, launch.kuberay.namespace)
        for job in cluster.find(RAY_JOBS, labels=MANAGED_BY):
            yield from _told(job["metadata"].get("annotations", {}), FOLDER_ANNOTATION)
    elif launch.ray is not None:
        for one in JobsApi(launch.ray).jobs():
            yield from _told(one.metadata, FOLDER_KEY)
    else:
        storage = storage_path(launch.storage)
        for path in entries(storage):
            if RunDir(path).spec_json.exists():
                yield str(path)


def _told(said: dict[str, str], key: str) -> Iterator[str]:
    """The run's folder as the job says it; nothing where it says none, or no whole path."""
    folder = said.get(key, "")
    is_remote = "://" in folder and isinstance(storage_path(folder), RemotePath)
    if is_remote or folder.startswith("/"):
        yield folder
