"""Which launcher a launch spec asks for."""

from __future__ import annotations

from launcher.job import Launcher
from launcher.kuberay.launcher import KubeRayLauncher
from launcher.kuberay.names import job_name
from launcher.local import LocalLauncher
from launcher.ray_place import RayLauncher
from rotescale.launch_spec import LaunchSpec
from rotescale.run_dir import RunDir


def launcher_of(experiment: str, launch: LaunchSpec) -> Launcher:
    """What looks after that experiment's run at that place."""
    name = job_name(experiment, storage=launch.storage)
    if launch.place == "kuberay":
        return KubeRayLauncher(launch, name)
    if launch.ray is not None:
        return RayLauncher(launch, name)
    # Also on a machine of a Ray cluster: the driver is a process here.
    return LocalLauncher(launch, RunDir.of(launch.storage, experiment))
