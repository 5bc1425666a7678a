"""What Ray is given for its workers: what they need, and no credential."""

from __future__ import annotations

import pytest

from rotescale.errors import SpecError
from rotescale.faults import VARIABLE
from rotescale.launch_spec import LaunchSpec
from rotescale.ray_session import ray_cluster, worker_environment

ALWAYS = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
NEEDED = {
    "AWS_REGION": "eu-central-1",
    "AWS_ENDPOINT_URL": "https://store.example.com:9000",
    "ROTESCALE_LOCAL": "/scratch",
    "GOOGLE_APPLICATION_CREDENTIALS": "/etc/key.json",
    "AWS_WEB_IDENTITY_TOKEN_FILE": "/var/run/token",
    "NCCL_SOCKET_IFNAME": "eth0",
    VARIABLE: "{}",
}


def test_what_workers_need_is_passed_on() -> None:
    assert worker_environment({**NEEDED, "PATH": "/bin", "HF_TOKEN": "x"}) == {**ALWAYS, **NEEDED}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AWS_ACCESS_KEY_ID", "x"),
        ("AWS_SECRET_ACCESS_KEY", "x"),
        ("AWS_SESSION_TOKEN", "x"),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "x"),
        ("AWS_SSE_CUSTOMER_KEY_BASE64", "x"),
        ("GOOGLE_SERVICE_ACCOUNT_KEY", "{}"),
        ("AWS_ENDPOINT_URL", "https://me:word@store.example.com"),
        ("AWS_REGION", "AKIAQX3EXAMPLE7PLMNB"),
        ("GOOGLE_APPLICATION_CREDENTIALS", "-----BEGIN PRIVATE KEY-----"),
    ],
)
def test_no_credential_is_passed_on(name: str, value: str) -> None:
    assert worker_environment({name: value, "AWS_DEFAULT_REGION": "x"}) == {
        **ALWAYS,
        "AWS_DEFAULT_REGION": "x",
    }


@pytest.mark.parametrize(("mode", "said"), [("disabled", "is disabled"), (None, "is not set")])
def test_no_cluster_is_joined_without_a_token(
    mode: str | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    if mode is not None:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    joined = ray_cluster(LaunchSpec(place="ray", address="127.0.0.1:1"))
    with pytest.raises(SpecError, match=f"RAY_AUTH_MODE {said}.* one token in RAY_AUTH_TOKEN"):
        joined.__enter__()
