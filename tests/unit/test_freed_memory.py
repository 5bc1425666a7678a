"""Memory that was freed goes back to the system where one part of a run ends."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import pytest
import torch

from rotescale.freed_memory import give_back


def resident() -> int:
    """Bytes of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


@pytest.mark.skipif(
    sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="not glibc's malloc"
)
def test_what_glibc_keeps_of_small_tensors_is_given_back() -> None:
    """Tensors below its threshold for mappings, between which one is still in use."""
    tensors = [torch.ones(20_000) for _ in range(2_000)]
    kept = tensors[-1]
    del tensors
    before = resident()
    give_back()
    assert before - resident() > 0.8 * 2_000 * 80_000
    assert float(kept.sum()) == 20_000


def test_where_there_is_no_such_function_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        """A C library without malloc_trim."""

    monkeypatch.setattr("ctypes.CDLL", lambda _: Other())
    give_back()
