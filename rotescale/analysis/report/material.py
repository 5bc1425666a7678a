"""What a report is about: a run, or the cells of a study, with all that they measured."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rotescale.analysis.editing import read_editing
from rotescale.analysis.results import core_relations
from rotescale.analysis.study_table import Cost, read_labels
from rotescale.errors import DataError, SpecError
from rotescale.evaluation.metrics import Outcome
from rotescale.evaluation.outcome_file import read_outcomes
from rotescale.facts import FactSet, combine
from rotescale.facts.saved import load_saved
from rotescale.facts.types import LazyFacts
from rotescale.records import ALL_RELATIONS, EvaluationRow, Records, read_records
from rotescale.run_dir import RunDir
from rotescale.spec import ExperimentSpec, PhaseSpec
from rotescale.spec_file import load_spec
from rotescale.storage import StoragePath
from rotescale.study.plan import questions_of
from rotescale.study.runner import StudyDir
from rotescale.study.same_facts import check_same_facts, saved_facts
from rotescale.study.spec import METHOD

Stage = tuple[str, int | None]
"""``base`` or a phase, and the epoch on the way; None: its end."""

BASE: Stage = ("base", None)

_ROLE = ("stage", "epoch", "suite", "relation", "split", "prompts", "language", "metric", "layer")


@dataclass(eq=False)
class Cell:
    """One run from the untrained model to its end, of whichever folders it has in a study."""

    name: str
    labels: Mapping[str, str]
    """Axis, and method, to the label there; empty for a run by itself."""
    spec: ExperimentSpec
    places: Mapping[str, RunDir]
    """``base`` and each phase -> the run that trained and measured it."""
    rows: tuple[EvaluationRow, ...]
    costs: Mapping[tuple[str, int], Cost]
    """Phase and epoch -> what it took."""
    _outcomes: dict[Stage, list[Outcome]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._index = {tuple(getattr(row, name) for name in _ROLE): row for row in self.rows}

    @property
    def end(self) -> Stage:
        """The end of the last phase."""
        return self.spec.phases[-1].name, None

    @property
    def cost(self) -> Cost:
        """Of all phases."""
        return sum(self.costs.values(), Cost())

    def cost_of(self, phase: str) -> Cost:
        """Of one phase."""
        return sum((cost for (name, _), cost in self.costs.items() if name == phase), Cost())

    def cost_until(self, stage: Stage) -> Cost:
        """Of all that was trained before the stage was measured."""
        order = ["base", *(phase.name for phase in self.spec.phases)]
        place, last = order.index(stage[0]), stage[1]
        return sum(
            (
                cost
                for (phase, epoch), cost in self.costs.items()
                if order.index(phase) < place
                or (order.index(phase) == place and (last is None or epoch <= last))
            ),
            Cost(),
        )

    @property
    def memorize(self) -> PhaseSpec | None:
        """The first phase that tells facts with key tokens."""
        return next((p for p in self.spec.phases if p.text == "key_token"), None)

    @property
    def generalize(self) -> PhaseSpec | None:
        """The last phase that tells facts with prompts of their own relation."""
        phases = [p for p in self.spec.phases if p.text == "prompts" and p.stand_in is None]
        return phases[-1] if phases else None

    @property
    def taught(self) -> Stage:
        """The end of that phase, before facts are told under another relation."""
        return self.end if self.generalize is None else (self.generalize.name, None)

    def row(self, stage: Stage, role: tuple[str | int | None, ...]) -> EvaluationRow | None:
        """The row of a stage that measures suite, relation, split, prompts, language, metric and
        layer; None where there is none."""
        return self._index.get((*stage, *role))

    def stages(self) -> list[Stage]:
        """All that were measured, the untrained model first, then as they were trained."""
        order = ["base", *(phase.name for phase in self.spec.phases)]
        found = {(row.stage, row.epoch) for row in self.rows if row.stage in order}
        return sorted(found, key=lambda s: (order.index(s[0]), s[1] is None, s[1] or 0))

    def outcomes(self, stage: Stage) -> list[Outcome]:
        """What each question of the stage came to; none where its file is gone."""
        if stage not in self._outcomes:
            found: list[Outcome] = []
            for run in measuring(self.places, stage[0], end=self.end[0]):
                suites = {outcome.suite for outcome in found}
                outcomes = _read_outcomes(run.evaluation(*stage))
                found += [outcome for outcome in outcomes if outcome.suite not in suites]
            self._outcomes[stage] = found
        return self._outcomes[stage]


@dataclass(frozen=True, eq=False)
class Group:
    """Cells that differ in their seed alone."""

    name: str
    labels: Mapping[str, str]
    cells: tuple[Cell, ...]

    @property
    def first(self) -> Cell:
        """Any of them says what was trained."""
        return self.cells[0]

    @property
    def method(self) -> str:
        """The study's method; empty for a run."""
        return self.labels.get(METHOD, "")

    def relation(self, suite: str) -> str:
        """What the suite asks about: all relations together, or the only one."""
        rows = (row for cell in self.cells for row in cell.rows if row.suite == suite)
        found = list(dict.fromkeys(row.relation for row in rows))
        return ALL_RELATIONS if ALL_RELATIONS in found else next(iter(found), ALL_RELATIONS)

    def stages(self) -> list[Stage]:
        """Those of its cells."""
        return list(dict.fromkeys(stage for cell in self.cells for stage in cell.stages()))


