"""A run on Kubernetes: its RayJob is created once, looked at, followed, and deleted to end it."""

from __future__ import annotations

import shlex
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from launcher import history, status_line
from launcher.account import Account
from launcher.job import MayHaveStartedError, PlaceUnavailableError, Situation
from launcher.kept_output import kept_on, not_given
from launcher.kuberay.cluster import (
    CONFIG_MAPS,
    EVENTS,
    FORBIDDEN,
    PODS,
    RAY_JOBS,
    WORKLOADS,
    KubernetesCluster,
    Object,
    RefusedError,
)
from launcher.kuberay.difference import difference
from launcher.kuberay.names import QUEUE_LABEL, RUN_LABEL
from launcher.kuberay.pods import HEAD, HEAD_GRACE_SECONDS
from launcher.kuberay.render import render
from launcher.kuberay.seen_lines import SeenLines
from launcher.kuberay.situation import is_over, situation
from rotescale.errors import RotescaleError, SpecError
from rotescale.launch_spec import LaunchSpec
from rotescale.run_dir import RunDir
from rotescale.spec import ExperimentSpec

SUBMISSION = "rotescale/submission"
"""Annotation: which submission has created the object, so that one can tell whether it was ours."""
SUBMITTER = "ray-job-submitter"
"""KubeRay's container in the head's pod, which prints what the driver prints."""
_POLL_SECONDS = 1.0
_TRIES = 5
_NUM_LAST = 1000
"""By how many of a driver's lines it is found out which the folder has beyond them."""


class _Seen(SeenLines):
    """How much of a pod's log was given, and the last of a driver's lines among them."""

    def __init__(self) -> None:
        super().__init__()
        self.last: deque[str] = deque(maxlen=_NUM_LAST)


