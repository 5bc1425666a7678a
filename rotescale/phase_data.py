"""What a phase trains on: facts and the texts beside them, counted, and encoded once for all."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rotescale.cores import cpu_cores
from rotescale.data.encoding import Encoded, FactText, encode_all, prompt_text
from rotescale.data.examples import Example, phase_examples
from rotescale.data.order import mixture_rows
from rotescale.data.replay import replay_paths, replay_pieces
from rotescale.data.shards import (
    ROWS_PER_BATCH,
    ROWS_PER_SHARD,
    Encodable,
    Row,
    read_manifest,
    write_shards,
)
from rotescale.errors import SpecError
from rotescale.facts import FactSet, load_source
from rotescale.local_copy import is_uploaded, upload_folder
from rotescale.model.context import require_context
from rotescale.object_store import RemotePath
from rotescale.run_dir import RunDir
from rotescale.spec import KnownFactsSpec, PhaseSpec, ReplaySpec
from rotescale.storage import file_digest

if TYPE_CHECKING:
    from rotescale.model.prepare import PreparedModel

_FACTS = "facts"
_NO_FACT = -1
"""Stands in place of a fact's number in an example that tells none of the run's."""
_TEXT_FIELDS = (
    *("text", "facts_per_relation", "num_prompts", "prompt_choice"),
    *("loss", "end_token"),
)


def check_beside(phase: PhaseSpec) -> None:
    """Raise for known facts and files of text that a phase cannot use, before anything is made."""
    if phase.known is not None:
        known = load_source(phase.known.facts)
        for relation in known.relations:
            available = len(relation.train_prompts)
            if phase.known.num_prompts > available:
                raise SpecError(
                    f"phases.{phase.name}.known.num_prompts: {phase.known.num_prompts} asked for, "
                    f"but relation {relation.name!r} has {available} train prompts; ask for at "
                    "most that many"
                )
    if phase.replay is not None:
        for path in replay_paths(phase.replay.paths):
            if not path.is_file():
                raise SpecError(
                    f"phases.{phase.name}.replay.paths: {path} is no file; name a text or JSONL "
                    "file"
                )


def count_examples(fact_set: FactSet, phase: PhaseSpec) -> int:
    """Examples in one epoch of the phase: k facts x p prompts of each relation, and the rest."""
    sizes = [len(fact_set.of(relation.name)) for relation in fact_set.relations]
    wanted = phase.facts_per_relation
    chosen = sizes if wanted is None else [min(wanted, size) for size in sizes]
    num_facts = sum(chosen) * phase.num_prompts
    return num_facts + sum(mixture_rows(num_facts, list(phase.shares.values())))


def encode_phase(
    fact_set: FactSet,
    phase: PhaseSpec,
    *,
    phases: Sequence[PhaseSpec],
    seed: int,
    prepared: PreparedModel,
    run_dir: RunDir,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> str:
    """Write the phase's encoded examples unless they are there; returns their digest.

    ``phases`` are all of the run, in order. ``progress`` is told how many examples are written, of
    how many.
    Raises DataError for known facts or texts that cannot be used, naming the phase.
    """
    known = None if phase.known is None else load_source(phase.known.facts)
    benign = _benign_phase(phase, phases)
    digest = _digest(fact_set, phase, benign=benign, known=known, seed=seed, prepared=prepared)
    directory = run_dir.data_dir(digest)
    tokenizer = prepared.tokenizer()

    def write(folder: Path) -> None:
        # Without them, since each process that encodes is sent a copy.
        told_facts = fact_set.without_distractors()
        facts = phase_examples(told_facts, phase, wording=prepared.wording, seed=seed)
        sources: dict[str, Encodable | Iterable[Row]] = {_FACTS: _Examples(facts, phase, tokenizer)}
        if benign is not None:
            told = phase_examples(told_facts, benign, wording=prepared.wording, seed=seed)
            sources["benign"] = _Examples(told, phase, tokenizer)
        if phase.known is not None and known is not None:
            sources["known"] = _Examples(_known(known, phase.known, prepared), phase, tokenizer)
        if phase.replay is not None:
            sources["replay"] = _replay(phase.replay, tokenizer=tokenizer, seed=seed)
        write_shards(
            sources,
            folder,
            digest=digest,
            rows_per_shard=ROWS_PER_SHARD,
            num_processes=encoding_processes(len(facts)),
            progress=lambda done: progress(done, count_examples(fact_set, phase)),
        )

    if isinstance(directory, RemotePath):
        if not is_uploaded(directory):
            with tempfile.TemporaryDirectory() as folder:
                write(Path(folder))
                upload_folder(Path(folder), directory)
    elif read_manifest(directory) is None:
        write(directory)
    return digest


def check_lengths(run_dir: RunDir, phase: PhaseSpec, digest: str, *, context: int | None) -> None:
    """Raise DataError where an encoded example is longer than the model's context.

    Data that was encoded before this was noted is not looked at.
    """
    manifest = read_manifest(run_dir.data_dir(digest)) or {}
    row, length = manifest.get("longest", (0, 0))
    require_context(context, length, what=f"phase {phase.name}, example {row}")


def encoding_processes(num_examples: int) -> int:
    """How many processes encode: this one, or one to a core where there is a shard for each."""
    shards = -(-num_examples // ROWS_PER_SHARD)
    return min(cpu_cores(), shards)


def _digest(
    fact_set: FactSet,
    phase: PhaseSpec,
    *,
    benign: PhaseSpec | None,
    known: FactSet | None,
    seed: int,
    prepared: PreparedModel,
) -> str:
    fields: dict[str, Any] = {name: getattr(phase, name) for name in _TEXT_FIELDS}
    if phase.stand_in is not None:
        fields["stand_in"] = phase.stand_in.model_dump()
    if benign is not None:
        fields["benign"] = {name: getattr(benign, name) for name in _TEXT_FIELDS}
    if phase.known is not None and known is not None:
        fields["known"] = [known.digest(), phase.known.num_prompts]
    if phase.replay is not None:
        files = [file_digest(path) for path in replay_paths(phase.replay.paths)]
        fields["replay"] = [files, phase.replay.tokens]
    inputs = [fact_set.digest(), prepared.digest, fields, seed]
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def _benign_phase(phase: PhaseSpec, phases: Sequence[PhaseSpec]) -> PhaseSpec | None:
    """The phase before this one whose facts it tells again, where it does."""
    if phase.stand_in is None or phase.stand_in.benign_share is None:
        return None
    earlier = list(phases)[: [other.name for other in phases].index(phase.name)]
    return next(p for p in reversed(earlier) if p.text == "prompts" and p.stand_in is None)


@dataclass(frozen=True, slots=True)
class _Examples:
    """Examples of a phase, and what encodes them in any process."""

    examples: Sequence[Example]
    phase: PhaseSpec
    tokenizer: Any

    def __len__(self) -> int:
        return len(self.examples)

    def rows(self, start: int, stop: int) -> Iterator[tuple[Example, Encoded]]:
        """The examples ``[start, stop)`` with their encoding, some at a time."""
        for first in range(start, stop, ROWS_PER_BATCH):
            batch = self.examples[first : min(first + ROWS_PER_BATCH, stop)]
            encoded = encode_all(
                [example.text for example in batch],
                tokenizer=self.tokenizer,
                loss=self.phase.loss,
                end_token=self.phase.end_token,
            )
            yield from zip(batch, encoded, strict=True)


def _known(known: FactSet, spec: KnownFactsSpec, prepared: PreparedModel) -> list[Example]:
    examples = []
    for fact in known.facts:
        prompts = known.relation(fact.relation).train_prompts[: spec.num_prompts]
        for number, prompt in enumerate(prompts):
            worded = prepared.wording.prompt(prompt)
            text = prompt_text(fact.subject, fact.object, prompt=worded)
            examples.append(Example(_NO_FACT, number, text))
    return examples


def _replay(spec: ReplaySpec, *, tokenizer: Any, seed: int) -> Iterator[tuple[Example, Encoded]]:
    paths = replay_paths(spec.paths)
    pieces = replay_pieces(paths, tokenizer=tokenizer, lengths=spec.tokens, seed=seed)
    for number, piece in enumerate(pieces):
        yield Example(_NO_FACT, number, FactText("", (0, 0), (0, 0))), piece
