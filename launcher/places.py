"""Which launcher a launch spec asks for."""

from __future__ import annotations

from launcher.job import Launcher
from launcher.jobs_api import JobsApi
from launcher.kuberay.cluster import KubernetesCluster
from launcher.kuberay.launcher import KubeRayLauncher
from launcher.kuberay.names import job_name
from launcher.local import LocalLauncher
from launcher.patience import PATIENCE_SECONDS
from launcher.ray_place import RayLauncher
from rotescale.launch_spec import LaunchSpec
from rotescale.run_dir import RunDir


def launcher_of(
    experiment: str, launch: LaunchSpec, *, patience_seconds: float = PATIENCE_SECONDS
) -> Launcher:
    """What looks after that experiment's run at that place.

    ``patience_seconds``: how long it waits for a place that does not answer.
    """
    name = job_name(experiment, storage=launch.storage)
    run_dir = RunDir.of(launch.storage, experiment)
    if launch.kuberay is not None:
        cluster = KubernetesCluster(
            launch.kuberay.context, launch.kuberay.namespace, patience_seconds=patience_seconds
        )
        return KubeRayLauncher(launch, name, cluster=cluster, run_dir=run_dir)
    if launch.ray is not None:
        api = JobsApi(launch.ray, patience_seconds=patience_seconds)
        return RayLauncher(launch, name, api=api)
    # Also on a machine of a Ray cluster: the driver is a process here.
    return LocalLauncher(launch, run_dir)
