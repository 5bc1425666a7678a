"""The command about hidden states: tables and pictures of a run's, or of any model folder's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from rotescale.errors import SpecError
from rotescale.facts_cli import facts_named
from rotescale.run_dir import RunDir
from rotescale.storage import StoragePath

if TYPE_CHECKING:
    from rotescale.analysis.representations import Points
    from rotescale.evaluation.folder import Questions
    from rotescale.facts import FactSet
    from rotescale.records import EvaluationRow

console = Console()

FACTS_OF_A_FOLDER = 20
"""Facts per relation that are read in a model folder, unless it is told otherwise."""


def representations(
    place: Annotated[
        str,
        typer.Argument(
            metavar="RUN_OR_MODEL_FOLDER",
            help="A run that kept hidden states, or a Hugging Face model folder; or a URL.",
        ),
    ],
    layer: Annotated[
        int | None, typer.Option(help="Layer of tables and pictures; default: the last.")
    ] = None,
    split: Annotated[
        Literal["trained", "held_out"] | None,
        typer.Option(help="Facts in the pictures; default: held-out ones, where there are any."),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(help="Folder of the pictures; default: of a run its own, else none."),
    ] = None,
    facts: Annotated[
        list[Path] | None, typer.Option(help="For a model: CSV or JSONL files of facts.")
    ] = None,
    relations: Annotated[
        list[str] | None, typer.Option("--relation", help="For a model: relations.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="For a model: YAML with the relations' prompts.")
    ] = None,
    key_token: Annotated[
        str | None, typer.Option(help="For a model: template of the key token.")
    ] = None,
    num_facts: Annotated[
        int | None,
        typer.Option(min=1, help=f"For a model: facts per relation; default {FACTS_OF_A_FOLDER}."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="For a model: seed of the sample.")] = None,
) -> None:
    """Show hidden states: ΔCosSim and cosines, layer by layer, with pictures and a PCA.

    Of a run, what it kept at each stage, and the runs that it branched from at theirs; a model
    folder's states are read now.
    """
    root = RunDir.at(place).root
    if not RunDir(root).spec_json.exists():
        asked = _choose(
            root,
            facts=facts_named(list(facts or ()), prompts=prompts),
            relations=tuple(relations or ()),
            key_token=key_token,
            seed=seed or 0,
        )
        found = _of_folder(root, asked, num_facts=num_facts, layer=layer)
    elif any(option is not None for option in (facts, relations, prompts, key_token, num_facts)):
        raise SpecError(
            f"{place}: a run, whose states are kept already; name one of its models for other facts"
        )
    else:
        found = _of_run(RunDir(root), layer=layer)
        out = out or str(RunDir(root).representations_dir)
    _show(found, split=split, out=None if out is None else RunDir.at(out).root, title=root.name)


@dataclass(frozen=True)
class _Found:
    """Rows of all layers, and the states at one, of every stage."""

    rows: Sequence[EvaluationRow]
    points: Sequence[Points]
    layer: int


def _of_run(run_dir: RunDir, *, layer: int | None) -> _Found:
    from rotescale.analysis.representations import (
        check_layer,
        last_layer,
        run_points,
        run_states,
        stages_of,
    )

    kept = run_states(run_dir)
    last = last_layer(kept.rows)
    chosen = check_layer(last if layer is None else layer, last=last)
    for note in kept.notes:
        console.print(note)
    places = {stage: kept.places[stage] for stage in stages_of(kept.rows)}
    return _Found(kept.rows, run_points(places, layer=chosen), chosen)


def _choose(
    root: StoragePath,
    *,
    facts: FactSet | None,
    relations: tuple[str, ...],
    key_token: str | None,
    seed: int,
) -> Questions:
    from rotescale.evaluation.folder import choose_questions

    return choose_questions(
        root,
        facts=facts,
        relations=relations,
        key_token=key_token,
        seed=seed,
        full=False,
    )


def _of_folder(
    root: StoragePath, asked: Questions, *, num_facts: int | None, layer: int | None
) -> _Found:
    """Read the states of the model there, in this process."""
    from rich.progress import Progress

    from rotescale.analysis.representations import Points, check_layer
    from rotescale.evaluation.folder import STAGE, exported_folder, folder_wording
    from rotescale.evaluation.representations import folder_states, state_rows
    from rotescale.evaluation.similarity import Measuring
    from rotescale.evaluation.states import build_texts

    folder = exported_folder(root)
    wanted = num_facts or asked.spec.representation_facts or FACTS_OF_A_FOLDER
    asked = replace(asked, spec=asked.spec.model_copy(update={"representation_facts": wanted}))
    texts = build_texts(
        asked.fact_set,
        trained=asked.trained,
        asked=asked.asked,
        wording=folder_wording(folder, asked.fact_set, key_token=asked.key_token),
        spec=asked.spec,
        seed=asked.seed,
    )
    with Progress(console=console) as bar:
        task = bar.add_task("reading", total=len(texts))
        states = folder_states(
            folder, texts, progress=lambda done: bar.update(task, completed=done)
        )
    chosen = check_layer(len(states) - 1 if layer is None else layer, last=len(states) - 1)
    measuring = Measuring(STAGE, None, asked.seed, asked.spec.bootstrap_samples)
    rows = state_rows(states, texts, measuring=measuring)
    if not rows:
        raise SpecError(
            f"{root}: nothing to compare: its tokenizer knows no key token of these relations, and "
            "ΔCosSim takes two relations; name another --relation, or the --key-token"
        )
    return _Found(rows, [Points((STAGE, None), states[chosen], texts)], chosen)


def _show(found: _Found, *, split: str | None, out: StoragePath | None, title: str) -> None:
    """Print the tables; write the pictures where there is a folder for them."""
    from rotescale.analysis.representations import (
        NO_DELTA,
        choose_split,
        last_layer,
        layer_table,
        range_table,
    )
    from rotescale.evaluation.similarity import DELTA

    rows, last = found.rows, last_layer(found.rows)
    console.print(layer_table(rows, layer=found.layer))
    console.print(range_table(rows))
    if not any(row.metric == DELTA for row in rows):
        console.print(NO_DELTA)
    if out is None:
        console.print("no pictures: name a folder for them with --out")
        return
    from rotescale.analysis.representation_figures import (
        components_figure,
        layers_figure,
        save_figure,
        stages_figure,
    )

    drawn = choose_split(rows, wanted=split)
    figures = {
        "stages": stages_figure(rows, layer=found.layer, last=last, split=drawn, title=title),
        "layers": layers_figure(rows, last=last, split=drawn, title=title),
        "components": components_figure(
            found.points, layer=found.layer, last=last, split=drawn, title=title
        ),
    }
    for name, figure in figures.items():
        console.print(f"pictures: {', '.join(map(str, save_figure(figure, out, name)))}")
