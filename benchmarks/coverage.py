"""How often 95 % intervals hold the true value, ours and percentiles, on simulated answers.

``python benchmarks/coverage.py [--datasets N] [--json PATH]``; about 10 minutes of one core with
1,000 data sets a cell. A cell is a setting and a true accuracy; a data set of it is drawn, both
intervals are computed from it, and coverage is the share of data sets whose interval holds the
truth. The peer is the usual percentile bootstrap over facts. Five kinds of data:

- ``accuracy``: a fact's own accuracy is beta-distributed about the true one, such that two prompts
  of a fact correlate by ``correlation``; each prompt is then right or wrong.
- ``probability``: one value of a fact, itself beta-distributed, as object probabilities are: the
  greater ``correlation``, the more of them lie near 0 or 1.
- ``difference``: right or wrong before and after, paired by item. The accuracy doubles, up to the
  true one. An answer is right where a normal variable is under a threshold; ``correlation`` is the
  share of its variance that belongs to the fact, before and after alike.
- ``seeds``: as the answers after, by the models of several seeds; ``seed_share`` of the variance
  belongs to the seed, and half of what is left of it to the pair of seed and fact.
- ``difference over seeds``: before and after, where each has seeds' effects of its own.

Not measured: facts of unequal numbers of prompts, and other ways of being correlated.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist, fmean

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from rotescale.evaluation.intervals import bootstrap_interval, crossed_interval

KINDS = ("accuracy", "probability", "difference", "seeds", "difference over seeds")
ACCURACIES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Setting:
    """One way of drawing data sets, but for the true accuracy."""

    kind: str
    num_facts: int
    num_prompts: int = 1
    correlation: float = 0.0
    num_seeds: int = 1
    seed_share: float = 0.0

    @property
    def bounds(self) -> tuple[float, float]:
        """Of the values that are drawn."""
        return (-1.0, 1.0) if self.kind.startswith("difference") else (0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Cell:
    """What was seen at one setting and true accuracy."""

    setting: Setting
    accuracy: float
    coverage: float
    width: float
    """Mean, of ours."""
    percentile_coverage: float
    percentile_width: float


def settings() -> Iterator[Setting]:
    """Every setting that is measured."""
    for num_facts in (10, 25, 50, 100):
        yield Setting("accuracy", num_facts)
        for num_prompts in (3, 10):
            for correlation in (0.0, 0.3, 0.6, 0.9):
                yield Setting("accuracy", num_facts, num_prompts, correlation)
    for num_facts in (10, 25, 50, 100):
        for correlation in (0.1, 0.5, 0.8):
            yield Setting("probability", num_facts, 1, correlation)
    for num_facts in (10, 25, 50, 100):
        for num_prompts, correlation in ((1, 0.5), (10, 0.3), (10, 0.8)):
            yield Setting("difference", num_facts, num_prompts, correlation)
    for kind in ("seeds", "difference over seeds"):
        for num_seeds in (2, 3, 5):
            for seed_share in (0.0, 0.01, 0.05, 0.2):
                yield Setting(kind, 50, 5, 0.4, num_seeds, seed_share)


def draw(setting: Setting, accuracy: float, generator: np.random.Generator) -> tuple[Floats, float]:
    """Values (num_seeds, num_facts, num_prompts) float64, and their true mean."""
    shape = (setting.num_seeds, setting.num_facts, setting.num_prompts)
    if setting.kind in ("accuracy", "probability"):
        of_facts = np.full(shape[1], accuracy)
        if setting.correlation:
            total = 1 / setting.correlation - 1
            of_facts = generator.beta(accuracy * total, (1 - accuracy) * total, size=shape[1])
        if setting.kind == "probability":
            return of_facts[None, :, None], accuracy
        return (generator.random(shape) < of_facts[:, None]).astype(np.float64), accuracy
    effects = generator.normal(size=(1, shape[1], 1))
    after = _answers(setting, accuracy, effects, generator)
    if setting.kind == "seeds":
        return after, accuracy
    return after - _answers(setting, accuracy / 2, effects, generator), accuracy / 2


def _answers(
    setting: Setting, accuracy: float, effects: Floats, generator: np.random.Generator
) -> Floats:
    """Right or wrong, by a normal variable to which the facts' ``effects`` contribute."""
    num_seeds, num_facts = setting.num_seeds, setting.num_facts
    rest = 1 - setting.correlation - setting.seed_share
    of_pairs = rest / 2 if num_seeds > 1 else 0.0
    variable = (
        math.sqrt(setting.correlation) * effects
        + math.sqrt(setting.seed_share) * generator.normal(size=(num_seeds, 1, 1))
        + math.sqrt(of_pairs) * generator.normal(size=(num_seeds, num_facts, 1))
        + math.sqrt(rest - of_pairs)
        * generator.normal(size=(num_seeds, num_facts, setting.num_prompts))
    )
    return (variable < NormalDist().inv_cdf(accuracy)).astype(np.float64)


