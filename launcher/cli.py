"""The launcher's command line: start experiments, look after them, stop them."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from launcher import history, local, plain_yaml, ray_jobs, runs
from launcher.doctor_cli import doctor
from launcher.job import MayHaveStartedError
from launcher.kuberay import render as kuberay
from launcher.kuberay.launcher import KubeRayLauncher
from launcher.launch_difference import launch_differences
from launcher.moving import require_free
from launcher.plan_cli import plan
from launcher.supervise_cli import supervise
from launcher.target import Target, find_target, load_launch
from launcher.watch_cli import cancel, list_runs, logs, status
from rotescale.errors import SpecError, StorageError, exit_with_error
from rotescale.launch_spec import LaunchSpec
from rotescale.spec import ExperimentSpec
from rotescale.spec_file import dump_json, load_spec

app = typer.Typer(
    name="rotescale-launch",
    help="Start experiments that outlive this terminal, look after them, stop them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console(soft_wrap=True, highlight=False, markup=False)

Spec = Annotated[Path, typer.Argument(metavar="SPEC", help="An experiment spec (YAML).")]
On = Annotated[Path | None, typer.Option(help="A launch spec (YAML); default: two local workers.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Override a field, such as --set seed=1."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be started.")]
Retry = Annotated[bool, typer.Option("--retry", help="Go on after a failure whose cause is gone.")]
_DIFFERENT = 1
_AS_KUBECTL = {"--dry-run=client": "--dry-run", "--dry-run=server": "--server-dry-run"}
"""An option whose value may be left out would take the next word for it, so these are two flags."""


def submit(
    spec_path: Spec,
    on: On = None,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    server_dry_run: Annotated[
        bool,
        typer.Option(
            "--server-dry-run",
            help="Have Kubernetes judge it, and create nothing; also --dry-run=server.",
        ),
    ] = False,
    retry: Retry = False,
) -> None:
    """Start an experiment, or what is left of it; once, however often it is submitted."""
    spec, launch = _load(spec_path, on, overrides)
    if server_dry_run:
        launcher = Target(spec.name, launch).launcher()
        if not isinstance(launcher, KubeRayLauncher):
            raise SpecError(f"--server-dry-run: place {launch.place} has no server that judges")
        launcher.check(spec)
        console.print(f"{spec.name}: Kubernetes would take it; nothing was created")
        return
    if dry_run:
        sys.stdout.write(_rendered(spec, launch, retry=retry))
        return
    _submit(spec, Target(spec.name, launch), retry=retry)


def render(
    spec_path: Spec, on: On = None, overrides: Overrides = None, retry: Retry = False
) -> None:
    """Print what would be sent: manifests, a request to Ray, or a command; nothing is started."""
    sys.stdout.write(_rendered(*_load(spec_path, on, overrides), retry=retry))


def resume(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="Name, experiment, folder or URL of a run.")
    ],
    on: Annotated[
        Path | None, typer.Option(help="Another place (a launch spec); default: where it was.")
    ] = None,
    retry: Retry = False,
    lost: Annotated[
        bool, typer.Option("--lost", help="Where it was is gone, or does not answer.")
    ] = False,
) -> None:
    """Go on with a run from its newest checkpoint, where it was or at another place."""
    before = find_target(run, None)
    target = before if on is None else before.at(load_launch(on))
    for doubt in require_free(run, before, target, is_lost=lost):
        console.print(f"warning: {doubt}")
    spec = _spec_of(target)
    if spec is None:
        raise SpecError(
            f"{target.run_dir.spec_json}: not there, or not to be read from here, and the run was "
            "not started from this machine; submit its spec with --on"
        )
    _submit(spec, target, retry=retry)


def diff(spec_path: Spec, on: On = None, overrides: Overrides = None) -> None:
    """Compare both specs with what the run was started with; ends with 1 where they differ."""
    spec, launch = _load(spec_path, on, overrides)
    target = Target(spec.name, launch)
    launcher = target.launcher() if launch.place == "kuberay" else None
    lines = (
        launcher.differences(spec)
        if isinstance(launcher, KubeRayLauncher)
        else launch_differences(target, on)
    )
    there = _spec_of(target)
    if there is not None:
        names = (str(target.run_dir.spec_json), str(spec_path))
        before, now = (dump_json(one).splitlines() for one in (there, spec))
        lines += difflib.unified_diff(before, now, *names, lineterm="")
    elif launcher is None:
        raise SpecError(
            f"{target.run_dir.spec_json}: no such run, or not to be read from here, and none was "
            "started from this machine; nothing to compare"
        )
    if not lines:
        console.print(f"{spec_path}: as it was started")
        return
    for line in lines:
        print(line)
    if there is not None and there.digest() != spec.digest():
        console.print("results change: submit refuses; give the experiment another name")
    elif there is not None:
        console.print("no result changes: submit goes on with this run")
    raise typer.Exit(_DIFFERENT)


def _spec_of(target: Target) -> ExperimentSpec | None:
    """What the run was started with: as its folder has it, or else as this machine has noted."""
    path = target.run_dir.spec_json
    noted = runs.started_spec(target.name)
    try:
        if path.exists():
            return load_spec(ExperimentSpec, path)
    except (StorageError, OSError):
        # Such as a bucket that this machine has no key for.
        if noted is None:
            raise
    return noted


def _load(
    spec_path: Path, on: Path | None, overrides: list[str] | None
) -> tuple[ExperimentSpec, LaunchSpec]:
    return load_spec(ExperimentSpec, spec_path, overrides or []), load_launch(on)


def _rendered(spec: ExperimentSpec, launch: LaunchSpec, *, retry: bool) -> str:
    """All that would be sent, as text."""
    before = history.now() if retry else None
    if launch.place == "kuberay":
        return plain_yaml.dump(kuberay.render(spec, launch, retry_before=before))
    if launch.ray is not None:
        request = ray_jobs.render(spec, launch, retry_before=before)
        return plain_yaml.dump([ray_jobs.describe(request)])
    process = local.render(spec, launch, retry_before=before)
    return plain_yaml.dump([{"run": process.line, "files": dict(process.files)}])


def _submit(spec: ExperimentSpec, target: Target, *, retry: bool) -> None:
    try:
        started = target.launcher().submit(spec, retry=retry)
    except MayHaveStartedError:
        _note(target, spec)
        raise
    _note(target, spec if started else None)
    what = "started" if started else "is running already"
    console.print(f"{spec.name} {what}; rotescale-launch status {target.name}")


for _command in (plan, doctor, submit, render, resume, diff, status, logs, cancel, supervise):
    app.command()(_command)
app.command(name="list")(list_runs)


def _note(target: Target, started: ExperimentSpec | None) -> None:
    """Let the run be found from this machine by its name."""
    runs.remember(target.experiment, target.launch, time=history.now(), started=started)


def understood(words: Sequence[str]) -> list[str]:
    """A command line with kubectl's ``--dry-run=client`` and ``=server`` of submit as its flags."""
    if words[:1] != ["submit"]:
        return list(words)
    end = words.index("--") if "--" in words else len(words)
    return [*(_AS_KUBECTL.get(word, word) for word in words[:end]), *words[end:]]


def main() -> None:
    """The entry point."""
    with exit_with_error():
        app(understood(sys.argv[1:]))


if __name__ == "__main__":
    main()
