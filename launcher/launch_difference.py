"""What differs between a launch spec and the one that a run was started with."""

from __future__ import annotations

import difflib
from pathlib import Path

from launcher import runs
from launcher.target import Target
from rotescale.errors import StorageError
from rotescale.launch_spec import LaunchSpec
from rotescale.spec_file import dump_json, load_spec


def launch_differences(target: Target, on: Path | None) -> list[str]:
    """Lines of a unified diff, a field each; none where they agree, or nothing is known.

    The run's folder has what the newest driver was given; where it cannot be read from here, what
    this machine has noted of the start stands for it.
    """
    name = "the default launch spec" if on is None else str(on)
    there = _of_the_folder(target)
    if there is not None:
        wanted = _as_the_driver_sees(target.launch, there)
        return _difference(there, wanted, str(target.run_dir.launch_json), name)
    noted = runs.started_launch(target.name)
    return [] if noted is None else _difference(noted, target.launch, "as it was started", name)


def _of_the_folder(target: Target) -> LaunchSpec | None:
    path = target.run_dir.launch_json
    try:
        return load_spec(LaunchSpec, path) if path.exists() else None
    except (StorageError, OSError):
        # Such as a bucket that this machine has no key for.
        return None


def _as_the_driver_sees(launch: LaunchSpec, there: LaunchSpec) -> LaunchSpec:
    """The launch spec as its run's folder would have it: a run that goes on keeps its cores."""
    seen = launch if launch.ray is None else launch.inside_the_cluster()
    if seen.cpus_per_worker == "auto":
        seen = seen.model_copy(update={"cpus_per_worker": there.cpus_per_worker})
    return seen


def _difference(there: LaunchSpec, wanted: LaunchSpec, before: str, now: str) -> list[str]:
    old, new = (dump_json(runs.placed(one)).splitlines() for one in (there, wanted))
    return list(difflib.unified_diff(old, new, before, now, lineterm=""))
