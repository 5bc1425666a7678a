"""A local Ray lets nobody in without its token, and credentials stand in none of its records."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import QUICK, micro_spec, prepare
from object_stores import BUCKET, s3_server, use

from rotescale import driver
from rotescale.launch_spec import LaunchSpec
from rotescale.ray_session import TOKEN_VARIABLE, ray_cluster, worker_environment
from rotescale.run_dir import Outcome

LAUNCH = LaunchSpec(num_workers=(1, 1), cpus_per_worker=1)
SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "not-a-word-that-stands-elsewhere",
    "AWS_ACCESS_KEY_ID": "Q" * 20,
}
_JOIN = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False); print(ray.nodes())"


def join(address: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Another process of this machine that wants to use the cluster."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return subprocess.run(
        [sys.executable, "-c", _JOIN, address],
        env={**clean, **variables},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def command_lines() -> Iterator[str]:
    """Of every process of this machine."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield path.read_bytes().decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue


def kept_by_ray() -> Iterator[bytes]:
    """All that the control store was given to keep: functions, actors, environments."""
    from ray.experimental import internal_kv

    for namespace in (b"", b"fun", b"cls", b"job", b"session"):
        for key in internal_kv._internal_kv_list(b"", namespace=namespace):
            yield key + (internal_kv._internal_kv_get(key, namespace=namespace) or b"")


def files_with(text: str, *folders: Path) -> list[Path]:
    """Every file below the folders in which the text stands."""
    found = [path for folder in folders for path in folder.rglob("*")]
    files = [path for path in found if path.is_file() and not path.is_symlink()]
    return [path for path in files if text.encode() in path.read_bytes()]


@pytest.mark.slow
def test_a_run_with_credentials_of_its_own(
    tmp_path: Path, model_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    run_dir = prepare(micro_spec(*QUICK), tmp_path, cache=model_cache)
    with ray_cluster(LAUNCH):
        import ray
        from ray._private.worker import _global_node

        token = os.environ[TOKEN_VARIABLE]
        address, session = _global_node.gcs_address, Path(_global_node.get_session_dir_path())
        driver.train(run_dir, LAUNCH)
        inherited = ray.get(ray.remote(lambda: dict(os.environ)).remote())
        assert {name: inherited[name] for name in (*SECRETS, TOKEN_VARIABLE)} == {
            **SECRETS,
            TOKEN_VARIABLE: token,
        }
        kept, lines = list(kept_by_ray()), list(command_lines())
        refused = [join(address, RAY_AUTH_MODE="disabled"), join(address, RAY_AUTH_MODE="token",
                   RAY_AUTH_TOKEN="0" * 64)]  # fmt: skip
    outcome = Outcome.read(run_dir)
    assert outcome is not None
    assert outcome.status == "finished"
    assert os.environ["RAY_AUTH_MODE"] == "disabled"
    assert TOKEN_VARIABLE not in os.environ
    for one in refused:
        assert one.returncode != 0
        assert "NodeID" not in one.stdout
    # What is handed to workers through Ray does stand in its logs, and its functions in its store.
    assert files_with("HF_HUB_OFFLINE", session)
    assert [one for one in kept if one.startswith(b"RemoteFunction:")]
    for secret in (token, *SECRETS.values()):
        assert not [line for line in lines if secret in line]
        assert not [one for one in kept if secret.encode() in one]
        assert files_with(secret, session, tmp_path) == []


@pytest.mark.slow
def test_workers_inherit_what_opens_the_bucket(
    tmp_path: Path, model_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server() as url:
        use(monkeypatch, url)
        monkeypatch.setenv("ROTESCALE_LOCAL", str(tmp_path / "node"))
        # Without keys of their own workers would ask for a machine's role, and find none.
        assert "AWS_SECRET_ACCESS_KEY" not in worker_environment(os.environ)
        run_dir = prepare(micro_spec(*QUICK), f"s3://{BUCKET}/runs", cache=model_cache)
        driver.train(run_dir, LAUNCH)
        outcome = Outcome.read(run_dir)
        assert outcome is not None
        assert outcome.status == "finished"
