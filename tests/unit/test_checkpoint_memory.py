"""A save needs host memory for one copy of the slices, and training gets all of it back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SLICE_BYTES = 300 << 20

# In a process of its own, so that memory of other tests, which may be free or not, counts nowhere.
PROGRAM = """
import json, sys
from pathlib import Path
import torch
from checkpoint_helpers import header
from rotescale.checkpoint.saver import CheckpointSaver, SaveRequest
from rotescale.tensors import PARTS, TensorSlice

def memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

def save(saver, name, size):
    state = [(TensorSlice("weight", (size,), 0, size), part, flat[:size]) for part, flat in parts]
    saver.start(SaveRequest(
        directory=Path(sys.argv[1]) / name, header=header(world_size=1), state=state,
        before_publish=lambda: None, after_publish=lambda: None, done=lambda report: None,
    ))
    saver.before_update()
    saver.finish()

size = int(sys.argv[2]) // 4 // len(PARTS)
parts = [(part, torch.rand(size)) for part in PARTS]
saver = CheckpointSaver(rank=0, world_size=1)
save(saver, "small", 1000)
saver.release()
before = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
save(saver, "first", size)
save(saver, "second", size)
peak = memory("VmHWM")
saver.close()
print(json.dumps({"extra": peak - before, "left": memory("VmRSS") - before}))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from /proc")
def test_a_snapshot_takes_its_slices_and_five_percent_and_leaves_nothing(tmp_path: Path) -> None:
    folders = [ROOT, ROOT / "tests" / "unit"]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), str(SLICE_BYTES)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    # Half at the least: the measurement has seen the copy.
    assert 0.5 * SLICE_BYTES < found["extra"] <= 1.05 * SLICE_BYTES
    assert found["left"] <= 0.05 * SLICE_BYTES