@dataclass(frozen=True)
class Material:
    """All that a report shows."""

    title: str
    is_study: bool
    groups: tuple[Group, ...]
    runs: tuple[RunDir, ...]
    """Every folder of a run that was read."""
    records: Mapping[RunDir, Records]
    num_options: int | None = None
    """Of every question about an object; None where they differ."""
    editings: Mapping[str, tuple[EvaluationRow, ...]] = field(default_factory=dict)
    """Method -> what a model editor reached on the same facts."""
    refused: str = ""
    """CSV of the rows of a user's table that were not taught; empty where none was injected."""
    mended: tuple[str, ...] = ()
    """What was mended in that table."""

    @property
    def cells(self) -> list[Cell]:
        """Of all groups."""
        return [cell for group in self.groups for cell in group.cells]

    @property
    def relations(self) -> list[str]:
        """Those of the core, in order; ``all`` last where there are several."""
        found = core_relations(row for cell in self.cells for row in cell.rows)
        return sorted(found, key=lambda name: name == ALL_RELATIONS)


def load_material(root: StoragePath, *, editings: Mapping[str, Path] | None = None) -> Material:
    """Read the run or the study at ``root``, and files of EasyEdit's results by their methods.

    Raises SpecError where neither lies there, and DataError where nothing was measured, or runs
    are about different facts.
    """
    root = root.absolute() if isinstance(root, Path) else root
    study, run = StudyDir(str(root.parent), root.name), RunDir(root)
    if (study.root / "specs").is_dir():
        found = _of_study(study)
    elif run.resolved_json.exists():
        found = _of_run(run)
    else:
        raise SpecError(
            f"{root}: neither the folder of a run nor of a study; name one, such as runs/NAME, "
            "where `rotescale run` or `rotescale study` has put its results"
        )
    if not editings:
        return found
    told = _facts_of(found.runs)
    rows = {method: read_editing(path, told) for method, path in editings.items()}
    return replace(found, editings=rows)


def _facts_of(runs: Iterable[RunDir]) -> FactSet:
    """The facts of all runs; those of a relation from the first that has it."""
    told: dict[str, FactSet] = {}
    for run in runs:
        fact_set = load_saved(run.facts_json)
        for relation in fact_set.relations:
            told.setdefault(relation.name, fact_set.only([relation.name]))
    return combine(list(told.values()))


def _of_run(run: RunDir) -> Material:
    spec = load_spec(ExperimentSpec, run.spec_json)
    places = dict.fromkeys(("base", *(phase.name for phase in spec.phases)), run)
    records = {run: read_records(run)}
    cell = _cell(spec, {}, places, records)
    if not cell.rows:
        raise DataError(
            f"{run.root}: nothing was measured in this run yet; run it to its end, with an "
            "evaluation section that asks something"
        )
    found = Material(
        spec.name, False, (Group(spec.name, {}, (cell,)),), (run,), records, _num_options([run])
    )
    if not run.refused_csv.exists():
        return found
    mended = run.mended_txt.read_bytes().decode() if run.mended_txt.exists() else ""
    return replace(
        found, refused=run.refused_csv.read_bytes().decode(), mended=tuple(mended.splitlines())
    )


def _of_study(study: StudyDir) -> Material:
    labels = read_labels(study.table)
    specs = {
        path.stem: load_spec(ExperimentSpec, path)
        for path in sorted((study.root / "specs").glob("*.json"))
    }
    runs = {name: study.run(name) for name in specs if study.run(name).resolved_json.exists()}
    check_same_facts(saved_facts(runs.values()))
    records = {run: read_records(run) for run in runs.values()}
    cells = []
    for name, place in labels.items():
        if name in specs:
            known = {other: specs[other] for other in runs}
            cells.append(_cell(specs[name], place, _places(specs[name], known, runs), records))
    measured = [cell for cell in cells if cell.rows]
    if not measured:
        raise DataError(f"{study.root}: no run of the study was measured yet; run it first")
    found = tuple(runs.values())
    return Material(
        study.name, True, _groups(measured, study.name), found, records, _num_options(found)
    )


def _num_options(runs: Iterable[RunDir]) -> int | None:
    texts = {run.facts_json.read_bytes(): run for run in runs}
    sets = [load_saved(run.facts_json).facts for run in texts.values()]
    # Facts that are not held are made with as many each.
    asked = [facts[:1] if isinstance(facts, LazyFacts) else facts for facts in sets]
    found = {len(fact.distractors) + 1 for facts in asked for fact in facts}
    return found.pop() if len(found) == 1 else None


