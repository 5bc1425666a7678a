"""A study's table, whatever its axes are called, and what a report makes of its labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import yaml
from helpers import MICRO

from rotescale.analysis.report.accuracy import heat_section
from rotescale.analysis.report.epochs import epochs_section
from rotescale.analysis.report.material import Material, load_material
from rotescale.analysis.report.page import Section
from rotescale.analysis.study_table import read_labels, study_rows, write_table
from rotescale.errors import DataError
from rotescale.facts import load_source
from rotescale.facts.saved import save_fact_set
from rotescale.records import ALL_RELATIONS, EvaluationRow, RecordWriter
from rotescale.spec import ExperimentSpec
from rotescale.spec_file import dump_json
from rotescale.storage import make_folder, write_atomic
from rotescale.study.plan import Node, make_plan
from rotescale.study.runner import StudyDir
from rotescale.study.spec import load_study

RELATION = {"name": "relation", "field": "facts.relations", "values": [["author"], ["mother"]]}
K = {"name": "k", "field": "phases.generalize.facts_per_relation", "values": [2, 4]}
EPOCHS = {"name": "epochs", "field": "phases.memorize.epochs", "values": [1, 3]}
BOTH = {"name": "both", "overrides": {"facts.relations": ["author", "mother"]}}


def collected(folder: Path, *axes: dict[str, Any], baselines: Sequence[Any] = ()) -> StudyDir:
    """A collected study, each run of which has measured its end, and text last of all.

    Only records, specs and facts are there; nothing was trained.
    """
    path = folder / "study.yaml"
    values = {"name": "grid", "experiment": str(MICRO), "axes": [*axes]}
    path.write_text(yaml.safe_dump({**values, "baselines": [*baselines]}))
    study, cells = load_study(path)
    plan = make_plan(study.name, cells)
    found = StudyDir(str(folder / "runs"), study.name)
    for node in plan.nodes:
        _write_run(found, node)
    write_table(study_rows(study, plan, found), found.table)
    return found


def _write_run(study: StudyDir, node: Node) -> None:
    run = study.run(node.name)
    study.spec(node.name).parent.mkdir(parents=True, exist_ok=True)
    study.spec(node.name).write_text(dump_json(node.spec))
    make_folder(run.root)
    save_fact_set(load_source(node.spec.facts), run.facts_json)
    write_atomic(run.resolved_json, b"{}")
    writer = RecordWriter(run, attempt=1, rank=0)
    for row in _rows(node.spec):
        writer.append(row)
    writer.close()


def _rows(spec: ExperimentSpec) -> list[EvaluationRow]:
    """Values that grow with facts told and epochs; text, about no relation, comes last."""
    last = spec.phases[-1]
    relations = spec.facts.relations
    names = [*relations, *([ALL_RELATIONS] if len(relations) > 1 else [])]
    about = {"stage": last.name, "epoch": None, "seed": spec.seed, "attempt": 1, "language": "en"}
    core = {"suite": "core", "split": "held_out", "prompts": "test", "metric": "multiple_choice"}
    text = {"suite": "capability", "split": "held_out", "prompts": "text", "metric": "text_loss"}
    told = (last.facts_per_relation or 0) + (spec.phases[0].epochs or 0)
    start = 0.5 if relations == ("mother",) else 0.0
    bounds = {"count": 10, "low": None, "high": None}
    return [
        *(
            EvaluationRow(relation=name, value=start + told / 100, **about, **core, **bounds)
            for name in names
        ),
        *(
            EvaluationRow(relation=name, value=3.5, **about, **text, **bounds)
            for name in ("dictionary", ALL_RELATIONS)
        ),
    ]


def made(section: Section | str) -> Section:
    assert isinstance(section, Section), section
    return section


def names(material: Material) -> list[str]:
    return [group.name for group in material.groups]


def test_an_axis_called_relation_keeps_its_labels(tmp_path: Path) -> None:
    study = collected(tmp_path, RELATION, K, baselines=[BOTH])
    table = pyarrow.parquet.read_table(study.table)
    assert table.column_names[:6] == [
        *("run", "method", "axis_relation", "axis_k", "seed", "relation")
    ]
    of_one = [row for row in table.to_pylist() if row["run"] == "grid-author-k2"]
    assert {row["axis_relation"] for row in of_one} == {"author"}
    measured = [row["relation"] for row in of_one if row["is_end"]]
    assert measured == ["author", "dictionary", "all"]
    labels = read_labels(study.table)
    assert labels["grid-mother-k4"] == {"method": "rote", "relation": "mother", "k": "4"}
    assert labels["grid-both"] == {"method": "both"}
    material = load_material(study.root)
    assert names(material) == [
        *(f"rote, relation {name}, k {k}" for name in ("author", "mother") for k in (2, 4)),
        "both",
    ]
    heat = made(heat_section(material))
    assert [picture.title for picture in heat.pictures] == [
        *("Test prompts: rote, relation author", "Test prompts: rote, relation mother")
    ]
    assert [picture.alt.count("0.5") for picture in heat.pictures] == [0, 2]


def test_each_relation_has_a_line_over_its_epochs(tmp_path: Path) -> None:
    material = load_material(collected(tmp_path, RELATION, EPOCHS, baselines=[BOTH]).root)
    [picture] = made(epochs_section(material)).pictures
    assert "rote, relation author: 1 0.51, 3 0.53" in picture.alt
    assert "rote, relation mother: 1 1.01, 3 1.03" in picture.alt
    assert "both" not in picture.alt


@pytest.mark.parametrize("name", ["run", "seed", "stage", "metric", "value", "is_end"])
def test_an_axis_may_be_called_like_any_column(tmp_path: Path, name: str) -> None:
    study = collected(tmp_path, {**K, "name": name})
    assert sorted(labels[name] for labels in read_labels(study.table).values()) == ["2", "4"]
    assert names(load_material(study.root)) == [f"{name} 2", f"{name} 4"]


def test_settings_whose_cells_share_no_label_are_told_apart(tmp_path: Path) -> None:
    told = "phases.generalize.facts_per_relation"
    rate = "phases.generalize.learning_rate"
    pair = {
        "name": "pair",
        "values": {
            f"{letter}{seed}": {"seed": seed, told: k, rate: value}
            for letter, k, value in (("a", 2, 1e-3), ("b", 2, 1e-4), ("c", 4, 1e-3))
            for seed in (0, 1)
        },
    }
    material = load_material(collected(tmp_path, pair).root)
    assert names(material) == ["pair a0 and a1", "pair b0 and b1", "pair c0 and c1"]
    # Two of them would stand at one place of a heat map, so each is left out of it.
    assert isinstance(heat_section(material), str)


def test_a_table_of_other_columns_is_refused(tmp_path: Path) -> None:
    study = collected(tmp_path, K)
    rows = [{"method": "rote", "k": "2", "run": "grid-k2", "value": 0.5}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), study.table)
    with pytest.raises(DataError, match=r"begin with method, k, run.*run `rotescale study` again"):
        load_material(study.root)
