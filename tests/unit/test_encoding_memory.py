"""Encoding takes as much memory for many facts as for few."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rotescale.model.prepare import prepare
from rotescale.model.sources import fetch
from rotescale.spec import ModelSpec, RandomWeights

ROOT = Path(__file__).resolve().parents[2]
ALLOWED_BYTES = 24 << 20
"""Two Python lists, of tokens and labels, of 180,000 more examples take twice as much."""

# In a process of its own, which holds nothing of other tests and encodes all by itself.
PROGRAM = """
import sys, threading
from pathlib import Path
from rotescale import phase_data
from rotescale.facts import generate
from rotescale.model.prepare import load_prepared
from rotescale.run_dir import RunDir
from rotescale.spec import PhaseSpec

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

def watch():
    while not done.wait(0.01):
        seen.append(anonymous())

prepared, root = load_prepared(Path(sys.argv[1])), RunDir(Path(sys.argv[2]))
num_facts = int(sys.argv[3])
phase_data.ROWS_PER_SHARD = 4_000
phase_data.encoding_processes = lambda num_examples: 1
phase = PhaseSpec(
    name="memorize", text="key_token", epochs=1, global_batch=64, learning_rate=1e-4
)
seen, done = [anonymous()], threading.Event()
watcher = threading.Thread(target=watch, daemon=True)
watcher.start()
digest = phase_data.encode_phase(
    generate("mother", num_facts=num_facts, seed=0),
    phase, phases=[phase], seed=0, prepared=prepared, run_dir=root,
)
done.set()
watcher.join()
shards = len(list(root.data_dir(digest).glob("*.arrow")))
print(max(seen), shards)
"""


def peak(prepared: Path, root: Path, num_facts: int) -> tuple[int, int]:
    """The most anonymous memory in bytes while so many facts are encoded, and their shards."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(prepared), str(root), str(num_facts)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    most, shards = done.stdout.split()
    return int(most), int(shards)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_ten_times_the_facts_take_the_same_memory(model_cache: Path, tmp_path: Path) -> None:
    weights = RandomWeights(kind="random", hidden_size=16, num_heads=2, num_key_value_heads=1)
    base = fetch(weights, cache=model_cache, texts=["Who is the mother of Gene Finley?"])
    out = tmp_path / "prepared"
    prepare(ModelSpec(weights=weights), base=base, relations=["mother"], seed=0, out=out)
    few, few_shards = peak(out, tmp_path / "few", 20_000)
    many, many_shards = peak(out, tmp_path / "many", 200_000)
    print(f"peak of anonymous memory: {few >> 20} and {many >> 20} MiB")
    assert (few_shards, many_shards) == (5, 50)
    assert many - few < ALLOWED_BYTES
