"""A fork server: a process per node that has done the imports, and forks a worker for each call.

Ray Train answers the loss of one worker by new processes for all, and what takes longest in a new
process are its imports of torch, transformers and DeepSpeed. So they are done once, in a process
that starts no thread, touches no GPU, and outlives the workers. Standard library alone.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import importlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_IDLE_SECONDS = 300.0
"""A server that has had no child for so long ends. A replaced set of workers comes sooner."""
_FINISHED_SECONDS = 10.0
"""The same after a child that ended well, as the workers of a run that is over do."""
_TRIES = 3
_REQUEST_SECONDS = 10.0
_NOTICE_SECONDS = 1.0
_MAX_MESSAGE = 1 << 16
_MAX_TEXT = 4000
_HANG_UP = select.POLLRDHUP | select.POLLHUP | select.POLLERR
_SET_PARENT_DEATH_SIGNAL = 1


class ForkedProcessError(Exception):
    """A forked process that has failed: by an error of its own, a signal, or with its server."""


class Channel:
    """What a forked process hears of its caller, who may send word while it runs."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._latest: Any = None

    def latest(self) -> Any:
        """The last word of the caller, as it came out of JSON; None before the first."""
        with suppress(BlockingIOError):
            while word := self._connection.recv(_MAX_MESSAGE, socket.MSG_DONTWAIT):
                self._latest = json.loads(word)
        return self._latest


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
        name = f"rotescale-{os.getuid()}-{self.key}"
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
    ) -> None:
        """Call ``target``, as MODULE:FUNCTION, in a forked process, and wait for its end.

        The function is given ``arguments`` and a Channel, on which it hears what ``notice``
        returns whenever that changes; both go as JSON. It has this process's environment,
        directory, search path, standard output and standard error. Where this process ends, so
        does it.

        Raises ForkedProcessError where it raises, is killed, or exits with a code but 0.
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
                # A server that was about to end, idle, answers nothing; the next one will.
                if _receive(connection):
                    ended = _wait_for_end(connection, notice)
                    break
        if "code" not in ended:
            raise ForkedProcessError(f"the fork server has died; its log is {self.log}")
        if ended["code"]:
            raise ForkedProcessError(ended.get("error") or _meaning(ended["code"]))

    def _connect(self) -> socket.socket:
        self.folder.mkdir(mode=0o700, exist_ok=True)
        if self.folder.stat().st_uid != os.getuid():
            raise PermissionError(f"{self.folder}: belongs to another user; remove it")
        with _locked(self.folder / "lock"):
            connection = _try_to_connect(self.folder / "socket")
            if connection is not None:
                return connection
            self._start()
            connection = _try_to_connect(self.folder / "socket")
        if connection is None:
            raise ForkedProcessError(f"the fork server ends at once; its log is {self.log}")
        return connection

    def _start(self) -> None:
        (self.folder / "socket").unlink(missing_ok=True)
        command = [sys.executable, "-m", __name__, str(self.folder), str(self.owner)]
        with self.log.open("ab") as log:
            # It leaves this process, which may be ended together with its children.
            subprocess.run(
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
                check=True,
            )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


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
    try:
        message = connection.recv(_MAX_MESSAGE)
    except ConnectionResetError:
        return {}
    return dict(json.loads(message)) if message else {}


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


@dataclass(frozen=True)
class _Child:
    pid: int
    process: int
    """A descriptor that tells of the process's end."""
    connection: socket.socket


