"""The launcher's command line: start experiments, look after them, stop them."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path, PurePosixPath
from typing import Annotated

import typer
from rich.console import Console

from launcher import local, plain_yaml, ray_jobs
from launcher.job import JobRequest
from launcher.kuberay import render as kuberay
from launcher.plan_cli import plan
from rotescale.checkpoint.manifest import is_published
from rotescale.errors import SpecError, exit_with_error
from rotescale.launch_spec import LaunchSpec
from rotescale.records import StepRow, read_records
from rotescale.run_dir import Outcome, RunDir
from rotescale.spec import ExperimentSpec
from rotescale.spec_file import load_spec
from rotescale.storage import relative

app = typer.Typer(
    name="rotescale-launch",
    help="Start experiments that outlive this terminal, look after them, stop them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(plan)
console = Console(soft_wrap=True, highlight=False, markup=False)

Spec = Annotated[Path, typer.Argument(metavar="SPEC", help="An experiment spec (YAML).")]
On = Annotated[Path | None, typer.Option(help="A launch spec (YAML); default: two local workers.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Override a field, such as --set seed=1."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be started.")]
Retry = Annotated[bool, typer.Option("--retry", help="Go on after a failure whose cause is gone.")]
RunFolder = Annotated[str, typer.Argument(metavar="RUN_FOLDER", help="The folder or URL of a run.")]


@app.command()
def submit(
    spec_path: Spec,
    on: On = None,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    retry: Retry = False,
) -> None:
    """Start an experiment, or what is left of it; once, however often it is submitted."""
    if dry_run:
        sys.stdout.write(_rendered(spec_path, on, overrides or [], retry=retry))
        return
    _submit(_request(spec_path, on, overrides or [], retry=retry))


@app.command()
def render(
    spec_path: Spec, on: On = None, overrides: Overrides = None, retry: Retry = False
) -> None:
    """Print what would be sent: manifests, a request to Ray, or a command; nothing is started."""
    sys.stdout.write(_rendered(spec_path, on, overrides or [], retry=retry))


@app.command()
def resume(
    spec_path: Spec, on: On = None, overrides: Overrides = None, retry: Retry = False
) -> None:
    """Go on with a run that has stopped, from its last checkpoint: submit it again."""
    request = _request(spec_path, on, overrides or [], retry=retry)
    _existing(str(request.run_dir.root))
    _submit(request)


@app.command()
def status(run_folder: RunFolder) -> None:
    """How far a run is: state, phase, step, loss, last checkpoint, outcome."""
    run_dir = _existing(run_folder)
    for name, value in _describe(run_dir):
        console.print(f"{name + ':':<12} {value}")


@app.command()
def logs(
    run_folder: RunFolder,
    num_lines: Annotated[int, typer.Option("--lines", min=1, help="How many, from the end.")] = 50,
) -> None:
    """The last lines of the driver's output."""
    run_dir = _existing(run_folder)
    lines = local.logs(run_dir, num_lines=num_lines)
    for line in lines:
        print(line)
    if not lines:
        console.print(f"{run_dir.driver_log}: nothing yet")


@app.command()
def cancel(
    run_folder: RunFolder,
    grace_seconds: Annotated[
        float, typer.Option("--grace", min=0, help="Seconds to wait before pressing harder.")
    ] = 20.0,
) -> None:
    """Stop a run that was submitted here; submit it again to go on from its last checkpoint."""
    run_dir = _existing(run_folder)
    stopped = local.cancel(run_dir, grace_seconds=grace_seconds)
    console.print(f"{run_dir.root}: {'stopped' if stopped else 'no driver is alive here'}")


def _load(
    spec_path: Path, on: Path | None, overrides: list[str]
) -> tuple[ExperimentSpec, LaunchSpec]:
    spec = load_spec(ExperimentSpec, spec_path, overrides)
    return spec, LaunchSpec() if on is None else load_spec(LaunchSpec, on)


