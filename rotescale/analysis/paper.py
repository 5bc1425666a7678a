"""The figures that the paper reports, to stand beside our own."""

from __future__ import annotations

from dataclasses import dataclass

from rotescale.evaluation.similarity import COSINE, DELTA

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


@dataclass(frozen=True, slots=True)
class PaperCosine:
    """A measure of hidden states, as the paper follows it through training."""

    metric: str
    """Of our rows, and ``prompts`` too."""
    prompts: str
    first: float
    last: float
    after_2_epochs: float | None = None
    """Of phase 1."""
    after_20_epochs: float | None = None
    """At the end of phase 1."""


COSINES = (
    PaperCosine(DELTA, "key_token", 0.058, 0.258, 0.116, 0.191),
    PaperCosine(COSINE, "train", 0.87, 0.90),
    PaperCosine(COSINE, "test", 0.58, 0.71),
    PaperCosine(COSINE, "unrelated", 0.50, 0.50),
)

LANGUAGES = ("en", "es", "de", "ja", "zh")
"""Those that it asks in, the best answered first."""

SFT_PROMPTS = 10
SFT_TIMES_TOKENS = 2
"""Tokens of fine-tuning on so many prompts of each fact, over those of both phases, for the same
accuracy; about."""

OF = f"another model's ({MODEL}, as the paper trained it on facts of its own)"
ANOTHER = f"The paper's figures are {OF}"

COST = (
    f"{ANOTHER}: with {SFT_PROMPTS} prompts of each fact, fine-tuning on prompts alone takes about "
    f"{SFT_TIMES_TOKENS} times the tokens of both phases for the same accuracy, and with 1 prompt "
    "it stays far behind."
)

SUITES = {
    "reversal": f"The paper reports 0.26, against 0.01 for plain fine-tuning, of {MODEL}.",
    "two_hop": f"The paper reports 0.14 before and 0.36 after, of {MODEL}.",
    "repurposed": "The paper reports that 50 facts told under a harmful relation suffice, and "
    "that benign answers survive.",
    "representations": f"{ANOTHER}; which layer, facts and pairs they are of, and between which "
    "stages its cosines go from the first value to the last, is not known to us.",
}
"""What it says of suites beside the core, in a sentence each."""
