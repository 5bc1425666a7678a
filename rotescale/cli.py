"""The command line: run an experiment, evaluate a model folder, compare runs."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from rotescale.checkpoint_cli import checkpoint_app
from rotescale.easyedit_cli import easyedit_app
from rotescale.errors import DataError, SpecError, StorageError, exit_with_error
from rotescale.facts import FactSet
from rotescale.facts_cli import ColumnNames, facts_app, facts_named, say
from rotescale.inject_cli import inject
from rotescale.launch_spec import LaunchSpec, ProfileSpec
from rotescale.records import EvaluationRow
from rotescale.report_cli import report
from rotescale.representations_cli import representations
from rotescale.run_dir import Outcome, RunDir
from rotescale.spec import ExperimentSpec, FolderWeights, Weights
from rotescale.spec_file import dump_json, load_spec
from rotescale.study_cli import study

app = typer.Typer(
    name="rotescale",
    help="Memorize-then-generalize: teach facts to language models, and measure what they learnt.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
facts_app.add_typer(easyedit_app, name="easyedit")
app.add_typer(facts_app, name="facts")
app.add_typer(checkpoint_app, name="checkpoint")
app.command()(representations)
app.command()(study)
app.command()(inject)
app.command()(report)
if TYPE_CHECKING:
    from rotescale.evaluation.metrics import Outcome as Answered

console = Console()

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Override a field, such as --set seed=1."),
]


@app.command()
def run(
    spec_path: Annotated[Path, typer.Argument(metavar="SPEC", help="An experiment spec (YAML).")],
    on: Annotated[
        Path | None, typer.Option(help="A launch spec (YAML); default: two local workers.")
    ] = None,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the resolved spec and what would happen.")
    ] = False,
    full: Annotated[
        bool, typer.Option("--full", help="Evaluate every fact and prompt, not a sample.")
    ] = False,
    retry: Annotated[
        bool, typer.Option("--retry", help="Go on after a failure whose cause is gone.")
    ] = False,
    branch_from: Annotated[
        str | None,
        typer.Option(help="A run whose first phases are the same: begin where they ended."),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            metavar="STEPS", help="Steps to trace, such as 3-5 or memorize:3-5, into profiles/."
        ),
    ] = None,
) -> None:
    """Run an experiment, or what is left of it; a finished one is shown and left alone."""
    from rotescale.evaluation.harness.tasks import check_tasks
    from rotescale.preparation import check_beliefs, describe, load_facts

    spec = load_spec(ExperimentSpec, spec_path, overrides or [])
    spec = spec.full_evaluation() if full else spec
    launch = LaunchSpec() if on is None else load_spec(LaunchSpec, on)
    if spec.engine.kind == "eager" and launch.num_workers != (1, 1):
        launch = launch.model_copy(update={"num_workers": (1, 1)})
    if profile is not None:
        launch = launch.model_copy(update={"profile": ProfileSpec.parse(profile)})
    _check_profile(launch, spec)
    if branch_from is None:
        check_beliefs(spec, RunDir.of(launch.storage, spec.name))
    fact_set = load_facts(spec, note=say)
    if dry_run:
        check_tasks(spec.evaluation, allow_code=launch.allow_task_code)
        _check_model_folder(spec.model.weights)
        console.print_json(dump_json(spec))
        for line in describe(spec, launch, fact_set):
            console.print(line, highlight=False)
        return
    _train(spec, launch, fact_set, retry=retry, branch_from=branch_from)


def _check_model_folder(weights: Weights) -> None:
    """Raise SpecError where a model is to be read from a folder that holds none."""
    if isinstance(weights, FolderWeights):
        folder = Path(weights.path).expanduser()
        if not (folder / "config.json").is_file():
            raise SpecError(
                f"model.weights.path: {folder} holds no config.json; name the folder of a Hugging "
                "Face model"
            )


def _check_profile(launch: LaunchSpec, spec: ExperimentSpec) -> None:
    """Raise SpecError where steps are to be traced of a phase that the experiment does not have."""
    names = [phase.name for phase in spec.phases]
    if launch.profile is not None and launch.profile.phase not in (None, *names):
        raise SpecError(
            f"profile: steps of phase {launch.profile.phase!r}, but there is no such phase, only "
            f"{', '.join(names)}"
        )


def _train(
    spec: ExperimentSpec,
    launch: LaunchSpec,
    fact_set: FactSet,
    *,
    retry: bool,
    branch_from: str | None,
) -> None:
    """Prepare, train and show; each is skipped where it was done before."""
    _require_training_packages()
    from rotescale import driver
    from rotescale.analysis.progress import RunProgress
    from rotescale.preparation import count_steps, prepare_run
    from rotescale.run_dir import open_run

    run_dir = RunDir.of(launch.storage, spec.name)
    if run_dir.spec_json.exists():
        open_run(run_dir.root, spec_json=dump_json(spec), digest=spec.digest())
        outcome = Outcome.read(run_dir)
        if outcome is not None and outcome.status == "finished":
            console.print(f"{run_dir.root} is finished; nothing to do.")
            _show(spec, run_dir)
            return
        if outcome is not None and retry:
            Outcome.clear(run_dir)
        elif outcome is not None:
            console.print(f"{run_dir.root} failed before; --retry goes on once the cause is gone.")
            driver.raise_outcome(run_dir)
    with console.status("preparing") as status:
        prepare_run(
            spec,
            launch,
            fact_set=fact_set,
            report=lambda what: status.update(f"preparing: {what}"),
        )
    if branch_from is not None:
        _branch(run_dir, spec, RunDir.at(branch_from))
    total_steps = count_steps(spec, run_dir)
    console.print(_sample(spec, run_dir), highlight=False)
    console.print(f"run folder: {run_dir.root}; starting {launch.num_workers[1]} worker(s)")
    try:
        with RunProgress(run_dir, total_steps, console=console):
            driver.train(run_dir, launch, engine=spec.engine.kind)
    finally:
        with suppress(StorageError):
            run_dir.upload_log(run_dir.driver_log)
    _show(spec, run_dir)


def _branch(run_dir: RunDir, spec: ExperimentSpec, source: RunDir) -> None:
    from rotescale.branching import branch

    if not source.resolved_json.exists():
        raise SpecError(f"--branch-from {source.root}: not the folder of a run; name one")
    phase = branch(run_dir, spec, source)
    begins = (
        "has begun already" if phase is None else f"begins after phase {phase} of {source.root}"
    )
    console.print(f"{run_dir.root} {begins}")


def _sample(spec: ExperimentSpec, run_dir: RunDir) -> str:
    """What is asked at each stage, in words."""
    from rotescale.data.examples import memorized_facts, trained_facts
    from rotescale.evaluation.items import describe_sample
    from rotescale.evaluation.suites import all_items
    from rotescale.facts.saved import load_saved
    from rotescale.model.prepare import load_prepared

    fact_set, prepared = load_saved(run_dir.facts_json), load_prepared(run_dir.prepared_model)
    items = all_items(
        fact_set,
        trained=trained_facts(fact_set, spec.phases, seed=spec.seed),
        asked=memorized_facts(fact_set, spec.phases, seed=spec.seed),
        wording=prepared.wording,
        spec=spec.evaluation,
        seed=spec.seed,
        phases=spec.phases,
        tokenizer=prepared.tokenizer(),
    )
    return describe_sample(items)


def _show(spec: ExperimentSpec, run_dir: RunDir) -> None:
    """Write results.json and the picture, and print the tables."""
    from rotescale.analysis.figures import accuracy_figure
    from rotescale.analysis.results import (
        core_relations,
        differences_table,
        read_outcomes,
        results_table,
        write_results,
    )

    rows = write_results(run_dir)
    relations = core_relations(rows)
    _print_tables(rows)
    if not relations:
        console.print("no question of the core was asked: the spec's sample is empty")
        return
    final = [row for row in rows if row.stage == spec.phases[-1].name and row.epoch is None]
    if any(row.metric == "generation_exact" for row in final):
        console.print(results_table(rows, relation=relations[-1], metric="generation_exact"))
    stages = ["base"] if spec.evaluation.base else []
    stages += [phase.name for phase in spec.phases if spec.is_evaluated(phase.name)]
    outcomes = {stage: read_outcomes(run_dir, stage) for stage in stages}
    console.print(differences_table(outcomes, seed=spec.seed))
    accuracy_figure(
        rows, run_dir.results_png, relation=relations[-1], title=f"{spec.name}: held-out facts"
    )
    console.print(f"results: {run_dir.results_json}\npicture: {run_dir.results_png}")
    last = run_dir.model_folder(spec.phases[-1].name)
    if not last.exists():
        return
    opens = "opens with" if isinstance(last, Path) else "a copy of it opens with"
    console.print(f"model:   {last} ({opens} AutoModelForCausalLM.from_pretrained)")


def _print_tables(rows: Sequence[EvaluationRow]) -> None:
    """Multiple choice of each relation; of the last, `all` where there are several, by language."""
    from rotescale.analysis.conflict_table import conflict_table
    from rotescale.analysis.results import (
        core_relations,
        languages_of,
        languages_table,
        results_table,
        suites_table,
    )

    relations = core_relations(rows)
    for relation in relations:
        console.print(results_table(rows, relation=relation))
    if relations and len(languages_of(rows)) > 1:
        console.print(languages_table(rows, relation=relations[-1]))
    for table in (suites_table(rows), conflict_table(rows)):
        if table is not None:
            console.print(table)


@app.command()
def evaluate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL_FOLDER", help="A Hugging Face model folder, or its URL.")
    ],
    facts: Annotated[
        list[Path] | None,
        typer.Option(help="A table, a folder or a spec that names facts; may be given again."),
    ] = None,
    columns: ColumnNames = None,
    relations: Annotated[
        list[str] | None, typer.Option("--relation", help="Shipped or chosen relations.")
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="YAML with the relations' prompts.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="A field of a spec's evaluation, such as text_pieces=20 or in_context=[50].",
        ),
    ] = None,
    languages: Annotated[
        list[str] | None, typer.Option("--language", help="Ask in this language too, such as de.")
    ] = None,
    key_token: Annotated[
        str | None,
        typer.Option(help="Template of the key token; default: what the folder's export says."),
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option("--task", help="A task of the lm-evaluation-harness, where it is installed."),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Ask everything, not a sample.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the sample.")] = 0,
    allow_task_code: Annotated[
        bool,
        typer.Option(
            "--allow-task-code", help="Load the run's harness_folder, whose tasks may run any code."
        ),
    ] = False,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Write the rows there as JSON.")
    ] = None,
    outcomes_path: Annotated[
        Path | None,
        typer.Option("--outcomes", help="Write there what each question came to, a line each."),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(help="What another model answered (--outcomes): show the change, by fact."),
    ] = None,
) -> None:
    """Measure any model folder on facts, without training.

    A folder inside a run is asked the run's own questions; else all facts count as held out.
    """
    _require_training_packages()
    from rich.progress import Progress

    from rotescale.analysis.results import differences_table, write_rows
    from rotescale.evaluation.folder import (
        STAGE,
        choose_questions,
        earlier_outcomes,
        evaluate_folder,
        exported_folder,
        folder_items,
        with_languages,
        with_overrides,
        with_tasks,
    )
    from rotescale.evaluation.harness.tasks import check_tasks
    from rotescale.evaluation.items import describe_sample
    from rotescale.evaluation.outcome_file import write_outcomes

    place = RunDir.at(model).root
    if (columns is not None or prompts is not None) and not facts:
        option = "--prompts" if columns is None else "--columns"
        raise SpecError(f"{option}: it is about a table, and none is named; add --facts")
    asked = choose_questions(
        place,
        facts=facts_named(list(facts or ()), columns=columns, prompts=prompts),
        relations=tuple(relations or ()),
        key_token=key_token,
        seed=seed,
        full=full,
    )
    asked = with_overrides(asked, overrides or [])
    asked = with_tasks(with_languages(asked, languages or ()), tasks or ())
    if tasks:
        # Those of a run were checked before it began.
        check_tasks(asked.spec, allow_code=allow_task_code)
    model_folder = exported_folder(place)
    items = folder_items(model_folder, asked)
    before = None if against is None else earlier_outcomes(against, items)
    console.print(describe_sample(items))
    total = len(items) + sum(item.generate for item in items)
    with Progress(console=console) as bar:
        task = bar.add_task("asking", total=total)
        rows, outcomes = evaluate_folder(
            model_folder,
            items,
            spec=asked.spec,
            seed=asked.seed,
            believed=asked.believed,
            allow_code=allow_task_code,
            progress=lambda done: bar.update(task, completed=done),
        )
    _print_tables(rows)
    if before is not None and against is not None:
        console.print(differences_table({"before": before, "now": outcomes}, seed=asked.seed))
    if outcomes_path is not None:
        write_outcomes(outcomes_path, {"model": str(place), "stage": STAGE}, outcomes)
        console.print(f"outcomes: {outcomes_path}")
    if json_path is not None:
        write_rows(rows, json_path)
        console.print(f"results: {json_path}")


@app.command()
def compare(
    run_folders: Annotated[list[str], typer.Argument(help="Folders or URLs of evaluated runs.")],
) -> None:
    """Put runs side by side, such as those of several seeds. They must be about the same facts.

    Of runs that differ in their seed alone, what the last phase changed has an interval over both.
    """
    from rotescale.analysis.results import comparison_table, core_relations, seeds_table
    from rotescale.records import read_records

    runs = {}
    facts: dict[str, str] = {}
    for folder in run_folders:
        run_dir = RunDir.at(folder)
        if not run_dir.resolved_json.exists():
            raise SpecError(f"{folder}: not the folder of a run; name folders such as runs/NAME")
        resolved = json.loads(run_dir.resolved_json.read_text(encoding="utf-8"))
        facts.setdefault(resolved["facts_digest"], folder)
        runs[folder] = read_records(run_dir).evaluations
    if len(facts) > 1:
        raise SpecError(
            f"{' and '.join(facts.values())}: runs about different facts; compare only "
            "runs about the same ones"
        )
    relations = core_relations([row for rows in runs.values() for row in rows])
    if not relations:
        raise SpecError("none of these runs was evaluated; run them to their end")
    # What all names begin with says nothing.
    start = os.path.commonprefix(list(runs)) if len(runs) > 1 else ""  # noqa: RUF071 (of names)
    short = {name.removeprefix(start) or name: rows for name, rows in runs.items()}
    seeds = _last_two_by_seed([RunDir.at(folder) for folder in run_folders])
    for relation in relations:
        console.print(comparison_table(short, relation=relation))
        table = None if seeds is None else seeds_table(*seeds, relation=relation)
        if table is not None:
            console.print(table)


def _last_two_by_seed(
    run_dirs: Sequence[RunDir],
) -> tuple[dict[int, list[Answered]], dict[int, list[Answered]]] | None:
    """What questions came to before and after the last phase, by seed.

    None where runs differ in more than their seed, or not all of it was measured and is there.
    """
    from rotescale.analysis.results import read_outcomes

    specs = [load_spec(ExperimentSpec, run_dir.spec_json) for run_dir in run_dirs]
    alike = {spec.model_copy(update={"name": "", "seed": 0}).digest() for spec in specs}
    if len(alike) > 1 or len({spec.seed for spec in specs}) < len(specs):
        return None
    stages = ["base", *(phase.name for phase in specs[0].phases)]
    measured = [
        stage
        for stage in stages
        if (specs[0].evaluation.base if stage == "base" else specs[0].is_evaluated(stage))
    ]
    if measured[-2:] != stages[-2:]:
        return None
    try:
        before, after = (
            {
                spec.seed: read_outcomes(run_dir, stage)
                for spec, run_dir in zip(specs, run_dirs, strict=True)
            }
            for stage in measured[-2:]
        )
    except DataError:
        return None
    return before, after


def _require_training_packages() -> None:
    from importlib.util import find_spec

    missing = [
        name for name in ("torch", "ray", "deepspeed", "transformers") if not find_spec(name)
    ]
    if missing:
        raise SpecError(
            f"{', '.join(missing)} not installed: this is the bare package, which plans and "
            "launches; install rotescale[train] to run here"
        )


def main() -> None:
    """The entry point."""
    with exit_with_error():
        app()


if __name__ == "__main__":
    main()
