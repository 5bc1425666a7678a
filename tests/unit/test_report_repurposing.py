"""A study that repurposes by several numbers of facts: what was there before, gained and kept."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow.parquet
import pytest
import report_helpers

from rotescale.analysis.report.build import write_report
from rotescale.analysis.report.estimates import What, difference, estimate
from rotescale.analysis.report.material import load_material
from rotescale.records import read_records
from rotescale.study.runner import StudyDir

BEFORE, AFTER = ("generalize", None), ("repurpose", None)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, model_cache: Path) -> StudyDir:
    """Four cells that share two phases."""
    folder = tmp_path_factory.mktemp("repurposing")
    return report_helpers.micro_study(folder, model_cache, **report_helpers.REPURPOSED)


def test_each_cell_asks_about_the_other_relation_before_and_after(study: StudyDir) -> None:
    groups = load_material(study.root).groups
    assert sorted(one.labels["mitigation"] for one in groups) == ["frozen"] * 2 + ["none"] * 2
    harmful = What("mother", "test", suite="repurposed")
    benign = What("mother", "test")
    for group in groups:
        [cell] = group.cells
        own, shared = cell.places["repurpose"], cell.places["generalize"]
        assert own != shared
        suites = {row.suite for row in read_records(shared).evaluations}
        assert "repurposed" not in suites, "only the branch knows the relation"
        for stage in (BEFORE, AFTER):
            [measured] = [
                row
                for row in read_records(own).evaluations
                if (row.suite, row.stage, row.split, row.prompts, row.metric)
                == ("repurposed", stage[0], "held_out", "test", "multiple_choice")
            ]
            found = estimate(group, stage, harmful)
            assert found is not None
            assert (found.value, found.count) == (measured.value, measured.count)
            # Of the twelve facts, those that were not told so; four at most are asked.
            assert found.num_facts == 4
        for what in (harmful, benign):
            change = difference((group, BEFORE), (group, AFTER), what)
            ends = [estimate(group, stage, what) for stage in (BEFORE, AFTER)]
            assert change is not None
            assert ends[0] is not None
            assert ends[1] is not None
            assert change.value == pytest.approx(ends[1].value - ends[0].value)


def test_what_two_runs_measured_stands_in_the_table_once(study: StudyDir) -> None:
    rows = pyarrow.parquet.read_table(study.table).to_pylist()
    about = ("run", "stage", "epoch", "suite", "split", "prompts", "language", "metric", "layer")
    counts = Counter(tuple(row[name] for name in about) for row in rows)
    assert set(counts.values()) == {1}
    stages = {row["stage"] for row in rows if row["suite"] == "repurposed"}
    assert stages == {"generalize", "repurpose"}


def test_the_page_draws_both_mitigations_by_k(study: StudyDir, tmp_path: Path) -> None:
    files = {path.name for path in write_report(load_material(study.root), tmp_path)}
    assert {"repurposed-k-1.png", "repurposed-k-2.svg"} <= files
    assert "repurposed-1.png" not in files
    page = (tmp_path / "index.html").read_text()
    for told in ("frozen key tokens, rate 0.001", "0 (before)", "benign kept", "harmful gained"):
        assert told in page
