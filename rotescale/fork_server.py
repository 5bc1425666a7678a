"""A fork server: a process per node that has done the imports, and forks a worker for each call.

Ray Train answers the loss of one worker by new processes for all, and what takes longest in a new
process are its imports of torch, transformers and DeepSpeed. So they are done once, in a process
that does nothing else, opens no GPU, and outlives the workers. Standard library alone.
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
import stat
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

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
        with _locked(self.folder) as lock:
            connection = _try_to_connect(self.folder / "socket")
            if connection is None:
                self._start(lock)
                connection = _try_to_connect(self.folder / "socket")
        if connection is None:
            raise ForkedProcessError(f"the fork server ends at once; its log is {self.log}")
        return connection

    def _start(self, lock: int) -> None:
        (self.folder / "socket").unlink(missing_ok=True)
        command = [sys.executable, "-m", __name__, str(self.folder), str(self.owner), str(lock)]
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


@contextmanager
def _locked(folder: Path) -> Iterator[int]:
    """Hold the lock of ``folder``, which is made where it is missing; its descriptor."""
    while True:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        private = stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o077
        if not private or found.st_uid != os.getuid():
            raise PermissionError(f"{folder}: no folder of this user alone; remove it")
        file = _open_locked(folder / "lock")
        if file is not None:
            break
    with file:
        yield file.fileno()


def _open_locked(path: Path) -> TextIO | None:
    """The lock's file, locked; None where a server that ends has taken its folder away."""
    try:
        file = path.open("a")
    except FileNotFoundError:
        return None
    fcntl.flock(file, fcntl.LOCK_EX)
    with suppress(FileNotFoundError):
        if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
            return file
    file.close()
    return None


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
        self._killed: set[int] = set()
        self._idle_seconds = _IDLE_SECONDS

    def run(self) -> None:
        """Serve until the owner ends, or there has been nothing to do for long."""
        while True:
            found = self._wait()
            if self._owner in found or not found:
                return
            for child in list(self._children):
                if child.process in found:
                    self._reap(child)
                elif child.connection.fileno() in found:
                    signal.pidfd_send_signal(child.process, signal.SIGKILL)
                    self._killed.add(child.pid)
            if self._listener.fileno() in found:
                self._accept()

    def _wait(self) -> set[int]:
        """The descriptors on which something has happened; none after too long an idleness."""
        poll = select.poll()
        poll.register(self._owner, select.POLLIN)
        poll.register(self._listener, select.POLLIN)
        for child in self._children:
            poll.register(child.process, select.POLLIN)
            if child.pid not in self._killed:
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
        self._killed.discard(child.pid)
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
        for descriptor, standard in zip(descriptors[:2], (1, 2), strict=True):
            os.dup2(descriptor, standard)
            os.close(descriptor)


def _run(connection: socket.socket, descriptor: int) -> int:
    """Do in the forked process what was asked for; its exit code."""
    request = json.loads(os.pread(descriptor, os.fstat(descriptor).st_size, 0))
    os.close(descriptor)
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


def main(folder: Path, owner: int, lock: int, preload: Sequence[str]) -> None:
    """Be the server of ``folder`` in a process of its own; returns as soon as it can be called."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(folder / "socket"))
    listener.listen(128)
    if os.fork():
        return
    os.close(lock)
    server = _Server(listener, owner)
    try:
        for module in preload:
            importlib.import_module(module)
        # What is there now is never garbage, and looking for it would copy its pages.
        gc.collect()
        gc.freeze()
        server.run()
    except Exception:  # noqa: BLE001 (its end is told by the log)
        # Before callers are told to look here.
        traceback.print_exc()
        sys.stderr.flush()
        _leave(folder, listener, keep_log=True)
        raise SystemExit(1) from None
    finally:
        server.end()
    _leave(folder, listener, keep_log=False)


def _leave(folder: Path, listener: socket.socket, *, keep_log: bool) -> None:
    """Be found no more: who finds no socket starts a server, and who is in the queue asks again."""
    with _locked(folder):
        (folder / "socket").unlink(missing_ok=True)
        listener.close()
        if not keep_log:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
