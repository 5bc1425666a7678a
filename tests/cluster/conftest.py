"""Fixtures of the tests of whole clusters."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from kuberay_laptop import Laptop, laptop_with_cluster


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that pods may mount: none of the container's own, such as /tmp."""
    folder = Path(tempfile.mkdtemp(prefix="rotescale-", dir="/var/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def laptop(shared: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Laptop]:
    """Not hurt yet, with nothing submitted."""
    monkeypatch.setenv("KUBECONFIG", str(shared / "kubeconfig"))
    with laptop_with_cluster(shared) as found:
        yield found
