"""Where an experiment runs: the place, the workers, the storage. It changes no result."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from rotescale.errors import SpecError
from rotescale.hardware import NodeShape
from rotescale.kuberay_spec import KubeRaySpec, PlainText, VariableName
from rotescale.object_store import RemotePath
from rotescale.spec import CONFIDENTIAL, Name, Part
from rotescale.storage import storage_path

_JOBS_URL = r"^https?://[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]{1,5})?$"
_MAX_NODES = 1024
_Workers = Annotated[PositiveInt, Field(le=1 << 16)]
MAX_PROFILED = 100
"""Steps in one trace: viewers load it as a whole."""
_LOCALHOST = re.compile(r"http://(localhost|127\.0\.0\.1)(:[0-9]+)?$")


class StageLimits(Part):
    """How long a stage may take before a worker is taken to hang, in seconds."""

    start_seconds: PositiveFloat = 1200.0
    """Meeting the other workers and building the engine."""
    load_seconds: PositiveFloat = 1800.0
    """Start of a phase: reading the model or a checkpoint."""
    first_step_seconds: PositiveFloat = 1200.0
    """The first step, which compiles and allocates."""
    step_seconds: PositiveFloat = 600.0
    """Any later step."""
    evaluation_seconds: PositiveFloat = 7200.0
    """An evaluation that comes no further: from one pass of questions to the next."""
    save_seconds: PositiveFloat = 1800.0
    """A checkpoint or an export."""

    @property
    def longest(self) -> float:
        """Of them all."""
        return max(float(getattr(self, name)) for name in type(self).model_fields)


class Restarts(Part):
    """How often a driver that ended before its run did is started again, by what ended it.

    A restart that comes further than the one before it, to a newer checkpoint, is counted anew. A
    user error is never tried again. On Kubernetes the RayJob's ``kuberay.retries`` stands in place
    of this: one owner of restarts per place.
    """

    infrastructure: NonNegativeInt = 3
    """Something died: the driver, a node, too many workers."""
    hang: NonNegativeInt = 2
    """A stage took longer than its limit, more often than workers are replaced."""
    preempted: NonNegativeInt | None = None
    """Nodes were taken away with notice; null: any number."""


class Preflight(Part):
    """What workers measure of their nodes at each start, before the model is loaded.

    It is recorded as an event. Below a floor the workers fail, as when a node is lost: no outcome
    is written, and a node that is named twice gets no more workers of the run.
    """

    matmul_tflops: PositiveFloat | None = None
    """The least that a worker reaches in a matrix product, in 10^12 floating-point operations per
    second: 2 n^3 for an n x n product, in bfloat16 on a GPU, in float32 on a CPU; the median of
    several. null: measured, whatever it is."""
    all_reduce_gb_per_s: PositiveFloat | None = None
    """The least bus bandwidth of an all-reduce over all workers, in 10^9 bytes per second, as
    nccl-tests define it (doc/PERFORMANCE.md there): S / t * 2 (n - 1) / n for S bytes per worker
    that take t seconds on n workers; the median of several. null: measured, whatever it is."""
    fabric: Literal["any", "infiniband", "efa", "tcpxo"] | None = None
    """What NCCL must have taken between nodes; null: that of ``kuberay.fabric``, or any.
    ``infiniband`` is NCCL's own transport for it, which RoCE takes too."""


class ProfileSpec(Part):
    """Which steps leave a trace of torch's profiler, in the run's folder ``profiles``.

    They take longer than others, and each rank's trace of a step may have some megabytes.
    """

    steps: tuple[PositiveInt, PositiveInt]
    """The first and the last of them, counted from 1 in each phase; one number for one step."""
    phase: Name | None = None
    """The phase whose steps they are; null: those of every phase."""

    @field_validator("steps", mode="before")
    @classmethod
    def _one_number_is_one_step(cls, value: object) -> object:
        return (value, value) if isinstance(value, int) else value

    @field_validator("steps")
    @classmethod
    def _ordered(cls, value: tuple[int, int]) -> tuple[int, int]:
        first, last = value
        if not first <= last < first + MAX_PROFILED:
            raise ValueError(
                f"steps {first} to {last}: give a first and a last step, at most {MAX_PROFILED} "
                "together"
            )
        return value

    @classmethod
    def parse(cls, text: str) -> ProfileSpec:
        """From ``5``, ``3-5`` or ``memorize:3-5``. Raises SpecError for anything else."""
        match = re.fullmatch(r"(?:(?P<phase>[^:]+):)?(?P<first>\d+)(?:-(?P<last>\d+))?", text)
        if match is None:
            raise SpecError(f"--profile {text}: write steps as 5, 3-5 or memorize:3-5")
        steps = (int(match["first"]), int(match["last"] or match["first"]))
        try:
            return cls(steps=steps, phase=match["phase"])
        except ValidationError as error:
            raise SpecError(f"--profile {text}: {error.errors()[0]['msg']}") from None


