"""A direct file holds what was written to it, however the pieces lie in memory."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from rotescale import direct
from rotescale.direct import ALIGNMENT, DirectFile, joined

SIZES = [1, 17, ALIGNMENT, 64 * ALIGNMENT, 3 << 20, (5 << 20) + 4, 1 << 20, 400_000, 12]


def content(size: int) -> memoryview:
    """Bytes at the start of a page, different in every 251."""
    memory = memoryview(mmap.mmap(-1, size))
    memory[:] = (bytes(range(251)) * (size // 251 + 1))[:size]
    return memory


@pytest.mark.parametrize("shift", [0, 4, ALIGNMENT // 2])
@pytest.mark.parametrize("lead", [0, 100, ALIGNMENT])
def test_pieces_of_any_size_and_place_follow_each_other(
    shift: int, lead: int, tmp_path: Path
) -> None:
    memory = content(sum(SIZES) + shift)[shift:]
    path = tmp_path / "file"
    with DirectFile(path) as file:
        file.write(memoryview(bytes(lead)))
        start = 0
        for size in SIZES:
            file.write(memory[start : start + size])
            start += size
        file.sync()
    assert path.read_bytes() == bytes(lead) + bytes(memory)


def test_an_empty_file(tmp_path: Path) -> None:
    with DirectFile(tmp_path / "file") as file:
        file.sync()
    assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.parametrize("when", ["open", "write"])
def test_a_system_that_refuses_direct_writes_gets_others(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = []

    def refuse_open(path: Path, flags: int, mode: int) -> int:
        if flags & os.O_DIRECT:
            refused.append(when)
            raise OSError(errno.EINVAL, "refused")
        return real_open(path, flags, mode)

    def refuse_write(descriptor: int, data: memoryview) -> int:
        if not refused:
            refused.append(when)
            raise OSError(errno.EINVAL, "refused")
        return real_write(descriptor, data)

    real_open, real_write = os.open, os.write
    if when == "open":
        monkeypatch.setattr(direct.os, "open", refuse_open)
    else:
        monkeypatch.setattr(direct.os, "write", refuse_write)
    memory = content((2 << 20) + 100)
    with DirectFile(tmp_path / "file") as file:
        file.write(memory)
        file.sync()
        assert not file.direct
    monkeypatch.undo()
    assert refused
    assert (tmp_path / "file").read_bytes() == bytes(memory)


def test_what_is_no_refusal_is_raised(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        DirectFile(tmp_path / "missing" / "file")


def test_neighbours_in_memory_become_one_view() -> None:
    memory, other = content(100), content(50)
    pieces = [memory[:10], memory[10:30], memory[30:31], memory[40:60], other[:20], other[20:50]]
    found = list(map(bytes, joined(pieces, most_bytes=1000)))
    assert found == [bytes(memory[:31]), bytes(memory[40:60]), bytes(other)]


def test_views_of_neighbours_have_a_limit() -> None:
    memory = content(100)
    pieces = [memory[start : start + 10] for start in range(0, 100, 10)]
    found = [bytes(view) for view in joined(pieces, most_bytes=35)]
    assert [len(view) for view in found] == [30, 30, 30, 10]
    assert b"".join(found) == bytes(memory)
    # A piece that is longer than that stays whole.
    assert [len(view) for view in joined([memory], most_bytes=35)] == [100]
    assert list(joined([], most_bytes=35)) == []


def test_a_view_keeps_the_memory_of_its_pieces() -> None:
    def pieces() -> Iterator[memoryview]:
        for number in range(20):
            yield memoryview(bytearray([number]) * (1 << 20))

    # Some allocators hand out one after the other: then views have several pieces.
    views = list(joined(pieces(), most_bytes=4 << 20))
    assert b"".join(views) == b"".join(bytes([n]) * (1 << 20) for n in range(20))
