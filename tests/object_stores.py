"""An S3 server on loopback, and a proxy in front of it that fails, or lists late, when told to."""

from __future__ import annotations

import http.client
import logging
import re
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from rotescale import object_client

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_REGION": "us-east-1",
}
BUCKET = "runs-of-tests"


class Proxy:
    """Passes requests on to the server; what it does to them is told by its fields."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.errors = 0
        """How many requests to answer with 503 from now on."""
        self.next: list[str] = []
        """What happens to the next requests: ``refused``, ``cut`` or ``lost``."""
        self.fault_at: tuple[int, str] | None = None
        """The number of a request, counted from the first, and what happens to it."""
        self.every = 0
        """Answer every n-th request with 500, and drop the connection in every n-th body."""
        self.hidden: re.Pattern[str] | None = None
        """Keys that listings leave out."""
        self.dropped_headers: tuple[str, ...] = ()
        """Names of headers, in lower case, that the server does not get to see."""
        self.counts = {"requests": 0, "refused": 0, "cut": 0, "lost": 0, "hidden": 0}
        """``lost``: the server did what it was asked for, and the answer was dropped."""
        self.methods: list[tuple[str, str]] = []
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"proxy": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def count(self, what: str) -> int:
        with self.lock:
            self.counts[what] += 1
            return self.counts[what]

    def fault(self) -> str | None:
        """What happens to the request that has just come."""
        number = self.count("requests")
        with self.lock:
            if self.fault_at is not None and self.fault_at[0] == number:
                self.next, self.fault_at = [self.fault_at[1]], None
            if self.next:
                found = self.next.pop(0)
                self.counts[found] += 1
                return found
            if self.errors:
                self.errors -= 1
                self.counts["refused"] += 1
                return "refused"
        if self.every and number % self.every == 0:
            # In turn: refused, cut in the answer's body, done with the answer lost.
            found = ("refused", "cut", "lost")[number // self.every % 3]
            self.count(found)
            return found
        return None


class _Handler(BaseHTTPRequestHandler):
    proxy: ClassVar[Proxy]
    protocol_version = "HTTP/1.1"

    def _pass_on(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        fault = self.proxy.fault()
        if fault == "refused":
            self._answer(500 if self.proxy.every else 503, {}, b"try again")
            return
        host = self.proxy.target.removeprefix("http://")
        connection = http.client.HTTPConnection(host, timeout=60)
        dropped = self.proxy.dropped_headers
        headers = {name: v for name, v in self.headers.items() if name.lower() not in dropped}
        connection.request(self.command, self.path, body=body, headers=headers)
        response = connection.getresponse()
        data = response.read()
        connection.close()
        self.proxy.methods.append((self.command, self.path))
        if fault == "lost":
            self.close_connection = True
            return
        if self.proxy.hidden is not None and "list-type=2" in self.path:
            data = self._without_hidden(data)
        headers = {
            name: value
            for name, value in response.getheaders()
            if name.lower() not in ("connection", "transfer-encoding", "server", "date")
        }
        if self.command != "HEAD":
            headers["Content-Length"] = str(len(data))
        self._answer(response.status, headers, data, cut=fault == "cut")

    def _without_hidden(self, data: bytes) -> bytes:
        def shown(match: re.Match[str]) -> str:
            key = re.search(r"<(?:Key|Prefix)>(.*?)</", match[0])
            if key is not None and self.proxy.hidden and self.proxy.hidden.search(key[1]):
                self.proxy.count("hidden")
                return ""
            return match[0]

        entries = r"<(Contents|CommonPrefixes)>.*?</\1>"
        return re.sub(entries, shown, data.decode(), flags=re.DOTALL).encode()

    def _answer(
        self, status: int, headers: dict[str, str], data: bytes, *, cut: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            # A client that has given up has gone.
            with suppress(ConnectionError):
                self.wfile.write(data[: len(data) // 2] if cut else data)
        self.close_connection = self.close_connection or cut

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Nothing: tests look at the counts."""


@contextmanager
def s3_server() -> Iterator[str]:
    """The URL of moto's S3 server with an empty bucket."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    request = urllib.request.Request(f"{url}/{BUCKET}", method="PUT")
    urllib.request.urlopen(request, timeout=30).close()
    yield url
    server.stop()


def open_uploads(url: str) -> int:
    """How many multipart uploads the server holds that were neither completed nor aborted."""
    with urllib.request.urlopen(f"{url}/{BUCKET}?uploads", timeout=30) as answer:
        return int(answer.read().count(b"<UploadId>"))


def use(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Let this process find its store at ``url``."""
    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": url}.items():
        monkeypatch.setenv(name, value)
    object_client.connect.cache_clear()
