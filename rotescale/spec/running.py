"""How the model is trained and saved: engine, precision, checkpoints."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from rotescale.spec.base import OPERATIONAL, Part

FUSED_TARGETS = 512
"""Targets whose logits ``engine.fused_loss`` has at a time."""

EvaluationMode = Literal["replicated", "sharded"]
"""A whole copy of the model per worker, or every forward pass through the partitions."""


class EngineSpec(Part):
    """How the model is trained: which engine, in which precision, with which ZeRO-3 settings."""

    kind: Annotated[Literal["zero3", "eager"], OPERATIONAL] = "zero3"
    """DeepSpeed ZeRO-3, or plain torch in one process (the reference)."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """The dtype of forward and backward; master weights and moments are fp32 always."""
    gradient_dtype: Literal["fp32", "bf16"] = "fp32"
    """The dtype in which gradients are accumulated and reduced."""
    row_tokens: Annotated[PositiveInt, OPERATIONAL] = 1024
    """Token budget of one packed row, the unit of a forward pass."""
    sub_group_size: Annotated[PositiveInt, OPERATIONAL] = 1_000_000_000
    """Elements of a rank's state that one optimizer sub-step takes."""
    persistence_threshold: Annotated[Literal["auto"] | NonNegativeInt, OPERATIONAL] = "auto"
    """Parameters of fewer elements stay gathered between passes. auto: on CPUs all of a model
    that is whole on a worker from forward to backward anyway, since it has at most half of
    ``gathered_parameters``; else those of fewer than 100,000."""
    gathered_parameters: Annotated[Literal["auto"] | PositiveInt, OPERATIONAL] = "auto"
    """Parameters that may be whole on a worker at a time, in elements: less saves memory, and
    gathers what backward needs a second time. auto: a layer and ``prefetch_size``, at least 1e9."""
    prefetch_size: Annotated[Literal["auto"] | NonNegativeInt, OPERATIONAL] = "auto"
    """Parameters that are gathered while others compute, in elements; auto: a layer's on GPUs, none
    on CPUs, where all cores compute; on one machine's CPUs nothing is sent beside computing."""
    bucket_size: Annotated[Literal["auto"] | PositiveInt, OPERATIONAL] = "auto"
    """Elements of one gradient reduction; auto: a layer's, from 30 to 200 million."""
    overlap_communication: Annotated[Literal["auto"] | bool, OPERATIONAL] = "auto"
    """Reduce gradients on a second stream; auto: on GPUs, since on the CPU there is no gain."""
    fused_loss: Annotated[bool, OPERATIONAL] = False
    """Take the loss inside the output matrix, 512 targets at a time: the logits of a row's targets
    need not fit into memory together, and are computed once more in the backward pass. On a GPU a
    step is then not repeated bit for bit."""
    offload_optimizer: Annotated[Literal["none", "cpu", "nvme"], OPERATIONAL] = "none"
    """Keep master weights and moments in host memory, or in files of each node's own disk, and
    update them there (zero3 only). The files lie below ``ROTESCALE_LOCAL``."""
    evaluation_mode: Annotated[Literal["auto"] | EvaluationMode, OPERATIONAL] = "auto"
    """Evaluate with a whole copy per worker, or through the partitions; auto: a copy if it fits."""

    @model_validator(mode="after")
    def _offload_needs_zero3(self) -> EngineSpec:
        if self.offload_optimizer != "none" and self.kind != "zero3":
            raise ValueError(
                f"offload_optimizer: {self.offload_optimizer} is for kind: zero3, not {self.kind}"
            )
        return self


class BestOf(Part):
    """What makes a checkpoint the best of its phase: the highest value, measured on the way.

    What it is chosen by is no test of it any more: of held-out facts, or test prompts, the chosen
    checkpoint's values are too high by the choice. So the default looks at neither; in a phase
    before any facts are told with prompts it has nothing to choose by.
    """

    metric: Literal["multiple_choice", "multiple_choice_normalized", "object_probability"] = (
        "multiple_choice"
    )
    """What was measured."""
    prompts: Literal["key_token", "train", "test"] = "train"
    """With which kind of prompts."""
    split: Literal["trained", "held_out"] = "trained"
    """Of which facts."""


class CheckpointSpec(Part):
    """When training is saved, and what is kept."""

    every_steps: PositiveInt | None = None
    """Save a full checkpoint after every n optimizer steps; default: at the end of each epoch."""
    while_saving: Literal["wait", "skip"] = "wait"
    """What happens where the save before is still in flight; ends of phases always wait."""
    keep_last: PositiveInt = 2
    """How many full checkpoints are kept; phase ends are always kept."""
    keep_every: PositiveInt | None = None
    """Keep also every full checkpoint whose step is a multiple of this."""
    keep_best: BestOf | None = None
    """Keep also the best of each phase among those measured at its ``evaluate_epochs``."""
    export: Literal["all", "last", "none"] = "all"
    """Which phases end with a Hugging Face folder; ``rotescale checkpoint export`` makes one
    later."""
