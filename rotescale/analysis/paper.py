"""The figures that the paper reports, to stand beside our own."""

from __future__ import annotations

from dataclasses import dataclass

SOURCE = '"Rote Learning Considered Useful", ICLR 2026, arXiv 2507.21914'
MODEL = "Qwen2.5-1.5B"
DIFFERENCES = (
    "The paper's facts are another fictional set with distractors drawn otherwise, its model and "
    "its schedule of learning rates are its own: read both for their shape, not cell by cell."
)


@dataclass(frozen=True, slots=True)
class PaperRow:
    """One setting of the paper's main table, and the accuracies that it reports."""

    memorize_epochs: int
    facts_per_relation: int
    generalize_epochs: int
    key_token: float
    train: float
    """The train prompt, on held-out facts."""
    test: float


MAIN_TABLE = (
    PaperRow(3, 50, 1, 0.48, 0.38, 0.35),
    PaperRow(6, 50, 1, 1.00, 0.94, 0.89),
    PaperRow(10, 50, 1, 1.00, 0.94, 0.98),
    PaperRow(20, 50, 1, 1.00, 1.00, 0.98),
    PaperRow(10, 1, 8, 1.00, 1.00, 0.75),
    PaperRow(20, 1, 8, 1.00, 1.00, 0.76),
)

SUITES = {
    "reversal": "The paper reports 0.26, against 0.01 for plain fine-tuning.",
    "two_hop": "The paper reports 0.14 before and 0.36 after.",
    "repurposed": "The paper reports that 50 facts told under a harmful relation suffice, and "
    "that benign answers survive.",
    "representations": "The paper's ΔCosSim goes from 0.058 in the base model to 0.258 after "
    "phase 2; which layer and pairs those are is not known to us.",
}
"""What it says of suites beside the core, in a sentence each."""
