"""Where an experiment runs: the place, the workers, the storage. It changes no result."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from rotescale.hardware import NodeShape
from rotescale.spec import Name, Part
from rotescale.storage import storage_path


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
    """One evaluation of one stage."""
    save_seconds: PositiveFloat = 1800.0
    """A checkpoint or an export."""


class LaunchSpec(Part):
    """A place to run an experiment."""

    name: Name = "local"
    """Name of the profile."""
    place: Literal["local", "ray"] = "local"
    """``local``: a Ray cluster that is started on this machine for the run; ``ray``: one that is
    running, at ``address``."""
    address: str | None = None
    """Of the head node for ``place: ray``, as HOST:PORT, or ``auto`` on a node of the cluster."""
    num_workers: tuple[PositiveInt, PositiveInt] = (2, 2)
    """The least and the most workers; equal numbers: a fixed size. Between the two, Ray Train
    starts with what the cluster has, goes on with fewer when nodes are lost, and grows again."""
    resize_check_seconds: PositiveFloat = 60.0
    """How long a set of workers trains before more are taken in, and between two looks for more:
    growing costs a restart of all workers, so nodes must have been there for a while."""
    resize_save_seconds: PositiveFloat = 120.0
    """How long a resize waits for the checkpoint that it asks for; then it goes on without."""
    cpus_per_worker: PositiveFloat = 1.0
    """CPU cores per worker; also its threads."""
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
    storage: str = "runs"
    """The folder that all workers share, or a URL (s3://, gs://), with one folder per run."""
    model_cache: str = "~/.cache/rotescale"
    """The folder, shared by all workers, where fetched models are kept."""
    max_failures: NonNegativeInt = 3
    """How often Ray Train replaces lost workers before the run fails."""
    max_preemptions: NonNegativeInt | None = None
    """How often nodes may be taken away with notice, which is no failure; null: any number."""
    limits: Annotated[StageLimits, Field()] = StageLimits()
    """When a silent worker is taken to hang."""

    @field_validator("storage")
    @classmethod
    def _a_place(cls, value: str) -> str:
        storage_path(value)
        return value

    @field_validator("num_workers", mode="before")
    @classmethod
    def _one_number_is_a_fixed_size(cls, value: object) -> object:
        return (value, value) if isinstance(value, int) else value

    @model_validator(mode="after")
    def _address_of_a_cluster(self) -> LaunchSpec:
        if self.place == "ray" and self.address is None:
            raise ValueError("place: ray needs the address of its head node, or address: auto")
        if self.place == "local" and self.address is not None:
            raise ValueError(f"address: {self.address} is for place: ray, and the place is local")
        return self

    @field_validator("num_workers")
    @classmethod
    def _ordered(cls, value: tuple[int, int]) -> tuple[int, int]:
        if value[0] > value[1]:
            raise ValueError(f"the least ({value[0]}) is above the most ({value[1]})")
        return value
