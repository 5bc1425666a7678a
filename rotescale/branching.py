"""Begins a run where another one's phase ended, so that what the two share is trained once."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from rotescale.checkpoint.attempts import Attempt, Checkpoint
from rotescale.checkpoint.manifest import MANIFEST, Manifest, manifest_bytes
from rotescale.checkpoint.store import CheckpointStore
from rotescale.errors import SpecError
from rotescale.object_store import RemotePath
from rotescale.preparation import Resolved
from rotescale.run_dir import CheckpointName, RunDir, announce
from rotescale.spec import ExperimentSpec
from rotescale.spec_file import load_spec
from rotescale.storage import (
    StoragePath,
    create_exclusive,
    file_size,
    make_folder,
    sync_folder,
    write_atomic,
    write_stream,
)

_CHUNK_BYTES = 16 << 20
_FIRST = 1
_BASE = ("base", None)


def shared_phases(spec: ExperimentSpec, source: ExperimentSpec) -> int:
    """How many first phases the two train alike, from the same model, facts and seed."""
    most = min(len(spec.phases), len(source.phases))
    alike = [n for n in range(1, most + 1) if spec.prefix_digest(n) == source.prefix_digest(n)]
    return max(alike, default=0)


def branch(target: RunDir, spec: ExperimentSpec, source: RunDir) -> str | None:
    """Let the prepared run ``target`` begin after the last phase that ``source`` ended for both.

    The checkpoints are linked, or copied where the storage has no links, and become those of
    attempt 1, from which training goes on as if it had written them. Returns the last phase's
    name; None, and nothing done, where ``target`` has begun already.

    A target that asks about conflicts without measuring the untrained model gets what ``source``
    has found it to believe.

    Raises SpecError where the runs share no phase, or ``source`` has not ended one, or has not
    measured these beliefs.
    """
    if target.attempt_numbers():
        return None
    from_spec = load_spec(ExperimentSpec, source.spec_json)
    num_shared = shared_phases(spec, from_spec)
    _check_alike(target, spec, source, from_spec, num_shared=num_shared)
    shared = [phase.name for phase in spec.phases[:num_shared]]
    _check_beliefs(spec, source, from_spec)
    ends = ended_phases(source, shared)
    if not ends:
        raise SpecError(
            f"{source.root}: none of the shared phases {shared} has ended; run it to the end of one"
        )
    for end in ends:
        _take_over(end, target, spec)
    if _needs_beliefs(spec):
        untrained = target.evaluation(*_BASE)
        make_folder(untrained.parent)
        write_atomic(untrained, source.evaluation(*_BASE).read_bytes())
    attempt = Attempt(
        number=_FIRST,
        resumes=None,
        started=datetime.now(UTC).isoformat(),
        world_size=ends[-1].manifest.world_size,
        host=socket.gethostname(),
        branched_from=str(_absolute(source.root)),
    )
    make_folder(target.attempts_dir)
    # Last: what lies there is nobody's until the attempt exists.
    create_exclusive(target.attempt(_FIRST), (attempt.model_dump_json(indent=2) + "\n").encode())
    return ends[-1].manifest.phase


def branched_from(run_dir: RunDir) -> RunDir | None:
    """The run that this one began from, where it was or, if both have moved, beside this one.

    None where it trained all of its phases, or is not begun yet. Whether that run is still there
    is for the caller to see.
    """
    try:
        text = run_dir.attempt(_FIRST).read_bytes()
    except FileNotFoundError:
        return None
    told = Attempt.model_validate_json(text).branched_from
    if told is None:
        return None
    source = RunDir.at(told)
    beside = RunDir(run_dir.root.parent / source.root.name)
    return beside if beside.spec_json.exists() and not source.spec_json.exists() else source


def _absolute(root: StoragePath) -> StoragePath:
    return root.absolute() if isinstance(root, Path) else root


def _check_alike(
    target: RunDir,
    spec: ExperimentSpec,
    source: RunDir,
    from_spec: ExperimentSpec,
    *,
    num_shared: int,
) -> None:
    """The same phases, of the very same data: files may have changed under the same spec."""
    if not num_shared:
        raise SpecError(
            f"{source.root}: its phase {from_spec.phases[0].name!r} is not trained as "
            f"{spec.phases[0].name!r} of {spec.name!r} is; to branch, model, facts, seed, "
            "precision and the phase must be the same (epochs and schedule_epochs, too)"
        )
    mine, theirs = Resolved.read(target), Resolved.read(source)
    for phase in spec.phases[:num_shared]:
        if mine.data[phase.name] != theirs.data[phase.name]:
            raise SpecError(
                f"{source.root}: trained phase {phase.name!r} on data {theirs.data[phase.name]}, "
                f"but {spec.name!r} has {mine.data[phase.name]}: facts, texts or tokenizer have "
                "changed since; train the phase again"
            )


def _needs_beliefs(spec: ExperimentSpec) -> bool:
    """Whether another run must tell what the untrained model believes."""
    return bool(spec.evaluation.conflict_facts) and not spec.evaluation.base


def _check_beliefs(spec: ExperimentSpec, source: RunDir, from_spec: ExperimentSpec) -> None:
    """A smaller sample is part of a larger one, so the source may have asked about more facts."""
    wanted, measured = (one.evaluation.conflict_facts for one in (spec, from_spec))
    if not _needs_beliefs(spec):
        return
    if measured < wanted or not source.evaluation(*_BASE).exists():
        raise SpecError(
            f"{source.root}: has not measured what the untrained model believes about {wanted} "
            f"facts (its evaluation.conflict_facts is {measured}, its evaluation.base "
            f"{str(from_spec.evaluation.base).lower()}); set evaluation.base to true, or ask about "
            "fewer facts"
        )


def ended_phases(source: RunDir, phases: list[str]) -> list[Checkpoint]:
    """The checkpoints at the ends of those phases, as the newest attempt sees them."""
    number = source.newest_attempt()
    if number is None:
        return []
    store = CheckpointStore(source, number)
    found = (store.phase_end(phase) for phase in phases)
    return [end for end in found if end is not None]


def _take_over(end: Checkpoint, target: RunDir, spec: ExperimentSpec) -> None:
    """Make the checkpoint one of ``target``'s first attempt, its manifest last."""
    header = end.manifest
    name = CheckpointName(_FIRST, header.phase_index, header.phase, header.step, header.kind)
    directory = target.checkpoint(name)
    make_folder(directory)
    for file in header.files:
        _same_file(end.directory / file.name, directory / file.name)
    changed = {"attempt": _FIRST, "spec_digest": spec.digest()}
    manifest = Manifest(**dict(header) | changed)
    if isinstance(directory, Path):
        sync_folder(directory)
    announce(directory)
    write_atomic(directory / MANIFEST, manifest_bytes(manifest))


def _same_file(source: StoragePath, target: StoragePath) -> None:
    """The same bytes at ``target``: a link where there can be one, else a copy."""
    size = file_size(source)
    if size is None:
        raise SpecError(f"{source}: missing; restore it, or train the phase again")
    if file_size(target) == size:
        return
    if isinstance(source, Path) and isinstance(target, Path):
        # Published files are never changed, so two names for one are as good as two files.
        with suppress(OSError):
            target.unlink(missing_ok=True)
            os.link(source, target)
            return
    write_stream(target, lambda: _chunks(source, size), num_bytes=size)


def _chunks(source: StoragePath, size: int) -> Iterator[memoryview | bytes]:
    if isinstance(source, RemotePath):
        for start in range(0, size, _CHUNK_BYTES):
            yield source.read_range(start, min(_CHUNK_BYTES, size - start))
        return
    with source.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk
