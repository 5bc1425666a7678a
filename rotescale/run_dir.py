"""RunDir, the only place that spells a path inside a run; its spec and its outcome. No torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from rotescale.errors import CheckpointError, SpecError, StorageError
from rotescale.spec import ExperimentSpec
from rotescale.spec_file import load_spec
from rotescale.storage import create_exclusive, write_atomic, writing

CheckpointKind = Literal["full", "weights"]
"""``full``: masters and both moments, training can go on. ``weights``: the masters alone."""

_ATTEMPT_FILE = re.compile(r"(\d{4,})\.json")
_ATTEMPT_FOLDER = re.compile(r"attempt-(\d{4,})")
_CHECKPOINT_FOLDER = re.compile(r"(\d{2,})-(.+)-step-(\d{6,})-(full|weights)")
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
    """The paths of one run below ``root``. Nothing is created by asking for a path."""

    root: Path

    @property
    def spec_json(self) -> Path:
        """The resolved experiment spec, all that the cluster reads."""
        return self.root / "spec.json"

    @property
    def launch_json(self) -> Path:
        """The launch spec of the latest submission."""
        return self.root / "launch.json"

    @property
    def resolved_json(self) -> Path:
        """What preparation and the driver resolved: commits, sizes, modes."""
        return self.root / "resolved.json"

    @property
    def outcome_json(self) -> Path:
        """How the run ended; missing while it can still go on."""
        return self.root / "outcome.json"

    @property
    def outcome_reserve(self) -> Path:
        """Room kept for the outcome, which must be written when the disk is full."""
        return self.root / "outcome.reserve"

    @property
    def save_request(self) -> Path:
        """There while somebody waits for a checkpoint outside the interval."""
        return self.root / "save-request.json"

    @property
    def results_json(self) -> Path:
        """The evaluation rows of the run, for the reader."""
        return self.root / "results.json"

    @property
    def results_png(self) -> Path:
        """The figure of the run."""
        return self.root / "results.png"

    @property
    def prepared_model(self) -> Path:
        """The Hugging Face folder from which the first phase starts."""
        return self.root / "prepared-model"

    @property
    def facts_json(self) -> Path:
        """The facts and prompts of the run, so that workers need no other file."""
        return self.root / "facts.json"

    @property
    def attempts_dir(self) -> Path:
        """One file per start of training."""
        return self.root / "attempts"

    @property
    def checkpoints_dir(self) -> Path:
        """A folder per attempt, with its checkpoints."""
        return self.root / "checkpoints"

    @property
    def records_dir(self) -> Path:
        """A folder per attempt and rank, with its segments."""
        return self.root / "records"

    @property
    def logs_dir(self) -> Path:
        """What driver and workers print."""
        return self.root / "logs"

    @property
    def ray_dir(self) -> Path:
        """Ray Train's own bookkeeping; nothing in it is ever read by rotescale."""
        return self.root / "ray"

    @property
    def tensorboard_dir(self) -> Path:
        """TensorBoard events, made from the records."""
        return self.root / "tensorboard"

    @property
    def driver_log(self) -> Path:
        """The driver's output."""
        return self.logs_dir / "driver.log"

    def worker_log(self, *, attempt: int, rank: int) -> Path:
        """The output of one worker."""
        return self.logs_dir / f"attempt-{attempt:04d}-rank-{rank:05d}.log"

    def data_dir(self, digest: str) -> Path:
        """Encoded shards of the data of that digest."""
        return self.root / "data" / digest

    def model_folder(self, phase: str) -> Path:
        """The Hugging Face folder that the phase ends with."""
        return self.root / "models" / phase

    def evaluation(self, stage: str, epoch: int | None) -> Path:
        """What each question of a stage came to, one JSON object a line."""
        suffix = "" if epoch is None else f"-epoch-{epoch:04d}"
        return self.root / "evaluations" / f"{stage}{suffix}.jsonl"

    def attempt(self, number: int) -> Path:
        """The file that makes attempt ``number`` exist."""
        return self.attempts_dir / f"{number:04d}.json"

    def attempt_numbers(self) -> list[int]:
        """The numbers of all attempts so far, ascending; empty before the first start."""
        return sorted(
            int(match[1])
            for path in _entries(self.attempts_dir)
            if (match := _ATTEMPT_FILE.fullmatch(path.name))
        )

    def newest_attempt(self) -> int | None:
        """The highest attempt's number; None before the first start."""
        return max(self.attempt_numbers(), default=None)

    def checkpoint(self, name: CheckpointName) -> Path:
        """The checkpoint's folder; phases count from 01 in it."""
        folder = f"{name.phase_index + 1:02d}-{name.phase}-step-{name.step:06d}-{name.kind}"
        return self.checkpoints_dir / f"attempt-{name.attempt:04d}" / folder

    def manifest(self, name: CheckpointName) -> Path:
        """The file that makes the checkpoint exist."""
        return self.checkpoint(name) / "manifest.json"

    def manifest_name(self, relative: str) -> CheckpointName:
        """The checkpoint whose manifest lies at ``relative`` below the root."""
        parts = relative.split("/")
        if len(parts) == 4 and parts[0] == "checkpoints" and parts[3] == "manifest.json":
            name = _parse_checkpoint(parts[1], parts[2])
            if name is not None:
                return name
        raise CheckpointError(
            f"{self.root}: {relative!r} is no path of a manifest, such as checkpoints/attempt-0001/"
            "01-memorize-step-000050-full/manifest.json; restore the attempts folder"
        )

    def checkpoint_folders(self, attempt: int) -> list[CheckpointName]:
        """The attempt's checkpoint folders, complete or not, in the order of training."""
        folder = self.checkpoints_dir / f"attempt-{attempt:04d}"
        names = (_parse_checkpoint(folder.name, path.name) for path in _entries(folder))
        return sorted((name for name in names if name is not None), key=lambda name: name.point)

    def checkpoint_attempts(self) -> list[int]:
        """The attempts that have a folder for checkpoints, ascending."""
        return sorted(
            int(match[1])
            for path in _entries(self.checkpoints_dir)
            if (match := _ATTEMPT_FOLDER.fullmatch(path.name))
        )

    def record_segment(self, name: SegmentName) -> Path:
        """An immutable file of record rows."""
        folder = self.records_dir / f"attempt-{name.attempt:04d}" / f"rank-{name.rank:05d}"
        return folder / f"segment-{name.number:06d}.jsonl"

    def record_segments(self) -> list[SegmentName]:
        """Every segment, by attempt, rank and number."""
        found = (
            _SEGMENT.fullmatch(path.relative_to(self.records_dir).as_posix())
            for path in self.records_dir.glob("attempt-*/rank-*/segment-*.jsonl")
        )
        return sorted(
            (SegmentName(int(m[1]), int(m[2]), int(m[3])) for m in found if m),
            key=lambda name: (name.attempt, name.rank, name.number),
        )


