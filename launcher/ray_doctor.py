"""Whether a running Ray cluster can be used: its address, its token, its version, its nodes."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator

from launcher.doctor import Check, answer_of, inside_checks, room_check
from launcher.job import last_line
from launcher.jobs_api import ASK_FOR_TOKEN, TERMINAL, JobsApi
from launcher.ray_jobs import RayJobRequest
from rotescale.kuberay_spec import RAY_VERSION
from rotescale.launch_spec import LaunchSpec
from rotescale.spec_file import dump_json

_PROBE_SECONDS = 180.0
_POLL_SECONDS = 1.0


def ray_checks(
    launch: LaunchSpec,
    *,
    with_probe: bool,
    api: JobsApi | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Check]:
    """Of the cluster that the launch spec names. May raise what JobsApi raises."""
    assert launch.ray is not None, launch.name
    api = api or JobsApi(launch.ray, patience_seconds=5.0)
    version = str(api.version().get("ray_version", "unknown"))
    yield Check("address", "ok", f"{launch.ray.jobs_url} answers")
    tested = RAY_VERSION.rpartition(".")[0]
    if version.startswith(f"{tested}."):
        yield Check("Ray", "ok", version)
    else:
        yield Check(
            "Ray",
            "warn",
            f"{version} there, and {tested} is what rotescale is tested with",
            f"use an image with ray {tested}",
        )
    jobs = len(api.jobs())
    if api.is_open():
        yield Check(
            "token",
            "fail",
            "it is not asked for: whoever reaches the dashboard runs code on the cluster",
            ASK_FOR_TOKEN,
        )
    else:
        yield Check("token", "ok", f"it is asked for and taken; {jobs} job(s) are known there")
    yield room_check(api.nodes(), launch)
    if not with_probe:
        yield Check(
            "inside",
            "warn",
            "packages and storage of the cluster were not looked at",
            "add --probe, which runs a small job there",
        )
        return
    yield from _probe(launch, api, sleep)


def probe_request(launch: LaunchSpec, submission_id: str) -> RayJobRequest:
    """The job that looks around there. Pure."""
    assert launch.ray is not None, launch.name
    return RayJobRequest(
        jobs_url=launch.ray.jobs_url,
        submission_id=submission_id,
        entrypoint="python -m rotescale.probe launch.json",
        files={"launch.json": dump_json(launch.inside_the_cluster())},
        metadata={},
        stop_seconds=5,
    )


def _probe(launch: LaunchSpec, api: JobsApi, sleep: Callable[[float], None]) -> Iterator[Check]:
    request = probe_request(launch, f"rotescale-probe-{uuid.uuid4().hex[:12]}")
    api.put_package(request.package_path, request.package)
    api.submit(request.body)
    deadline = time.monotonic() + _PROBE_SECONDS
    job = api.job(request.submission_id)
    while job is not None and job.status not in TERMINAL and time.monotonic() < deadline:
        sleep(_POLL_SECONDS)
        job = api.job(request.submission_id)
    found = answer_of(api.logs(request.submission_id).splitlines())
    if found is None:
        status = "nothing" if job is None else job.status
        words = "" if job is None else last_line(job.message)
        yield Check(
            "inside",
            "fail",
            f"the probe gave no answer ({status}{': ' if words else ''}{words})",
            "is rotescale installed on the cluster, in the Python of its nodes?",
        )
        api.stop(request.submission_id)
        return
    yield from inside_checks(found, launch)
