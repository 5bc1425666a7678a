"""A study: one experiment varied along axes, and baselines beside the grid."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from rotescale.errors import SpecError
from rotescale.spec import ExperimentSpec, Name, Part
from rotescale.spec_file import load_spec, overridden_spec, read_fields

AxisName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$", max_length=30)]
"""Lower-case letters, digits and underscores."""

METHOD = "method"
"""What tells the grid from the baselines: a label of every cell, and a column of the table."""

Overrides = dict[str, Any]
"""Field of the experiment -> its value."""


class Axis(Part):
    """One thing that is varied."""

    name: AxisName
    """Any but ``method``; in the table a column ``axis_NAME``."""
    field: str | None = None
    """The experiment's field that ``values`` lists, such as ``phases.memorize.epochs``."""
    values: tuple[Any, ...] | dict[str, Overrides] = Field(min_length=1)
    """Values of the field; or, without one, label -> fields and values that belong together."""

    @model_validator(mode="after")
    def _one_way(self) -> Axis:
        if (self.field is None) != isinstance(self.values, dict):
            raise ValueError(
                f"axis {self.name!r}: with a field, values is a list of its values; without one, "
                "a mapping of labels to fields and values"
            )
        labels = [_label(value) for value in self.values]
        if twice := sorted({label for label in labels if labels.count(label) > 1}):
            raise ValueError(
                f"axis {self.name!r}: more than one value is called {', '.join(twice)}; name each "
                "value once"
            )
        if self.name == METHOD:
            raise ValueError(
                f"axis {self.name!r}: that tells the grid from its baselines; rename the axis, or "
                "make its values baselines"
            )
        return self

    def points(self) -> dict[str, Overrides]:
        """Label -> overrides, in order."""
        if isinstance(self.values, dict):
            return self.values
        assert self.field is not None
        return {_label(value): {self.field: value} for value in self.values}


class Baseline(Part):
    """A method beside the grid's own, over some of its axes."""

    name: AxisName
    """The method, in the table and in the names of its runs."""
    overrides: Overrides
    """What it changes in the experiment, such as all of its ``phases``."""
    over: tuple[AxisName, ...] = ()
    """The axes that it is varied along; the others stay as in the experiment."""


class StudySpec(Part):
    """A grid of runs of one experiment, and baselines."""

    name: Name
    """Name of the study; its runs' names begin with it."""
    experiment: str
    """Path of the experiment's spec, from the study's file."""
    method: AxisName = "rote"
    """What the grid's own method is called in the table."""
    overrides: Overrides = Field(default_factory=dict)
    """Changes that hold for every run."""
    axes: tuple[Axis, ...] = ()
    """What is varied; every combination is a run."""
    exclude: tuple[dict[AxisName, str], ...] = ()
    """Combinations that are left out, by the labels of some axes."""
    baselines: tuple[Baseline, ...] = ()
    """Further methods."""
    keep: Literal["results", "weights", "all"] = "weights"
    """What stays of a finished run from which no other branches: its results, also the weights at
    its end, or everything."""

    @model_validator(mode="after")
    def _axes_are_known(self) -> StudySpec:
        names = [axis.name for axis in self.axes]
        if len(set(names)) != len(names):
            raise ValueError(f"two axes share a name: {names}; name each once")
        for baseline in self.baselines:
            if unknown := set(baseline.over) - set(names):
                raise ValueError(f"baseline {baseline.name!r}: over {sorted(unknown)}, no axis")
        labels = {axis.name: set(axis.points()) for axis in self.axes}
        for excluded in self.exclude:
            for axis, label in excluded.items():
                if label not in labels.get(axis, ()):
                    raise ValueError(f"exclude {excluded}: axis {axis!r} has no value {label!r}")
        return self


@dataclass(frozen=True, slots=True)
class Cell:
    """One point of a study: where it stands, and its experiment."""

    labels: dict[str, str]
    """Axis, and ``method``, to the label there; axes that a baseline leaves alone are missing."""
    spec: ExperimentSpec


def load_study(path: Path, overrides: tuple[str, ...] = ()) -> tuple[StudySpec, tuple[Cell, ...]]:
    """A study's file and all its cells, each checked as an experiment is.

    Raises SpecError for a wrong file or field, a grid without runs, and two runs of one name.
    """
    study = load_spec(StudySpec, path, overrides)
    experiment = path.parent / study.experiment
    fields = read_fields(experiment)
    cells = tuple(
        Cell(labels=labels, spec=_experiment(study, fields, labels, changes, where=str(experiment)))
        for labels, changes in _combinations(study)
    )
    if not cells:
        raise SpecError(
            f"{path}: the grid has no runs: every combination is excluded; exclude less"
        )
    seen: dict[str, dict[str, str]] = {}
    for cell in cells:
        earlier = seen.setdefault(cell.spec.name, cell.labels)
        if earlier is not cell.labels:
            raise SpecError(
                f"{path}: {earlier} and {cell.labels} are both called {cell.spec.name!r}; give "
                "their values other labels"
            )
    return study, cells


def _combinations(study: StudySpec) -> Iterator[tuple[dict[str, str], Overrides]]:
    """Labels and overrides of every run, the grid first."""
    every = tuple(axis.name for axis in study.axes)
    own = Baseline(name=study.method, overrides={}, over=every)
    for method in (own, *study.baselines):
        axes = [axis for axis in study.axes if axis.name in method.over]
        for point in product(*(axis.points().items() for axis in axes)):
            labels = {axis.name: label for axis, (label, _) in zip(axes, point, strict=True)}
            if any(excluded.items() <= labels.items() for excluded in study.exclude):
                continue
            changes = dict(study.overrides)
            for _, values in point:
                changes = _replaced(changes, values)
            yield {METHOD: method.name, **labels}, _replaced(changes, method.overrides)


def _replaced(changes: Overrides, by: Overrides) -> Overrides:
    """What a baseline sets comes last; of a section that it sets whole, nothing else is left."""
    kept = {
        field: value
        for field, value in changes.items()
        if not any(field.startswith(f"{section}.") for section in by)
    }
    return kept | by


def _experiment(
    study: StudySpec,
    fields: Mapping[str, Any],
    labels: Mapping[str, str],
    changes: Overrides,
    *,
    where: str,
) -> ExperimentSpec:
    parts = [] if labels[METHOD] == study.method else [labels[METHOD]]
    parts += [
        f"{axis}{label}" if label[:1].isdigit() else label
        for axis, label in labels.items()
        if axis != METHOD
    ]
    name = re.sub(r"[^a-z0-9.]+", "-", "-".join([study.name, *parts]).lower()).strip("-.")
    # Whole sections first, then fields in them.
    ordered = sorted(changes.items(), key=lambda item: item[0].count("."))
    texts = [f"{field}={json.dumps(value)}" for field, value in ordered]
    try:
        texts.append(f"name={json.dumps(name)}")
        return overridden_spec(ExperimentSpec, fields, texts, where=where)
    except SpecError as error:
        raise SpecError(f"study {study.name!r}, run {name!r}: {error}") from None


def _label(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "+".join(_label(one) for one in value)
    return value if isinstance(value, str) else json.dumps(value)
