"""Generated facts as a phase of one epoch encodes and opens them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rotescale.data.stream import Stream
from rotescale.facts import Wording, generate
from rotescale.model.prepare import load_prepared
from rotescale.phase_data import encode_phase
from rotescale.run_dir import RunDir
from rotescale.spec import PhaseSpec

BATCH = 64
SEED = 0
_PHASE = PhaseSpec.model_validate(
    {
        "name": "memorize",
        "text": "key_token",
        "epochs": 1,
        "global_batch": BATCH,
        "learning_rate": 1e-4,
    }
)


def encode_facts(prepared: Path, root: Path, num_facts: int) -> tuple[Path, str]:
    """Encode so many facts below ``root``; their folder and digest."""
    # The prepared folder is of no relation: its key token is plain text here.
    worded = replace(load_prepared(prepared), wording=Wording({"mother": "{subject} [X]"}))
    facts, run_dir = generate("mother", num_facts=num_facts, seed=SEED), RunDir(root)
    digest = encode_phase(
        facts, _PHASE, phases=[_PHASE], seed=SEED, prepared=worded, run_dir=run_dir
    )
    return Path(str(run_dir.data_dir(digest))), digest


def open_facts(folder: Path, digest: str) -> Stream:
    """The stream of the epoch."""
    return Stream.open(folder, digest=digest, phase=_PHASE, seed=SEED, row_tokens=1024)
