"""The whole of a run on Kubernetes as manifests: a ConfigMap with its specs, and a RayJob. Pure."""

from __future__ import annotations

from typing import Any

from launcher.job import entrypoint
from launcher.kuberay import fabric, names
from launcher.kuberay.pods import SPEC_FOLDER, head_pod, worker_pod
from launcher.kuberay.rules import check
from launcher.reach import named_files
from rotescale.errors import SpecError
from rotescale.kuberay_spec import KubeRaySpec
from rotescale.launch_spec import LaunchSpec
from rotescale.run_dir import RunDir
from rotescale.spec import ExperimentSpec
from rotescale.spec_file import dump_json

Manifest = dict[str, Any]

ENTRYPOINT = (
    f"rotescale-launch supervise {SPEC_FOLDER}/experiment.json "
    f"--on {SPEC_FOLDER}/launch.json --once --tell"
)
"""The same for every run: Ray gives it to a shell, so nothing of a spec may stand in it."""


def render(
    spec: ExperimentSpec, launch: LaunchSpec, *, retry_before: str | None = None
) -> list[Manifest]:
    """The objects that run the experiment there, in the order in which they are created.

    A failure from before the time ``retry_before`` is forgotten.
    Raises SpecError where experiment and place do not go together, or a rule is broken.
    """
    kuberay = launch.kuberay
    assert kuberay is not None, launch.place
    spec.evaluation.require_code_allowed(launch.allow_task_code)
    _require_reachable(spec, launch)
    name = names.job_name(spec.name, storage=launch.storage)
    labels = {
        "app.kubernetes.io/name": "rotescale",
        names.MANAGER_LABEL: names.MANAGER,
        names.RUN_LABEL: name,
    }
    spec_map = _spec_map(spec, launch, name=name, labels=labels)
    job = _ray_job(
        launch, kuberay, name=name, labels=labels, spec_map=spec_map, retry_before=retry_before
    )
    job["metadata"]["annotations"] |= {
        "rotescale/experiment": spec.name,
        names.FOLDER_ANNOTATION: str(RunDir.of(launch.storage, spec.name).root),
        "rotescale/spec-digest": spec.digest(),
    }
    manifests = [spec_map, job]
    check(manifests)
    return manifests


def _spec_map(
    spec: ExperimentSpec, launch: LaunchSpec, *, name: str, labels: dict[str, str]
) -> Manifest:
    """Both specs, resolved, as files; named by content, so that it never changes."""
    assert launch.kuberay is not None, launch.place
    data = {
        "experiment.json": dump_json(spec),
        "launch.json": dump_json(launch.inside_the_cluster()),
    }
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": f"{name}-{names.digest(''.join(data.values()))}",
            "namespace": launch.kuberay.namespace,
            "labels": labels,
        },
        "immutable": True,
        "data": data,
    }


def _ray_job(
    launch: LaunchSpec,
    kuberay: KubeRaySpec,
    *,
    name: str,
    labels: dict[str, str],
    spec_map: Manifest,
    retry_before: str | None,
) -> Manifest:
    overwrite = {fabric.OVERWRITE_COMMAND: "true"} if fabric.plain_command(kuberay.fabric) else {}
    spec: Manifest = {
        "entrypoint": entrypoint(ENTRYPOINT, retry_before),
        "submissionMode": "SidecarMode",
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": kuberay.ttl_seconds,
        "backoffLimit": kuberay.retries,
        "activeDeadlineSeconds": kuberay.deadline_seconds,
        "rayClusterSpec": _ray_cluster(
            launch, kuberay, labels=labels, spec_map=spec_map["metadata"]["name"]
        ),
    }
    if kuberay.start_deadline_seconds is not None:
        spec["preRunningDeadlineSeconds"] = kuberay.start_deadline_seconds
    if kuberay.queue is not None:
        # Kueue starts it when there is room.
        spec["suspend"] = True
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {
            "name": name,
            "namespace": kuberay.namespace,
            "labels": {**labels, **_queue_labels(kuberay)},
            "annotations": dict(overwrite),
        },
        "spec": spec,
    }


def _ray_cluster(
    launch: LaunchSpec, kuberay: KubeRaySpec, *, labels: dict[str, str], spec_map: str
) -> Manifest:
    replicas = launch.num_workers[1] // kuberay.workers.per_node
    secret = {} if kuberay.auth_secret is None else {"secretName": kuberay.auth_secret}
    return {
        "rayVersion": kuberay.ray_version,
        "authOptions": {"mode": "token", **secret},
        "headGroupSpec": {
            "serviceType": "ClusterIP",
            # No work for the head: the driver stays there, the workers do not.
            "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
            "template": head_pod(kuberay, labels=labels, spec_map=spec_map),
        },
        "workerGroupSpecs": [
            {
                "groupName": "workers",
                "replicas": replicas,
                "minReplicas": replicas,
                "maxReplicas": replicas,
                "rayStartParams": {},
                "template": worker_pod(
                    kuberay, gpus_per_worker=launch.gpus_per_worker, labels=labels
                ),
            }
        ],
    }


def _queue_labels(kuberay: KubeRaySpec) -> dict[str, str]:
    labels = {
        names.QUEUE_LABEL: kuberay.queue,
        names.PRIORITY_LABEL: kuberay.priority,
    }
    return {key: value for key, value in labels.items() if value is not None}


def _require_reachable(spec: ExperimentSpec, launch: LaunchSpec) -> None:
    """Files that the experiment names must be where the pods are."""
    for field, path in named_files(spec):
        try:
            launch.require_mounted(path, field=field)
        except ValueError as error:
            raise SpecError(f"experiment {spec.name} on {launch.name}: {error}") from None
