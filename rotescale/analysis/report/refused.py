"""The section about the rows of a user's table that were not taught."""

from __future__ import annotations

import csv
import io
from itertools import islice

from rotescale.analysis.report.material import Material
from rotescale.analysis.report.page import Content, Section, element, escaped, table
from rotescale.run_dir import REFUSED_FILE

MOST_REFUSED = 20


def refused_section(material: Material) -> Section | str:
    """The first of them, and the file beside the page that has all."""
    if not material.refused:
        return ""
    faults = list(csv.DictReader(io.StringIO(material.refused)))
    places = {(fault["file"], fault["line"]) for fault in faults}
    link = element("a", REFUSED_FILE, href=REFUSED_FILE)
    mended = tuple(element("p", f"Mended: {note}.") for note in material.mended)
    if not faults:
        return Section("refused", "Left out", "Every row of the table was taught.", mended)
    rows: list[list[Content]] = [
        [fault["file"], int(fault["line"] or 0), fault["field"], fault["reason"], fault["remedy"]]
        for fault in islice(faults, MOST_REFUSED)
    ]
    shown = f"Rows that were not taught: the first {len(rows)} of {len(faults)} faults"
    return Section(
        "refused",
        "Left out",
        f"{len(places)} rows of the table were not taught, for the reasons given.",
        (
            element("p", (escaped("All of them, beside this page: "), link)),
            table(shown, list(faults[0]), rows),
            *mended,
        ),
    )