class Outcome(BaseModel):
    """How a run ended for good; every later attempt reads it before it asks for workers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    status: Literal["finished", "failed"]
    attempt: int
    exit_code: int = 0
    error: str | None = None
    """Name of the error class, such as ``DataError``; None for a finished run."""
    message: str = ""

    def write(self, run_dir: RunDir) -> bool:
        """Save the outcome; False, and nothing written, where a newer attempt has taken over."""
        newest = run_dir.newest_attempt()
        if newest is not None and newest > self.attempt:
            # What stops a superseded attempt, such as files removed under it, ends no run.
            return False
        # On a full disk this makes room for saying so.
        run_dir.outcome_reserve.unlink(missing_ok=True)
        write_atomic(run_dir.outcome_json, (self.model_dump_json(indent=2) + "\n").encode())
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
        with writing(run_dir.outcome_json):
            run_dir.outcome_json.unlink(missing_ok=True)


def open_run(root: Path, *, spec_json: str, digest: str) -> RunDir:
    """Create the run at ``root``, or accept the one there if its spec has the same digest.

    ``spec_json`` is the resolved ExperimentSpec and ``digest`` its digest. Fields that change no
    result may differ; the saved spec then takes their latest values. Raises SpecError where
    another experiment lives there and StorageError where nothing can be written.
    """
    run_dir = RunDir(root)
    path, text = run_dir.spec_json, spec_json.encode()
    if root.exists() and not root.is_dir():
        raise StorageError(f"{root}: is a file, not a run folder; choose another folder")
    with writing(root):
        root.mkdir(parents=True, exist_ok=True)
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


def _entries(folder: Path) -> list[Path]:
    """What lies in ``folder``; nothing where the folder does not exist yet."""
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []
