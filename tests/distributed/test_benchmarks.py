"""The benchmark of checkpoints runs end to end on the micro model, and ours and peers agree."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

WANTED = {
    "stall_vs_deepspeed_save",
    "stall_vs_dcp_async_save",
    "resume_vs_universal",
    "load_vs_transformers",
    "export_vs_save_16bit_model",
}


@pytest.mark.slow
def test_checkpoint_on_the_micro_model(tmp_path: Path) -> None:
    rows_json = tmp_path / "rows.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "checkpoint.py"), "--models", "micro"]
    command += ["--folder", str(tmp_path), "--json", str(rows_json)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    rows = json.loads(rows_json.read_text())
    assert {row["name"] for row in rows} >= WANTED
    for row in rows:
        assert set(row) == {"name", "model", "ours", "peer", "ratio", "agree"}
        assert row["model"] == "micro"
        assert row["agree"], row["name"]
        assert row["ratio"] is None or row["ratio"] == row["ours"] / row["peer"]
    assert [path.name for path in tmp_path.iterdir()] == ["rows.json"], "something was left behind"