def _rendered(spec_path: Path, on: Path | None, overrides: list[str], *, retry: bool) -> str:
    """All that would be sent, as text."""
    spec, launch = _load(spec_path, on, overrides)
    if launch.place == "kuberay":
        return plain_yaml.dump(kuberay.render(spec, launch, retry=retry))
    if launch.ray is not None:
        return plain_yaml.dump([ray_jobs.describe(ray_jobs.render(spec, launch, retry=retry))])
    request = _request(spec_path, on, overrides, retry=retry)
    variables = [f"{name}={value}" for name, value in request.environment.items()]
    return f"{shlex.join([*variables, *request.command])} >> {request.run_dir.driver_log}\n"


def _request(spec_path: Path, on: Path | None, overrides: list[str], *, retry: bool) -> JobRequest:
    """What to start; a spec that is at fault is refused here, before anything starts."""
    spec, launch = _load(spec_path, on, overrides)
    if launch.place == "kuberay":
        raise SpecError(
            f"{on}: place: kuberay cannot be submitted to yet; rotescale-launch render prints "
            "manifests that kubectl apply takes"
        )
    if launch.ray is not None:
        raise SpecError(
            f"{on}: a Ray cluster cannot be submitted to from elsewhere yet; rotescale-launch "
            "render prints the request. On a machine of the cluster, leave out the section ray"
        )
    return local.render(
        spec_path,
        name=spec.name,
        storage=launch.storage,
        launch=on,
        overrides=overrides,
        flags=["--retry"] if retry else [],
    )


def _submit(request: JobRequest) -> None:
    root = request.run_dir.root
    if local.submit(request):
        console.print(f"{request.name} started; rotescale-launch status {root}")
    else:
        console.print(f"{request.name} is running already; rotescale-launch status {root}")


def _existing(run_folder: str) -> RunDir:
    run_dir = RunDir.at(run_folder)
    # A run at a URL that was just submitted from here has written nothing there yet.
    if not run_dir.node_dir.is_dir() and not run_dir.spec_json.exists():
        raise SpecError(f"{run_folder}: no such run; give the folder of a run, or submit its spec")
    return run_dir


def _describe(run_dir: RunDir) -> list[tuple[str, str]]:
    """Name and value of everything that a run's files tell."""
    state = local.state(run_dir)
    steps = read_records(run_dir).steps
    last = steps[-1] if steps else None
    rows = [
        ("run", str(run_dir.root)),
        ("state", state),
        ("attempt", str(run_dir.newest_attempt() or "none")),
        *(_progress(last) if last is not None else [("phase", "none yet")]),
        ("checkpoint", _last_checkpoint(run_dir)),
        ("outcome", _outcome(run_dir)),
    ]
    printed = [line for line in local.logs(run_dir, num_lines=20) if line.strip()]
    if state == "stopped" and printed:
        rows.append(("last words", printed[-1]))
    return rows


def _progress(last: StepRow) -> list[tuple[str, str]]:
    return [
        ("phase", last.phase),
        ("step", f"{last.step} (epoch {last.epoch})"),
        ("loss", f"{last.loss:.4f}"),
    ]


def _last_checkpoint(run_dir: RunDir) -> str:
    """The last that the newest attempt published, or else the one that it went on from."""
    newest = run_dir.newest_attempt()
    if newest is None:
        return "none"
    for name in reversed(run_dir.checkpoint_folders(newest)):
        if is_published(run_dir.checkpoint(name)):
            return relative(run_dir.checkpoint(name), run_dir.root)
    resumes = json.loads(run_dir.attempt(newest).read_bytes())["resumes"]
    return "none" if resumes is None else str(PurePosixPath(resumes).parent)


def _outcome(run_dir: RunDir) -> str:
    outcome = Outcome.read(run_dir)
    if outcome is None:
        return "none yet"
    reason = f": {outcome.error}: {outcome.message}" if outcome.status == "failed" else ""
    return f"{outcome.status} in attempt {outcome.attempt}{reason}"


def main() -> None:
    """The entry point."""
    with exit_with_error():
        app()


if __name__ == "__main__":
    main()
