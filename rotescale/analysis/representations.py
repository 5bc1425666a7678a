"""What the hidden states of a run or a model say: tables of ΔCosSim and cosines, and a PCA."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.box import SIMPLE_HEAD
from rich.table import Table

from rotescale.analysis.results import HEADINGS
from rotescale.branching import branched_from, shared_phases
from rotescale.errors import DataError, SpecError
from rotescale.evaluation.items import SPLITS
from rotescale.evaluation.similarity import COSINE, DELTA, SUITE, unit_states
from rotescale.evaluation.state_file import open_states
from rotescale.evaluation.states import StateText
from rotescale.records import EvaluationRow, read_records
from rotescale.run_dir import RunDir
from rotescale.spec import BASE_LANGUAGE, ExperimentSpec
from rotescale.spec_file import load_spec

Stage = tuple[str, int | None]
"""A stage and the epoch on the way; None: its end."""

MOST_POINTS = 40
"""Of each relation and kind of prompts, in a picture of principal components."""

NO_DELTA = "ΔCosSim is left out: it takes two relations, and two facts of one of them in the split"


@dataclass(frozen=True, slots=True)
class Points:
    """The states of one stage at one layer."""

    stage: Stage
    states: npt.NDArray[np.floating[Any]]
    """(num_texts, hidden)"""
    texts: tuple[StateText, ...]


@dataclass(frozen=True, slots=True)
class Kept:
    """The hidden states of a run, and of the runs that it branched from."""

    rows: tuple[EvaluationRow, ...]
    """In the order of the stages."""
    places: Mapping[Stage, RunDir]
    """Every stage -> the run that measured it."""
    notes: tuple[str, ...]
    """Which stages are another run's, or where they would be, in a sentence each."""


def run_states(run_dir: RunDir) -> Kept:
    """What the run kept, and what those kept that it began from, each of the phases they share.

    Of a stage that several measured, the run's own values count. Raises DataError where none
    kept any, and SpecError where the spec of one cannot be read.
    """
    found = [_own_rows(run_dir)]
    places = dict.fromkeys(stages_of(found[0]), run_dir)
    notes = []
    for before in _began_from(run_dir):
        if not before.spec_json.exists():
            notes.append(f"stages before the branch were measured in {before.root}, which is gone")
            break
        mine, theirs = (load_spec(ExperimentSpec, one.spec_json) for one in (run_dir, before))
        shared = [phase.name for phase in theirs.phases[: shared_phases(mine, theirs)]]
        rows = _own_rows(before)
        stages = [s for s in stages_of(rows) if s[0] in ("base", *shared) and s not in places]
        places |= dict.fromkeys(stages, before)
        found.insert(0, tuple(row for row in rows if (row.stage, row.epoch) in stages))
        if stages:
            named = ", ".join(map(stage_name, stages))
            notes.append(
                f"measured in {before.root}, from which this run branched: {named}; facts that "
                "only a later phase tells with a prompt are held out there"
            )
    every = tuple(row for rows in found for row in rows)
    if not every:
        raise DataError(
            f"{run_dir.root}: no hidden states were kept; set evaluation.representation_facts "
            "under a new run name, or name one of the models that the run has exported, "
            f"{run_dir.model_folder('PHASE')}"
        )
    return Kept(every, places, tuple(notes))


def _own_rows(run_dir: RunDir) -> tuple[EvaluationRow, ...]:
    return tuple(row for row in read_records(run_dir).evaluations if row.suite == SUITE)


def _began_from(run_dir: RunDir) -> Iterator[RunDir]:
    """The runs that it branched from, the nearest first, up to one that is gone."""
    before = branched_from(run_dir)
    while before is not None:
        yield before
        before = branched_from(before)


def run_points(places: Mapping[Stage, RunDir], *, layer: int) -> list[Points]:
    """The states at one layer of each stage, out of the run that measured it.

    Raises DataError where a file is missing.
    """
    points = []
    for stage, run_dir in places.items():
        path = run_dir.representations(*stage)
        try:
            file = open_states(path)
        except FileNotFoundError:
            raise DataError(
                f"{path}: missing; restore it, or run the experiment to its end first"
            ) from None
        points.append(Points(stage, file.layer(layer), file.texts))
    return points


def stages_of(rows: Iterable[EvaluationRow]) -> list[Stage]:
    """Every stage, in the order in which they were measured."""
    return list(dict.fromkeys((row.stage, row.epoch) for row in rows))


def stage_name(stage: Stage, *, separator: str = " ") -> str:
    """Such as ``memorize epoch 3``."""
    name, epoch = stage
    return name if epoch is None else f"{name}{separator}epoch {epoch}"


def last_layer(rows: Iterable[EvaluationRow]) -> int:
    """The number of the last layer, which is how many blocks there are."""
    return max(row.layer for row in rows if row.layer is not None)


def check_layer(layer: int, *, last: int) -> int:
    """The layer's number; SpecError where the model has no such layer."""
    if not 0 <= layer <= last:
        raise SpecError(f"--layer {layer}: the layers are 0, the embeddings, to {last}")
    return layer


def choose_split(rows: Iterable[EvaluationRow], *, wanted: str | None) -> str:
    """The split to draw: the wanted one, or held-out facts before trained ones.

    Raises SpecError where the wanted one has no facts.
    """
    present = {row.split for row in rows}
    if wanted is None:
        return "held_out" if "held_out" in present else "trained"
    if wanted not in present:
        raise SpecError(f"--split {wanted}: no facts of that split were read, only of {present}")
    return wanted


