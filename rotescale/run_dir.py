"""RunDir, the only place that spells a path inside a run; its spec and its outcome. No torch."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from rotescale.errors import CheckpointError, SpecError, StorageError
from rotescale.object_store import RemotePath
from rotescale.spec import ExperimentSpec
from rotescale.spec_file import load_spec
from rotescale.storage import (
    StoragePath,
    create_exclusive,
    entries,
    make_folder,
    node_folder,
    relative,
    remove,
    storage_path,
    write_atomic,
)

CheckpointKind = Literal["full", "weights"]
"""``full``: masters and both moments, training can go on. ``weights``: the masters alone."""

_NUMBERED_FILE = re.compile(r"(\d{4,})\.json")
_ATTEMPT_FOLDER = re.compile(r"attempt-(\d{4,})")
_CHECKPOINT_FOLDER = re.compile(r"(\d{2,})-(.+)-step-(\d{6,})-(full|weights)")
_INDEX = "index.json"
REFUSED_FILE = "refused.csv"
"""Rows of a user's table that are not taught: in the run, beside its facts, beside its report."""
MENDED_FILE = "mended.txt"
"""What was mended in that table, a line each: in the run."""
MANIFEST = "manifest.json"
"""The file that makes a checkpoint exist."""
_SEGMENT = re.compile(r"attempt-(\d{4,})/rank-(\d{5,})/segment-(\d{6,})\.jsonl")


@dataclass(frozen=True, slots=True)
class CheckpointName:
    """Which checkpoint: everything that its folder's path says about it."""

    attempt: int
    phase_index: int
    phase: str
    step: int
    kind: CheckpointKind

    @property
    def point(self) -> tuple[int, int, bool]:
        """The place in training; of two at the same step, the one that resumes is the later."""
        return self.phase_index, self.step, self.kind == "full"


@dataclass(frozen=True, slots=True)
class SegmentName:
    """Which segment of records: the attempt and rank that wrote it, and its number."""

    attempt: int
    rank: int
    number: int


