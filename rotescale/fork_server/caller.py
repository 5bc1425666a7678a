"""The caller's side: finds or starts its node's server, and waits for what it has forked."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rotescale.fork_server.lock import locked

_SERVER = "rotescale.fork_server.server"
_TRIES = 3
_NOTICE_SECONDS = 1.0
_MAX_MESSAGE = 1 << 16


class ForkedProcessError(Exception):
    """A forked process that has failed: by an error of its own, a signal, or with its server."""


@dataclass(frozen=True)
class ForkServer:
    """A caller's side of the server that has ``key`` on this node; it is started when needed."""

    key: str
    """Callers of the same key share a server: letters, digits, dots and dashes."""
    preload: Sequence[str]
    """Modules that the server imports, once."""
    owner: int
    """The process with whose end the server ends, and all that it has forked."""

    @property
    def folder(self) -> Path:
        """Where the server's socket, lock and log lie; no other user can enter."""
        # A socket's path has a hundred characters at most, and TMPDIR may be longer than that.
        parent = Path(tempfile.gettempdir())
        # Containers may share the folder, and each has its own process 1.
        processes = Path("/proc/self/ns/pid").stat().st_ino
        name = f"rotescale-{os.getuid()}-{processes}-{self.key}"
        return (parent if len(str(parent)) < 40 else Path("/tmp")) / name

    @property
    def log(self) -> Path:
        """What the server itself prints; a forked process prints where its caller does."""
        return self.folder / "log"

    def call(
        self,
        target: str,
        arguments: Mapping[str, Any],
        *,
        notice: Callable[[], Any] = lambda: None,
        start_seconds: float = 1200.0,
    ) -> None:
        """Call ``target``, as MODULE:FUNCTION, in a forked process, and wait for its end.

        The function is given ``arguments`` and a Channel, on which it hears what ``notice``
        returns whenever that changes; both go as JSON. It has this process's environment,
        directory, search path, standard output and standard error. Where this process ends, so
        does it.

        Raises ForkedProcessError where it raises, is killed, or exits with a code but 0; and where
        the server, with all its imports, has not forked it in ``start_seconds``.
        """
        request = {
            "target": target,
            "arguments": dict(arguments),
            "environment": dict(os.environ),
            "path": sys.path,
            "directory": str(Path.cwd()),
        }
        ended: dict[str, Any] = {}
        for _ in range(_TRIES):
            with self._connect() as connection:
                _send_request(connection, request)
                connection.settimeout(start_seconds)
                # A server that was about to end, idle, answers nothing; the next one will.
                if first := self._first_answer(connection):
                    connection.settimeout(None)
                    ended = first | _wait_for_end(connection, notice)
                    break
        if "code" not in ended:
            raise ForkedProcessError(f"the fork server has died; its log is {self.log}")
        if ended["code"]:
            raise ForkedProcessError(ended.get("error") or _meaning(ended["code"]))

    def _first_answer(self, connection: socket.socket) -> dict[str, Any]:
        try:
            return _receive(connection)
        except TimeoutError:
            limit = connection.gettimeout()
            raise ForkedProcessError(
                f"the fork server has not answered in {limit:g} s; its log is {self.log}"
            ) from None

    def _connect(self) -> socket.socket:
        with locked(self.folder) as lock:
            connection = _try_to_connect(self.folder / "socket")
            if connection is None:
                self._start(lock)
                connection = _try_to_connect(self.folder / "socket")
        if connection is None:
            raise ForkedProcessError(f"the fork server ends at once; its log is {self.log}")
        return connection

    def _start(self, lock: int) -> None:
        (self.folder / "socket").unlink(missing_ok=True)
        command = [sys.executable, "-m", _SERVER, str(self.folder), str(self.owner), str(lock)]
        with self.log.open("ab") as log:
            # It leaves this process, which may be ended together with its children.
            done = subprocess.run(
                [*command, *self.preload],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                    # What torch otherwise asks of the driver does not survive a fork.
                    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
                },
                start_new_session=True,
                # Should this process be killed meanwhile, the lock is held until there is a server.
                pass_fds=[lock],
                check=False,
            )
        if done.returncode:
            raise ForkedProcessError(f"the fork server does not start; its log is {self.log}")


def _try_to_connect(path: Path) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    return connection


def _send_request(connection: socket.socket, request: Mapping[str, Any]) -> None:
    """Send standard output and error, and a file with the request, which may be long."""
    descriptor = os.memfd_create("request")
    with os.fdopen(descriptor, "wb") as file:
        file.write(json.dumps(request).encode())
        file.flush()
        with suppress(BrokenPipeError, ConnectionResetError):
            socket.send_fds(connection, [b"call"], [1, 2, descriptor])


def _receive(connection: socket.socket) -> dict[str, Any]:
    """The next message of the server or of what it has forked; empty where there is none."""
    # Where the other end has closed without reading all that it was sent, that is told first, once.
    for _ in range(2):
        with suppress(ConnectionResetError):
            message = connection.recv(_MAX_MESSAGE)
            return dict(json.loads(message)) if message else {}
    return {}


def _wait_for_end(connection: socket.socket, notice: Callable[[], Any]) -> dict[str, Any]:
    """What was said on the way to the end; without a ``code`` where the server died."""
    said: dict[str, Any] = {}
    told: Any = None
    while True:
        if select.select([connection], [], [], _NOTICE_SECONDS)[0]:
            message = _receive(connection)
            said |= message
            if not message or "code" in said:
                return said
        word = notice()
        if word != told:
            told = word
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.send(json.dumps(word).encode())


def _meaning(code: int) -> str:
    if code < 0:
        return f"the process was killed by signal {-code} ({signal.Signals(-code).name})"
    return f"the process ended with exit code {code}"
