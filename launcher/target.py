"""Which run a command is about, and where it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from launcher import runs
from launcher.job import Launcher
from launcher.kuberay.names import job_name
from launcher.patience import PATIENCE_SECONDS
from launcher.places import launcher_of
from rotescale.errors import SpecError
from rotescale.launch_spec import LaunchSpec
from rotescale.object_store import RemotePath
from rotescale.run_dir import RunDir
from rotescale.spec_file import load_spec


@dataclass(frozen=True, slots=True)
class Target:
    """A run at a place."""

    experiment: str
    launch: LaunchSpec

    @property
    def run_dir(self) -> RunDir:
        """The run's folder, as the place sees it."""
        return RunDir.of(self.launch.storage, self.experiment)

    @property
    def name(self) -> str:
        """What the place calls the run."""
        return job_name(self.experiment, storage=self.launch.storage)

    @property
    def place(self) -> str:
        """Where it is, in words."""
        return f"{self.launch.name} ({self.launch.place})"

    def launcher(self, *, patience_seconds: float = PATIENCE_SECONDS) -> Launcher:
        """What looks after the run there, and how long it waits for a place that is away."""
        return launcher_of(self.experiment, self.launch, patience_seconds=patience_seconds)

    def at(self, launch: LaunchSpec) -> Target:
        """The same run, its folder where it is, at another place."""
        storage = str(self.run_dir.root.parent)
        return Target(self.experiment, launch.model_copy(update={"storage": storage}))


def load_launch(on: Path | None) -> LaunchSpec:
    """The launch spec of a file, or the default: two workers on this machine."""
    return runs.placed(LaunchSpec() if on is None else load_spec(LaunchSpec, on))


def find_target(text: str, on: Path | None) -> Target:
    """The run of that name, experiment, folder or URL, where it was submitted or as ``on`` says.

    Raises SpecError where there is none.
    """
    known = runs.find(text)
    if known is not None:
        target = Target(known.experiment, known.launch)
        return target if on is None else target.at(load_launch(on))
    is_path = "/" in text or Path(text).is_dir()
    if not is_path and on is None:
        raise SpecError(
            f"{text}: no run of that name was submitted from here; give its folder or URL, and "
            "its place with --on"
        )
    launch = load_launch(on)
    if not is_path:
        return Target(text, launch)
    root = RunDir.at(text).root
    if not isinstance(root, RemotePath):
        root = root.expanduser().absolute()
    target = Target(root.name, launch.model_copy(update={"storage": str(root.parent)}))
    run_dir = target.run_dir
    # A run at a URL that was just submitted from here has written nothing there yet.
    if on is None and not run_dir.node_dir.is_dir() and not run_dir.spec_json.exists():
        raise SpecError(f"{text}: no such run; give the folder of a run, or submit its spec")
    return target