def our_interval(values: Floats, setting: Setting, *, num_samples: int) -> tuple[float, float]:
    """Over facts, and over seeds where there are several."""
    seeds, facts, _ = (places.ravel() for places in np.indices(values.shape))
    flat, bounds = values.ravel(), setting.bounds
    if setting.num_seeds == 1:
        return bootstrap_interval(flat, facts=facts, num_samples=num_samples, seed=0, bounds=bounds)
    return crossed_interval(
        flat, facts=facts, seeds=seeds, num_samples=num_samples, seed=0, bounds=bounds
    )


def percentile_interval(values: Floats, weights: Floats) -> tuple[float, float]:
    """Percentiles of the resampled means; rows of ``weights`` (num_samples, num_facts) sum to 1."""
    low, high = np.quantile(weights @ values.mean(axis=(0, 2)), [0.025, 0.975])
    return float(low), float(high)


def measure(
    setting: Setting, accuracy: float, *, num_datasets: int, num_samples: int, seed: int
) -> Cell:
    """Coverage and width of both intervals over ``num_datasets`` data sets."""
    generator = np.random.default_rng((seed, round(1000 * accuracy)))
    probabilities = np.full(setting.num_facts, 1 / setting.num_facts)
    drawn = generator.multinomial(setting.num_facts, probabilities, size=num_samples)
    weights = drawn / setting.num_facts
    found = []
    for _ in range(num_datasets):
        values, truth = draw(setting, accuracy, generator)
        both = (
            our_interval(values, setting, num_samples=num_samples),
            percentile_interval(values, weights),
        )
        # Means of zeros and ones round: a truth on the border is held.
        found.append([(low - 1e-9 <= truth <= high + 1e-9, high - low) for low, high in both])
    (ours, width), (peer, peer_width) = np.array(found, dtype=np.float64).mean(axis=0)
    return Cell(setting, accuracy, float(ours), float(width), float(peer), float(peer_width))


def table(kind: str, cells: Iterable[Cell]) -> Table:
    """Coverage in % of one kind: a line per setting, a column per true accuracy, and means."""
    made = Table(title=f"{kind}: coverage of 95 % intervals", title_justify="left")
    for heading in ("facts", "prompts", "correlation", "seeds", "seed share"):
        made.add_column(heading, justify="right")
    for accuracy in ACCURACIES:
        made.add_column(f"{accuracy:g}", justify="right")
    for heading in ("mean", "width", "percentiles", "width"):
        made.add_column(heading, justify="right")
    lines: dict[Setting, list[Cell]] = {}
    for cell in cells:
        lines.setdefault(cell.setting, []).append(cell)
    for setting, of_line in lines.items():
        made.add_row(
            *(str(setting.num_facts), str(setting.num_prompts), f"{setting.correlation:g}"),
            *(str(setting.num_seeds), f"{setting.seed_share:g}"),
            *(f"{100 * cell.coverage:.1f}" for cell in of_line),
            *_means(of_line),
        )
    every = [cell for of_line in lines.values() for cell in of_line]
    by_accuracy = [fmean(c.coverage for c in every if c.accuracy == a) for a in ACCURACIES]
    made.add_section()
    made.add_row("all", *[""] * 4, *(f"{100 * mean:.1f}" for mean in by_accuracy), *_means(every))
    return made


def _means(cells: list[Cell]) -> list[str]:
    """Coverage and width, ours and the percentiles', over cells."""
    return [
        f"{100 * fmean(cell.coverage for cell in cells):.1f}",
        f"{fmean(cell.width for cell in cells):.3f}",
        f"{100 * fmean(cell.percentile_coverage for cell in cells):.1f}",
        f"{fmean(cell.percentile_width for cell in cells):.3f}",
    ]


def main() -> None:
    """Measure every cell, print a table per kind, and write the cells."""
    parser = argparse.ArgumentParser(description="Coverage of the intervals, by simulation.")
    parser.add_argument("--datasets", type=int, default=1000, help="per setting and accuracy")
    parser.add_argument("--samples", type=int, default=1000, help="resamplings of an interval")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--json", type=Path, help="where to write the cells")
    arguments = parser.parse_args()
    console = Console(width=160, highlight=False)
    cells = []
    for kind in arguments.kinds:
        of_kind = [
            measure(
                *(setting, accuracy),
                num_datasets=arguments.datasets,
                num_samples=arguments.samples,
                seed=place,
            )
            for place, setting in enumerate(settings())
            if setting.kind == kind
            for accuracy in ACCURACIES
        ]
        console.print(table(kind, of_kind))
        cells += of_kind
    if arguments.json:
        text = json.dumps([asdict(cell) for cell in cells], indent=2)
        arguments.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
