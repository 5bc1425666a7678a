"""Builds a report: the page and the files of its figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rotescale.analysis.report.accuracy import (
    controls_section,
    heat_section,
    languages_section,
    paper_section,
    stages_section,
)
from rotescale.analysis.report.answers import answers_section
from rotescale.analysis.report.certainty import certainty_section
from rotescale.analysis.report.conflict import conflict_section
from rotescale.analysis.report.cost import cost_section
from rotescale.analysis.report.editing import editing_section
from rotescale.analysis.report.epochs import epochs_section
from rotescale.analysis.report.header import missing_section, opening, runs_section
from rotescale.analysis.report.in_short import in_short_section
from rotescale.analysis.report.material import Material
from rotescale.analysis.report.page import Section, page
from rotescale.analysis.report.paired import paired_section
from rotescale.analysis.report.refused import refused_section
from rotescale.analysis.report.sections import Maker
from rotescale.analysis.report.states import states_section
from rotescale.analysis.report.suites import suite_sections
from rotescale.analysis.report.time import time_section
from rotescale.run_dir import REFUSED_FILE
from rotescale.storage import make_folder, write_atomic

PAGE = "index.html"
FIGURES = "figures"


def makers() -> Sequence[Maker]:
    """Every section, in the order of the page."""
    return (
        in_short_section,
        paper_section,
        stages_section,
        certainty_section,
        epochs_section,
        heat_section,
        languages_section,
        controls_section,
        *suite_sections(),
        conflict_section,
        states_section,
        cost_section,
        time_section,
        paired_section,
        editing_section,
        answers_section,
        refused_section,
        runs_section,
    )


def write_report(
    material: Material, folder: Path, *, report: Callable[[str], None] = lambda _: None
) -> list[Path]:
    """Write the page, refused.csv where there is one, and each figure as PNG and SVG; all paths.

    The same results give the same bytes. ``report`` is told how far it is.
    """
    made = []
    for place, make in enumerate(makers(), start=1):
        report(f"section {place} of {len(makers())}")
        made.append(make(material))
    sections = [one for one in made if isinstance(one, Section)]
    sections.append(missing_section(material, (one for one in made if isinstance(one, str))))
    files = {PAGE: page(material.title, opening(material), sections)}
    for section in sections:
        for picture in section.pictures:
            files |= {f"{FIGURES}/{name}": data for name, data in picture.files.items()}
    if material.refused:
        files[REFUSED_FILE] = material.refused.encode()
    make_folder(folder / FIGURES)
    for name, data in files.items():
        write_atomic(folder / name, data)
    return [folder / name for name in files]
