"""What queue, RayJob, pods and events say together: the state of a run, and why it waits. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from launcher.job import RAY_JOB_STATES, JobState, Situation
from launcher.kuberay.names import QUEUE_LABEL

Object = dict[str, Any]

_FINAL: dict[str, JobState] = {
    "Complete": "finished",
    "Failed": "failed",
    "ValidationFailed": "failed",
}
_TROUBLE = (
    *("ImagePullBackOff", "ErrImagePull", "InvalidImageName", "CrashLoopBackOff"),
    *("CreateContainerConfigError", "CreateContainerError", "RunContainerError"),
)
_MAX_WARNINGS = 3


def is_over(job: Object) -> bool:
    """Whether the operator will do nothing more for this RayJob."""
    return job.get("status", {}).get("jobDeploymentStatus") in _FINAL


def situation(
    job: Object | None,
    *,
    workloads: Sequence[Object] | None = (),
    pods: Sequence[Object] = (),
    events: Sequence[Object] = (),
    unread: Mapping[str, str] = MappingProxyType({}),
) -> Situation:
    """Of a RayJob, or of none. ``workloads`` are Kueue's for it, the others its own.

    ``unread`` is what could not be read, and why; ``workloads`` are None where they are of it.
    """
    if job is None:
        words = "there is no RayJob of this run: it was not submitted there, or was deleted"
        return Situation("unknown", words, (("RayJob", "none"), *_pods(pods), *unread.items()))
    layers = [*_queue(job, workloads), _ray_job(job), *_pods(pods)]
    status = job.get("status", {})
    if status.get("jobStatus"):
        layers.append(("Ray job", f"{status.get('jobId', '')}: {status['jobStatus']}"))
    layers += [("warning", one) for one in _warnings(events)]
    layers += unread.items()
    state = _state(job)
    return Situation(state, _why(job, state, workloads, pods, events), tuple(layers))


def _state(job: Object) -> JobState:
    if "deletionTimestamp" in job["metadata"]:
        # Its pods may still be saving.
        return "running"
    status = job.get("status", {})
    deployed = status.get("jobDeploymentStatus", "")
    if deployed in _FINAL:
        return _FINAL[deployed]
    if deployed == "Running":
        # The operator asks Ray now and then: a job that has ended is over once the RayJob is.
        found = RAY_JOB_STATES.get(status.get("jobStatus", ""), "pending")
        return found if found in ("pending", "running") else "running"
    return "pending"


def _why(
    job: Object,
    state: JobState,
    workloads: Sequence[Object] | None,
    pods: Sequence[Object],
    events: Sequence[Object],
) -> str:
    """The reason that is nearest to what could be done about it."""
    status = job.get("status", {})
    if "deletionTimestamp" in job["metadata"]:
        return "it is being cancelled: its pods save and end"
    if state == "failed":
        return _join(status.get("reason"), status.get("message")) or "the RayJob has failed"
    if state == "finished":
        return ""
    reasons = [
        *_waits_for_quota(job, workloads),
        *_trouble(pods),
        *_unschedulable(pods, events),
    ]
    failed = status.get("failed") or 0
    if failed:
        noun = "attempt" if failed == 1 else "attempts"
        reasons.append(f"{failed} {noun} failed; this is the next one")
    return reasons[0] if reasons else ""


def _queue(job: Object, workloads: Sequence[Object] | None) -> Iterator[tuple[str, str]]:
    name = job["metadata"].get("labels", {}).get(QUEUE_LABEL)
    if name is None or workloads is None:
        return
    if not workloads:
        yield "queue", f"{name}: no workload yet"
    for workload in workloads:
        state = (
            "admitted"
            if _is_true(workload, "Admitted")
            else "has its quota, not admitted yet"
            if _is_true(workload, "QuotaReserved")
            else "waits"
        )
        yield "queue", f"{name}: {state}"


def _waits_for_quota(job: Object, workloads: Sequence[Object] | None) -> Iterator[str]:
    if not job["spec"].get("suspend"):
        return
    name = job["metadata"].get("labels", {}).get(QUEUE_LABEL)
    if workloads is None:
        yield f"suspended, as what waits in queue {name} is"
        return
    for workload in workloads:
        evicted = _condition(workload, "Evicted")
        if evicted is not None and evicted.get("status") == "True":
            yield f"taken out of the queue's quota: {_join(evicted['reason'], evicted['message'])}"
        quota = _condition(workload, "QuotaReserved")
        if quota is not None and quota.get("status") != "True":
            yield f"waits for quota: {quota.get('message') or quota.get('reason', '')}"
    if not workloads:
        yield (
            "suspended, and in no queue"
            if name is None
            else f"queue {name} has not taken it: is there such a LocalQueue, and does Kueue run?"
        )


def _ray_job(job: Object) -> tuple[str, str]:
    status = job.get("status", {})
    words = status.get("jobDeploymentStatus") or "not seen by KubeRay yet"
    failed = status.get("failed") or 0
    limit = job["spec"].get("backoffLimit", 0)
    tries = f", {failed} of {limit + 1} attempts failed" if failed else ""
    return "RayJob", f"{job['metadata']['name']}: {words}{tries}"


def _pods(pods: Sequence[Object]) -> Iterator[tuple[str, str]]:
    if not pods:
        return
    words = []
    for kind in ("head", "worker"):
        mine = [pod for pod in pods if _label(pod, "ray.io/node-type") == kind]
        phases = [_phase(pod) for pod in mine]
        counted = ", ".join(
            f"{phases.count(phase)} {phase}" for phase in dict.fromkeys(sorted(phases))
        )
        words.append(f"{kind}: {counted or 'none'}")
    yield "pods", "; ".join(words)


def _phase(pod: Object) -> str:
    if "deletionTimestamp" in pod["metadata"]:
        return "ending"
    for container in pod.get("status", {}).get("containerStatuses", []):
        ended = container.get("state", {}).get("terminated")
        if ended is not None and ended.get("reason") == "OOMKilled":
            return "out of memory"
    return str(pod.get("status", {}).get("phase", "Unknown"))


def _trouble(pods: Sequence[Object]) -> Iterator[str]:
    for pod in pods:
        for container in pod.get("status", {}).get("containerStatuses", []):
            waiting = container.get("state", {}).get("waiting", {})
            if waiting.get("reason") in _TROUBLE:
                words = _join(waiting["reason"], waiting.get("message"))
                yield f"pod {pod['metadata']['name']}: {words}"


def _unschedulable(pods: Sequence[Object], events: Sequence[Object]) -> Iterator[str]:
    for pod in pods:
        scheduled = _condition(pod, "PodScheduled")
        if scheduled is not None and scheduled.get("status") == "False":
            words = scheduled.get("message") or scheduled.get("reason", "")
            yield f"pod {pod['metadata']['name']} has no node: {words}"
    pending = {pod["metadata"]["name"] for pod in pods if _phase(pod) == "Pending"}
    for event in events:
        about = event.get("involvedObject", {}).get("name")
        if event.get("reason") == "FailedScheduling" and about in pending:
            yield f"pod {about} has no node: {event.get('message', '')}"


def _warnings(events: Sequence[Object]) -> list[str]:
    """The latest warnings, each once."""
    warnings = [event for event in events if event.get("type") == "Warning"]
    warnings.sort(key=lambda event: event.get("lastTimestamp") or event.get("eventTime") or "")
    words = [_join(event.get("reason"), event.get("message")) for event in warnings]
    return list(dict.fromkeys(words))[-_MAX_WARNINGS:]


def _label(thing: Object, key: str) -> str | None:
    found: str | None = thing["metadata"].get("labels", {}).get(key)
    return found


def _condition(thing: Object, kind: str) -> Object | None:
    found = thing.get("status", {}).get("conditions", [])
    return next((one for one in found if one.get("type") == kind), None)


def _is_true(thing: Object, kind: str) -> bool:
    condition = _condition(thing, kind)
    return condition is not None and condition.get("status") == "True"


def _join(*words: str | None) -> str:
    return ": ".join(word.strip() for word in words if word and word.strip())
