"""States of a stage on storage: read back by layer, skipped where done, left to a later attempt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load

from rotescale.errors import DataError
from rotescale.evaluation.representations import RunRepresentations
from rotescale.evaluation.state_file import open_states, sample_digest, write_states
from rotescale.evaluation.states import StateText
from rotescale.records import RecordWriter, read_records
from rotescale.run_dir import RunDir
from rotescale.spec import EvaluationSpec
from rotescale.storage import StoragePath, write_atomic

TEXTS = tuple(
    StateText(fact, relation, "held_out", kind, 0, "en", f"Zoë {fact} {kind}")
    for fact, relation in enumerate(["mother", "mother", "author", "author"])
    for kind in ("key_token", "test")
)
STATES = np.random.default_rng(0).normal(size=(3, len(TEXTS), 5)).astype(np.float32)


def representations(
    run_dir: RunDir, *, attempt: int = 1, texts: tuple[StateText, ...] = TEXTS, **spec: Any
) -> RunRepresentations:
    return RunRepresentations(
        engine=None,  # type: ignore[arg-type]
        texts=texts,
        tokenizer=None,
        mode="replicated",
        spec=EvaluationSpec.model_validate({"bootstrap_samples": 50, **spec}),
        seed=0,
        run_dir=run_dir,
        attempt=attempt,
        records=RecordWriter(run_dir, attempt=attempt, rank=0),
        progress=lambda stage, done, total: None,
    )


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_states_come_back_as_they_were(folder: StoragePath, dtype: str) -> None:
    path = RunDir(folder).representations("memorize", 3)
    states = STATES.astype(dtype)
    write_states(path, states, TEXTS, head={"stage": "memorize", "epoch": 3})
    found = open_states(path)
    assert found.head == {"stage": "memorize", "epoch": 3}
    assert found.texts == TEXTS
    assert len(found.layers) == len(states)
    for number, layer in enumerate(states):
        assert np.array_equal(found.layer(number), layer.astype(np.float32))
    with pytest.raises(DataError, match="no layer 3; the layers are 0"):
        found.layer(3)
    # As any other reader sees it.
    tensors = load(path.read_bytes())
    assert sorted(tensors) == ["layer-000", "layer-001", "layer-002"]
    assert np.array_equal(tensors["layer-001"], states[1])


def test_a_stage_is_done_once_its_states_are_there(folder: StoragePath) -> None:
    run_dir = RunDir(folder)
    mine = representations(run_dir)
    assert not mine.is_done("memorize", None, "checkpoints/a")
    mine._write("memorize", None, "checkpoints/a", STATES)
    assert mine.is_done("memorize", None, "checkpoints/a")
    assert mine.is_done("memorize", None, None)
    assert not mine.is_done("memorize", None, "checkpoints/b"), "trained again"
    assert not mine.is_done("memorize", 3, None)
    others = representations(run_dir, texts=TEXTS[:-2])
    assert not others.is_done("memorize", None, "checkpoints/a"), "other texts"
    rounded = representations(run_dir, representation_dtype="float16")
    assert not rounded.is_done("memorize", None, "checkpoints/a"), "another dtype"
    assert sample_digest(TEXTS, dtype="float32") == mine._sample
    rows = read_records(run_dir).evaluations
    assert {row.suite for row in rows} == {"representations"}
    assert {row.layer for row in rows} == {0, 1, 2}
    assert {(row.metric, row.prompts) for row in rows} == {
        *(("delta_cosine", "key_token"), ("delta_cosine", "test"), ("cosine", "test")),
    }


def test_a_superseded_attempt_leaves_no_states(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    for number in (1, 2):
        run_dir.attempts_dir.mkdir(exist_ok=True)
        write_atomic(run_dir.attempt(number), b"{}")
    representations(run_dir, attempt=1)._write("base", None, None, STATES)
    assert not run_dir.representations("base", None).exists()
    assert not read_records(run_dir).evaluations
    representations(run_dir, attempt=2)._write("base", None, None, STATES)
    assert run_dir.representations("base", None).exists()


def test_files_that_hold_no_states_are_refused(tmp_path: Path) -> None:
    path = RunDir(tmp_path).representations("base", None)
    with pytest.raises(FileNotFoundError):
        open_states(path)
    write_states(path, STATES, TEXTS, head={})
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(DataError, match="truncated: it ends 1 bytes early"):
        open_states(path).layer(2)
    path.write_bytes(whole[:100])
    with pytest.raises(DataError, match="truncated"):
        open_states(path)
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(DataError, match="not rotescale-representations"):
        open_states(path)
    path.write_bytes(whole.replace(b'"version":"1"', b'"version":"9"'))
    with pytest.raises(DataError, match=r"version 1 .*delete it"):
        open_states(path)
