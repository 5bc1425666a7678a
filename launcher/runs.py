"""What this machine has submitted, so that a run is found again by its name.

A small file per run, below ``ROTESCALE_STATE`` or else ``~/.local/state/rotescale``. Nothing of a
run depends on it: with a run's folder and its launch spec everything can be asked from elsewhere.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from launcher.kuberay.names import job_name
from rotescale.errors import SpecError
from rotescale.launch_spec import LaunchSpec
from rotescale.object_store import RemotePath
from rotescale.run_dir import RunDir
from rotescale.spec import ExperimentSpec
from rotescale.spec_file import parse_spec
from rotescale.storage import make_folder, storage_path, write_atomic

_VARIABLE = "ROTESCALE_STATE"


class Submission(BaseModel):
    """A run, and the place to which it was submitted last."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    """What the place calls it."""
    experiment: str
    """Name of the experiment."""
    launch: LaunchSpec
    """The place."""
    time: str
    """When it was submitted: UTC, ISO 8601."""
    spec: dict[str, Any] | None = None
    """The resolved experiment that was started last from here; None where none was."""
    started_on: LaunchSpec | None = None
    """The launch spec that it was started with; None where none was, or in older notes."""

    @property
    def run_dir(self) -> RunDir:
        """The run's folder, as the place sees it."""
        return RunDir.of(self.launch.storage, self.experiment)


def placed(launch: LaunchSpec) -> LaunchSpec:
    """The launch spec with a storage that means the same from any folder of this machine."""
    storage = storage_path(launch.storage)
    is_here = launch.ray is None and launch.kuberay is None
    if not is_here or isinstance(storage, RemotePath):
        return launch
    return launch.model_copy(update={"storage": str(storage.expanduser().absolute())})


def remember(
    experiment: str, launch: LaunchSpec, *, time: str, started: ExperimentSpec | None = None
) -> Submission:
    """Note that the run was submitted there.

    ``started``: the experiment, where it was started, or may have been; None where the run was at
    work already, with whatever it was started with: what was noted then stays.
    """
    launch = placed(launch)
    name = job_name(experiment, storage=launch.storage)
    folder = _folder()
    path = folder / f"{name}.json"
    spec: dict[str, Any] | None = None
    started_on: LaunchSpec | None = None
    if started is not None:
        spec, started_on = started.model_dump(mode="json"), launch
    elif path.exists():
        before = _read(path)
        spec, started_on = before.spec, before.started_on
    submission = Submission(
        name=name,
        experiment=experiment,
        launch=launch,
        time=time,
        spec=spec,
        started_on=started_on,
    )
    make_folder(folder)
    folder.chmod(0o700)
    write_atomic(path, (submission.model_dump_json(indent=2) + "\n").encode())
    return submission


def started_spec(name: str) -> ExperimentSpec | None:
    """The experiment that the run of that name was last started with from here; None: not known."""
    path = _folder() / f"{name}.json"
    spec = _read(path).spec if path.exists() else None
    return None if spec is None else parse_spec(ExperimentSpec, spec, where=str(path))


def started_launch(name: str) -> LaunchSpec | None:
    """The launch spec that the run was last started with from here; None: not known."""
    path = _folder() / f"{name}.json"
    return _read(path).started_on if path.exists() else None


def submissions() -> list[Submission]:
    """Everything that was submitted from here, the latest last."""
    found = [_read(path) for path in _folder().glob("*.json")]
    return sorted(found, key=lambda one: (one.time, one.name))


def find(text: str) -> Submission | None:
    """The submission of that name, experiment or run folder; None where there is none.

    Raises SpecError where several experiments of that name were submitted.
    """
    known = submissions()
    wanted = text.rstrip("/")
    folder = wanted if "://" in wanted else str(Path(wanted).expanduser().absolute())
    for one in known:
        if wanted == one.name or str(one.run_dir.root) in (wanted, folder):
            return one
    same = [one for one in known if one.experiment == wanted]
    if len(same) > 1:
        names = ", ".join(one.name for one in same)
        raise SpecError(f"{text}: several runs are called so; name one of {names}")
    return same[0] if same else None


def _folder() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(os.environ.get(_VARIABLE) or Path(state) / "rotescale").expanduser() / "runs"


def _read(path: Path) -> Submission:
    try:
        return Submission.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise SpecError(
            f"{path}: damaged, or of another version ({error.errors()[0]['msg']}); delete it. The "
            "run is found by its folder with --on"
        ) from None