class KubeRayLauncher:
    """The RayJobs of one run, one after the other, all of one name."""

    def __init__(
        self,
        launch: LaunchSpec,
        name: str,
        *,
        cluster: KubernetesCluster,
        run_dir: RunDir | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """``name`` is the RayJob's; ``run_dir`` the run's folder, which may not be seen from here:
        lines that pods take with them are looked for there."""
        assert launch.kuberay is not None, launch.name
        self._run_dir = run_dir
        self._launch = launch
        self._name = name
        self._kuberay = launch.kuberay
        self._cluster = cluster
        self._sleep = sleep

    def submit(self, spec: ExperimentSpec, *, retry: bool) -> bool:
        """As ``Launcher.submit``."""
        before = history.now() if retry else None
        spec_map, job = render(spec, self._launch, retry_before=before)
        submission = uuid.uuid4().hex
        job["metadata"]["annotations"][SUBMISSION] = submission
        # So that a try that KubeRay makes is known for this job's, and leaves a run that has moved.
        _head_variables(job).append({"name": history.OWNER_VARIABLE, "value": submission})
        started = self._create(spec_map, job, submission)
        if started:
            self._tidy(spec_map)
        return started

    def check(self, spec: ExperimentSpec) -> None:
        """Have the server judge what would be created, and create nothing.

        Raises RefusedError with the server's words.
        """
        for manifest in render(spec, self._launch):
            self._cluster.create(manifest, dry_run=True)

    def differences(self, spec: ExperimentSpec) -> list[str]:
        """Lines of a diff from what is there to what would be created; none where they agree."""
        spec_map, job = render(spec, self._launch)
        found = [(job, _without_owner(self._cluster.get(RAY_JOBS, self._name)))]
        # A map's name follows its content: the one that is there is the RayJob's.
        maps = self._cluster.find(CONFIG_MAPS, labels=self._mine)
        there = maps[0] if maps else None
        if there is not None:
            there["metadata"]["name"] = spec_map["metadata"]["name"]
        found.insert(0, (spec_map, there))
        return [line for wanted, one in found for line in difference(wanted, one)]

    def look(self) -> Situation:
        """As ``Launcher.look``. The RayJob alone must be read; what else cannot be is said."""
        job = self._cluster.get(RAY_JOBS, self._name)
        unread: dict[str, str] = {}
        pods = _read("pods", self._pods, unread) or []
        workloads: list[Object] | None = []
        events: list[Object] | None = []
        if job is not None:
            if QUEUE_LABEL in job["metadata"].get("labels", {}):
                workloads = _read("workloads", lambda: self._workloads(job), unread)
            events = _read("events", lambda: self._events(job, pods), unread)
        return situation(job, workloads=workloads, pods=pods, events=events or [], unread=unread)

    def account(self) -> Account | None:
        """As ``Launcher.account``: of the newest head that has told one and is still there."""
        told = (self._told(pod["metadata"]["name"]) for pod in self._heads())
        return next((account for account in told if account is not None), None)

    def how_to_read(self, path: str) -> str:
        """As ``Launcher.how_to_read``."""
        pod = self._newest_head()
        if pod is not None and pod.get("status", {}).get("phase") == "Running":
            context = self._kuberay.context
            options = [] if context is None else ["--context", context]
            options += ["--namespace", self._kuberay.namespace]
            command = ("kubectl", *options, "exec", pod["metadata"]["name"])
            return shlex.join((*command, "--container", HEAD, "--", "cat", path))
        mounted = [one for one in self._kuberay.volumes if path.startswith(f"{one.path}/")]
        claim = max(mounted, key=lambda one: len(one.path), default=None)
        where = "the run's claim" if claim is None else f"claim {claim.claim} at {claim.path}"
        return f"no head of the run is there to ask: in a pod that mounts {where}: cat {path}"

    def logs(self, *, num_lines: int) -> list[str]:
        """As ``Launcher.logs``."""
        pod = self._newest_head()
        wanted = 2 * num_lines
        while pod is not None:
            found = self._cluster.log(pod["metadata"]["name"], SUBMITTER, num_lines=wanted)
            lines = [line for line in found if not status_line.is_status(line)]
            if len(lines) >= num_lines or len(found) < wanted:
                return lines[-num_lines:]
            # A driver that says little: most of it are status lines.
            wanted *= 4
        return []

    def follow(self) -> Iterator[str]:
        """As ``Launcher.follow``, from one attempt's pod to the next one's.

        What a pod was deleted with before it was streamed comes from the run's folder.
        """
        seen: dict[str, _Seen] = {}
        while True:
            job = self._cluster.get(RAY_JOBS, self._name)
            pod = self._newest_head()
            if pod is not None:
                name = pod["metadata"]["name"]
                if name not in seen and seen:
                    yield from self._left_behind(seen)
                    yield f"--- another attempt: pod {name}"
                mine = seen.setdefault(name, _Seen())
                for line in mine.new(self._cluster.follow(name, SUBMITTER)):
                    if not status_line.is_status(line):
                        mine.last.append(line)
                        yield line
            if job is None or is_over(job):
                yield from self._left_behind(seen)
                return
            self._sleep(_POLL_SECONDS)

    def _left_behind(self, seen: dict[str, _Seen]) -> Iterator[str]:
        """What the drivers in these pods have printed and was not given, where the folder tells;
        of the newest first, whose lines were the last."""
        newest = next(reversed(seen), None)
        for pod, mine in reversed(seen.items()):
            kept: list[str] = []
            with suppress(RotescaleError, OSError):
                kept = [] if self._run_dir is None else kept_on(self._run_dir, pod)
            lines = not_given(kept, mine.last)
            if lines and pod != newest:
                yield f"--- meanwhile in pod {pod}"
            mine.last.extend(lines)
            yield from lines

    def cancel(self, *, grace_seconds: float | None) -> bool:
        """As ``Launcher.cancel``: pods that are deleted save first, for as long as their grace."""
        # Asked before: where the answer to a deletion is lost, the next finds nothing.
        was_there = self._cluster.get(RAY_JOBS, self._name) is not None
        was_there = self._cluster.delete(RAY_JOBS, self._name) or was_there
        # The head goes last.
        seconds = max(grace_seconds or 0.0, self._kuberay.grace_seconds + HEAD_GRACE_SECONDS)
        deadline = time.monotonic() + seconds
        while True:
            if self._cluster.get(RAY_JOBS, self._name) is None and not self._pods():
                return was_there
            if time.monotonic() >= deadline:
                break
            self._sleep(_POLL_SECONDS)
        raise PlaceUnavailableError(
            f"RayJob {self._name} was deleted, and not all of its pods have ended in "
            f"{seconds:.0f} s; look with status"
        )

    def _create(self, spec_map: Object, job: Object, submission: str) -> bool:
        """Whether this submission has created the RayJob; False where another's is at work.

        One that has ended, or is being deleted, is waited for: it works no more, or will not.
        """
        wait, was_sent = _POLL_SECONDS, False
        for attempt in range(_TRIES):
            try:
                found = self._cluster.get(RAY_JOBS, self._name)
                if found is not None and self._is_ours(found, submission):
                    return True
                if found is not None and _is_leaving(found):
                    before, found = found, self._make_room(found)
                    if found is not None and _is_same(found, before):
                        break
            except PlaceUnavailableError as error:
                if was_sent:
                    raise MayHaveStartedError(str(error)) from None
                raise
            if found is not None and not _is_leaving(found):
                return False
            try:
                if found is None:
                    self._cluster.create(spec_map)
                    was_sent = True
                    if self._cluster.create(job):
                        return True
            except PlaceUnavailableError as error:
                # It may have been created all the same: look again.
                if attempt == _TRIES - 1:
                    raise MayHaveStartedError(str(error)) from None
            self._sleep(wait)
            wait *= 2
        raise PlaceUnavailableError(
            f"RayJob {self._name} of before is still being removed; submit again when status says "
            "that there is none"
        )

    def _make_room(self, ended: Object) -> Object | None:
        """Remove the RayJob that has ended, or leaves already, and what has its name then.

        Another launcher may have done so, and have created the next one: that one stays.
        """
        self._cluster.delete(RAY_JOBS, self._name, uid=ended["metadata"]["uid"])
        deadline = time.monotonic() + self._kuberay.grace_seconds + HEAD_GRACE_SECONDS
        while True:
            found = self._cluster.get(RAY_JOBS, self._name)
            if found is None or not _is_same(found, ended) or time.monotonic() >= deadline:
                return found
            self._sleep(_POLL_SECONDS)

    def _tidy(self, spec_map: Object) -> None:
        """Give the map to its RayJob, and remove the others, as far as the server lets it.

        The run is on its way whatever comes of it. A map that stays behind costs nothing, and the
        run's next submission removes it.
        """
        with suppress(PlaceUnavailableError):
            # Such as a right that is missing: doctor says so.
            with suppress(SpecError):
                self._give_to_job(spec_map)
            with suppress(SpecError):
                self._remove_other_maps(spec_map["metadata"]["name"])

    def _give_to_job(self, spec_map: Object) -> None:
        """Have the map removed with the RayJob, by whatever ends it: cancel, or its time to live.

        Not before both are there: a map is what the RayJob's pods need to start.
        """
        job = self._cluster.get(RAY_JOBS, self._name)
        if job is None:
            return
        owner = {key: job["metadata"][key] for key in ("name", "uid")}
        owner |= {"apiVersion": RAY_JOBS.group, "kind": "RayJob"}
        owned = {**spec_map["metadata"], "ownerReferences": [owner]}
        change = {"metadata": {"ownerReferences": [owner]}}
        if not self._cluster.patch(CONFIG_MAPS, owned["name"], change):
            # It was the same as the RayJob's of before, and has gone with that one.
            self._cluster.create({**spec_map, "metadata": owned})

    def _is_ours(self, job: Object, submission: str) -> bool:
        annotations = job["metadata"].get("annotations", {})
        return bool(annotations.get(SUBMISSION) == submission)

    def _remove_other_maps(self, name: str) -> None:
        """Remove what earlier submissions of this run have left."""
        for one in self._cluster.find(CONFIG_MAPS, labels=self._mine):
            if one["metadata"]["name"] != name:
                self._cluster.delete(CONFIG_MAPS, one["metadata"]["name"])

    @property
    def _mine(self) -> str:
        return f"{RUN_LABEL}={self._name}"

    def _pods(self) -> list[Object]:
        return self._cluster.find(PODS, labels=self._mine)

    def _told(self, pod: str) -> Account | None:
        return status_line.newest_of(
            lambda num_lines: self._cluster.log(pod, SUBMITTER, num_lines=num_lines)
        )

    def _newest_head(self) -> Object | None:
        return next(iter(self._heads()), None)

    def _heads(self) -> list[Object]:
        """The heads' pods that are there, the newest first."""
        heads = [
            pod
            for pod in self._pods()
            if pod["metadata"].get("labels", {}).get("ray.io/node-type") == "head"
        ]
        return sorted(heads, key=lambda pod: pod["metadata"]["creationTimestamp"], reverse=True)

    def _workloads(self, job: Object) -> list[Object]:
        """Kueue's of this RayJob, and not those of an earlier one of its name."""
        uid = job["metadata"]["uid"]
        return [
            one
            for one in self._cluster.find(WORKLOADS)
            if any(owner["uid"] == uid for owner in one["metadata"].get("ownerReferences", []))
        ]

    def _events(self, job: Object, pods: list[Object]) -> list[Object]:
        """About the RayJob and its pods; a server keeps them for an hour or so."""
        names = {job["metadata"]["name"], *(pod["metadata"]["name"] for pod in pods)}
        events = self._cluster.find(EVENTS)
        return [one for one in events if one.get("involvedObject", {}).get("name") in names]


def _is_leaving(job: Object) -> bool:
    """Whether its driver has ended for good, or is being ended."""
    return is_over(job) or "deletionTimestamp" in job["metadata"]


def _is_same(one: Object, other: Object) -> bool:
    return bool(one["metadata"]["uid"] == other["metadata"]["uid"])


def _read(
    what: str, ask: Callable[[], list[Object]], unread: dict[str, str]
) -> list[Object] | None:
    """What is found; None, and why in ``unread``, where this account may not read it, or where the
    server does not say."""
    try:
        return ask()
    except RefusedError as error:
        is_denied = error.status == FORBIDDEN
        words = f"this account may not read {what}; rotescale-launch doctor lists what is missing"
        unread[what] = words if is_denied else str(error)
    except PlaceUnavailableError as error:
        unread[what] = str(error)
    return None


def _head_variables(job: Object) -> list[Object]:
    """What the head's container is given as variables, in place; none in what is none of ours."""
    found: Any = job["spec"]
    for key in ("rayClusterSpec", "headGroupSpec", "template", "spec"):
        found = found.get(key) or {}
    containers: list[Object] = found.get("containers") or [{}]
    variables: list[Object] = containers[0].get("env") or []
    return variables


def _without_owner(job: Object | None) -> Object | None:
    """What was rendered of a RayJob: not whose submission it is."""
    if job is not None:
        variables = _head_variables(job)
        variables[:] = [one for one in variables if one["name"] != history.OWNER_VARIABLE]
    return job