class _Server:
    """One thread that forks, waits for its children, and kills those whose callers are gone."""

    def __init__(self, listener: socket.socket, owner: int) -> None:
        self._listener = listener
        self._owner = os.pidfd_open(owner)
        self._children: list[_Child] = []
        self._idle_seconds = _IDLE_SECONDS

    def run(self) -> bool:
        """Serve until the owner ends, which is told by True, or there is nothing to do."""
        while True:
            found = self._wait()
            if self._owner in found or not found:
                return bool(found)
            for child in list(self._children):
                if child.process in found:
                    self._reap(child)
                elif child.connection.fileno() in found:
                    signal.pidfd_send_signal(child.process, signal.SIGKILL)
            if self._listener.fileno() in found:
                self._accept()

    def _wait(self) -> set[int]:
        """The descriptors on which something has happened; none after too long an idleness."""
        poll = select.poll()
        poll.register(self._owner, select.POLLIN)
        poll.register(self._listener, select.POLLIN)
        for child in self._children:
            poll.register(child.process, select.POLLIN)
            poll.register(child.connection, _HANG_UP)
        limit = None if self._children else self._idle_seconds * 1000
        return {descriptor for descriptor, _ in poll.poll(limit)}

    def end(self) -> None:
        """Kill what is left."""
        for child in list(self._children):
            signal.pidfd_send_signal(child.process, signal.SIGKILL)
            self._reap(child)

    def _reap(self, child: _Child) -> None:
        code = os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1])
        self._children.remove(child)
        with suppress(OSError):
            child.connection.send(json.dumps({"code": code}).encode())
        child.connection.close()
        os.close(child.process)
        self._idle_seconds = _IDLE_SECONDS if code else _FINISHED_SECONDS

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.settimeout(_REQUEST_SECONDS)
        try:
            _, descriptors, _, _ = socket.recv_fds(connection, 16, 3)
        except OSError:
            descriptors = []
        connection.settimeout(None)
        if len(descriptors) == 3:
            self._fork(connection, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        if not any(child.connection is connection for child in self._children):
            connection.close()

    def _fork(self, connection: socket.socket, descriptors: list[int]) -> None:
        server = os.getpid()
        pid = os.fork()
        if pid:
            self._children.append(_Child(pid, os.pidfd_open(pid), connection))
            with suppress(OSError):
                connection.send(json.dumps({"pid": pid}).encode())
            return
        code = 1
        try:
            self._become_child(server, descriptors)
            code = _run(connection, descriptors[2])
        finally:
            with suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            # What the server had planned for its own end is not the child's to do.
            os._exit(code)

    def _become_child(self, server: int, descriptors: list[int]) -> None:
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != server:
            os._exit(1)
        for child in self._children:
            child.connection.close()
            os.close(child.process)
        self._listener.close()
        os.close(self._owner)
        os.dup2(descriptors[0], 1)
        os.dup2(descriptors[1], 2)


def _run(connection: socket.socket, descriptor: int) -> int:
    """Do in the forked process what was asked for; its exit code."""
    request = json.loads(os.pread(descriptor, os.fstat(descriptor).st_size, 0))
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.path[:] = request["path"]
    try:
        os.chdir(request["directory"])
        module, _, name = request["target"].partition(":")
        getattr(importlib.import_module(module), name)(request["arguments"], Channel(connection))
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except Exception as error:  # noqa: BLE001 (told to the caller)
        traceback.print_exc()
        text = f"{type(error).__name__}: {error}"[:_MAX_TEXT]
        with suppress(OSError):
            connection.send(json.dumps({"error": text}).encode())
        return 1
    return 0


def main(folder: Path, owner: int, preload: Sequence[str]) -> None:
    """Be the server of ``folder`` in a process of its own; returns as soon as it can be called."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(folder / "socket"))
    listener.listen(128)
    if os.fork():
        return
    server = _Server(listener, owner)
    alone = False
    try:
        for module in preload:
            importlib.import_module(module)
        # What is there now is never garbage, and looking for it would copy its pages.
        gc.collect()
        gc.freeze()
        alone = server.run()
    finally:
        server.end()
        # Who finds no socket starts a server of his own; who is in the queue asks once more.
        (folder / "socket").unlink(missing_ok=True)
        listener.close()
        if alone:
            # Nobody comes any more: callers are the owner's children.
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
