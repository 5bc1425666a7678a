"""What `rotescale study` refuses before it starts a run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import MICRO, ROOT

from rotescale.cli import app
from rotescale.errors import DataError, SpecError
from rotescale.facts import load_source
from rotescale.facts.saved import save_fact_set
from rotescale.launch_spec import LaunchSpec
from rotescale.run_dir import Outcome, RunDir
from rotescale.spec import ExperimentSpec
from rotescale.spec_file import load_spec
from rotescale.storage import make_folder
from rotescale.study.cost import study_cost
from rotescale.study.plan import make_plan
from rotescale.study.same_facts import check_same_facts, saved_facts
from rotescale.study.spec import Cell, load_study

KUBERAY = ROOT / "configs" / "launch" / "kuberay-laptop.yaml"


def study(folder: Path, *arguments: str | Path) -> None:
    """Run the command in this process; our errors are raised."""
    words = ["study", folder / "study.yaml", *arguments]
    app([str(word) for word in words], standalone_mode=False)


def write_study(folder: Path, *facts: dict[str, Any]) -> None:
    """A study with a cell for each of these facts, and where its runs lie."""
    axis = {"name": "facts", "values": {f"set{n}": {"facts": one} for n, one in enumerate(facts)}}
    fields = {"name": "grid", "experiment": str(MICRO), "axes": [axis]}
    (folder / "study.yaml").write_text(yaml.safe_dump(fields))
    (folder / "launch.yaml").write_text(f"storage: {folder / 'runs'}\n")


def facts_of(folder: Path, start: str, *relations: str) -> dict[str, Any]:
    """Files with a hundred facts of each relation, whose names begin alike."""
    place = folder / start
    place.mkdir()
    for name in relations:
        lines = ["subject,object", *(f"{start} {n} {name},Object {n} {name}" for n in range(100))]
        (place / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return {"source": "files", "paths": [str(place / f"{name}.csv") for name in relations]}


def cells_of(folder: Path) -> tuple[Cell, ...]:
    """The study's cells."""
    return load_study(folder / "study.yaml", ())[1]


def test_two_sets_of_facts_are_refused_before_the_first_run(tmp_path: Path) -> None:
    one, two = facts_of(tmp_path, "One", "mother"), facts_of(tmp_path, "Two", "mother", "author")
    write_study(tmp_path, one, two)
    with pytest.raises(
        DataError, match="grid-set0 and grid-set1: runs about different facts of mother; one table"
    ):
        study(tmp_path, "--on", tmp_path / "launch.yaml")
    assert not (tmp_path / "runs").exists()


def test_facts_that_changed_since_a_run_has_finished_are_refused_too(tmp_path: Path) -> None:
    known, both = facts_of(tmp_path, "Known", "mother"), facts_of(tmp_path, "Both", "author")
    write_study(tmp_path, both, known)
    run = RunDir(tmp_path / "runs" / "grid-set0")
    make_folder(run.root)
    earlier = facts_of(tmp_path, "Earlier", "mother")
    spec = load_spec(ExperimentSpec, MICRO, [f"facts={yaml.safe_dump(earlier, width=1000)}"])
    save_fact_set(load_source(spec.facts), run.facts_json)
    Outcome(status="finished", attempt=1).write(run)
    with pytest.raises(DataError, match="grid-set0 and grid-set1: runs about different facts"):
        study(tmp_path, "--on", tmp_path / "launch.yaml")


