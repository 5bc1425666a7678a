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
from rotescale.run_dir import RunDir
from rotescale.storage import StoragePath, create_exclusive, make_folder

EndKind = Literal["finished", "cancelled", "user", "infrastructure", "preempted", "hang"]
"""``user``: the spec, the data or the model is at fault, and trying again changes nothing.
``infrastructure``: something died. ``preempted``: it was taken away with notice. ``hang``: it did
nothing for longer than its stage may take."""


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


def begin(run_dir: RunDir, *, place: str) -> Start:
    """Note the start of a driver, under the next free number."""
    make_folder(run_dir.launches_dir)
    number = max(run_dir.launch_numbers(), default=0)
    while True:
        number += 1
        start = Start(number=number, time=now(), place=place, host=socket.gethostname())
        if create_exclusive(run_dir.launch_start(number), _bytes(start)):
            return start


def end(run_dir: RunDir, ending: Ending) -> None:
    """Note how it ended."""
    create_exclusive(run_dir.launch_end(ending.number), _bytes(ending))


def starts(run_dir: RunDir) -> list[Start]:
    """Every start, in order."""
    return [_read(Start, run_dir.launch_start(number)) for number in run_dir.launch_numbers()]


def endings(run_dir: RunDir) -> list[Ending]:
    """Every end that was noted, in order; a supervisor that was killed has noted none."""
    files = (run_dir.launch_end(number) for number in run_dir.launch_numbers())
    return [_read(Ending, path) for path in files if path.exists()]


def _bytes(part: BaseModel) -> bytes:
    return (part.model_dump_json() + "\n").encode()


def _read(kind: type[_FileType], path: StoragePath) -> _FileType:
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise CheckpointError(
            f"{path}: damaged ({error.errors()[0]['msg']}); delete it, which forgets that start"
        ) from None
