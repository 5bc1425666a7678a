"""The runs that a place has, whoever has submitted them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress

from launcher.jobs_api import JobsApi
from launcher.kuberay.cluster import RAY_JOBS, KubernetesCluster
from launcher.kuberay.names import FOLDER_ANNOTATION, MANAGER, MANAGER_LABEL
from launcher.patience import LOOK_SECONDS
from launcher.ray_jobs import FOLDER_KEY
from launcher.target import Target
from rotescale.errors import RotescaleError
from rotescale.launch_spec import LaunchSpec
from rotescale.object_store import RemotePath
from rotescale.run_dir import RunDir
from rotescale.storage import StoragePath, entries, storage_path


def runs_at(launch: LaunchSpec, *, patience_seconds: float = LOOK_SECONDS) -> list[Target]:
    """A cluster's runs by the jobs that it still has, this machine's by the folders in storage.

    By experiment and folder. Raises PlaceUnavailableError where the cluster does not answer for
    ``patience_seconds``.
    """
    found = []
    for folder in sorted(set(_folders(launch, patience_seconds))):
        root = RunDir.at(folder).root
        storage = str(root.parent)
        found.append(Target(root.name, launch.model_copy(update={"storage": storage})))
    return sorted(found, key=lambda one: (one.experiment, one.launch.storage))


def _folders(launch: LaunchSpec, patience_seconds: float) -> Iterator[str]:
    if launch.kuberay is not None:
        context, namespace = launch.kuberay.context, launch.kuberay.namespace
        cluster = KubernetesCluster(context, namespace, patience_seconds=patience_seconds)
        for job in cluster.find(RAY_JOBS, labels=f"{MANAGER_LABEL}={MANAGER}"):
            yield from _told(job["metadata"].get("annotations") or {}, FOLDER_ANNOTATION)
    elif launch.ray is not None:
        for one in JobsApi(launch.ray, patience_seconds=patience_seconds).jobs():
            yield from _told(one.metadata, FOLDER_KEY)
    else:
        for path in entries(storage_path(launch.storage)):
            with suppress(FileNotFoundError):
                if _is_run(path):
                    yield str(path)


def _is_run(folder: StoragePath) -> bool:
    """Whether a run lies there; one that only its owner may read may be one, and is listed."""
    try:
        return RunDir(folder).spec_json.exists()
    except PermissionError:
        return True


def _told(said: Mapping[str, object], key: str) -> Iterator[str]:
    """The run's folder as the job says it; nothing where it says none, or what can be none."""
    folder = said.get(key)
    if not isinstance(folder, str) or not folder.isprintable():
        return
    with suppress(ValueError, RotescaleError):
        if isinstance(storage_path(folder), RemotePath) or folder.startswith("/"):
            yield folder
