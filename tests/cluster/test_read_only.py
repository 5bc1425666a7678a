"""A run as the pods run it: nothing may be written but claims, /local, /tmp and the home."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
set -eu
mount --make-rprivate /
mount -t tmpfs tmpfs /srv
mount -t tmpfs tmpfs /tmp
mkdir /srv/claim /srv/local /srv/home
for folder in $(cut -d ' ' -f 2 /proc/mounts | sort -u); do
    case $folder in
        /tmp|/srv|/proc|/proc/*|/sys|/sys/*|/dev|/dev/*) ;;
        *) mount -o remount,bind,ro "$folder" 2>/dev/null || true ;;
    esac
done
for folder in "$PROJECT" /etc /var/tmp; do
    if touch "$folder/written" 2>/dev/null; then
        echo "$folder is not read only" >&2; exit 1
    fi
done
printf '%s' "$LAUNCH" > /srv/claim/launch.json
cd "$PROJECT"
"$PYTHON" -m rotescale.cli run configs/experiments/micro.yaml --on /srv/claim/launch.json >&2
cat /srv/claim/runs/micro/results.json
"""
LAUNCH = {
    "name": "read-only",
    "place": "local",
    "num_workers": 2,
    "storage": "/srv/claim/runs",
    "model_cache": "/srv/claim/models",
}


@pytest.mark.slow
@pytest.mark.privileged
@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a machine read only")
@pytest.mark.skipif(
    any(Path(one).is_relative_to(top) for one in (ROOT, sys.prefix) for top in ("/tmp", "/srv")),
    reason="the project lies where the test mounts the pods' folders: /tmp or /srv",
)
@pytest.mark.timeout(900)
def test_a_run_writes_to_no_other_folder_than_the_pods_have() -> None:
    environment = {
        **os.environ,
        "HOME": "/srv/home",
        "ROTESCALE_LOCAL": "/srv/local",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PROJECT": str(ROOT),
        "PYTHON": sys.executable,
        "LAUNCH": json.dumps(LAUNCH),
    }
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-c", SCRIPT],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(json.loads(done.stdout)) > 0
    assert not (ROOT / "written").exists()
