"""`rotescale representations` on a run that kept hidden states, and on a model folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import MICRO, QUICK

from rotescale.analysis.representations import (
    Points,
    principal_components,
    run_states,
    sampled_points,
    stages_of,
)
from rotescale.cli import app
from rotescale.errors import DataError, SpecError
from rotescale.evaluation.states import StateText
from rotescale.records import read_records
from rotescale.run_dir import RunDir
from rotescale.spec import ExperimentSpec
from rotescale.spec_file import dump_json, load_spec
from rotescale.storage import remove

PICTURES = {
    f"{name}.{suffix}" for name in ("stages", "layers", "components") for suffix in ("png", "svg")
}


def rotescale(*arguments: str | Path) -> None:
    """Run a command in this process; our errors are raised."""
    app([str(argument) for argument in arguments], standalone_mode=False)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, model_cache: Path) -> RunDir:
    """A finished eager run about two relations that kept its states."""
    folder = tmp_path_factory.mktemp("cli")
    launch = folder / "launch.yaml"
    launch.write_text(f"storage: {folder / 'runs'}\nmodel_cache: {model_cache}\n")
    overrides = [
        *QUICK,
        "engine.kind=eager",
        "facts.relations=[mother, author]",
        "evaluation.base=true",
        "evaluation.test_prompts=2",
        "evaluation.unrelated_prompts=1",
        "evaluation.representation_facts=6",
        "evaluation.bootstrap_samples=200",
    ]
    settings = [part for override in overrides for part in ("--set", override)]
    rotescale("run", MICRO, "--on", launch, *settings)
    return RunDir(folder / "runs" / "micro")


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables that are not folded."""
    monkeypatch.setattr("rotescale.representations_cli.console.width", 200)


