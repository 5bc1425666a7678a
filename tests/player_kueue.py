"""Kueue as the player plays it: a Workload for each RayJob with a queue, admitted when told to."""

from __future__ import annotations

import hashlib
from typing import Any

from player_api import Api, Object, condition, is_true, merged, owner
from player_rules import QUEUE, never_admitted

_WHO = "kueue-admission"
_PRIORITY = "kueue.x-k8s.io/priority-class"
_FULL = (
    "couldn't assign flavors to pod set head: insufficient unused quota for cpu in flavor default, "
    "1 more needed"
)


class Kueue:
    """The controller of the queues. What the test wants is told by its methods and fields."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.admits_all = False
        """Admit whatever comes."""
        self.waits_because = _FULL
        """What workloads that are not admitted are told."""
        self.checks: tuple[str, ...] = ()
        """Names of admission checks, which stay pending until ``pass_checks`` is called."""
        self._wanted: set[str] = set()
        self._checked: set[str] = set()
        self._evictions: dict[str, list[Object]] = {}

    def admit(self, job: str) -> None:
        """Let there be quota for the RayJob of that name."""
        self._wanted.add(job)

    def pass_checks(self, job: str) -> None:
        self._checked.add(job)

    def preempt(self, job: str, *, preemptor: str = "8d4ad2b2-0000-4000-8000-000000000001") -> None:
        """Take the job's quota away for another workload."""
        message = (
            f"Preempted to accommodate a workload (UID: {preemptor}, JobUID: UNKNOWN) due to "
            "prioritization in the ClusterQueue; preemptor path: /default; preemptee path: "
            "/default"
        )
        self._wanted.discard(job)
        self._checked.discard(job)
        self._evictions[job] = [
            condition("Evicted", True, "Preempted", message),
            condition("Preempted", True, "InClusterQueue", message),
        ]

    def evict(self, job: str, reason: str, message: str) -> None:
        """Evict for another reason: PodsReadyTimeout, ClusterQueueStopped, NodeFailures."""
        self._wanted.discard(job)
        self._checked.discard(job)
        self._evictions[job] = [condition("Evicted", True, reason, message)]

    def step(self) -> None:
        """Look at every RayJob with a queue once."""
        workloads = {
            reference["uid"]: one
            for one in self.api.listed("workloads")
            for reference in one["metadata"].get("ownerReferences", [])
        }
        for job in self.api.listed("rayjobs"):
            metadata = job["metadata"]
            queue = metadata.get("labels", {}).get(QUEUE)
            if queue is None or metadata.get("deletionTimestamp"):
                continue
            workload = workloads.get(metadata["uid"])
            if workload is None:
                self._queue(job, queue)
            elif not is_true(_conditions(workload), "Finished"):
                self._decide(job, workload)

    def _queue(self, job: Object, queue: str) -> None:
        """Make the Workload of a RayJob."""
        why_not = never_admitted(job)
        if why_not is not None:
            self.api.event(job, "FailedToCompose", why_not, who="ray.io/rayjob-kueue", warning=True)
            return
        if not job["spec"].get("suspend"):
            self.api.patch("rayjobs", job, {"spec": {"suspend": True}})
        metadata = job["metadata"]
        digest = hashlib.sha256(metadata["uid"].encode()).hexdigest()[:5]
        spec: Object = {"active": True, "queueName": queue, "podSets": _pod_sets(job)}
        name = metadata["labels"].get(_PRIORITY)
        known = self.api.get("workloadpriorityclasses", name) if name else None
        if known is not None:
            spec["priority"] = known.get("value", 0)
            spec["priorityClassRef"] = {
                "group": "kueue.x-k8s.io",
                "kind": "WorkloadPriorityClass",
                "name": name,
            }
        made = self.api.create(
            "workloads",
            {
                "apiVersion": "kueue.x-k8s.io/v1beta2",
                "kind": "Workload",
                "metadata": {
                    "name": f"rayjob-{metadata['name']}-{digest}",
                    "namespace": metadata["namespace"],
                    "labels": {"kueue.x-k8s.io/job-uid": metadata["uid"]},
                    "ownerReferences": [owner(job)],
                },
                "spec": spec,
            },
        )
        if made is not None:
            text = f"Created Workload: {metadata['namespace']}/{made['metadata']['name']}"
            self.api.event(job, "CreatedWorkload", text, who="ray.io/rayjob-kueue")

    def _decide(self, job: Object, workload: Object) -> None:
        name, conditions = job["metadata"]["name"], _conditions(workload)
        status = job.get("status", {})
        if status.get("jobDeploymentStatus") in ("Complete", "Failed"):
            self._finish(job, workload)
        elif name in self._evictions:
            self._evict(job, workload)
        elif is_true(conditions, "Evicted") and is_true(conditions, "QuotaReserved"):
            self._release(job, workload)
        elif not is_true(conditions, "QuotaReserved"):
            self._reserve(job, workload)
        elif not is_true(conditions, "Admitted"):
            if name in self._checked or not self.checks:
                self._admit(job, workload)
        elif job["spec"].get("suspend"):
            self._start(job, workload)

    def _cluster_queue(self, workload: Object) -> tuple[str, str | None]:
        """The ClusterQueue behind the queue, and why nothing can be admitted by it."""
        queue = workload["spec"]["queueName"]
        local = self.api.get("localqueues", queue, workload["metadata"]["namespace"])
        if local is None:
            return "", f"LocalQueue {queue} doesn't exist"
        name = local["spec"]["clusterQueue"]
        found = self.api.get("clusterqueues", name)
        if found is None:
            return name, f"ClusterQueue {name} doesn't exist"
        if found["spec"].get("stopPolicy", "None") != "None":
            return name, f"ClusterQueue {name} is inactive"
        return name, None

    def _reserve(self, job: Object, workload: Object) -> None:
        queue, why_not = self._cluster_queue(workload)
        name = job["metadata"]["name"]
        if why_not is not None:
            self._say(workload, condition("QuotaReserved", False, "Inadmissible", why_not))
            return
        if name not in self._wanted and not self.admits_all:
            waiting = condition("QuotaReserved", False, "Pending", self.waits_because)
            self._say(workload, waiting)
            self.api.event(workload, "Pending", self.waits_because, who=_WHO, warning=True)
            return
        text = f"Quota reserved in ClusterQueue {queue}"
        fresh = [condition("QuotaReserved", True, "QuotaReserved", text)]
        for old in _conditions(workload):
            if old["type"] in ("Evicted", "Preempted", "Requeued") and old["status"] == "True":
                said = f"Previously: {old['message']}"
                fresh.append(condition(old["type"], False, "QuotaReserved", said))
        admission: Object = {
            "clusterQueue": queue,
            "podSetAssignments": [
                {
                    "name": one["name"],
                    "count": one["count"],
                    "flavors": dict.fromkeys(_amounts(one), "default"),
                    "resourceUsage": _amounts(one),
                }
                for one in workload["spec"]["podSets"]
            ],
        }
        status: Object = {"admission": admission}
        if self.checks:
            status["admissionChecks"] = [
                {"name": one, "state": "Pending", "message": ""} for one in self.checks
            ]
        self._say(workload, *fresh, **status)
        told = f"{text}, wait time since queued was 1s"
        self.api.event(workload, "QuotaReserved", told, who=_WHO)

    def _admit(self, job: Object, workload: Object) -> None:
        status: Object = {}
        if self.checks:
            status["admissionChecks"] = [
                {"name": one, "state": "Ready", "message": ""} for one in self.checks
            ]
        admitted = condition("Admitted", True, "Admitted", "The workload is admitted")
        self._say(workload, admitted, **status)
        queue = workload["status"]["admission"]["clusterQueue"]
        text = f"Admitted by ClusterQueue {queue}, wait time since reservation was 0s"
        self.api.event(workload, "Admitted", text, who=_WHO)

    def _start(self, job: Object, workload: Object) -> None:
        self.api.patch("rayjobs", job, {"spec": {"suspend": False}})
        queue = workload["status"]["admission"]["clusterQueue"]
        text = f"Admitted by clusterQueue {queue}"
        self.api.event(job, "Started", text, who="ray.io/rayjob-kueue")

    def _evict(self, job: Object, workload: Object) -> None:
        reasons = self._evictions.pop(job["metadata"]["name"])
        if not is_true(_conditions(workload), "QuotaReserved"):
            return
        self._say(workload, *reasons)
        reason, message = reasons[0]["reason"], reasons[0]["message"]
        self.api.event(workload, f"EvictedDueTo{reason}", message, who=_WHO)
        self.api.patch("rayjobs", job, {"spec": {"suspend": True}})
        self.api.event(job, "Stopped", message, who="ray.io/rayjob-kueue")

    def _release(self, job: Object, workload: Object) -> None:
        """Give the quota back once the job has stopped."""
        if job.get("status", {}).get("jobDeploymentStatus") != "Suspended":
            if not job["spec"].get("suspend"):
                self.api.patch("rayjobs", job, {"spec": {"suspend": True}})
            return
        evicted = next(one for one in _conditions(workload) if one["type"] == "Evicted")
        self._say(
            workload,
            condition("QuotaReserved", False, "Pending", evicted["message"]),
            condition("Admitted", False, "NoReservation", "The workload has no reservation"),
            condition("Requeued", True, evicted["reason"], evicted["message"]),
            admission=None,
        )

    def _finish(self, job: Object, workload: Object) -> None:
        status = job["status"]
        good = status["jobDeploymentStatus"] == "Complete" and status["jobStatus"] == "SUCCEEDED"
        reason = "Succeeded" if good else "Failed"
        self._say(workload, condition("Finished", True, reason, status.get("message", "")))

    def _say(self, workload: Object, *fresh: Object, **status: Any) -> None:
        """Set conditions, and fields of the status, where they are others."""
        old = _conditions(workload)
        known = {(one["type"], one["status"], one["reason"], one["message"]) for one in old}
        news = [
            one
            for one in fresh
            if (one["type"], one["status"], one["reason"], one["message"]) not in known
        ]
        if news or status:
            said = {**status, "conditions": merged(old, *news)}
            self.api.set_status("workloads", workload, said)


def _conditions(workload: Object) -> list[Object]:
    found: list[Object] = workload.get("status", {}).get("conditions", [])
    return found


def _pod_sets(job: Object) -> list[Object]:
    cluster = job["spec"]["rayClusterSpec"]
    groups = [("head", 1, cluster["headGroupSpec"])]
    groups += [
        (one["groupName"], one.get("replicas", 1), one)
        for one in cluster.get("workerGroupSpecs", [])
    ]
    return [
        {"name": name, "count": count, "template": group["template"]}
        for name, count, group in groups
    ]


def _amounts(pod_set: Object) -> dict[str, str]:
    """What the pods of a set ask for; each amount is that of one pod."""
    container = pod_set["template"]["spec"]["containers"][0]
    requests = container.get("resources", {}).get("requests", {})
    return {name: str(value) for name, value in requests.items()}
