"""How long a study takes, run by run, by the arithmetic of plans: nothing is started or fetched."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from rotescale.facts import FactSet
from rotescale.launch_spec import LaunchSpec
from rotescale.planning.architecture import architecture_of
from rotescale.planning.place import node_of
from rotescale.planning.plan import Plan as Cost
from rotescale.planning.plan import make_plan
from rotescale.planning.rates import Range, total_of
from rotescale.planning.workload import count_work
from rotescale.spec import Facts
from rotescale.study.plan import Node, Plan


@dataclass(frozen=True, slots=True)
class StudyCost:
    """What each run of a study takes if it runs alone."""

    runs: dict[str, Cost]
    """Name of a run -> its plan."""

    @property
    def seconds(self) -> Range:
        """All runs, one after the other."""
        return total_of(run.total_seconds for run in self.runs.values())

    @property
    def price(self) -> Range | None:
        """Of all runs; None where the node has no price."""
        prices = [run.cost for run in self.runs.values() if run.cost is not None]
        return total_of(prices) if prices else None


def study_cost(
    plan: Plan,
    launch: LaunchSpec,
    sources: Mapping[Facts, FactSet],
    *,
    finished: Collection[str] = (),
) -> StudyCost:
    """What the runs take that are not ``finished``; ``sources`` are the facts of their specs.

    Raises SpecError where nothing is known of the launch spec's nodes, or of a model.
    """
    left = [node for node in plan.nodes if node.name not in finished]
    return StudyCost({node.name: _cost(node, launch, sources) for node in left})


def _cost(node: Node, launch: LaunchSpec, sources: Mapping[Facts, FactSet]) -> Cost:
    """Of what the run does itself: its last phase alone where it goes on from another."""
    work = count_work(node.spec, sources[node.spec.facts])
    if node.parent is not None:
        last, before = work.phases[-1], node.spec.phases[-2].name
        # It may measure where it begins, too.
        extra = node.spec.is_evaluated(before)
        last = replace(last, measurements=last.measurements + extra)
        work = replace(work, phases=(last,))
    return make_plan(
        node.spec,
        launch,
        node_of(launch),
        architecture=architecture_of(node.spec.model.weights),
        work=work,
    )
