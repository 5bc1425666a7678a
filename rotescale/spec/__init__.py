"""What is computed: the experiment spec and its parts; everything an experiment can say."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated

from pydantic import Field, NonNegativeInt, model_validator

from rotescale.spec.base import (
    BASE_LANGUAGE,
    CONFIDENTIAL,
    LANGUAGE_PATTERN,
    MAX_INTEGER,
    OPERATIONAL,
    Language,
    Name,
    Part,
    Share,
    results_fields,
)
from rotescale.spec.evaluation import EvaluationSpec, full_sample
from rotescale.spec.facts import (
    TABLE_SUFFIXES,
    CapitalFacts,
    Columns,
    DatasetFacts,
    Facts,
    FileFacts,
    GeneratedFacts,
    ShippedFacts,
    TrexFacts,
)
from rotescale.spec.model import (
    MAX_LAYERS,
    Attention,
    FolderWeights,
    HubWeights,
    KeyTokenSpec,
    LoraSpec,
    ModelSpec,
    RandomWeights,
    Weights,
    WheelWeights,
)
from rotescale.spec.phases import KnownFactsSpec, PhaseSpec, ReplaySpec, StandInSpec
from rotescale.spec.running import BestOf, CheckpointSpec, EngineSpec, EvaluationMode

__all__ = [
    "BASE_LANGUAGE",
    "CONFIDENTIAL",
    "LANGUAGE_PATTERN",
    "MAX_INTEGER",
    "MAX_LAYERS",
    "OPERATIONAL",
    "TABLE_SUFFIXES",
    "Attention",
    "BestOf",
    "CapitalFacts",
    "CheckpointSpec",
    "Columns",
    "DatasetFacts",
    "EngineSpec",
    "EvaluationMode",
    "EvaluationSpec",
    "ExperimentSpec",
    "Facts",
    "FileFacts",
    "FolderWeights",
    "GeneratedFacts",
    "HubWeights",
    "KeyTokenSpec",
    "KnownFactsSpec",
    "Language",
    "LoraSpec",
    "ModelSpec",
    "Name",
    "Part",
    "PhaseSpec",
    "RandomWeights",
    "ReplaySpec",
    "Share",
    "ShippedFacts",
    "StandInSpec",
    "TrexFacts",
    "Weights",
    "WheelWeights",
    "full_sample",
    "results_fields",
]


class ExperimentSpec(Part):
    """An experiment: the model, the facts, the phases in order, and what is measured."""

    name: Name
    """Name of the experiment, and of its run folder."""
    seed: NonNegativeInt = 0
    """Every random choice derives from it."""
    model: ModelSpec
    facts: Facts
    phases: tuple[PhaseSpec, ...] = Field(min_length=1)
    """In order; each starts from the master weights that the one before left."""
    engine: EngineSpec = EngineSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    checkpoints: Annotated[CheckpointSpec, OPERATIONAL] = CheckpointSpec()

    @model_validator(mode="after")
    def _consistent(self) -> ExperimentSpec:
        names = [phase.name for phase in self.phases]
        if len(set(names)) != len(names):
            raise ValueError(f"two phases share a name: {names}; name each phase once")
        self._check_memorized_first()
        if "base" in names:
            raise ValueError("'base' names the untrained model; give the phase another name")
        repurposing = [phase.name for phase in self.phases if phase.stand_in is not None]
        if len(repurposing) > 1:
            raise ValueError(
                f"phases.{repurposing[1]}.stand_in: phase {repurposing[0]!r} has one already, and "
                "only one is asked about; begin a run of its own from the first (--branch-from)"
            )
        self._check_best()
        own = False
        for phase in self.phases:
            if phase.stand_in is not None and phase.stand_in.benign_share and not own:
                raise ValueError(
                    f"phases.{phase.name}.stand_in.benign_share: no earlier phase tells facts with "
                    "their own prompts, so there is nothing benign to tell again; leave it out"
                )
            own = own or (phase.text == "prompts" and phase.stand_in is None)
        self._check_key_tokens()
        if self.model.attention == "flash_attention_2" and self.engine.precision != "bf16":
            raise ValueError(
                "model.attention: flash_attention_2 computes in bf16, but engine.precision is "
                f"{self.engine.precision}; set engine.precision to bf16, or model.attention to sdpa"
            )
        unknown = [name for name in self.evaluation.phases or () if name not in names]
        if unknown:
            raise ValueError(f"evaluation.phases {unknown}: no such phases, only {names}")
        return self

    def _check_key_tokens(self) -> None:
        kind = self.model.key_tokens.kind
        freezing = [phase.name for phase in self.phases if phase.freeze_key_tokens]
        if freezing and kind != "token":
            raise ValueError(
                f"phases.{freezing[0]}.freeze_key_tokens: with model.key_tokens.kind: {kind} no "
                "token is added, so there is no row to freeze; leave it out, or use kind: token"
            )

    def _check_best(self) -> None:
        """What checkpoints are chosen by must be asked."""
        best = self.checkpoints.keep_best
        if best is None:
            return
        field = f"{best.split}_facts"
        if getattr(self.evaluation, field) == 0:
            raise ValueError(
                f"checkpoints.keep_best.split: {best.split}, but evaluation.{field} is 0, so no "
                "such facts are asked about; ask about some, or choose by the other split"
            )

    def _check_memorized_first(self) -> None:
        """Facts are drawn alike in all phases, so fewer are always among more."""
        told = [p.facts_per_relation for p in self.phases if p.text == "key_token"]
        if not told or None in told:
            return
        most = max(number for number in told if number is not None)
        for phase in self.phases:
            wanted = phase.facts_per_relation
            if phase.text == "prompts" and (wanted is None or wanted > most):
                raise ValueError(
                    f"phase {phase.name!r} tells {wanted or 'all'} facts per relation with "
                    f"prompts, but only {most} are memorized; set its facts_per_relation to "
                    f"{most} or less"
                )

    def digest(self) -> str:
        """Hex digest of every field that changes results."""
        canonical = json.dumps(results_fields(self), sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def prefix_digest(self, num_phases: int) -> str:
        """Hex digest of every field that changes the weights after the first ``num_phases``."""
        fields = results_fields(self)
        for name in ("name", "evaluation"):
            del fields[name]
        fields["phases"] = [
            {name: value for name, value in phase.items() if name != "evaluate_epochs"}
            for phase in fields["phases"][:num_phases]
        ]
        canonical = json.dumps(fields, sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def is_evaluated(self, phase: str) -> bool:
        """Whether the end of that phase is evaluated."""
        return self.evaluation.phases is None or phase in self.evaluation.phases

    def is_exported(self, phase: str) -> bool:
        """Whether that phase ends with a Hugging Face folder."""
        match self.checkpoints.export:
            case "all":
                return True
            case "last":
                return phase == self.phases[-1].name
            case "none":
                return False

    def full_evaluation(self) -> ExperimentSpec:
        """The same experiment with nothing sampled in the evaluation."""
        return self.model_copy(update={"evaluation": full_sample(self.evaluation)})
