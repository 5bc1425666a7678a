"""Where an experiment runs: the place, the workers, the storage. It changes no result."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from rotescale.spec import Name, Part


class StageLimits(Part):
    """How long a stage may take before a worker is taken to hang, in seconds."""

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
    place: Literal["local"] = "local"
    """``local``: a Ray cluster that is started on this machine for the run."""
    num_workers: tuple[PositiveInt, PositiveInt] = (2, 2)
    """The least and the most workers; equal numbers: a fixed size."""
    cpus_per_worker: PositiveFloat = 1.0
    """CPU cores per worker; also its threads."""
    gpus_per_worker: Annotated[NonNegativeInt, Field(le=1)] = 0
    """GPUs per worker: 0 (gloo, on the CPU) or 1 (NCCL)."""
    storage: str = "runs"
    """The folder, shared by all workers, that holds one folder per run."""
    model_cache: str = "~/.cache/rotescale"
    """The folder, shared by all workers, where fetched models are kept."""
    max_failures: NonNegativeInt = 3
    """How often Ray Train replaces lost workers before the run fails."""
    limits: Annotated[StageLimits, Field()] = StageLimits()
    """When a silent worker is taken to hang."""

    @field_validator("num_workers", mode="before")
    @classmethod
    def _one_number_is_a_fixed_size(cls, value: object) -> object:
        return (value, value) if isinstance(value, int) else value

    @field_validator("num_workers")
    @classmethod
    def _ordered(cls, value: tuple[int, int]) -> tuple[int, int]:
        if value[0] > value[1]:
            raise ValueError(f"the least ({value[0]}) is above the most ({value[1]})")
        return value
