"""Fixtures that several unit tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
import report_helpers

from rotescale.analysis.report.build import write_report
from rotescale.analysis.report.material import load_material
from rotescale.run_dir import RunDir
from rotescale.study_runner import StudyDir


@pytest.fixture(scope="session")
def reported_run(tmp_path_factory: pytest.TempPathFactory, model_cache: Path) -> RunDir:
    """A run whose page lies in its folder ``report``."""
    run = report_helpers.micro_run(tmp_path_factory.mktemp("report-run"), model_cache)
    write_report(load_material(run.root), run.node_dir / "report")
    return run


@pytest.fixture(scope="session")
def reported_study(tmp_path_factory: pytest.TempPathFactory, model_cache: Path) -> StudyDir:
    """A study whose page lies in its folder ``report``."""
    study = report_helpers.micro_study(tmp_path_factory.mktemp("report-study"), model_cache)
    write_report(load_material(study.root), study.root / "report")
    return study
