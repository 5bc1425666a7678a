"""Files appear whole or not at all, and a disk's refusals are explained."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest

from rotescale.errors import StorageError
from rotescale.storage import build_folder, create_exclusive, write_atomic, writing


def test_write_atomic_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    write_atomic(target, b"one")
    write_atomic(target, b"two")
    assert target.read_bytes() == b"two"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_create_exclusive_has_one_winner_with_complete_content(tmp_path: Path) -> None:
    target = tmp_path / "1.json"
    won: list[int] = []

    def compete(number: int) -> None:
        if create_exclusive(target, str(number).encode() * 1000):
            won.append(number)

    threads = [threading.Thread(target=compete, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert target.read_bytes() == str(won[0]).encode() * 1000
    assert [path.name for path in tmp_path.iterdir()] == ["1.json"]


@pytest.mark.parametrize(
    ("number", "word"),
    [(errno.ENOSPC, "full"), (errno.EACCES, "permission"), (errno.EROFS, "read-only")],
)
def test_refusals_of_the_disk_name_path_and_remedy(tmp_path: Path, number: int, word: str) -> None:
    with pytest.raises(StorageError, match=word) as caught, writing(tmp_path / "x"):
        raise OSError(number, "refused")
    assert str(tmp_path / "x") in str(caught.value)


def test_other_errors_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomic(tmp_path / "no" / "such" / "folder", b"")


def test_build_folder_is_built_once_and_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise RuntimeError("stopped")

    def work(folder: Path) -> None:
        (folder / "file").write_text("whole")
        (folder / "file").chmod(0o600)

    with pytest.raises(RuntimeError, match="stopped"):
        build_folder(tmp_path / "built", fail)
    assert list(tmp_path.iterdir()) == []
    assert build_folder(tmp_path / "built", work) == tmp_path / "built"
    assert build_folder(tmp_path / "built", fail) == tmp_path / "built"
    assert (tmp_path / "built" / "file").stat().st_mode & 0o777 == 0o644


def test_build_folder_takes_the_copy_of_a_concurrent_builder(tmp_path: Path) -> None:
    def outrun(folder: Path) -> None:
        (folder / "file").write_text("second")
        (tmp_path / "built").mkdir()
        (tmp_path / "built" / "file").write_text("first")

    build_folder(tmp_path / "built", outrun)
    assert (tmp_path / "built" / "file").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["built"]
