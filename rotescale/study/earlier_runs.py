"""Whether runs that lie in storage already are the ones that a study means."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from rotescale.branching import ended_phases
from rotescale.errors import SpecError
from rotescale.run_dir import RunDir
from rotescale.spec import ExperimentSpec
from rotescale.spec.base import results_fields
from rotescale.spec_file import load_spec
from rotescale.study.plan import Node, Plan
from rotescale.study.runner import StudyDir

_MOST_FIELDS = 5


def check_earlier_runs(plan: Plan, folder: StudyDir, *, finished: Collection[str]) -> None:
    """Raise SpecError where a finished run was made with another spec, or left nothing to go on.

    A study may grow: which run measures the untrained model, and what a shared run asks about for
    the cells that go on from it, may be other than it was. A shared run must have been evaluated
    after every epoch at which a cell wants it. Raises SpecError, too, where the study is called as
    a run is.
    """
    own = folder.run(folder.name)
    if own.spec_json.exists():
        raise SpecError(
            f"{own.root}: holds a run, and this study is called {folder.name!r} too; give the "
            "study another name"
        )
    for node in plan.nodes:
        run = folder.run(node.name)
        if node.name in finished:
            if run.spec_json.exists():
                _check_spec(run, node, is_shared=node.name not in plan.ends)
        elif node.parent is not None and node.parent in finished and not run.attempt_numbers():
            _check_goes_on(folder.run(node.parent), plan.node(node.parent), node)


def _check_spec(run: RunDir, node: Node, *, is_shared: bool) -> None:
    saved = load_spec(ExperimentSpec, run.spec_json)
    there, wanted = (_compared(spec, is_shared=is_shared) for spec in (saved, node.spec))
    changed = _changed(there, wanted)
    if changed:
        more = "" if len(changed) <= _MOST_FIELDS else f" and {len(changed) - _MOST_FIELDS} more"
        raise SpecError(
            f"{run.root}: finished with another spec than the study's run of that name: "
            f"{'; '.join(changed[:_MOST_FIELDS])}{more}. Give the study or the cell another name, "
            "restore these fields, or remove that folder so that the run is made anew"
        )
    phases = list(zip(node.spec.phases, saved.phases, strict=True))
    # What it goes on from was measured there.
    for phase, before in phases if node.parent is None else phases[-1:]:
        missing = sorted(set(phase.evaluate_epochs) - set(before.evaluate_epochs))
        if missing:
            raise SpecError(
                f"{run.root}: finished without an evaluation after epoch "
                f"{', '.join(map(str, missing))} of phase {phase.name!r}, which a cell wants; "
                "leave it out, or remove that folder and those of the runs that go on from it, so "
                "that they are made anew"
            )


def _compared(spec: ExperimentSpec, *, is_shared: bool) -> dict[str, Any]:
    """Field -> value of all that must be as it was, nested ones by their path."""
    fields = results_fields(spec)
    free = {"base", "phases"} | ({"held_out_facts"} if is_shared else set())
    fields["evaluation"] = {k: v for k, v in fields["evaluation"].items() if k not in free}
    fields["phases"] = {
        phase["name"]: {k: v for k, v in phase.items() if k != "evaluate_epochs"}
        for phase in fields["phases"]
    }
    return dict(_paths(fields))


def _paths(fields: dict[str, Any], start: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in fields.items():
        path = f"{start}{name}"
        found += _paths(value, f"{path}.") if isinstance(value, dict) else [(path, value)]
    return found


def _changed(there: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    nothing = "none"
    return [
        f"{path} was {there.get(path, nothing)!r} and is {wanted.get(path, nothing)!r}"
        for path in dict.fromkeys((*there, *wanted))
        if there.get(path, nothing) != wanted.get(path, nothing)
    ]


def _check_goes_on(source: RunDir, parent: Node, node: Node) -> None:
    """Weights of finished runs are removed where a study keeps results alone."""
    last = parent.spec.phases[-1].name
    if not ended_phases(source, [last]):
        raise SpecError(
            f"{source.root}: finished, and its weights were removed (keep: results), but "
            f"{node.name!r} goes on from them; remove that folder, so that it is trained again "
            "(runs that have finished stay), or give the study another name"
        )
