"""The server's side: one thread that imports, forks, and waits for what it has forked."""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import select
import shutil
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rotescale.fork_server.lock import locked

_IDLE_SECONDS = 300.0
"""A server that has had no child for so long ends. A replaced set of workers comes sooner."""
_FINISHED_SECONDS = 10.0
"""The same after a child that ended well, as the workers of a run that is over do."""
_REQUEST_SECONDS = 10.0
_MAX_MESSAGE = 1 << 16
_MAX_TEXT = 4000
_HANG_UP = select.POLLRDHUP | select.POLLHUP | select.POLLERR
_SET_PARENT_DEATH_SIGNAL = 1


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


def serve(folder: Path, owner: int, lock: int, preload: Sequence[str]) -> None:
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
    with locked(folder):
        (folder / "socket").unlink(missing_ok=True)
        listener.close()
        if not keep_log:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
