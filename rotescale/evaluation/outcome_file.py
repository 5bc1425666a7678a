"""The file of a stage's outcomes: a first line that says of what they are, and a line for each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from rotescale.evaluation.metrics import Outcome
from rotescale.storage import StoragePath, make_folder, read_line, write_atomic


def write_outcomes(path: StoragePath, head: Mapping[str, Any], outcomes: Iterable[Outcome]) -> None:
    """Write head and outcomes, whole or not at all."""
    make_folder(path.parent)
    lines = [json.dumps(head)]
    lines += [json.dumps(outcome.to_json(), ensure_ascii=False) for outcome in outcomes]
    write_atomic(path, ("\n".join(lines) + "\n").encode())


def read_head(path: StoragePath) -> dict[str, Any]:
    """The first line. Raises FileNotFoundError where the stage was not measured."""
    head: dict[str, Any] = json.loads(read_line(path))
    return head


def read_outcomes(path: StoragePath) -> list[Outcome]:
    """What each question came to. Raises FileNotFoundError where the stage was not measured."""
    # Not splitlines: a model may write any of the characters that Unicode parts lines with.
    _, *lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    return [Outcome.from_json(json.loads(line)) for line in lines]
