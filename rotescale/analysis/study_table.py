"""All results of a study in one tidy table: a row per value, with where it stands in the study."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rotescale.errors import DataError
from rotescale.records import EvaluationRow, Records, read_records
from rotescale.spec import ExperimentSpec
from rotescale.storage import write_atomic
from rotescale.study.plan import Node, Plan, questions_of
from rotescale.study.runner import StudyDir
from rotescale.study.spec import METHOD, StudySpec

AXIS = "axis_"
"""What the column of an axis begins with; no other column does, so an axis may have any name."""

_MEASURED = tuple(
    name for name in EvaluationRow.model_fields if name not in ("kind", "attempt", "seed")
)


@dataclass(frozen=True, slots=True)
class Cost:
    """What training has taken, over all steps of some runs."""

    num_tokens: int = 0
    """Tokens of the examples, the prompts' included."""
    target_tokens: int = 0
    """Those that counted in the loss."""
    seconds: float = 0.0
    """In steps, without starting, saving and measuring."""

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.num_tokens + other.num_tokens,
            self.target_tokens + other.target_tokens,
            self.seconds + other.seconds,
        )


def cost_of(records: Records) -> Cost:
    """Of the steps that the run itself has done, not those that it branched from."""
    total = Cost()
    for step in records.steps:
        total += Cost(step.num_tokens, step.target_tokens, step.seconds)
    return total


def study_rows(study: StudySpec, plan: Plan, folder: StudyDir) -> list[dict[str, Any]]:
    """A row per value that was measured in any finished run, once per cell that it is about.

    What a shared run measured, of the untrained model and its own phases, belongs to every cell
    that goes on from it. ``trained_tokens`` and ``training_seconds`` are those of the cell's whole
    lineage.
    """
    records = {node.name: read_records(folder.run(node.name)) for node in plan.nodes}
    evaluations = {name: found.evaluations for name, found in records.items()}
    costs = {name: cost_of(found) for name, found in records.items()}
    rows = []
    for name, cell in plan.ends.items():
        lineage = plan.lineage(name)
        cost = sum((costs[one] for one in lineage), Cost())
        place = {"run": name, METHOD: cell.labels[METHOD]}
        place |= {AXIS + axis.name: cell.labels.get(axis.name, "") for axis in study.axes}
        base = _untrained(plan, evaluations, cell.spec, lineage)
        trained = [row for one in lineage for row in evaluations[one] if row.stage != "base"]
        found: dict[tuple[str | int | None, ...], EvaluationRow] = {}
        for row in (*base, *trained):
            # What a run measures again where it begins is told as it asks it at its end.
            found[row.key] = row
        for row in found.values():
            rows.append(
                {
                    **place,
                    "seed": cell.spec.seed,
                    **{field: getattr(row, field) for field in _MEASURED},
                    "is_end": row.stage == cell.spec.phases[-1].name and row.epoch is None,
                    "trained_tokens": cost.num_tokens,
                    "target_tokens": cost.target_tokens,
                    "training_seconds": cost.seconds,
                }
            )
    return rows


def _untrained(
    plan: Plan,
    evaluations: Mapping[str, Sequence[EvaluationRow]],
    spec: ExperimentSpec,
    lineage: Sequence[str],
) -> list[EvaluationRow]:
    """What was measured before any phase: by a run that asks the same, best one of the lineage."""
    alike = [n for n in plan.nodes if n.spec.prefix_digest(0) == spec.prefix_digest(0)]
    wanted = questions_of(spec.evaluation)

    def distance(node: Node) -> tuple[bool, bool]:
        return questions_of(node.spec.evaluation) != wanted, node.name not in lineage

    for node in sorted(alike, key=distance):
        found = [row for row in evaluations[node.name] if row.stage == "base"]
        if found:
            return found
    return []


def shared_cost(plan: Plan, folder: StudyDir) -> tuple[Cost, Cost]:
    """What the study has trained, and what its cells would have trained one by one."""
    costs = {node.name: cost_of(read_records(folder.run(node.name))) for node in plan.nodes}
    alone = [costs[one] for name in plan.ends for one in plan.lineage(name)]
    return sum(costs.values(), Cost()), sum(alone, Cost())


def write_table(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the rows as parquet. Raises DataError where there are none."""
    if not rows:
        raise DataError(f"{path}: no run of the study was measured yet; run it first")
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    table = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), table)
    write_atomic(path, table.getvalue())


def read_labels(path: Path) -> dict[str, dict[str, str]]:
    """Run that a cell ends with -> method, and axes to the labels there, of a table.

    Axes that a baseline leaves alone are missing. Raises DataError where there is no table, or one
    whose columns say nothing of runs and axes.
    """
    if not path.exists():
        raise DataError(
            f"{path}: missing; run `rotescale study` first, which collects what its runs have "
            "measured"
        )
    import pyarrow.parquet

    names = pyarrow.parquet.read_schema(path).names
    if names[:2] != ["run", METHOD]:
        raise DataError(
            f"{path}: its columns begin with {', '.join(names[:3])}, not with run and {METHOD}; "
            "run `rotescale study` again, which writes it anew and trains nothing that is finished"
        )
    places = [METHOD, *(name for name in names if name.startswith(AXIS))]
    rows = pyarrow.parquet.read_table(path, columns=["run", *places]).to_pylist()
    return {
        row["run"]: {name.removeprefix(AXIS): row[name] for name in places if row[name] != ""}
        for row in rows
    }