@dataclass(frozen=True, slots=True)
class RunDir:
    """The paths of one run below ``root``. Nothing is created by asking for a path.

    An object store's listing may lag behind its keys, so what must not be missed is asked for by
    key: attempts follow each other without a gap, and each keeps an index of its checkpoints.
    """

    root: StoragePath

    @classmethod
    def at(cls, place: str) -> RunDir:
        """The run in a folder, or at a URL. Raises SpecError where that is no place."""
        try:
            return cls(storage_path(place))
        except ValueError as error:
            raise SpecError(f"{place}: {error}") from None

    @classmethod
    def of(cls, storage: str, name: str) -> RunDir:
        """The run of that name in a launch spec's ``storage``."""
        return cls(storage_path(storage) / name)

    @property
    def node_dir(self) -> Path:
        """What must be local files of this machine: logs while they grow, Ray's bookkeeping."""
        return node_folder(self.root)

    @property
    def spec_json(self) -> StoragePath:
        """The resolved experiment spec, all that the cluster reads."""
        return self.root / "spec.json"

    @property
    def launch_json(self) -> StoragePath:
        """The launch spec of the latest submission."""
        return self.root / "launch.json"

    @property
    def resolved_json(self) -> StoragePath:
        """What preparation and the driver resolved: commits, sizes, modes."""
        return self.root / "resolved.json"

    @property
    def outcome_json(self) -> StoragePath:
        """How the run ended; missing while it can still go on."""
        return self.root / "outcome.json"

    @property
    def outcome_reserve(self) -> StoragePath:
        """Room kept for the outcome, which must be written when the disk is full."""
        return self.root / "outcome.reserve"

    @property
    def save_request(self) -> StoragePath:
        """There while somebody waits for a checkpoint outside the interval."""
        return self.root / "save-request.json"

    @property
    def results_json(self) -> StoragePath:
        """The evaluation rows of the run, for the reader."""
        return self.root / "results.json"

    @property
    def results_png(self) -> StoragePath:
        """The figure of the run."""
        return self.root / "results.png"

    @property
    def refused_csv(self) -> StoragePath:
        """The rows of a user's table that were not taught; only where the run injected one."""
        return self.root / REFUSED_FILE

    @property
    def mended_txt(self) -> StoragePath:
        """What was mended in that table, UTF-8, a line each; only where the run injected one."""
        return self.root / MENDED_FILE

    @property
    def prepared_model(self) -> StoragePath:
        """The Hugging Face folder from which the first phase starts."""
        return self.root / "prepared-model"

    @property
    def facts_json(self) -> StoragePath:
        """The facts and prompts of the run, so that workers need no other file."""
        return self.root / "facts.json"

    @property
    def attempts_dir(self) -> StoragePath:
        """One file per start of training."""
        return self.root / "attempts"

    @property
    def node_faults(self) -> StoragePath:
        """What went wrong on which node, a file per attempt and node."""
        return self.root / "node-faults"

    @property
    def checkpoints_dir(self) -> StoragePath:
        """A folder per attempt, with its checkpoints."""
        return self.root / "checkpoints"

    @property
    def records_dir(self) -> StoragePath:
        """A folder per attempt and rank, with its segments."""
        return self.root / "records"

    @property
    def logs_dir(self) -> StoragePath:
        """What driver and workers print; for a URL, when they have ended."""
        return self.root / "logs"

    @property
    def ray_dir(self) -> Path:
        """Ray Train's own bookkeeping; nothing in it is ever read by rotescale."""
        return self.node_dir / "ray"

    @property
    def tensorboard_dir(self) -> Path:
        """TensorBoard events, made from the records."""
        return self.node_dir / "tensorboard"

    @property
    def driver_log(self) -> Path:
        """The driver's output, while it is at work here."""
        return self.node_dir / "logs" / "driver.log"

    def worker_log(self, *, attempt: int, rank: int) -> Path:
        """The output of one worker, while it is at work here."""
        return self.node_dir / "logs" / f"attempt-{attempt:04d}-rank-{rank:05d}.log"

    def numbered_driver_log(self, number: int) -> Path:
        """The output of the driver's n-th start, while it is at work here."""
        return self.node_dir / "logs" / f"driver-{number:04d}.log"

    @property
    def launches_dir(self) -> StoragePath:
        """A file per start of the driver, and one per end of it."""
        return self.root / "launches"

    def launch_start(self, number: int) -> StoragePath:
        """The file that says that the driver was started for the n-th time."""
        return self.launches_dir / f"{number:04d}.json"

    def launch_end(self, number: int) -> StoragePath:
        """The file that says how that ended."""
        return self.launches_dir / f"{number:04d}-end.json"

    def launch_numbers(self) -> list[int]:
        """The numbers of all starts of the driver so far, ascending."""
        return self._numbers(self.launches_dir, _NUMBERED_FILE, self.launch_start)

    def nccl_log(self, *, attempt: int, rank: int) -> Path:
        """What NCCL says in one worker, while it is at work here."""
        return self.node_dir / "logs" / f"attempt-{attempt:04d}-rank-{rank:05d}-nccl.log"

    @property
    def profiles_dir(self) -> StoragePath:
        """Traces of chosen steps."""
        return self.root / "profiles"

    def profile(self, phase: str, *, steps: tuple[int, int], rank: int) -> StoragePath:
        """The trace of one rank's steps, the first and the last of which are given."""
        first, last = steps
        return self.profiles_dir / f"{phase}-step-{first:06d}-{last:06d}-rank-{rank:05d}.json.gz"

    def data_dir(self, digest: str) -> StoragePath:
        """Encoded shards of the data of that digest."""
        return self.root / "data" / digest

    def model_folder(self, phase: str) -> StoragePath:
        """The Hugging Face folder that the phase ends with."""
        return self.root / "models" / phase

    def evaluation(self, stage: str, epoch: int | None) -> StoragePath:
        """What each question of a stage came to, one JSON object a line."""
        suffix = "" if epoch is None else f"-epoch-{epoch:04d}"
        return self.root / "evaluations" / f"{stage}{suffix}.jsonl"

    @property
    def representations_dir(self) -> StoragePath:
        """Hidden states of each stage, and pictures of them."""
        return self.root / "representations"

    def representations(self, stage: str, epoch: int | None) -> StoragePath:
        """The hidden states of a stage, in the safetensors format."""
        suffix = "" if epoch is None else f"-epoch-{epoch:04d}"
        return self.representations_dir / f"{stage}{suffix}.safetensors"

    def attempt(self, number: int) -> StoragePath:
        """The file that makes attempt ``number`` exist."""
        return self.attempts_dir / f"{number:04d}.json"

    def node_fault(self, attempt: int, node: str) -> StoragePath:
        """What went wrong on a node in that attempt; its name as a file's."""
        return self.node_faults / f"attempt-{attempt:04d}-{node}.json"

    def attempt_numbers(self) -> list[int]:
        """The numbers of all attempts so far, ascending; empty before the first start."""
        return self._numbers(self.attempts_dir, _NUMBERED_FILE, self.attempt)

    def _numbers(
        self,
        folder: StoragePath,
        name: re.Pattern[str],
        file: Callable[[int], StoragePath],
    ) -> list[int]:
        """The numbers of files that follow each other without a gap, also of one not listed yet."""
        numbers = [
            int(match[1]) for path in entries(folder) if (match := name.fullmatch(path.name))
        ]
        if isinstance(self.root, RemotePath):
            while file(following := max(numbers, default=0) + 1).exists():
                numbers.append(following)
        return sorted(numbers)

    def newest_attempt(self) -> int | None:
        """The highest attempt's number; None before the first start."""
        return max(self.attempt_numbers(), default=None)

    def is_newest(self, attempt: int) -> bool:
        """Whether no later attempt than that has started."""
        return (self.newest_attempt() or 0) <= attempt

    def checkpoint(self, name: CheckpointName) -> StoragePath:
        """The checkpoint's folder; phases count from 01 in it."""
        folder = f"{name.phase_index + 1:02d}-{name.phase}-step-{name.step:06d}-{name.kind}"
        return self.checkpoints_dir / f"attempt-{name.attempt:04d}" / folder

    def manifest(self, name: CheckpointName) -> StoragePath:
        """The file that makes the checkpoint exist."""
        return self.checkpoint(name) / MANIFEST

    def manifest_name(self, relative: str) -> CheckpointName:
        """The checkpoint whose manifest lies at ``relative`` below the root."""
        parts = relative.split("/")
        if len(parts) == 4 and parts[0] == "checkpoints" and parts[3] == MANIFEST:
            name = _parse_checkpoint(parts[1], parts[2])
            if name is not None:
                return name
        raise CheckpointError(
            f"{self.root}: {relative!r} is no path of a manifest, such as checkpoints/attempt-0001/"
            "01-memorize-step-000050-full/manifest.json; restore the attempts folder"
        )

    def checkpoint_folders(
        self, attempt: int, *, listed_only: bool = False
    ) -> list[CheckpointName]:
        """The attempt's checkpoint folders, complete or not, in the order of training.

        ``listed_only`` leaves out what a store does not list (yet, or any more).
        """
        folder = self.checkpoints_dir / f"attempt-{attempt:04d}"
        folders = {path.name for path in entries(folder)}
        if not listed_only:
            folders |= set(_read_index(folder / _INDEX))
        names = (_parse_checkpoint(folder.name, path) for path in folders)
        return sorted((name for name in names if name is not None), key=lambda name: name.point)

    def checkpoint_attempts(self) -> list[int]:
        """The attempts that have a folder for checkpoints, ascending, as far as it is listed."""
        return sorted(
            int(match[1])
            for path in entries(self.checkpoints_dir)
            if (match := _ATTEMPT_FOLDER.fullmatch(path.name))
        )

    def record_segment(self, name: SegmentName) -> StoragePath:
        """An immutable file of record rows."""
        folder = self.records_dir / f"attempt-{name.attempt:04d}" / f"rank-{name.rank:05d}"
        return folder / f"segment-{name.number:06d}.jsonl"

    def record_segments(self, *, to_the_last: bool = False) -> list[SegmentName]:
        """Every segment, by attempt, rank and number.

        A store may not list the latest yet. With ``to_the_last`` none of rank 0 is missed, where
        steps and evaluations are: it costs a request per attempt.
        """
        if isinstance(self.records_dir, RemotePath):
            paths = [relative(path, self.records_dir) for path in self.records_dir.below()]
        else:
            files = self.records_dir.glob("attempt-*/rank-*/segment-*.jsonl")
            paths = [relative(path, self.records_dir) for path in files]
        matches = (_SEGMENT.fullmatch(path) for path in paths)
        found = {SegmentName(int(m[1]), int(m[2]), int(m[3])) for m in matches if m}
        if to_the_last and isinstance(self.root, RemotePath):
            for attempt in self.attempt_numbers():
                found |= self._unlisted_segments(attempt, found)
        return sorted(found, key=lambda name: (name.attempt, name.rank, name.number))

    def _unlisted_segments(self, attempt: int, listed: set[SegmentName]) -> set[SegmentName]:
        """Segments of the attempt's rank 0 that exist and are not listed."""
        last = max((s.number for s in listed if (s.attempt, s.rank) == (attempt, 0)), default=0)
        found: set[SegmentName] = set()
        name = SegmentName(attempt, 0, 1)
        while name.number <= last or self.record_segment(name).exists():
            if name not in listed and (name.number > last or self.record_segment(name).exists()):
                found.add(name)
            name = SegmentName(attempt, 0, name.number + 1)
        return found

    def upload_log(self, log: Path) -> None:
        """Put a log that lies on this machine into a run at a URL; nothing for a local run."""
        if isinstance(self.logs_dir, RemotePath) and log.exists() and log.stat().st_size:
            write_atomic(self.logs_dir / log.name, log.read_bytes())


