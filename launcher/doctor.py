"""Whether a place can run an experiment: a line for everything that must be right, with its remedy.

Looking changes nothing. With ``probe``, what can only be seen from inside is looked at there: a
small job on the Ray cluster, a pod of the run's image on Kubernetes, each gone afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rotescale.errors import RotescaleError
from rotescale.launch_spec import LaunchSpec
from rotescale.planning.memory import host_memory
from rotescale.probe import MARK, PACKAGES, probe

Verdict = Literal["ok", "warn", "fail"]
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    verdict: Verdict
    words: str
    """What was found."""
    remedy: str = ""
    """What to do, where it is not ``ok``."""


def local_checks(launch: LaunchSpec) -> Iterator[Check]:
    """Of this machine."""
    yield from inside_checks(probe(launch), launch)
    yield _ok(
        "memory", f"{host_memory() / (1 << 30):.1f} GiB; rotescale-launch plan says if it fits"
    )


def inside_checks(
    found: dict[str, Any], launch: LaunchSpec, *, ray_version: str | None = None
) -> Iterator[Check]:
    """Of what ``rotescale.probe`` found where workers would run."""
    versions = found["versions"]
    missing = [name for name in PACKAGES if versions[name] is None]
    if missing:
        yield Check(
            "packages",
            "fail",
            f"{', '.join(missing)} not installed",
            "install rotescale[train] there, or take an image that has it (k8s/Dockerfile)",
        )
    else:
        listed = ", ".join(f"{name} {versions[name]}" for name in PACKAGES)
        yield _ok("packages", f"{listed}, Python {found['python']}")
    if ray_version is not None and versions["ray"] not in (None, ray_version):
        yield Check(
            "Ray",
            "fail",
            f"{versions['ray']} is installed, and {ray_version} was expected",
            "let both be the same: kuberay.ray_version is the image's",
        )
    yield from _names(found["names"])
    for name, place in (("storage", launch.storage), ("model_cache", launch.model_cache)):
        problem = found[name]
        if problem:
            yield Check(
                name,
                "fail",
                f"{place}: {problem}",
                "give the workers' user write access, or name another place",
            )
        else:
            yield _ok(name, f"{place}: written, read and removed; exclusive creation works")
    yield from _gpus(found["gpus"], launch)
    shared = found["shared_memory"]
    if shared is not None and shared < 64 * _MIB:
        yield Check(
            "/dev/shm",
            "warn",
            f"{shared // _MIB} MiB are free",
            "gloo and NCCL pass data through it; make it larger",
        )


def _names(problem: str | None) -> Iterator[Check]:
    if problem == "":
        yield _ok("DNS", "names of the cluster are found")
    elif problem is not None:
        yield Check(
            "DNS",
            "fail",
            problem,
            "let k8s/base/network-policy.yaml allow the address that the pods' resolv.conf names",
        )


def _gpus(there: int, launch: LaunchSpec) -> Iterator[Check]:
    """Of the machine that looked; elsewhere the place itself says what its nodes have."""
    wanted = launch.num_workers[1] * launch.gpus_per_worker
    if launch.place != "local" or not wanted:
        return
    if there >= wanted:
        yield _ok("GPUs", f"{there} are here, and {wanted} are wanted")
    else:
        yield Check(
            "GPUs",
            "fail",
            f"{there} are here, and {wanted} are wanted",
            "lower num_workers, see that nvidia-smi and CUDA_VISIBLE_DEVICES list them, or set "
            "gpus_per_worker: 0",
        )


def room_check(nodes: Sequence[Mapping[str, float]], launch: LaunchSpec) -> Check:
    """Whether workers fit on nodes of a Ray cluster, given the resources that each has in all."""
    room = sum(_room_on(node, launch) for node in nodes)
    least, most = launch.num_workers
    gpus = sum(node.get("GPU", 0.0) for node in nodes)
    each = f"{launch.worker_cores:g} CPU(s)"
    each += f" and {launch.gpus_per_worker} GPU" if launch.gpus_per_worker else ""
    words = (
        f"{len(nodes)} with {sum(node.get('CPU', 0.0) for node in nodes):g} CPUs and {gpus:g} GPUs "
        f"have room for {room} workers of {each}; {most} are wanted"
    )
    if room >= most:
        return _ok("nodes", words)
    remedy = "join more nodes (ray start --address=HOST:PORT), or ask for less in the launch spec"
    if room >= least:
        return Check("nodes", "warn", f"{words}, {least} at least", remedy)
    return Check("nodes", "fail", words, f"{remedy}; where an autoscaler adds nodes, go on")


def _room_on(node: Mapping[str, float], launch: LaunchSpec) -> int:
    room = node.get("CPU", 0.0) // launch.worker_cores
    if launch.gpus_per_worker:
        room = min(room, node.get("GPU", 0.0) // launch.gpus_per_worker)
    return int(room)


def answer_of(lines: list[str]) -> dict[str, Any] | None:
    """What a probe printed; None where it printed nothing of its own."""
    for line in reversed(lines):
        if MARK in line:
            found: dict[str, Any] = json.loads(line.partition(MARK)[2])
            return found
    return None


def asked(name: str, remedy: str, checks: Iterator[Check]) -> Iterator[Check]:
    """The checks, or a failure called ``name`` where asking raises one of our errors."""
    try:
        yield from checks
    except RotescaleError as error:
        yield Check(name, "fail", str(error), remedy)


def _ok(name: str, words: str) -> Check:
    return Check(name, "ok", words)
