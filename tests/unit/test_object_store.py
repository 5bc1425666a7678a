"""An object store that fails for a while is waited for; what it refuses for good is told apart."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from object_stores import BUCKET, Proxy, open_uploads, use

from rotescale import object_client
from rotescale.errors import SpecError, StorageError, StorageUnavailableError
from rotescale.launch_spec import LaunchSpec
from rotescale.local_copy import is_uploaded, local_copy, upload_folder
from rotescale.object_client import patiently
from rotescale.object_store import RemotePath, part_bytes
from rotescale.run_dir import RunDir
from rotescale.spec_file import parse_spec


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_client, "_FIRST_BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr(object_client, "_MAX_BACKOFF_SECONDS", 0.05)


def test_errors_and_dropped_connections_are_tried_again(
    remote: RemotePath, proxy: Proxy, quick_retries: None
) -> None:
    proxy.every = 3
    data = random.Random(0).randbytes(40 << 20)
    for number in range(12):
        assert (remote / f"created-{number}").create(b"%d" % number)
        assert not (remote / f"created-{number}").create(b"%d" % number)
        (remote / f"put-{number}").write(b"%d" % number)
        assert (remote / f"put-{number}").read_bytes() == b"%d" % number
        assert (remote / f"put-{number}").num_bytes() == len(str(number))

    def pieces() -> Iterator[memoryview]:
        view = memoryview(data)
        return (view[start : start + (5 << 20)] for start in range(0, 40 << 20, 5 << 20))

    (remote / "stream").write_stream(pieces, num_bytes=40 << 20)
    found = (remote / "stream").read_ranges(range(0, 40 << 20, 4 << 20), 4 << 20)
    assert b"".join(found) == data
    assert (remote / "stream").read_bytes() == data
    assert len(remote.below()) == len(list(remote.iterdir())) == 25
    RemotePath.remove_all(remote.below())
    assert remote.below() == []
    # All three happened, also to requests that the server had carried out.
    assert min(proxy.counts[fault] for fault in ("refused", "cut", "lost")) >= 10


@pytest.mark.parametrize("fault", ["refused", "cut", "lost"])
def test_every_kind_of_request_survives_every_fault(
    remote: RemotePath, proxy: Proxy, quick_retries: None, fault: str
) -> None:
    """``lost``: the store did what it was asked for, and the answer never came."""
    place, other = remote / "folder" / "one", remote / "folder" / "two"
    data = random.Random(0).randbytes(20 << 20)
    steps: dict[str, tuple[Callable[[], object], object]] = {
        "create": (lambda: place.create(b"data"), True),
        "create again": (lambda: place.create(b"data"), False),
        "put": (lambda: other.write(b"0123"), None),
        "get": (other.read_bytes, b"0123"),
        "get a range": (lambda: bytes(other.read_range(1, 2)), b"12"),
        "get past the end": (lambda: bytes(other.read_range(9, 2)), b""),
        "head": (place.num_bytes, 4),
        "list a folder": (lambda: sorted(remote.iterdir()), [remote / "folder"]),
        "list all": (remote.below, [place, other]),
        "delete one": (lambda: place.unlink(missing_ok=True), None),
        "delete many": (lambda: RemotePath.remove_all([place, other]), None),
    }
    for what, (ask, answer) in steps.items():
        proxy.next = [fault]
        assert ask() == answer, what
        assert proxy.next == [], what
    assert remote.below() == []
    # An upload begins, sends two parts and is completed: each request of it in turn.
    for number in range(4):
        proxy.next = []
        requests = proxy.counts["requests"]
        proxy.fault_at = (requests + 1 + number, fault)
        (remote / "stream").write_stream(lambda: [data], num_bytes=len(data))
        assert (remote / "stream").read_bytes() == data
        assert proxy.fault_at is None


def test_creations_that_cross_are_tried_again(
    remote: RemotePath, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = proxy.server.RequestHandlerClass.do_PUT  # type: ignore[attr-defined]

    def conflict(handler: Any) -> None:
        if proxy.count("refused") > 2:
            put(handler)
            return
        handler.rfile.read(int(handler.headers["Content-Length"]))
        body = b"<Error><Code>ConditionalRequestConflict</Code><Message>no</Message></Error>"
        handler._answer(409, {}, body)

    monkeypatch.setattr(proxy.server.RequestHandlerClass, "do_PUT", conflict)
    assert (remote / "taken").create(b"1")
    assert not (remote / "taken").create(b"1")
    assert proxy.counts["refused"] == 4


def test_a_store_that_stays_away_is_unavailable(
    remote: RemotePath, proxy: Proxy, quick_retries: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_client, "MAX_RETRIES", 2)
    object_client.connect.cache_clear()
    proxy.errors = 10**6
    for ask in (
        lambda: (remote / "a").write(b"1"),
        lambda: (remote / "a").create(b"1"),
        lambda: (remote / "a").read_bytes(),
        lambda: (remote / "a").exists(),
        lambda: list(remote.iterdir()),
        lambda: remote.below(),
        lambda: (remote / "a").read_ranges([0, 5], 5),
        lambda: (remote / "a").write_stream(lambda: [bytes(1 << 20)], num_bytes=1 << 20),
    ):
        before = proxy.counts["refused"]
        with pytest.raises(StorageUnavailableError, match=f"{remote}.*503.*run the same command"):
            ask()
        assert proxy.counts["refused"] >= before + 3
    use(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(StorageUnavailableError, match="cannot be reached"):
        (remote / "a").read_bytes()


def test_an_upload_that_fails_is_aborted(remote: RemotePath, proxy: Proxy, s3_server: str) -> None:
    during: list[int] = []
    before = open_uploads(s3_server)

    def pieces() -> Iterator[bytes]:
        for _ in range(12):
            yield bytes(10 << 20)
        during.append(open_uploads(s3_server) - before)
        raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        (remote / "file").write_stream(pieces, num_bytes=200 << 20)
    assert during == [1]
    assert open_uploads(s3_server) == before
    parts = [path for method, path in proxy.methods if method == "PUT" and "partNumber" in path]
    assert len(parts) >= 1
    assert not (remote / "file").exists()


def test_parts_grow_with_the_file() -> None:
    assert part_bytes(1) == 16 << 20
    size = 3 << 40
    assert size / part_bytes(size) < 10_000


def test_a_bucket_that_is_not_there_is_the_users_error(remote: RemotePath) -> None:
    place = RemotePath("s3://no-such-bucket", "run")
    for ask in (
        lambda: (place / "a").write(b"1"),
        lambda: (place / "a").create(b"1"),
        lambda: (place / "a").read_bytes(),
        lambda: list(place.iterdir()),
        place.check,
    ):
        with pytest.raises(StorageError, match="no bucket s3://no-such-bucket; create it") as found:
            ask()
        assert not isinstance(found.value, StorageUnavailableError)


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (403, "AccessDenied", "access denied.*AWS_ACCESS_KEY_ID"),
        (401, "Unauthorized", "access denied.*AWS_ACCESS_KEY_ID"),
        (301, "PermanentRedirect", "redirect.*correct AWS_REGION"),
        (400, "ExpiredToken", "refuses the request.*AWS_ACCESS_KEY_ID"),
    ],
)
def test_what_is_refused_is_the_users_error(
    remote: RemotePath,
    proxy: Proxy,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    code: str,
    message: str,
) -> None:
    def refuse(handler: object) -> None:
        body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
        handler._answer(status, {}, body)  # type: ignore[attr-defined]

    for method in ("do_GET", "do_PUT"):
        monkeypatch.setattr(proxy.server.RequestHandlerClass, method, refuse)
    for ask in ((remote / "a").read_bytes, lambda: (remote / "a").write(b"1")):
        with pytest.raises(StorageError, match=message) as found:
            ask()
        assert str(remote) in str(found.value)
        assert not isinstance(found.value, StorageUnavailableError)


def test_a_store_that_ignores_conditions_is_refused(remote: RemotePath, proxy: Proxy) -> None:
    remote.check()
    assert remote.below() == []
    proxy.dropped_headers = ("if-none-match",)
    with pytest.raises(StorageError, match="If-None-Match"):
        remote.check()


def test_a_folder_is_copied_to_a_node_once(
    remote: RemotePath, proxy: Proxy, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "a.bin").write_bytes(random.Random(1).randbytes(20 << 20))
    (source / "sub" / "empty").touch()
    assert not is_uploaded(remote / "f")
    with pytest.raises(FileNotFoundError):
        local_copy(remote / "f")
    upload_folder(source, remote / "f")
    assert is_uploaded(remote / "f")
    copy = local_copy(remote / "f")
    assert copy.is_relative_to(tmp_path / "node")
    assert (copy / "a.bin").read_bytes() == (source / "a.bin").read_bytes()
    assert (copy / "sub" / "empty").read_bytes() == b""
    asked = len(proxy.methods)
    assert local_copy(remote / "f") == copy
    assert len(proxy.methods) == asked + 1
    assert local_copy(source) == source
    (remote / "f" / "a.bin").write(b"other")
    (remote / "f" / "folder.json").write((remote / "f" / "folder.json").read_bytes() + b" ")
    with pytest.raises(StorageUnavailableError, match=r"a\.bin: not the file"):
        local_copy(remote / "f")


def test_a_launch_spec_names_a_place() -> None:
    with pytest.raises(SpecError, match=r"storage: unknown scheme ftp://.*\(got 'ftp://a/b'\)"):
        parse_spec(LaunchSpec, {"storage": "ftp://a/b"}, where="launch.yaml")
    with pytest.raises(SpecError, match=r"storage: no URL.*write it as.*\(got 's3://x y'\)"):
        parse_spec(LaunchSpec, {"storage": "s3://x y"}, where="launch.yaml")
    launch = LaunchSpec(storage=f"s3://{BUCKET}/runs")
    assert str(RunDir.of(launch.storage, "tiny").root) == f"s3://{BUCKET}/runs/tiny"
    assert RunDir.at(f"s3://{BUCKET}/runs/tiny") == RunDir.of(launch.storage, "tiny")
    with pytest.raises(SpecError, match="unknown scheme"):
        RunDir.at("http://host/run")


@pytest.mark.parametrize(
    ("tried", "used_up"),
    [
        ("in 259.5ms, after 2 retries, max_retries: 12, retry_timeout: 120s", False),
        ("in 61.2s, after 12 retries, max_retries: 12, retry_timeout: 120s", True),
        ("in 121.3s, after 9 retries, max_retries: 12, retry_timeout: 120s", True),
        ("in 830.1µs", False),
    ],
)
def test_an_answer_that_breaks_off_after_few_tries_is_asked_for_again(
    tried: str, used_up: bool
) -> None:
    """obstore ends its own tries where a body breaks off, and says how many there were."""
    error = OSError(f"Generic S3 error: Error performing GET http://store/key {tried} - HTTP error")
    asked: list[int] = []

    def ask() -> str:
        asked.append(1)
        if len(asked) == 1:
            raise error
        return "answer"

    if used_up:
        with pytest.raises(StorageUnavailableError, match="again when it is back"):
            patiently("s3://bucket/key", ask)
    else:
        assert patiently("s3://bucket/key", ask) == "answer"
