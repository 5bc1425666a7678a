"""A run on a Ray cluster that is there already: the request to its jobs API. Pure."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from launcher.job import entrypoint, stop_seconds
from launcher.kuberay.names import job_name
from launcher.reach import named_files
from rotescale.errors import SpecError
from rotescale.launch_spec import LaunchSpec
from rotescale.object_store import RemotePath
from rotescale.run_dir import RunDir
from rotescale.spec import ExperimentSpec
from rotescale.spec_file import dump_json
from rotescale.storage import storage_path

ENTRYPOINT = "rotescale-launch supervise experiment.json --on launch.json --tell"
"""Ray gives it to a shell, in the folder of the files; nothing of a spec may stand in it."""
RUN_KEY = "rotescale-run"
"""Metadata of every job of a run: the run's name."""
FOLDER_KEY = "rotescale-run-folder"
"""And its folder, as the cluster sees it."""
_LONG_AGO = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class RayJobRequest:
    """All that is sent: first the package of files, then the job. The token is no part of it."""

    jobs_url: str
    submission_id: str
    """One per attempt: Ray refuses an id that it has had."""
    entrypoint: str
    files: Mapping[str, str]
    """The job's working folder: name and text of each file."""
    metadata: Mapping[str, str]
    stop_seconds: int
    """How long it may take to end when it is stopped: a save, and the driver's end."""

    @property
    def package(self) -> bytes:
        """The files as a zip archive, the same bytes for the same files."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, text in self.files.items():
                archive.writestr(zipfile.ZipInfo(name, _LONG_AGO), text)
        return buffer.getvalue()

    @property
    def package_name(self) -> str:
        """Its name on the cluster, by content."""
        return f"_ray_pkg_{hashlib.sha256(self.package).hexdigest()[:32]}.zip"

    @property
    def package_path(self) -> str:
        """Where it is put, below the URL."""
        return f"/api/packages/gcs/{self.package_name}"

    @property
    def body(self) -> dict[str, Any]:
        """What is posted to ``/api/jobs/``."""
        return {
            "entrypoint": self.entrypoint,
            "submission_id": self.submission_id,
            "runtime_env": {
                "working_dir": f"gcs://{self.package_name}",
                "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(self.stop_seconds)},
            },
            "metadata": dict(self.metadata),
        }


def render(
    spec: ExperimentSpec, launch: LaunchSpec, *, attempt: int = 1, retry_before: str | None = None
) -> RayJobRequest:
    """The request that runs the experiment there, for the n-th time.

    A failure from before the time ``retry_before`` is forgotten.
    """
    if launch.ray is None:
        raise SpecError(
            f"launch spec {launch.name}: place: ray without a section ray, which says how to reach "
            "its jobs from elsewhere; add ray: {jobs_url: ..., token_file: ...}"
        )
    spec.evaluation.require_code_allowed(launch.allow_task_code)
    _require_reachable(spec, launch)
    name = job_name(spec.name, storage=launch.storage)
    return RayJobRequest(
        jobs_url=launch.ray.jobs_url,
        submission_id=f"{name}-{attempt}",
        entrypoint=entrypoint(ENTRYPOINT, retry_before),
        files={
            "experiment.json": dump_json(spec),
            "launch.json": dump_json(launch.inside_the_cluster()),
        },
        metadata={
            RUN_KEY: name,
            FOLDER_KEY: str(RunDir.of(launch.storage, spec.name).root),
            "rotescale-spec-digest": spec.digest(),
        },
        stop_seconds=stop_seconds(launch),
    )


def describe(request: RayJobRequest) -> dict[str, Any]:
    """The request as it is shown: the package by its files."""
    return {
        "jobs_url": request.jobs_url,
        "put": {"path": request.package_path, "files": dict(request.files)},
        "post": {"path": "/api/jobs/", "body": request.body},
    }


def _require_reachable(spec: ExperimentSpec, launch: LaunchSpec) -> None:
    """What is named must be the same from wherever on the cluster it is read."""
    places = named_files(spec)
    if not isinstance(storage_path(launch.storage), RemotePath):
        places.append(("storage", launch.storage))
    for field, path in places:
        if not PurePosixPath(path).is_absolute() or ".." in path.split("/"):
            raise SpecError(
                f"experiment {spec.name} on {launch.name}: {field} {path!r} is read on the "
                "cluster, where this folder is not; give an absolute path of a shared folder"
            )