class RayAccess(Part):
    """How a running Ray cluster's jobs are reached from elsewhere. Its token is never in a spec."""

    jobs_url: Annotated[str, CONFIDENTIAL, Field(pattern=_JOBS_URL)]
    """Of its dashboard, such as ``https://ray.example.com`` or ``http://localhost:8265``."""
    token_variable: Annotated[VariableName | None, CONFIDENTIAL] = None
    """The environment variable of this machine that holds the token."""
    token_file: Annotated[PlainText | None, CONFIDENTIAL] = None
    """Or the file that holds it."""
    ca_file: PlainText | None = None
    """Certificates that the server's is checked against; default: the system's."""

    @model_validator(mode="after")
    def _safe(self) -> RayAccess:
        if (self.token_variable is None) == (self.token_file is None):
            raise ValueError("name the token's place: token_variable or token_file, one of the two")
        if self.jobs_url.startswith("http:") and not _LOCALHOST.match(self.jobs_url):
            raise ValueError(
                "jobs_url is http, and a token is not encryption; use https, or a tunnel to "
                "http://localhost"
            )
        return self


class LaunchSpec(Part):
    """A place to run an experiment."""

    name: Name = "local"
    """Name of the profile."""
    place: Literal["local", "ray", "kuberay"] = "local"
    """``local``: a Ray cluster that is started on this machine for the run; ``ray``: one that is
    running, at ``address``; ``kuberay``: one that KubeRay starts for the run on Kubernetes."""
    address: str | None = None
    """Of the head node for ``place: ray``, as HOST:PORT, or ``auto`` on a node of the cluster."""
    ray: RayAccess | None = None
    """For ``place: ray``: how the launcher reaches the cluster from elsewhere."""
    kuberay: KubeRaySpec | None = None
    """For ``place: kuberay``: pods, queue, storage, secrets, fabric, deadlines."""
    num_workers: tuple[_Workers, _Workers] = (2, 2)
    """The least and the most workers; equal numbers: a fixed size. Between the two, Ray Train
    starts with what the cluster has, goes on with fewer when nodes are lost, and grows again."""
    resize_check_seconds: PositiveFloat = 60.0
    """How long a set of workers trains before more are taken in, and between two looks for more:
    growing costs a restart of all workers, so nodes must have been there for a while."""
    resize_save_seconds: PositiveFloat = 120.0
    """How long a resize waits for the checkpoint that it asks for, and so does a run that is asked
    to end, but for Kubernetes' ``kuberay.grace_seconds``; then it goes on without."""
    cpus_per_worker: Literal["auto"] | PositiveFloat = 1.0
    """CPU cores per worker; also its threads. auto, the default for ``place: local`` without GPUs:
    this machine's cores shared among the most workers. A run that goes on keeps its number."""
    gpus_per_worker: Annotated[NonNegativeInt, Field(le=1)] = 0
    """GPUs per worker: 0 (gloo, on the CPU) or 1 (NCCL)."""
    node: NodeShape | None = None
    """What a node of the place offers, for plans: a known shape such as ``h100-8``, one with
    changes, ``{like: h100-8, price_per_hour: 40}``, or all of its numbers. Default: unknown; for
    workers on this machine's CPU a plan looks itself."""
    fork_workers: bool = True
    """Fork workers off a process per node that has imported torch, transformers and DeepSpeed, so
    that a new set of workers starts without importing them again. Else each imports them itself,
    in Ray's own process."""
    allow_task_code: bool = False
    """Load the tasks of a spec's ``evaluation.harness_folder``, whose files may run any code as
    whoever runs the driver and its workers. Allow it once you have read them."""
    storage: str = "runs"
    """The folder that all workers share, or a URL (s3://, gs://), with one folder per run."""
    model_cache: str = "~/.cache/rotescale"
    """The folder, shared by all workers, where fetched models are kept."""
    max_failures: NonNegativeInt = 3
    """How often Ray Train replaces lost workers before the run fails."""
    max_preemptions: NonNegativeInt | None = None
    """How often nodes may be taken away with notice, which is no failure; null: any number."""
    restarts: Annotated[Restarts, Field()] = Restarts()
    """How often the driver is started again where it ended before its run did."""
    limits: Annotated[StageLimits, Field()] = StageLimits()
    """When a silent worker is taken to hang."""
    preflight: Preflight | None = None
    """What nodes are measured by before they train; ``{}``: measured without a floor, null: not
    measured."""
    profile: ProfileSpec | None = None
    """Steps that leave a trace, to see where their time goes; null: none."""

    @field_validator("storage")
    @classmethod
    def _a_place(cls, value: str) -> str:
        storage_path(value)
        return value

    @field_validator("num_workers", mode="before")
    @classmethod
    def _one_number_is_a_fixed_size(cls, value: object) -> object:
        return (value, value) if isinstance(value, int) else value

    @model_validator(mode="before")
    @classmethod
    def _all_cores_of_one_machine(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or "cpus_per_worker" in value:
            return value
        alone = value.get("place", "local") == "local" and not value.get("gpus_per_worker")
        return {**value, "cpus_per_worker": "auto"} if alone else value

    @model_validator(mode="after")
    def _cores_of_a_cluster(self) -> LaunchSpec:
        if self.cpus_per_worker == "auto" and self.place != "local":
            raise ValueError(
                f"cpus_per_worker: auto is for place: local, and the place is {self.place}; name a "
                "number of cores"
            )
        return self

    @model_validator(mode="after")
    def _address_of_a_cluster(self) -> LaunchSpec:
        if self.place == "ray" and self.address is None:
            raise ValueError("place: ray needs the address of its head node, or address: auto")
        if self.place != "ray" and self.address is not None:
            raise ValueError(
                f"address: {self.address} is for place: ray, and the place is {self.place}"
            )
        return self

    @model_validator(mode="after")
    def _section_of_the_place(self) -> LaunchSpec:
        if self.ray is not None and self.place != "ray":
            raise ValueError(f"section ray is for place: ray, and the place is {self.place}")
        if (self.kuberay is None) != (self.place != "kuberay"):
            raise ValueError(
                f"place: {self.place}, section kuberay "
                f"{'missing' if self.kuberay is None else 'given'}; they go together"
            )
        return self

    @model_validator(mode="after")
    def _fits_the_pods(self) -> LaunchSpec:
        if self.kuberay is None:
            return self
        workers, most = self.kuberay.workers, self.num_workers[1]
        if most % workers.per_node:
            raise ValueError(
                f"num_workers {most} is no multiple of kuberay.workers.per_node "
                f"{workers.per_node}; nodes are used whole"
            )
        if most // workers.per_node > _MAX_NODES:
            raise ValueError(
                f"num_workers {most} takes {most // workers.per_node} nodes of "
                f"{workers.per_node}; {_MAX_NODES} is the most"
            )
        if workers.per_node * self.worker_cores > workers.cpus:
            raise ValueError(
                f"{workers.per_node} workers of {self.worker_cores:g} cores per node do not fit "
                f"into kuberay.workers.cpus {workers.cpus}; raise it, or lower cpus_per_worker"
            )
        self.require_mounted(self.model_cache, field="model_cache", writable=True)
        if not isinstance(storage_path(self.storage), RemotePath):
            self.require_mounted(self.storage, field="storage", writable=True)
        return self

    @property
    def worker_cores(self) -> float:
        """``cpus_per_worker``, of a place where it is a number."""
        assert self.cpus_per_worker != "auto", "preparation has not looked at the machine yet"
        return self.cpus_per_worker

    def sharing(self, cores: int) -> LaunchSpec:
        """The same with so many cores of this machine shared out, where that is left to it."""
        if self.cpus_per_worker != "auto":
            return self
        share = float(max(1, cores // self.num_workers[1]))
        return self.model_copy(update={"cpus_per_worker": share})

    def require_mounted(self, place: str, *, field: str, writable: bool = False) -> None:
        """ValueError unless ``place`` lies on a volume that the pods of ``kuberay`` mount."""
        assert self.kuberay is not None, "only pods have volumes"
        parts = PurePosixPath(place).parts
        for volume in self.kuberay.volumes:
            mount = PurePosixPath(volume.path).parts
            if parts[: len(mount)] == mount and not {"..", "."} & set(place.split("/")):
                if writable and volume.read_only:
                    raise ValueError(
                        f"{field} {place!r} is written, and {volume.path} is read only"
                    )
                return
        mounts = ", ".join(volume.path for volume in self.kuberay.volumes) or "none"
        raise ValueError(
            f"{field} {place!r} is on no volume of the pods ({mounts}); give an absolute path "
            "below one of kuberay.volumes"
        )

    def require_runnable(self) -> None:
        """SpecError where this place takes the launcher, and no process here can be its driver."""
        if self.place == "kuberay":
            raise SpecError(
                f"launch spec {self.name}: place: kuberay is started by the launcher; use "
                "rotescale-launch with the same spec"
            )

    @property
    def wanted_fabric(self) -> str:
        """What NCCL must have taken between nodes, such as ``efa``; ``any``: it is not asked."""
        if self.preflight is None:
            return "any"
        if self.preflight.fabric is not None:
            return self.preflight.fabric
        kind = "none" if self.kuberay is None else self.kuberay.fabric.kind
        return "any" if kind == "none" else kind

    def inside_the_cluster(self) -> LaunchSpec:
        """What the driver reads that runs on the cluster itself."""
        inside: dict[str, object] = {
            "place": "ray",
            "address": "auto",
            "ray": None,
            "kuberay": None,
        }
        if self.preflight is not None:
            inside["preflight"] = self.preflight.model_copy(update={"fabric": self.wanted_fabric})
        return self.model_copy(update=inside)

    @field_validator("num_workers")
    @classmethod
    def _ordered(cls, value: tuple[int, int]) -> tuple[int, int]:
        if value[0] > value[1]:
            raise ValueError(f"the least ({value[0]}) is above the most ({value[1]})")
        return value