def layer_name(layer: int, last: int) -> str:
    """What lies at a layer: transformers' ``output_hidden_states`` has the same numbers."""
    if layer == last:
        return f"layer {layer} of {last}, after the final norm"
    return f"layer {layer} of {last}" + (", the embeddings" if layer == 0 else "")


def heading(row: EvaluationRow, *, languages: bool) -> str:
    """What a row measures; with its language where there are several."""
    name = HEADINGS[row.prompts]
    text = f"ΔCosSim, {name}" if row.metric == DELTA else f"key token to {name}"
    return f"{text}, {row.language}" if languages else text


def layer_table(rows: Sequence[EvaluationRow], *, layer: int) -> Table:
    """The values at one layer with their intervals: a line each, a column per stage."""
    chosen = [row for row in rows if row.layer == layer]
    stages = stages_of(rows)
    title = f"hidden states, {layer_name(layer, last_layer(rows))}; 95 % intervals over facts"
    table = _table(title, stages)
    for split, name, line in _lines(chosen):
        found = {(row.stage, row.epoch): row for row in line}
        cells = [_cell(found.get(stage)) for stage in stages]
        _add(table, split, name, [_counts(line), *cells])
    return table


def range_table(rows: Sequence[EvaluationRow]) -> Table:
    """The least and the greatest value over the layers, each with its layer."""
    stages = stages_of(rows)
    table = _table(f"least and greatest value (layer) of layers 0 to {last_layer(rows)}", stages)
    for split, name, line in _lines(rows):
        cells = []
        for stage in stages:
            of_stage = [row for row in line if (row.stage, row.epoch) == stage]
            cells.append(_range(of_stage) if of_stage else "-")
        _add(table, split, name, [_counts(line), *cells])
    return table


def _lines(rows: Sequence[EvaluationRow]) -> list[tuple[str, str, list[EvaluationRow]]]:
    """(split, heading, rows), first ΔCosSim, then the cosines, within each split."""
    several = len({row.language for row in rows}) > 1
    found: dict[tuple[str, str], list[EvaluationRow]] = {}
    for split in SPLITS:
        for metric in (DELTA, COSINE):
            for row in rows:
                if (row.split, row.metric) == (split, metric):
                    key = (split, heading(row, languages=several))
                    found.setdefault(key, []).append(row)
    return [(split, name, line) for (split, name), line in found.items()]


def _table(title: str, stages: Sequence[Stage]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 0, 0, 1))
    table.add_column("measured", no_wrap=True)
    table.add_column("n", justify="right")
    for stage in stages:
        table.add_column(stage_name(stage), justify="right")
    return table


def _add(table: Table, split: str, name: str, cells: Sequence[str]) -> None:
    """A line of the table, below its split's name."""
    title = f"{split.replace('_', '-')} facts"
    if title not in list(table.columns[0].cells):
        table.add_row(title, style="bold")
    table.add_row(f"  {name}", *cells)


def _counts(rows: Iterable[EvaluationRow]) -> str:
    """How many states the values are of; the fewest and the most where stages differ."""
    counts = [row.count for row in rows]
    least, most = min(counts), max(counts)
    return str(most) if least == most else f"{least}-{most}"


def _cell(row: EvaluationRow | None) -> str:
    if row is None:
        return "-"
    if row.low is None or row.high is None:
        return f"{row.value:.3f}"
    return f"{row.value:.3f} [{row.low:.3f} {row.high:.3f}]"


def _range(rows: Sequence[EvaluationRow]) -> str:
    least, greatest = (choose(rows, key=lambda row: row.value) for choose in (min, max))
    return f"{least.value:.2f} ({least.layer}) {greatest.value:.2f} ({greatest.layer})"


def principal_components(
    states: npt.NDArray[np.floating[Any]],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The first two principal components of states (num_states, hidden).

    Coordinates (num_states, 2), and each component's part of the variance, (2,). By the singular
    value decomposition of the centred states; a component's sign is such that its largest
    coordinate is positive. A component that the states do not have is 0.
    """
    centred = states - states.mean(axis=0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    found = np.zeros((len(states), 2))
    num = min(2, len(values))
    found[:, :num] = left[:, :num] * values[:num]
    largest = found[np.abs(found).argmax(axis=0), np.arange(2)]
    shares = np.zeros(2)
    total = float((values**2).sum())
    if total > 0.0:
        shares[:num] = values[:num] ** 2 / total
    return found * np.where(largest < 0, -1.0, 1.0), shares


def sampled_points(points: Points, *, split: str, most: int) -> tuple[Points, int]:
    """Of each relation and kind of prompts the first ``most`` English texts, of how many."""
    of_split = [
        place
        for place, text in enumerate(points.texts)
        if (text.split, text.language) == (split, BASE_LANGUAGE)
    ]
    groups: dict[tuple[str, str], list[int]] = {}
    for place in of_split:
        text = points.texts[place]
        groups.setdefault((text.relation, text.prompts), []).append(place)
    places = [place for group in groups.values() for place in group[:most]]
    texts = tuple(points.texts[place] for place in places)
    return Points(points.stage, unit_states(points.states[places]), texts), len(of_split)
