"""Fixtures that several test files share."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import object_stores
import pytest

from rotescale.object_store import RemotePath
from rotescale.storage import StoragePath

_NUMBERS = itertools.count()


@pytest.fixture(scope="session")
def model_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which micro models are made once for all tests."""
    return tmp_path_factory.mktemp("model-cache")


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The URL of an S3 server."""
    with object_stores.s3_server() as url:
        yield url


@pytest.fixture
def proxy(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[object_stores.Proxy]:
    """A proxy before the S3 server, through which this process reaches it."""
    found = object_stores.Proxy(s3_server)
    object_stores.use(monkeypatch, found.url)
    yield found
    found.server.shutdown()
    found.server.server_close()


@pytest.fixture
def remote(s3_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[RemotePath]:
    """An empty folder in an S3 bucket."""
    object_stores.use(monkeypatch, s3_server)
    monkeypatch.setenv("ROTESCALE_LOCAL", str(tmp_path / "node"))
    yield RemotePath(f"s3://{object_stores.BUCKET}", f"test-{next(_NUMBERS)}")
    object_stores.object_client.connect.cache_clear()


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> StoragePath:
    """An empty folder, on the disk and in an S3 bucket."""
    if request.param == "s3":
        found: RemotePath = request.getfixturevalue("remote")
        return found
    return tmp_path