def test_a_run_is_shown_with_pictures(run_dir: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    rotescale("representations", run_dir.root)
    shown = capsys.readouterr().out
    rows = run_states(run_dir).rows
    last = max(row.layer or 0 for row in rows)
    assert f"layer {last} of {last}, after the final norm" in shown
    for line in ("ΔCosSim, key token", "key token to test prompts", "held-out facts", "generalize"):
        assert line in shown
    delta = next(
        row
        for row in rows
        if (row.metric, row.prompts, row.stage, row.layer, row.split)
        == ("delta_cosine", "key_token", "base", last, "held_out")
    )
    assert f"{delta.value:.3f} [{delta.low:.3f} {delta.high:.3f}]" in shown
    folder = run_dir.representations_dir
    assert {path.name for path in folder.iterdir() if path.suffix != ".safetensors"} == PICTURES
    for name in PICTURES:
        starts = b"\x89PNG" if name.endswith("png") else b"<?xml"
        assert (folder / name).read_bytes().startswith(starts)


def test_a_branch_is_shown_with_the_stages_that_it_began_from(
    run_dir: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = load_spec(ExperimentSpec, run_dir.spec_json)
    second = spec.phases[1].model_copy(update={"epochs": 1, "facts_per_relation": 3})
    evaluation = spec.evaluation.model_copy(update={"base": False, "phases": (second.name,)})
    changes = {"name": "branch", "phases": (spec.phases[0], second), "evaluation": evaluation}
    file = tmp_path / "branch.json"
    file.write_text(dump_json(spec.model_copy(update=changes)))
    launch = run_dir.root.parent.parent / "launch.yaml"
    rotescale("run", file, "--on", launch, "--branch-from", run_dir.root)
    branch = RunDir(run_dir.root.parent / "branch")
    capsys.readouterr()
    rotescale("representations", branch.root)
    shown = capsys.readouterr().out
    kept = run_states(branch)
    stages = [("base", None), ("memorize", None), ("generalize", None)]
    assert stages_of(kept.rows) == stages
    assert [kept.places[stage].root.name for stage in stages] == ["micro", "micro", "branch"]
    assert f"measured in {run_dir.root}, from which this run branched: base, memorize;" in shown
    own = [row for row in kept.rows if row.stage == "generalize"]
    assert own == [row for row in read_records(branch).evaluations if row.layer is not None]
    # Moved together, they find each other; alone, the branch says what it lacks.
    moved = tmp_path / "moved"
    shutil.copytree(branch.root, moved / "branch")
    first = json.loads(branch.attempt(1).read_text())
    lost = json.dumps({**first, "branched_from": str(tmp_path / "gone" / "micro")})
    (moved / "branch" / "attempts" / "0001.json").write_text(lost)
    rotescale("representations", moved / "branch")
    assert f"measured in {tmp_path / 'gone' / 'micro'}, which is gone" in capsys.readouterr().out
    shutil.copytree(run_dir.root, moved / "micro")
    rotescale("representations", moved / "branch")
    assert f"measured in {moved / 'micro'}, from which" in capsys.readouterr().out


def test_a_model_of_the_run_gives_what_the_run_kept(
    run_dir: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_dir.model_folder("generalize")
    rotescale("representations", folder, "--layer", "1", "--out", tmp_path / "pictures")
    shown = capsys.readouterr().out
    kept = [row for row in run_states(run_dir).rows if (row.stage, row.layer) == ("generalize", 1)]
    assert kept
    for row in kept:
        assert f"{row.value:.3f}" in shown, row
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == PICTURES


def test_one_relation_has_no_delta_and_says_so(
    run_dir: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_dir.model_folder("memorize")
    rotescale("representations", folder, "--relation", "mother", "--num-facts", "3")
    shown = capsys.readouterr().out
    assert "ΔCosSim is left out" in shown
    assert "key token to unrelated" in shown
    assert "name a folder for them with --out" in shown


def test_without_key_tokens_there_is_delta_or_nothing(run_dir: RunDir, tmp_path: Path) -> None:
    unknown = ("--key-token", "[unknown:{relation}]", "--num-facts", "3")
    folder = run_dir.model_folder("memorize")
    with pytest.raises(SpecError, match="nothing to compare"):
        rotescale("representations", folder, "--relation", "mother", *unknown)
    rotescale("representations", folder, *unknown, "--out", tmp_path)
    assert b"unrelated" in (tmp_path / "layers.svg").read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--layer", "99"), "--layer 99: the layers are 0"),
        (("--num-facts", "3"), "name one of its models"),
    ],
)
def test_what_a_run_does_not_have_is_refused(
    run_dir: RunDir, options: tuple[str, str], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        rotescale("representations", run_dir.root, *options)


def test_a_run_without_states_says_what_to_do(run_dir: RunDir, tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(run_dir.spec_json.read_text())
    with pytest.raises(DataError, match="representation_facts under a new run name"):
        rotescale("representations", tmp_path)


def test_a_stage_whose_file_is_gone_is_named(run_dir: RunDir) -> None:
    path = run_dir.representations("base", None)
    kept = path.read_bytes()
    remove(path)
    try:
        with pytest.raises(DataError, match=r"base\.safetensors: missing"):
            rotescale("representations", run_dir.root)
    finally:
        path.write_bytes(kept)


def test_principal_components_are_those_of_the_covariance() -> None:
    rng = np.random.default_rng(0)
    states = rng.normal(size=(30, 6)) @ rng.normal(size=(6, 6))
    places, shares = principal_components(states)
    values = np.sort(np.linalg.eigvalsh(np.cov(states.T)))[::-1]
    assert shares == pytest.approx(values[:2] / values.sum())
    assert places.var(axis=0, ddof=1) == pytest.approx(values[:2])
    assert np.corrcoef(places.T)[0, 1] == pytest.approx(0.0, abs=1e-9)
    again, _ = principal_components(states)
    assert np.array_equal(places, again)
    same, none = principal_components(np.ones((3, 4)))
    assert not same.any()
    assert not none.any()


def test_pictures_show_the_first_states_of_each_relation_and_kind() -> None:
    texts = tuple(
        StateText(n, f"relation {n % 2}", "trained" if n > 7 else "held_out", "test", 0, "en", "")
        for n in range(10)
    )
    points = Points(("base", None), np.arange(1.0, 21.0).reshape(10, 2), texts)
    shown, num_texts = sampled_points(points, split="held_out", most=3)
    assert num_texts == 8
    assert [text.fact for text in shown.texts] == [0, 2, 4, 1, 3, 5]
    assert np.linalg.norm(shown.states, axis=1) == pytest.approx(1.0)
