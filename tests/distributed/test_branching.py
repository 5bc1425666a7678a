"""Two runs that share a phase: trained once, and the branch ends as if it had trained it itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import QUICK, micro_spec, phase_end_weights, prepare, run_workers, steps

from rotescale.branching import branch
from rotescale.errors import SpecError
from rotescale.run_dir import Outcome, RunDir
from rotescale.spec import ExperimentSpec

ONLY_MEMORIZE = ("evaluation.phases=[]", "checkpoints.export=none")


def memorizing(*overrides: str) -> ExperimentSpec:
    """The first phase alone, as a run of its own."""
    spec = micro_spec("name=parent", *QUICK, *ONLY_MEMORIZE, *overrides)
    return spec.model_copy(update={"phases": spec.phases[:1]})


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory, model_cache: Path) -> RunDir:
    """A finished run of the first phase."""
    run_dir = prepare(memorizing(), tmp_path_factory.mktemp("parent"), cache=model_cache)
    assert run_workers(run_dir, world_size=2) == [0, 0]
    return run_dir


def test_a_branch_ends_as_a_run_that_trained_both_phases(
    parent: RunDir, tmp_path: Path, model_cache: Path
) -> None:
    spec = micro_spec(*QUICK, "checkpoints.export=last")
    whole = prepare(spec, tmp_path / "whole", cache=model_cache)
    assert run_workers(whole, world_size=2) == [0, 0]
    branched = prepare(spec, tmp_path / "branched", cache=model_cache)
    assert branch(branched, spec, parent) == "memorize"
    assert branch(branched, spec, parent) is None
    assert run_workers(branched, world_size=2) == [0, 0]
    outcome = Outcome.read(branched)
    assert outcome is not None
    assert outcome.status == "finished"
    assert {row.phase for row in steps(branched)} == {"generalize"}
    expected = [row for row in steps(whole) if row.phase == "generalize"]
    assert [(row.example_ids, row.loss) for row in steps(branched)] == [
        (row.example_ids, row.loss) for row in expected
    ]
    ours, theirs = (phase_end_weights(run, "generalize") for run in (branched, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not branched.model_folder("memorize").exists()
    assert branched.model_folder("generalize").exists()
    assert not whole.model_folder("memorize").exists()


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (("phases.0.epochs=3",), "its phase 'memorize' is not trained as 'memorize' of"),
        (("seed=1",), "is not trained as"),
        (("engine.precision=bf16",), "is not trained as"),
    ],
)
def test_another_first_phase_is_refused(
    parent: RunDir, tmp_path: Path, model_cache: Path, overrides: tuple[str, ...], told: str
) -> None:
    spec = micro_spec(*QUICK, *overrides)
    run_dir = prepare(spec, tmp_path, cache=model_cache)
    with pytest.raises(SpecError, match=told):
        branch(run_dir, spec, parent)
    assert run_dir.attempt_numbers() == []


def test_a_parent_that_has_not_ended_is_refused(tmp_path: Path, model_cache: Path) -> None:
    parent = prepare(memorizing(), tmp_path / "parent", cache=model_cache)
    spec = micro_spec(*QUICK)
    run_dir = prepare(spec, tmp_path / "branched", cache=model_cache)
    with pytest.raises(SpecError, match=r"none of the shared phases \['memorize'\] has ended"):
        branch(run_dir, spec, parent)
