"""The same promises on a disk and in a bucket: files are whole, created once, moved, removed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rotescale.object_store import RemotePath
from rotescale.ranges import open_ranges
from rotescale.storage import (
    StoragePath,
    create_exclusive,
    file_size,
    make_folder,
    read_line,
    relative,
    remove,
    remove_folder,
    step_aside,
    step_back,
    storage_path,
    write_atomic,
    write_stream,
)


def test_a_file_is_replaced_and_read(folder: StoragePath) -> None:
    path = folder / "a" / "b.txt"
    make_folder(path.parent)
    assert not path.exists()
    assert file_size(path) is None
    write_atomic(path, b"first line\nsecond")
    write_atomic(path, "first línea\nsecond".encode())
    assert path.exists()
    assert path.read_text(encoding="utf-8") == "first línea\nsecond"
    assert read_line(path).rstrip("\n") == "first línea"
    assert file_size(path) == 19
    assert relative(path, folder) == "a/b.txt"
    assert (path.name, path.parent) == ("b.txt", folder / "a")
    assert str(path) == f"{folder}/a/b.txt"


@pytest.mark.parametrize("read", [lambda p: p.read_bytes(), read_line])
def test_what_is_missing_is_not_found(folder: StoragePath, read: object) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        read(folder / "nothing")  # type: ignore[operator]
    assert "nothing" in str(caught.value)


def test_of_many_that_create_one_file_one_is_told_so(folder: StoragePath) -> None:
    start = threading.Barrier(8)

    def create(number: int) -> bool:
        start.wait()
        return create_exclusive(folder / "taken", f"number {number}".encode())

    with ThreadPoolExecutor(8) as threads:
        created = list(threads.map(create, range(8)))
    assert sum(created) == 1
    assert (folder / "taken").read_text() == f"number {created.index(True)}"
    assert not create_exclusive(folder / "taken", b"number 0")


def test_equal_content_does_not_make_two_creators_one(folder: StoragePath) -> None:
    assert create_exclusive(folder / "taken", b"same")
    assert not create_exclusive(folder / "taken", b"same")


@pytest.mark.parametrize("num_bytes", [0, 1, 20 << 20, (32 << 20) + 7])
def test_a_stream_is_written_front_to_back(folder: StoragePath, num_bytes: int) -> None:
    data = bytes(range(251)) * (num_bytes // 251 + 1)
    view = memoryview(data)[:num_bytes]

    def pieces() -> Iterator[memoryview]:
        return (view[start : start + 3_000_001] for start in range(0, num_bytes, 3_000_001))

    write_stream(folder / "stream", pieces, num_bytes=num_bytes)
    assert (folder / "stream").read_bytes() == view


def test_a_stream_that_fails_leaves_nothing(folder: StoragePath) -> None:
    write_atomic(folder / "before", b"old")

    def pieces() -> Iterator[bytes]:
        for _ in range(4):
            yield bytes(9 << 20)
        raise KeyError("of the caller")

    for name in ("before", "new"):
        with pytest.raises(KeyError, match="of the caller"):
            write_stream(folder / name, pieces, num_bytes=64 << 20)
    assert [path.name for path in folder.iterdir()] == ["before"]
    assert (folder / "before").read_bytes() == b"old"


def test_files_step_aside_and_back(folder: StoragePath) -> None:
    path, aside = folder / "manifest", folder / "aside"
    write_atomic(path, b"data")
    step_aside(path, aside)
    assert not path.exists()
    assert aside.read_bytes() == b"data"
    step_back(aside, path)
    assert not aside.exists()
    assert path.read_bytes() == b"data"
    remove(path)
    with pytest.raises(FileNotFoundError):
        step_aside(path, aside)
    assert not aside.exists()


def test_folders_are_removed_with_all_in_them(folder: StoragePath) -> None:
    for name in ("x/a", "x/y/b", "xx/c"):
        make_folder((folder / name).parent)
        write_atomic(folder / name, b"1")
    remove_folder(folder / "x")
    remove_folder(folder / "x")
    assert [path.name for path in folder.iterdir()] == ["xx"]
    remove(folder / "xx" / "c", folder / "xx" / "never")
    assert not (folder / "xx" / "c").exists()


def test_ranges_end_where_the_file_ends(
    folder: StoragePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rotescale.ranges.WINDOW_BYTES", 10)
    data = bytes(range(45))
    write_atomic(folder / "file", data)
    ranges = open_ranges(folder)
    ranges.expect("file", 0, 45)
    for offset in (0, 3, 9, 10, 38, 44, 45, 46, 99):
        for length in (1, 10, 25, 45):
            target = bytearray(length)
            found = ranges.read_into("file", memoryview(target), offset)
            assert target[:found] == data[offset : offset + length]
    write_atomic(folder / "file", bytes(45))
    target = bytearray(45)
    assert ranges.read_into("file", memoryview(target), 0, again=True) == 45
    if isinstance(folder, RemotePath):
        assert target == bytes(45)
    with pytest.raises(FileNotFoundError):
        ranges.read_into("missing", memoryview(target), 0)
    ranges.close()


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("runs", Path("runs")),
        ("~/runs", Path("~/runs").expanduser()),
        ("file:///some/where%20else", Path("/some/where else")),
        ("s3://bucket", RemotePath("s3://bucket", "")),
        ("s3://bucket/", RemotePath("s3://bucket", "")),
        ("gs://my-bucket/a/b.c/", RemotePath("gs://my-bucket", "a/b.c")),
    ],
)
def test_places(text: str, place: StoragePath) -> None:
    assert storage_path(text) == place


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ftp://host/x", "unknown scheme ftp://; .*s3://, gs://, file://"),
        ("s3://", "write it as s3://bucket/prefix"),
        ("s3:///prefix", "write it as s3://bucket/prefix"),
        ("s3://bucket//x", "write it as s3://bucket/prefix"),
        ("s3://bucket/../x", "write it as s3://bucket/prefix"),
        ("s3://bucket/a b", "letters, digits"),
        ("s3://user:secret@bucket/a", "write it as s3://bucket/prefix"),
        ("file://host/x", "write it as file:///path"),
        ("~nobody-here/runs", "no user of that name has a home here"),
    ],
)
def test_no_places(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        storage_path(text)
