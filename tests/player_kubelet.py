"""Nodes as the player plays them: a pod gets a place, its volumes, its processes and a status."""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from player_api import Api, Object, RefusedError, StoppedError, condition
from player_pod_status import KILLED, SUBMITTER, cores, expanded, pod_status, said
from player_ray import PodOrder, Ray, StartError


@dataclass(frozen=True)
class Submission:
    """What the submitter in a head's pod hands to Ray."""

    job_id: str
    entrypoint: str
    runtime_env: Any


@dataclass
class _Running:
    """A pod that has a node."""

    pod: Object
    is_head: bool
    cluster: str
    started: bool = False
    failed: Object | None = None
    """How its first container ended."""
    submitter: int | None = None
    """The submitter's exit code."""
    copied: dict[Path, int] = field(default_factory=dict)
    """How much of each file is in the log."""
    leaving: threading.Thread | None = None
    """What runs its hooks, once it is deleted."""


class Kubelet:
    """All nodes in one. The test's wishes are its fields."""

    def __init__(self, api: Api, ray: Ray, folder: Path, *, paths: Mapping[str, str]) -> None:
        self.api = api
        self.ray = ray
        self.folder = folder
        self.paths = dict(paths)
        """Folders of the pods, and what they are on this machine."""
        self.environment: dict[str, str] = {}
        """Variables that every pod gets, in place of its own."""
        self.unschedulable: str | None = None
        """Why pods find no node, such as ``0/4 nodes are available: 4 Insufficient cpu.``."""
        self.image_error: str | None = None
        """Why images cannot be pulled."""
        self.overlap_seconds = 0.0
        """How long the processes of a pod that is deleted go on, unseen by anybody."""
        self.keeps_grace = False
        """Whether pods that are deleted run their preStop hooks first, for as long as their grace;
        by default they end at once, as where a node is lost."""
        self.submissions: dict[str, Submission] = {}
        """By cluster."""
        self.tokens: dict[str, str] = {}
        """Of each cluster that has one."""
        self.placed: dict[str, _Running] = {}
        """By uid."""
        self.orders: dict[str, str] = {}
        """The uid of the head of each cluster."""

    def log_path(self, namespace: str, pod: str, container: str) -> Path:
        """Where a container's log is written, each line with its time."""
        return self.folder / f"{namespace}_{pod}_{container}.log"

    def step(self) -> None:
        """Look at every pod once."""
        pods = {one["metadata"]["uid"]: one for one in self.api.listed("pods")}
        for uid, running in list(self.placed.items()):
            if uid not in pods:
                self._end(uid)
            else:
                running.pod = pods[uid]
        for uid, pod in pods.items():
            if "ray.io/cluster" not in pod["metadata"].get("labels", {}):
                continue
            if pod["metadata"].get("deletionTimestamp"):
                self._stop(pod)
            elif uid not in self.placed:
                self._place(pod)
            else:
                self._watch(self.placed[uid])

    def _stop(self, pod: Object) -> None:
        """A pod that is being deleted: its hooks are run, where grace is kept, and then it goes."""
        uid = pod["metadata"]["uid"]
        running = self.placed.get(uid)
        if self.keeps_grace and running is not None and running.started and not running.failed:
            if running.leaving is None:
                for one in pod["spec"]["containers"]:
                    self.api.event(
                        pod, "Killing", f"Stopping container {one['name']}", who="kubelet"
                    )
                running.leaving = threading.Thread(target=self._leave, args=(running,), daemon=True)
                running.leaving.start()
            self._watch(running)
            if running.leaving.is_alive():
                return
        self._end(uid)
        self.api.delete("pods", pod, grace_seconds=0)

    def _leave(self, running: _Running) -> None:
        """In a thread of the pod's own: its preStop hook, or as much of it as there is time for."""
        container = running.pod["spec"]["containers"][0]
        hook = container.get("lifecycle", {}).get("preStop", {}).get("exec")
        if hook is None:
            return
        uid = running.pod["metadata"]["uid"]
        seconds = running.pod["metadata"]["deletionGracePeriodSeconds"]
        code = self.ray.execute(uid, hook["command"], seconds=seconds)
        if code != 0:
            how = "was cut off" if code is None else f"exited with {code}"
            text = f"PreStopHook failed: command {' '.join(hook['command'])!r} {how}"
            self.api.event(running.pod, "FailedPreStopHook", text, who="kubelet", warning=True)

    def _place(self, pod: Object) -> None:
        """Find a node for it, and begin to start it."""
        missing = self._missing_claim(pod)
        reason = self.unschedulable or missing
        if reason is not None:
            self.api.event(pod, "FailedScheduling", reason, who="default-scheduler", warning=True)
            unplaced = condition("PodScheduled", False, "Unschedulable", reason)
            if pod.get("status", {}).get("conditions", [{}])[0].get("message") != reason:
                self.api.set_status("pods", pod, {"phase": "Pending", "conditions": [unplaced]})
            return
        labels, metadata = pod["metadata"]["labels"], pod["metadata"]
        running = _Running(pod, labels["ray.io/node-type"] == "head", labels["ray.io/cluster"])
        self.placed[metadata["uid"]] = running
        if not pod["spec"].get("nodeName"):
            node = self._node(len(self.placed))
            pod = self.api.patch("pods", pod, {"spec": {"nodeName": node}}) or pod
            message = f"Successfully assigned {metadata['namespace']}/{metadata['name']} to {node}"
            self.api.event(pod, "Scheduled", message, who="default-scheduler")
        running.pod = pod
        self._tell(running, "Pending", waiting="ContainerCreating")
        threading.Thread(target=self._start, args=(running,), daemon=True).start()

    def _node(self, number: int) -> str:
        names = [
            one["metadata"]["name"]
            for one in self.api.listed("nodes")
            if not one.get("spec", {}).get("unschedulable")
        ]
        return names[number % len(names)] if names else f"node-{number}"

    def _missing_claim(self, pod: Object) -> str | None:
        for volume in pod["spec"].get("volumes", []):
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            where = pod["metadata"]["namespace"]
            if claim and self.api.get("persistentvolumeclaims", claim, where) is None:
                return f'persistentvolumeclaim "{claim}" not found'
        return None

    def _start(self, running: _Running) -> None:
        """In a thread of the pod's own: wait for what it needs, and start its Ray."""
        try:
            environment = self._prepared(running)
            if environment is None:
                return
            self._started_event(running)
            order = self._order(running, environment)
            if running.is_head:
                self.orders[running.cluster] = order.uid
            address = self.ray.start(order)
        except (StartError, RefusedError, OSError) as error:
            if running.pod["metadata"]["uid"] in self.placed:
                with self.log_path(*self._main(running)).open("a") as log:
                    log.write(f"{_stamp()} {error}\n")
            message = f"{type(error).__name__}: {error}"
            running.failed = {"exitCode": 1, "reason": "StartError", "message": message}
            return
        except StoppedError:
            return
        if order.uid not in self.placed:
            # Deleted meanwhile.
            self.ray.kill(order.uid)
            return
        running.started = True
        self._tell(running, "Running", address=address)
        names = [one["name"] for one in running.pod["spec"]["containers"]]
        if SUBMITTER in names and running.cluster in self.submissions:
            self._submit(running, self.submissions[running.cluster])

    def _prepared(self, running: _Running) -> dict[str, str] | None:
        """The variables of the pod, once all that it refers to is there; None if it goes first."""
        while running.pod["metadata"]["uid"] in self.placed:
            missing = self._missing(running)
            if missing is None:
                return self._variables(running.pod)
            self._tell(running, "Pending", waiting=missing)
            self.api.stopping.wait(0.2)
        return None

    def _missing(self, running: _Running) -> str | None:
        """What the pod waits for, as its container's reason."""
        pod, where = running.pod, running.pod["metadata"]["namespace"]
        for volume in pod["spec"].get("volumes", []):
            name = volume.get("configMap", {}).get("name")
            if not name:
                continue
            found = self.api.get("configmaps", name, where)
            if found is None:
                text = (
                    f'MountVolume.SetUp failed for volume "{volume["name"]}" : '
                    f'configmap "{name}" not found'
                )
                self.api.event(pod, "FailedMount", text, who="kubelet", warning=True)
                return "ContainerCreating"
            self._write_files(running, volume["name"], found)
        if self.image_error is not None:
            image = pod["spec"]["containers"][0]["image"]
            text = f'Failed to pull image "{image}": {self.image_error}'
            self.api.event(pod, "Failed", text, who="kubelet", warning=True)
            return "ImagePullBackOff"
        for secret in self._secrets(pod):
            if self.api.get("secrets", secret, where) is None:
                text = f'Error: secret "{secret}" not found'
                self.api.event(pod, "Failed", text, who="kubelet", warning=True)
                return "CreateContainerConfigError"
        if not running.is_head and not self._head_is_up(running.cluster):
            return "PodInitializing"
        return None

    def _head_is_up(self, cluster: str) -> bool:
        head = self.placed.get(self.orders.get(cluster, ""))
        return head is not None and head.started

    def _secrets(self, pod: Object) -> list[str]:
        variables = pod["spec"]["containers"][0].get("env", [])
        references = [one.get("valueFrom", {}).get("secretKeyRef", {}) for one in variables]
        return [one["name"] for one in references if one.get("name")]

    def _write_files(self, running: _Running, volume: str, found: Object) -> None:
        """The files of a ConfigMap, where this machine can reach them."""
        for container in running.pod["spec"]["containers"]:
            for mount in container.get("volumeMounts", []):
                if mount["name"] != volume:
                    continue
                folder = self.folder / "volumes" / running.pod["metadata"]["uid"] / volume
                folder.mkdir(parents=True, exist_ok=True)
                for name, text in (found.get("data") or {}).items():
                    (folder / name).write_text(text)
                self.paths[f"{running.cluster}:{mount['mountPath']}"] = str(folder)

    def local(self, text: str, cluster: str) -> str:
        """The text with the pods' paths as they are on this machine."""
        known = {
            key.removeprefix(f"{cluster}:"): value
            for key, value in self.paths.items()
            if key.startswith("/") or key.startswith(f"{cluster}:")
        }
        for path in sorted(known, key=len, reverse=True):
            here = known[path].replace("\\", r"\\")
            text = re.sub(rf"{re.escape(path)}(?![\w.-])", here, text)
        return text

    def _variables(self, pod: Object) -> dict[str, str]:
        where, labels = pod["metadata"]["namespace"], pod["metadata"]["labels"]
        found: dict[str, str] = {}
        for one in pod["spec"]["containers"][0].get("env", []):
            reference = one.get("valueFrom", {}).get("secretKeyRef")
            if reference is None:
                found[one["name"]] = expanded(one.get("value", ""), found)
            else:
                secret = self.api.get("secrets", reference["name"], where) or {}
                data = secret.get("data", {}).get(reference["key"], "")
                found[one["name"]] = base64.b64decode(data).decode()
        local = {key: self.local(value, labels["ray.io/cluster"]) for key, value in found.items()}
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        return {**local, "HOME": str(home), **self.environment}

    def _order(self, running: _Running, environment: dict[str, str]) -> PodOrder:
        pod = running.pod
        container = pod["spec"]["containers"][0]
        command = environment.get("KUBERAY_GEN_RAY_START_CMD", "")
        parameters = dict(re.findall(r"--([a-z-]+)=(\S+)", command))
        limits = container.get("resources", {}).get("limits", {})
        cpus = parameters.get("num-cpus", limits.get("cpu", "1"))
        gpus = [value for name, value in limits.items() if name.endswith("/gpu")]
        uid = pod["metadata"]["uid"]
        return PodOrder(
            uid=uid,
            is_head=running.is_head,
            cluster=running.cluster,
            num_cpus=cores(str(cpus)),
            num_gpus=int(parameters.get("num-gpus", gpus[0] if gpus else 0)),
            environment=environment,
            token=self.tokens.get(running.cluster),
            output=self.folder / f"{uid}.out",
        )

    def _started_event(self, running: _Running) -> None:
        pod = running.pod
        for container in pod["spec"]["containers"]:
            image, name = container["image"], container["name"]
            for reason, message in (
                ("Pulled", f'Container image "{image}" already present on machine'),
                ("Created", f"Created container: {name}"),
                ("Started", f"Started container {name}"),
            ):
                self.api.event(pod, reason, message, who="kubelet")

    def submit(self, cluster: str, submission: Submission) -> None:
        """Hand the job to the cluster now, if it can be and was not."""
        head = self.orders.get(cluster, "")
        if self.ray.job(head, submission.job_id) is None:
            entrypoint = self.local(submission.entrypoint, cluster)
            self.ray.submit(head, submission.job_id, entrypoint, submission.runtime_env)

    def _submit(self, running: _Running, submission: Submission) -> None:
        """What the container of the submitter does."""
        uid = running.pod["metadata"]["uid"]
        entrypoint = self.local(submission.entrypoint, running.cluster)
        while uid in self.placed and not self.api.stopping.is_set():
            if self.ray.submit(uid, submission.job_id, entrypoint, submission.runtime_env):
                self._say(running, f"Job '{submission.job_id}' submitted successfully")
                return
            self.api.stopping.wait(0.3)

    def _watch(self, running: _Running) -> None:
        """Copy its output into its logs, and see whether it has ended."""
        metadata = running.pod["metadata"]
        uid = metadata["uid"]
        code = self.ray.ended(uid) if running.started else None
        if code is not None and running.failed is None:
            running.failed = {"exitCode": 128 - code if code < 0 else code, "reason": "Error"}
        self._copy(running, self.folder / f"{uid}.out", self.log_path(*self._main(running)))
        submission = self.submissions.get(running.cluster)
        if running.is_head and running.started and submission is not None:
            self._watch_the_job(running, submission)
        phase = running.pod.get("status", {}).get("phase")
        if running.failed is not None and phase != "Failed":
            self.ray.kill(uid)
            self._tell(running, "Failed", terminated=running.failed)

    def _watch_the_job(self, running: _Running, submission: Submission) -> None:
        metadata = running.pod["metadata"]
        log = self.ray.driver_log(metadata["uid"], submission.job_id)
        if log is not None:
            target = self.log_path(metadata["namespace"], metadata["name"], SUBMITTER)
            self._copy(running, log, target)
        if running.submitter is None:
            found = self.ray.job(metadata["uid"], submission.job_id)
            if found is not None and found.is_over:
                running.submitter = 0 if found.status == "SUCCEEDED" else 1
                self._say(running, f"Job '{submission.job_id}' {found.status.lower()}")
                if running.failed is None:
                    self._tell(running, "Running")

    def _main(self, running: _Running) -> tuple[str, str, str]:
        metadata = running.pod["metadata"]
        name = running.pod["spec"]["containers"][0]["name"]
        return metadata["namespace"], metadata["name"], name

    def _say(self, running: _Running, text: str) -> None:
        """A line of the submitter's own."""
        namespace, name, _ = self._main(running)
        with self.log_path(namespace, name, SUBMITTER).open("a") as file:
            file.write(f"{_stamp()} {text}\n")

    def _copy(self, running: _Running, source: Path, target: Path) -> None:
        if not source.exists():
            return
        with source.open("rb") as file:
            file.seek(running.copied.get(source, 0))
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        running.copied[source] = running.copied.get(source, 0) + len(whole)
        stamp = f"{_stamp()} ".encode()
        with target.open("ab") as log:
            for line in whole.splitlines(keepends=True):
                log.write(stamp + line)

    def _tell(
        self,
        running: _Running,
        phase: str,
        *,
        address: str | None = None,
        waiting: str | None = None,
        terminated: Object | None = None,
    ) -> None:
        """Write the pod's status where it is another."""
        pod = running.pod
        status = pod_status(
            pod,
            phase,
            address=address,
            waiting=waiting,
            terminated=terminated,
            submitter=running.submitter,
        )
        if said(pod.get("status", {})) != said(status):
            running.pod = self.api.set_status("pods", pod, status) or pod

    def kill(self, uid: str, *, code: int = KILLED, reason: str = "Error") -> None:
        """End the processes of a pod, which then has failed."""
        running = self.placed[uid]
        running.failed = {"exitCode": code, "reason": reason}
        self.ray.kill(uid)

    def forget(self, uid: str) -> None:
        """A pod was taken away with grace 0."""
        self._end(uid)

    def _end(self, uid: str) -> None:
        """A pod is gone: so are its processes, at once or with an overlap."""
        if self.placed.pop(uid, None) is None:
            return
        if self.overlap_seconds <= 0:
            self.ray.kill(uid)
            return
        timer = threading.Timer(self.overlap_seconds, self.ray.kill, args=(uid,))
        timer.daemon = True
        timer.start()


def _stamp() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
