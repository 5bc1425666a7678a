"""The command that writes a page of what a run or a study measured."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from rotescale.errors import SpecError
from rotescale.run_dir import RunDir

console = Console()


def report(
    place: Annotated[
        str,
        typer.Argument(metavar="RUN_OR_STUDY", help="The folder or URL of a run or a study."),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the page; default: `report` in that folder.")
    ] = None,
    easyedit: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METHOD=FILE", help="Results of EasyEdit on the same facts, to show beside."
        ),
    ] = None,
) -> None:
    """Write a page of what a run or a study measured, and its figures as PNG and SVG.

    The page is one file that opens without a network. Nothing is trained or measured.
    """
    _require_packages()
    from rotescale.analysis.editing import parse_editings
    from rotescale.analysis.report.build import write_report
    from rotescale.analysis.report.in_short import verdicts
    from rotescale.analysis.report.material import load_material

    run_dir = RunDir.at(place)
    folder = run_dir.node_dir / "report" if out is None else out
    with console.status("reading") as status:
        material = load_material(run_dir.root, editings=parse_editings(easyedit or ()))
        page, *figures = write_report(material, folder, report=status.update)
    for text in verdicts(material):
        console.print(text, highlight=False)
    console.print(f"report:  {page}", soft_wrap=True)
    if figures:
        console.print(f"figures: {figures[0].parent} ({len(figures)} files)", soft_wrap=True)


def _require_packages() -> None:
    missing = [name for name in ("matplotlib", "pyarrow", "torch") if find_spec(name) is None]
    if missing:
        raise SpecError(
            f"{', '.join(missing)} not installed: this is the bare package, which plans and "
            "launches; install rotescale[train] to make reports here"
        )