def announce(directory: StoragePath) -> None:
    """Before the checkpoint in ``directory`` is published: note it where readers look by key.

    A file system lists what it holds. A store may list it later, and a start that overlooked the
    newest checkpoint would go on from an older one, or from none. One process publishes for an
    attempt, so nobody else writes its index; a name in it whose manifest is not there is ignored,
    and left out at the next save.
    """
    if isinstance(directory, RemotePath):
        index = directory.parent / _INDEX
        kept = [
            name
            for name in _read_index(index)
            if name != directory.name and (directory.parent / name / MANIFEST).exists()
        ]
        write_atomic(index, json.dumps([*kept, directory.name]).encode())


class Outcome(BaseModel):
    """How a run ended for good; every later attempt reads it before it asks for workers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    status: Literal["finished", "failed"]
    attempt: int
    exit_code: int = 0
    error: str | None = None
    """Name of the error class, such as ``DataError``; None for a finished run."""
    message: str = ""
    time: str | None = None
    """When it was written: UTC, ISO 8601; None in runs from before this was kept."""

    def write(self, run_dir: RunDir) -> bool:
        """Save the outcome; False, and nothing written, where a newer attempt has taken over."""
        if not run_dir.is_newest(self.attempt):
            # What stops a superseded attempt, such as files removed under it, ends no run.
            return False
        # On a full disk this makes room for saying so.
        remove(run_dir.outcome_reserve)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        dated = self.model_copy(update={"time": self.time or now})
        write_atomic(run_dir.outcome_json, (dated.model_dump_json(indent=2) + "\n").encode())
        return True

    @classmethod
    def read(cls, run_dir: RunDir) -> Outcome | None:
        """The saved outcome; None where the run can still go on."""
        try:
            return cls.model_validate_json(run_dir.outcome_json.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise CheckpointError(
                f"{run_dir.outcome_json}: damaged ({error.errors()[0]['msg']}); delete it to let "
                "the run go on"
            ) from None

    @staticmethod
    def clear(run_dir: RunDir) -> None:
        """Forget the outcome, so that the run can go on after its cause is gone."""
        remove(run_dir.outcome_json)


def open_run(root: StoragePath, *, spec_json: str, digest: str) -> RunDir:
    """Create the run at ``root``, or accept the one there if its spec has the same digest.

    ``spec_json`` is the resolved ExperimentSpec and ``digest`` its digest. Fields that change no
    result may differ; the saved spec then takes their latest values. Raises SpecError where
    another experiment lives there and StorageError where nothing can be written.
    """
    run_dir = RunDir(root)
    path, text = run_dir.spec_json, spec_json.encode()
    if isinstance(root, Path) and root.exists() and not root.is_dir():
        raise StorageError(f"{root}: is a file, not a run folder; choose another folder")
    make_folder(root)
    if create_exclusive(path, text):
        return run_dir
    saved = load_spec(ExperimentSpec, path)
    if saved.digest() != digest:
        wanted = ExperimentSpec.model_validate_json(spec_json)
        if saved.model_copy(update={"evaluation": wanted.evaluation}).digest() == digest:
            raise SpecError(
                f"{root}: this run was measured with another evaluation section; measure its "
                f"models with `rotescale evaluate {root}/models/PHASE` (--full asks everything), "
                "or give the experiment another name"
            )
        name = wanted.name
        raise SpecError(
            f"{root}: holds the run of experiment {saved.name!r} (digest {saved.digest()}), not "
            f"of {name!r} (digest {digest}); choose another run folder or restore the spec that "
            f"{path.name} there shows"
        )
    if path.read_bytes() != text:
        write_atomic(path, text)
    return run_dir


def _parse_checkpoint(attempt_folder: str, folder: str) -> CheckpointName | None:
    attempt = _ATTEMPT_FOLDER.fullmatch(attempt_folder)
    match = _CHECKPOINT_FOLDER.fullmatch(folder)
    if attempt is None or match is None or int(match[1]) < 1:
        return None
    kind: CheckpointKind = "full" if match[4] == "full" else "weights"
    return CheckpointName(int(attempt[1]), int(match[1]) - 1, match[2], int(match[3]), kind)


def _read_index(path: StoragePath) -> list[str]:
    """The checkpoint folders that an attempt has announced; none where the system lists them."""
    if isinstance(path, Path):
        return []
    try:
        names: list[str] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise CheckpointError(
            f"{path}: damaged ({error}); delete it where the store's listing is up to date"
        ) from None
    return names
