"""Which files an experiment reads where its driver runs, which may be far from where it is sent."""

from __future__ import annotations

import re

from rotescale.spec import DatasetFacts, ExperimentSpec, Facts, FileFacts, TrexFacts

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
_DATA_FILES = (".arrow", ".csv", ".jsonl", ".parquet")


def named_files(spec: ExperimentSpec) -> list[tuple[str, str]]:
    """Field and path of every file or folder that an experiment reads where its driver runs."""
    found = _facts_files(spec.facts, "facts")
    if spec.model.weights.kind == "folder":
        found.append(("model.weights.path", spec.model.weights.path))
    if spec.evaluation.harness_tasks and spec.evaluation.harness_folder is not None:
        found.append(("evaluation.harness_folder", spec.evaluation.harness_folder))
    for phase in spec.phases:
        where = f"phases.{phase.name}"
        if phase.replay is not None:
            found += [(f"{where}.replay.paths", path) for path in phase.replay.paths]
        if phase.known is not None:
            found += _facts_files(phase.known.facts, f"{where}.known.facts")
    return found


def _facts_files(facts: Facts, field: str) -> list[tuple[str, str]]:
    match facts:
        case FileFacts():
            found = [(f"{field}.paths", path) for path in facts.paths]
            return found + _prompts_file(facts.relations_file, field)
        case TrexFacts():
            return [(f"{field}.path", facts.path), *_prompts_file(facts.relations_file, field)]
        case DatasetFacts():
            found = _prompts_file(facts.relations_file, field)
            if not _HUB_ID.fullmatch(facts.dataset) or facts.dataset.endswith(_DATA_FILES):
                found.append((f"{field}.dataset", facts.dataset))
            return found
        case _:
            return []


def _prompts_file(path: str | None, field: str) -> list[tuple[str, str]]:
    return [] if path is None else [(f"{field}.relations_file", path)]