def test_a_relation_is_the_same_alone_and_beside_others(tmp_path: Path) -> None:
    runs = []
    for number, names in enumerate((["mother"], ["author", "mother"], ["mother", "author"])):
        spec = load_spec(ExperimentSpec, MICRO, [f"facts.relations={names}"])
        runs.append(RunDir(tmp_path / f"run-{number}"))
        make_folder(runs[-1].root)
        save_fact_set(load_source(spec.facts), runs[-1].facts_json)
    never_begun = RunDir(tmp_path / "run-3")
    found = list(saved_facts([*runs, runs[0], never_begun]))
    assert [name for name, _ in found] == ["run-0", "run-1", "run-2"]
    check_same_facts(found)
    text = runs[1].facts_json.read_text()
    assert text.count("mother of {subject}") > 0
    runs[1].facts_json.write_text(text.replace("mother of {subject}", "mom of {subject}"))
    with pytest.raises(DataError, match="run-0 and run-1: runs about different facts of mother"):
        check_same_facts(saved_facts(runs))


def test_a_cluster_for_one_run_is_refused_with_the_way_that_works(tmp_path: Path) -> None:
    write_study(tmp_path, {"source": "shipped", "relations": ["mother"]})
    with pytest.raises(SpecError, match=r"place: kuberay starts a cluster for one run.*place: ray"):
        study(tmp_path, "--on", KUBERAY)


def shown(folder: Path, *arguments: str | Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What a dry run of the study prints, in one line."""
    study(folder, "--dry-run", *arguments)
    return " ".join(capsys.readouterr().out.split())


def in_all(words: str) -> tuple[float, float]:
    """The seconds that all runs take, as they were told."""
    found = re.search(r"in all about ([\d.]+) to ([\d.]+) (s|min), one run after the other", words)
    assert found is not None, words
    unit = {"s": 1, "min": 60}[found[3]]
    return unit * float(found[1]), unit * float(found[2])


def test_a_dry_run_tells_how_long_the_runs_take(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    facts = facts_of(tmp_path, "One", "mother")
    write_study(tmp_path, facts, facts | {"relations": ["mother"]})
    on = ("--on", tmp_path / "launch.yaml")
    words = shown(tmp_path, *on, capsys=capsys)
    assert "takes about" in words
    low, high = in_all(words)
    # Two cells of one shared phase each, and their own: each run starts workers anew.
    sources = {cell.spec.facts: load_source(cell.spec.facts) for cell in cells_of(tmp_path)}
    plan = make_plan("grid", cells_of(tmp_path))
    cost = study_cost(plan, load_spec(LaunchSpec, tmp_path / "launch.yaml"), sources)
    assert (low, high) == pytest.approx((cost.seconds.low, cost.seconds.high), rel=0.1)
    whole = next(iter(cost.runs.values()))
    assert [len(run.phases) for run in cost.runs.values()] == [1] * len(plan.nodes)
    assert low > whole.total_seconds.low * (len(plan.nodes) - 1)
    # What has finished takes nothing.
    parent = next(node for node in plan.nodes if node.parent is None)
    left = study_cost(plan, LaunchSpec(), sources, finished={parent.name})
    assert set(left.runs) == {node.name for node in plan.nodes} - {parent.name}


def test_a_dry_run_says_what_it_does_not_know(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    write_study(tmp_path, facts_of(tmp_path, "One", "mother"))
    launch = {"place": "ray", "address": "auto", "storage": str(tmp_path / "runs")}
    (tmp_path / "launch.yaml").write_text(yaml.safe_dump(launch))
    on = ("--on", tmp_path / "launch.yaml")
    words = shown(tmp_path, *on, capsys=capsys)
    assert "takes about" not in words
    assert "how long it takes is not known: node: profile" in words
    # With a node it is known, with its price, and whether there is room.
    node = {"like": "cpu", "host_memory_gib": 0.5, "price_per_hour": 3600}
    (tmp_path / "launch.yaml").write_text(yaml.safe_dump(launch | {"node": node}))
    words = shown(tmp_path, *on, capsys=capsys)
    low, high = in_all(words)
    priced = re.search(r", ([\d,.]+) to ([\d,.]+) by the node's price", words)
    assert priced is not None
    assert [float(part.replace(",", "")) for part in priced.groups()] == pytest.approx(
        [low, high], rel=0.1
    )
    assert "grid-set0 does not fit: 2 workers of one node take" in words
