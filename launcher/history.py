"""How often a run's driver was started, and how each of them ended: two small files a start.

They lie in the run folder, so that whoever looks after the run next, on whichever machine, knows
what was tried. Each is created exclusively: two supervisors never share a number.
"""

from __future__ import annotations

import socket
from datetime import UTC, datetime
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from rotescale.errors import CheckpointError
from rotescale.launch_spec import LaunchSpec
from rotescale.run_dir import RunDir
from rotescale.storage import StoragePath, create_exclusive, make_folder

EndKind = Literal[
    "finished", "cancelled", "user", "infrastructure", "preempted", "hang", "superseded"
]
"""``user``: the spec, the data or the model is at fault, and trying again changes nothing.
``infrastructure``: something died. ``preempted``: it was taken away with notice. ``hang``: it did
nothing for longer than its stage may take. ``superseded``: a later start has the run."""
OWNER_VARIABLE = "ROTESCALE_SUBMISSION"
"""Names the submission that a supervisor belongs to, where somebody else starts it again."""


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    number: int
    """Counts the starts of this run, from 1."""
    time: str
    """UTC, ISO 8601."""


class Start(_File):
    """That a driver was started."""

    place: str
    """Where: ``local``, ``ray`` or ``kuberay``."""
    host: str
    """The machine."""
    launch: str | None = None
    """Name of the launch spec; None in runs from before this was kept."""
    owner: str | None = None
    """The submission whose start it is, of which several may be one's; None as for ``launch``."""

    @property
    def where(self) -> str:
        """The place in words, such as ``eks-p5 (kuberay) on ip-10-0-0-7``."""
        place = self.place if self.launch is None else f"{self.launch} ({self.place})"
        return f"{place} on {self.host}"

    def was_at(self, launch: LaunchSpec) -> bool:
        """Whether it was made at that place; a process is at this machine's, by whatever name."""
        is_process = launch.ray is None and launch.kuberay is None
        if is_process and self.host != socket.gethostname():
            return False
        if is_process and self.place == "local":
            return True
        return self.place == launch.place and self.launch in (None, launch.name)


class Ending(_File):
    """How it ended."""

    kind: EndKind
    reason: str
    """The evidence, in words."""
    exit_code: int
    """Of the driver; negative: the signal that ended it."""
    checkpoint: str | None
    """The manifest of the newest checkpoint, below the run folder; None where there is none."""


_FileType = TypeVar("_FileType", bound=_File)


def now() -> str:
    """This moment, as the files say it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def begin(run_dir: RunDir, *, place: str, launch: str, owner: str) -> Start | None:
    """Note the start of a driver, under the next free number.

    None where the run was taken over: ``owner`` had it, and another has begun since.
    """
    make_folder(run_dir.launches_dir)
    while True:
        known = starts(run_dir)
        mine = [one.number for one in known if one.owner == owner]
        if mine and _taker(run_dir, known, after=mine[-1]) is not None:
            return None
        start = Start(
            number=max((one.number for one in known), default=0) + 1,
            time=now(),
            place=place,
            host=socket.gethostname(),
            launch=launch,
            owner=owner,
        )
        # Whoever takes this number first is seen by the next look.
        if create_exclusive(run_dir.launch_start(start.number), _bytes(start)):
            return start


def successor(run_dir: RunDir, number: int) -> Start | None:
    """The newest start after that one, which has the run since; None where there is none."""
    return _taker(run_dir, starts(run_dir), after=number)


def refused(run_dir: RunDir, owner: str) -> Ending | None:
    """How the owner's last start ended, where that was a user error.

    None where it has made no start, or where another has begun since, which may have got over it.
    """
    known = starts(run_dir)
    mine = [one.number for one in known if one.owner == owner]
    if not mine or _taker(run_dir, known, after=mine[-1]) is not None:
        return None
    ending = _end_of(run_dir, mine[-1])
    return ending if ending is not None and ending.kind == "user" else None


def end(run_dir: RunDir, ending: Ending) -> None:
    """Note how it ended."""
    create_exclusive(run_dir.launch_end(ending.number), _bytes(ending))


def starts(run_dir: RunDir) -> list[Start]:
    """Every start, in order."""
    return [_read(Start, run_dir.launch_start(number)) for number in run_dir.launch_numbers()]


def endings(run_dir: RunDir) -> list[Ending]:
    """Every end that was noted, in order; a supervisor that was killed has noted none."""
    found = (_end_of(run_dir, number) for number in run_dir.launch_numbers())
    return [ending for ending in found if ending is not None]


def newest(run_dir: RunDir) -> tuple[Start, Ending | None] | None:
    """The last start, and its end where that was noted; None before the first."""
    number = max(run_dir.launch_numbers(), default=None)
    return (
        None
        if number is None
        else (_read(Start, run_dir.launch_start(number)), _end_of(run_dir, number))
    )


def _taker(run_dir: RunDir, known: list[Start], *, after: int) -> Start | None:
    """Of the starts after that number the newest that took the run.

    One that was refused before it trained, such as for a wrong spec, has taken nothing.
    """
    for one in reversed(known):
        if one.number <= after:
            break
        ending = _end_of(run_dir, one.number)
        if ending is None or ending.kind != "user":
            return one
    return None


def _end_of(run_dir: RunDir, number: int) -> Ending | None:
    path = run_dir.launch_end(number)
    return _read(Ending, path) if path.exists() else None


def _bytes(part: BaseModel) -> bytes:
    return (part.model_dump_json() + "\n").encode()


def _read(kind: type[_FileType], path: StoragePath) -> _FileType:
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise CheckpointError(
            f"{path}: damaged ({error.errors()[0]['msg']}); delete it, which forgets that start"
        ) from None