def _places(
    spec: ExperimentSpec, specs: Mapping[str, ExperimentSpec], runs: Mapping[str, RunDir]
) -> dict[str, RunDir]:
    """Where the untrained model and each phase of a cell were measured: runs that share them."""
    found: dict[str, RunDir] = {}
    if spec.name in runs:
        found[spec.phases[-1].name] = runs[spec.name]

    def distance(other: ExperimentSpec) -> tuple[bool, bool]:
        count = len(other.phases)
        asks_else = questions_of(spec.evaluation) != questions_of(other.evaluation)
        return asks_else, spec.prefix_digest(count) != other.prefix_digest(count)

    # Several runs may have measured the untrained model: best one that asks the same, and of these
    # one that the cell goes on from.
    for name, other in sorted(specs.items(), key=lambda item: distance(item[1])):
        count = len(other.phases)
        if other.evaluation.base and other.prefix_digest(0) == spec.prefix_digest(0):
            found.setdefault("base", runs[name])
        if count < len(spec.phases) and other.prefix_digest(count) == spec.prefix_digest(count):
            found.setdefault(spec.phases[count - 1].name, runs[name])
    return found


def _cell(
    spec: ExperimentSpec,
    labels: Mapping[str, str],
    places: Mapping[str, RunDir],
    records: Mapping[RunDir, Records],
) -> Cell:
    rows: list[EvaluationRow] = []
    costs: dict[tuple[str, int], Cost] = {}
    for stage, run in places.items():
        for where in measuring(places, stage, end=spec.phases[-1].name):
            known = {(row.suite, row.epoch) for row in rows if row.stage == stage}
            of_stage = [row for row in records[where].evaluations if row.stage == stage]
            rows += [row for row in of_stage if (row.suite, row.epoch) not in known]
        for step in records[run].steps:
            if step.phase == stage:
                cost = Cost(step.num_tokens, step.target_tokens, step.seconds)
                costs[stage, step.epoch] = costs.get((stage, step.epoch), Cost()) + cost
    return Cell(spec.name, labels, spec, places, tuple(rows), costs)


def _groups(cells: Sequence[Cell], study: str) -> tuple[Group, ...]:
    """Cells by everything but the seed, in the order of the study."""
    alike: dict[tuple[str, str], list[Cell]] = defaultdict(list)
    for cell in cells:
        unseeded = cell.spec.model_copy(update={"seed": 0})
        key = (cell.labels.get(METHOD, ""), unseeded.prefix_digest(len(unseeded.phases)))
        alike[key].append(cell)
    found: list[list[Cell]] = []
    for same in alike.values():
        # Cells that differ in what they ask alone are no sample of one procedure.
        seeds = {cell.spec.seed for cell in same}
        found += [same] if len(seeds) == len(same) else [[cell] for cell in same]
    shared = _labels_apart(found)
    axes = dict.fromkeys(axis for cell in cells for axis in cell.labels)
    varied = [axis for axis in axes if len({one.get(axis) for one in shared}) > 1]
    return tuple(
        Group(_name(labels, varied) or study, labels, tuple(same))
        for labels, same in zip(shared, found, strict=True)
    )


def _labels_apart(groups: Sequence[Sequence[Cell]]) -> list[dict[str, str]]:
    """Each group's labels: those that its cells share; all of them where these are another's too.

    That is where one axis sets the seed and something else: its labels are one cell's each.
    """
    shared = [_shared_labels(same) for same in groups]
    return [
        _all_labels(same) if shared.count(labels) > 1 else labels
        for labels, same in zip(shared, groups, strict=True)
    ]


def _all_labels(cells: Sequence[Cell]) -> dict[str, str]:
    """Each axis with the labels of all cells, such as ``a and b``."""
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for cell in cells:
        for axis, label in cell.labels.items():
            found[axis][label] = None
    return {axis: " and ".join(labels) for axis, labels in found.items()}


def _shared_labels(cells: Sequence[Cell]) -> dict[str, str]:
    """What all of them are labelled with, in the order of the first's axes."""
    labels = cells[0].labels.items()
    return {axis: v for axis, v in labels if all(c.labels.get(axis) == v for c in cells)}


def _name(labels: Mapping[str, str], varied: Iterable[str]) -> str:
    """What tells a group from the others, such as ``rote, epochs 6, k 50``."""
    told = [axis for axis in varied if axis in labels]
    return ", ".join(labels[axis] if axis == METHOD else f"{axis} {labels[axis]}" for axis in told)


def measuring(places: Mapping[str, RunDir], stage: str, *, end: str) -> tuple[RunDir, ...]:
    """The runs that may have measured a stage: that of the last phase, and the one that trained it.

    Where the last phase tells another relation, or is asked something else, its run asks that where
    it begins, too, as it does at its end.
    """
    found = (places.get(end), places.get(stage))
    return tuple(dict.fromkeys(run for run in found if run is not None))


def _read_outcomes(path: StoragePath) -> list[Outcome]:
    try:
        return read_outcomes(path)
    except FileNotFoundError:
        return []
