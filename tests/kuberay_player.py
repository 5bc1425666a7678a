"""A player of KubeRay 1.7's operator, of Kueue 0.19 and of the nodes, against an API server.

Written from the rules of the operators, not from rotescale: nothing of ``launcher`` is imported.
It sees and says everything through HTTP. A RayJob gets a RayCluster, pods, and in them a real Ray
cluster on loopback (``player_ray.LocalRay``), or one that is only said to run (``PretendedRay``).
"""

from __future__ import annotations

import base64
import secrets
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from player_api import Api, Object, full_name, now, owner, random_suffix, repeat, seconds_since
from player_clusters import Clusters
from player_kubelet import Kubelet, Submission
from player_kueue import Kueue
from player_ray import LocalRay, PretendedRay, Ray
from player_rules import MODES, refusals

__all__ = ["KubeRayPlayer", "LocalRay", "PretendedRay", "playing"]
FINALIZER = "ray.io/rayjob-finalizer"
_WHO = "rayjob-controller"
_TERMINAL = ("SUCCEEDED", "FAILED", "STOPPED")


class KubeRayPlayer:
    """The operators and the nodes. What a test wants of them are fields and methods."""

    def __init__(
        self,
        url: str,
        folder: Path,
        *,
        token: str | None = None,
        authority: bytes | None = None,
        ray: Ray | None = None,
        paths: Mapping[str, str] | None = None,
    ) -> None:
        self.api = Api(url, token=token, authority=authority)
        self.folder = folder
        self.ray: Ray = LocalRay() if ray is None else ray
        self.nodes = Kubelet(self.api, self.ray, folder, paths=paths or {})
        self.clusters = Clusters(self.api, self.nodes)
        self.kueue = Kueue(self.api)
        self.poll_seconds = 0.2
        self.check_seconds = 300.0
        """How long Ray may not answer before the job has failed."""
        self._silent_since: dict[str, str] = {}
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Begin to look at the server's objects; may be called again after ``stop``."""
        self.api.stopping.clear()
        self._threads = [
            threading.Thread(
                target=repeat,
                args=(self.api, step),
                kwargs={"seconds": self.poll_seconds},
                daemon=True,
            )
            for step in (self.step, self.nodes.step, self.kueue.step)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Look no more; what runs in pods goes on."""
        self.api.stopping.set()
        for thread in self._threads:
            thread.join()

    def close(self) -> None:
        """Look no more, and end every process of every pod."""
        self.stop()
        self.ray.close()

    def log_file(self, namespace: str, pod: str, container: str) -> Path:
        """For the API server: where a container's log lies."""
        return self.nodes.log_path(namespace, pod, container)

    def pods(self, job: str, *, kind: str = "") -> list[Object]:
        """The pods of a RayJob, of all its clusters; ``kind`` is head or worker."""
        return [
            one
            for one in self.api.listed("pods")
            if one["metadata"].get("labels", {}).get("ray.io/originated-from-cr-name") == job
            and kind in ("", one["metadata"]["labels"]["ray.io/node-type"])
        ]

    def kill_pod(self, pod: Object, *, code: int = 137, reason: str = "Error") -> None:
        """End its processes; the pod is there, and has failed. ``OOMKilled`` is a reason."""
        self.nodes.kill(pod["metadata"]["uid"], code=code, reason=reason)

    def delete_pod(self, pod: Object) -> None:
        """Take the pod away with its processes, as when its node is lost."""
        self.api.delete("pods", pod, grace_seconds=0)
        self.nodes.forget(pod["metadata"]["uid"])

    def dashboard(self, job: Object) -> str | None:
        """Where the jobs API of a RayJob's cluster is reached from this machine."""
        return self.ray.dashboard(self._head(job))

    def _head(self, job: Object) -> str:
        return self.nodes.orders.get(job.get("status", {}).get("rayClusterName", ""), "")

    def step(self) -> None:
        """Look at every RayJob and RayCluster once."""
        for job in self.api.listed("rayjobs"):
            self._reconcile(job)
        for cluster in self.api.listed("rayclusters"):
            if not cluster["metadata"].get("deletionTimestamp"):
                self.clusters.reconcile(cluster)

    def _reconcile(self, job: Object) -> None:
        status = job.get("status", {})
        stage = status.get("jobDeploymentStatus", "")
        if job["metadata"].get("deletionTimestamp"):
            self._let_go(job)
            return
        refused = next(refusals(job), None)
        if refused is not None:
            if stage != "ValidationFailed":
                text = f"The RayJob spec is invalid {full_name(job)}: {refused}"
                self.api.event(job, "InvalidRayJobSpec", text, who=_WHO, warning=True)
            self._set(
                job,
                jobDeploymentStatus="ValidationFailed",
                reason="ValidationFailed",
                message=refused,
            )
            return
        match stage:
            case "" | "ValidationFailed":
                self._initialize(job)
            case "Initializing" | "Waiting" | "Running":
                self._advance(job, stage)
            case "Suspending" | "Retrying":
                self._clear(job, stage)
            case "Suspended":
                if not job["spec"].get("suspend"):
                    self._set(job, jobStatus="", jobDeploymentStatus="")
            case "Complete" | "Failed":
                self._clean_up(job)

    def _let_go(self, job: Object) -> None:
        """A RayJob that is being deleted: its Ray job is stopped, and nothing holds it any more."""
        finalizers = job["metadata"].get("finalizers", [])
        if FINALIZER not in finalizers:
            return
        status = job.get("status", {})
        if status.get("jobStatus") not in _TERMINAL and status.get("jobId"):
            self.ray.stop_job(self._head(job), status["jobId"])
        left = [one for one in finalizers if one != FINALIZER]
        self.api.patch("rayjobs", job, {"metadata": {"finalizers": left}})

    def _initialize(self, job: Object) -> None:
        name, status, spec = job["metadata"]["name"], job.get("status", {}), job["spec"]
        finalizers = job["metadata"].get("finalizers", [])
        if FINALIZER not in finalizers:
            change = {"metadata": {"finalizers": [*finalizers, FINALIZER]}}
            job = self.api.patch("rayjobs", job, change) or job
        interactive = spec.get("submissionMode") == "InteractiveMode"
        job_id = status.get("jobId") or spec.get("jobId") or f"{name}-{random_suffix()}"
        self._set(
            job,
            jobId="" if interactive else job_id,
            rayClusterName=status.get("rayClusterName") or f"{name}-{random_suffix()}",
            jobStatus="",
            jobDeploymentStatus="Initializing",
            reason=None,
            message=None,
            startTime=now(),
            endTime=None,
        )

    def _advance(self, job: Object, stage: str) -> None:
        spec, status = job["spec"], job["status"]
        if spec.get("suspend") and stage != "Waiting":
            self._set(job, jobDeploymentStatus="Suspending")
            return
        if self._is_too_late(job, stage):
            return
        cluster = self._cluster(job)
        if stage == "Waiting":
            if spec.get("jobId"):
                self._set(job, jobId=spec["jobId"], jobDeploymentStatus="Running")
        elif stage == "Running":
            self._follow(job, cluster)
        elif cluster is not None and cluster.get("status", {}).get("state") == "ready":
            where, name = job["metadata"]["namespace"], status["rayClusterName"]
            waits = spec.get("submissionMode") == "InteractiveMode"
            self._set(
                job,
                dashboardURL=f"{name}-head-svc.{where}.svc.cluster.local:8265",
                jobDeploymentStatus="Waiting" if waits else "Running",
            )

    def _is_too_late(self, job: Object, stage: str) -> bool:
        spec, began = job["spec"], job["status"]["startTime"]
        limits = [("activeDeadlineSeconds", "DeadlineExceeded")]
        if stage != "Running":
            limits.append(("preRunningDeadlineSeconds", "PreRunningDeadlineExceeded"))
        for field, reason in limits:
            if spec.get(field) and seconds_since(began) >= spec[field]:
                text = (
                    f"The RayJob has passed the {field}. StartTime: {began}. "
                    f"{field[0].upper()}{field[1:]}: {spec[field]}"
                )
                self._end(job, "Failed", reason=reason, message=text)
                return True
        return False

    def _cluster(self, job: Object) -> Object | None:
        """The RayCluster of the attempt, which is made where it is not there."""
        where, name = job["metadata"]["namespace"], job["status"]["rayClusterName"]
        found = self.api.get("rayclusters", name, where)
        if found is not None or job["spec"].get("clusterSelector"):
            return found
        self._prepare(job)
        labels = {
            **job["metadata"].get("labels", {}),
            "ray.io/originated-from-cr-name": job["metadata"]["name"],
            "ray.io/originated-from-crd": "RayJob",
        }
        made = self.api.create(
            "rayclusters",
            {
                "apiVersion": "ray.io/v1",
                "kind": "RayCluster",
                "metadata": {
                    "name": name,
                    "namespace": where,
                    "labels": labels,
                    "annotations": job["metadata"].get("annotations", {}),
                    "ownerReferences": [owner(job)],
                },
                "spec": job["spec"]["rayClusterSpec"],
            },
        )
        text = f"Created RayCluster {where}/{name}"
        self.api.event(job, "CreatedRayCluster", text, who=_WHO)
        return made

    def _prepare(self, job: Object) -> None:
        """Ray's token, and what the head's submitter is to submit."""
        spec, status = job["spec"], job["status"]
        name, where = status["rayClusterName"], job["metadata"]["namespace"]
        options = spec["rayClusterSpec"].get("authOptions", {})
        if options.get("mode") == "token":
            given = options.get("secretName")
            secret = self.api.get("secrets", given or name, where)
            if secret is None and given is None:
                token = base64.b64encode(secrets.token_hex(16).encode()).decode()
                secret = self.api.create(
                    "secrets",
                    {
                        "apiVersion": "v1",
                        "kind": "Secret",
                        "metadata": {
                            "name": name,
                            "namespace": where,
                            "ownerReferences": [owner(job)],
                        },
                        "data": {"auth_token": token},
                    },
                )
            data = (secret or {}).get("data", {}).get("auth_token", "")
            self.nodes.tokens[name] = base64.b64decode(data).decode() or "none"
        if spec.get("submissionMode", "K8sJobMode") in MODES[:3]:
            environment = yaml.safe_load(spec.get("runtimeEnvYAML") or "{}")
            self.nodes.submissions[name] = Submission(
                status["jobId"], spec["entrypoint"], environment
            )

    def _follow(self, job: Object, cluster: Object | None) -> None:
        """A job that runs: what Ray says of it."""
        status = job["status"]
        head, mode = self._head(job), job["spec"].get("submissionMode", "K8sJobMode")
        if mode == "SidecarMode" and self._head_has_failed(job):
            return
        submission = self.nodes.submissions.get(status["rayClusterName"])
        if mode in ("HTTPMode", "K8sJobMode") and submission is not None:
            self.nodes.submit(status["rayClusterName"], submission)
        found = self.ray.job(head, status["jobId"])
        uid = job["metadata"]["uid"]
        if found is None:
            since = self._silent_since.setdefault(uid, now())
            if seconds_since(since) >= self.check_seconds:
                text = f"Failed to check the status of the Ray job since {since}"
                self._end(job, "Failed", reason="JobStatusCheckTimeoutExceeded", message=text)
            return
        self._silent_since.pop(uid, None)
        times = {"startTime": _time(found.start_ms), "endTime": _time(found.end_ms)}
        fields = {
            "jobStatus": found.status,
            "message": found.message,
            "rayJobInfo": {key: value for key, value in times.items() if value},
            "rayClusterStatus": (cluster or {}).get("status", {}),
        }
        if not found.is_over:
            self._set(job, **fields)
        elif found.status == "FAILED":
            self._end(job, "Failed", reason="AppFailed", **fields)
        else:
            self._end(job, "Complete", **fields)

    def _head_has_failed(self, job: Object) -> bool:
        """In SidecarMode a head that is lost takes the job's submitter with it."""
        heads = [
            one
            for one in self.pods(job["metadata"]["name"], kind="head")
            if one["metadata"]["labels"]["ray.io/cluster"] == job["status"]["rayClusterName"]
        ]
        if heads and heads[0].get("status", {}).get("phase") != "Failed":
            return False
        text = "Ray head pod not found."
        if heads:
            state = heads[0]["status"]["containerStatuses"][0]["state"].get("terminated", {})
            text = (
                f"Ray head pod {heads[0]['metadata']['name']} failed: "
                f"{state.get('reason')} (exit code {state.get('exitCode')})"
            )
        self._end(job, "Failed", reason="AppFailed", message=text)
        return True

    def _end(self, job: Object, stage: str, **fields: Any) -> None:
        """The attempt is over; where there may be another, it is retried."""
        status = {**job.get("status", {}), **fields}
        failed, succeeded = status.get("failed", 0), status.get("succeeded", 0)
        failed += stage == "Failed"
        succeeded += stage == "Complete" and status.get("jobStatus") == "SUCCEEDED"
        ended: Object = {"endTime": now()}
        if (
            stage == "Failed"
            and failed <= job["spec"].get("backoffLimit", 0)
            and status.get("reason") != "DeadlineExceeded"
        ):
            stage, ended = "Retrying", {}
        fields |= {"failed": failed, "succeeded": succeeded, "jobDeploymentStatus": stage}
        self._set(job, **fields, **ended)

    def _clear(self, job: Object, stage: str) -> None:
        """Take the cluster away, and begin anew or wait."""
        if not self._cluster_is_gone(job):
            return
        self._set(
            job,
            rayClusterStatus=None,
            rayClusterName=None,
            dashboardURL=None,
            jobId=None,
            message=None,
            reason=None,
            rayJobInfo=None,
            jobStatus="",
            jobDeploymentStatus="Suspended" if stage == "Suspending" else "",
        )

    def _cluster_is_gone(self, job: Object) -> bool:
        where, name = job["metadata"]["namespace"], job["status"].get("rayClusterName")
        cluster = self.api.get("rayclusters", name, where) if name else None
        if cluster is None:
            return True
        if not cluster["metadata"].get("deletionTimestamp"):
            self.api.delete("rayclusters", cluster)
            text = f"Deleted cluster {where}/{name}"
            self.api.event(job, "DeletedRayCluster", text, who=_WHO)
        return False

    def _clean_up(self, job: Object) -> None:
        spec, ended = job["spec"], job["status"].get("endTime")
        if not spec.get("shutdownAfterJobFinishes") or spec.get("clusterSelector") or not ended:
            return
        if seconds_since(ended) >= spec.get("ttlSecondsAfterFinished", 0):
            self._cluster_is_gone(job)

    def _set(self, job: Object, **fields: Any) -> None:
        """Write fields of the status that are others; None takes one away."""
        old = job.get("status", {})
        fields = {"failed": old.get("failed", 0), "succeeded": old.get("succeeded", 0), **fields}
        news = {key: value for key, value in fields.items() if old.get(key) != value}
        if news:
            news["observedGeneration"] = job["metadata"]["generation"]
            self.api.set_status("rayjobs", job, news)


@contextmanager
def playing(server: Any, folder: Path | None = None, **options: Any) -> Iterator[KubeRayPlayer]:
    """A player of an ``api_server.ApiServer``, which serves the logs of the player's pods.

    The options are those of KubeRayPlayer. Every process is ended when the context is left.
    """
    with tempfile.TemporaryDirectory(prefix="player-") as made:
        player = KubeRayPlayer(
            server.url,
            Path(made) if folder is None else folder,
            token=server.operator_token,
            authority=server.authority,
            **options,
        )
        server.log_file = player.log_file
        player.start()
        try:
            yield player
        finally:
            player.close()


def _time(milliseconds: int | None) -> str | None:
    if not milliseconds:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
