"""The runs of a study as a graph: what several cells share is trained once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rotescale.spec import EvaluationSpec, ExperimentSpec
from rotescale.study.spec import Cell


@dataclass(frozen=True, slots=True)
class Node:
    """One run of the study."""

    spec: ExperimentSpec
    parent: str | None
    """The run at whose end it begins."""

    @property
    def name(self) -> str:
        """The run's name."""
        return self.spec.name


@dataclass(frozen=True, slots=True)
class Plan:
    """The runs of a study, parents first, and which of them each cell ends and begins with."""

    nodes: tuple[Node, ...]
    ends: dict[str, Cell]
    """Name of the run that a cell ends with -> the cell."""

    def node(self, name: str) -> Node:
        """The run of that name."""
        return next(node for node in self.nodes if node.name == name)

    def lineage(self, name: str) -> tuple[str, ...]:
        """The run and those that it goes on from, oldest first."""
        parent = self.node(name).parent
        return (name,) if parent is None else (*self.lineage(parent), name)

    def branches(self, name: str) -> list[str]:
        """The runs that begin at the end of that one."""
        return [node.name for node in self.nodes if node.parent == name]


def make_plan(study: str, cells: Sequence[Cell]) -> Plan:
    """The graph: all phases but a cell's last belong to a run that every equal cell branches from.

    Two cells share a phase only where everything that changes its weights is the same, the
    schedule included. The untrained model, and the end of a shared phase, are measured once for all
    cells that ask the same of them; a cell that asks something else measures them itself. Where
    conflicts are asked about, every run whose parent does not ask the same measures the untrained
    model.
    """
    nodes: dict[str, Node] = {}
    shared: dict[str, str] = {}
    # Untrained models, and what somebody asks them.
    measured: set[tuple[str, str]] = set()
    for cell in cells:
        parent = None
        for count in range(1, len(cell.spec.phases)):
            digest = cell.spec.prefix_digest(count)
            if digest not in shared:
                spec = _prefix(cell.spec, count, name=f"{study}-shared-{digest[:8]}", cells=cells)
                shared[digest] = spec.name
                before = None if parent is None else nodes[parent].spec
                nodes[spec.name] = Node(_measuring(spec, measured, parent=before), parent)
            parent = shared[digest]
        before = None if parent is None else nodes[parent].spec
        spec = _measuring(cell.spec, measured, parent=before)
        nodes[spec.name] = Node(spec, parent)
    return Plan(tuple(nodes.values()), {cell.spec.name: cell for cell in cells})


def _prefix(
    spec: ExperimentSpec, count: int, *, name: str, cells: Iterable[Cell]
) -> ExperimentSpec:
    """The first phases as a run of their own, measured on the way wherever any cell wants it."""
    digest = spec.prefix_digest(count)
    alike = [
        cell.spec
        for cell in cells
        if len(cell.spec.phases) > count and cell.spec.prefix_digest(count) == digest
    ]
    phases = []
    for index, phase in enumerate(spec.phases[:count]):
        epochs = sorted({e for other in alike for e in other.phases[index].evaluate_epochs})
        phases.append(phase.model_copy(update={"evaluate_epochs": tuple(epochs)}))
    return spec.model_copy(update={"name": name, "phases": tuple(phases)})


def _facts_to_pair(evaluation: EvaluationSpec) -> int | None:
    """How many facts are asked about where no fact has been told with a prompt yet.

    All are held out there. Cells that tell half of them or fewer later ask about the first facts
    of either split in one drawn order, which are nearly always among twice as many of its first.
    """
    told, held_out = evaluation.trained_facts, evaluation.held_out_facts
    return None if told is None or held_out is None else 2 * (told + held_out)


def questions_of(evaluation: EvaluationSpec) -> str:
    """What is asked, wherever it is asked, but for how many held-out facts.

    Of these a shared run asks about more than its cells, by the same drawn order.
    """
    return evaluation.model_dump_json(exclude={"base", "phases", "held_out_facts"})


def _measuring(
    spec: ExperimentSpec, measured: set[tuple[str, str]], *, parent: ExperimentSpec | None
) -> ExperimentSpec:
    """The run measured at its own end only, and before it if nobody has asked the same there.

    ``measured``: untrained models, by their digest, and the questions; this run's are added.
    ``parent``: where it goes on from, which alone tells it what stood there.

    Conflicts are about what the untrained model believes, which a branch gets from its parent: runs
    without one measure it, each for itself, as they may go on at the same time. A run whose last
    phase tells facts under another relation measures where it begins too: what the model says to
    that relation's prompts before, which its parent knows nothing of.
    """
    questions = questions_of(spec.evaluation)
    untrained = (spec.prefix_digest(0), questions)
    asks_more = parent is None or questions_of(parent.evaluation) != questions
    alone = asks_more and spec.evaluation.conflict_facts > 0
    repurposes = spec.phases[-1].stand_in is not None
    starts_too = parent is not None and (repurposes or asks_more)
    own_phases = spec.phases[-2:] if starts_too else spec.phases[-1:]
    changes: dict[str, Any] = {
        "base": spec.evaluation.base and (alone or untrained not in measured),
        "phases": tuple(phase.name for phase in own_phases),
    }
    if changes["base"]:
        measured.add(untrained)
    if all(phase.text == "key_token" for phase in spec.phases):
        changes["held_out_facts"] = _facts_to_pair(spec.evaluation)
    evaluation = spec.evaluation.model_copy(update=changes)
    checkpoints = spec.checkpoints.model_copy(update={"export": "none"})
    return spec.model_copy(update={"evaluation": evaluation, "checkpoints": checkpoints})
