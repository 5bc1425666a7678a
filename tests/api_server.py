"""A Kubernetes API server on loopback, for tests: the official client and `kubectl` talk to it.

It holds what tests need of the real one: see ``api_kinds`` for the kinds, ``api_schemas`` for what
is refused, ``api_store`` for versions, ``api_faults`` for what can be made to fail.
No controllers run but the garbage collector: who deletes a pod, or starts a job, is the test, or
``kuberay_player``.
"""

from __future__ import annotations

import base64
import re
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml
from api_deletion import Deletion, Deletions
from api_faults import FOR_EVER, Fault, Faults, Request
from api_handler import Handler
from api_kinds import BY_PLURAL, KINDS, NAMESPACES, Kind, definition_of, kind_of
from api_store import Store, Write
from certificates import Certificates

__all__ = ["FOR_EVER", "ApiServer", "Fault", "api_server"]
Object = dict[str, Any]
LogFile = Callable[[str, str, str], Path | None]
_COLLECT_SECONDS = 0.05


class ApiServer:
    """The server. Its methods act on what it holds, without a request and whatever its faults."""

    def __init__(self, *, tls: bool = False, token: str | None = None, kueue: bool = True) -> None:
        self.store = Store()
        self.deletions = Deletions(self.store)
        self.faults = Faults()
        self.requests: list[Request] = []
        """Every request, in the order in which they came."""
        self.token = token
        """What clients must bear; None: anyone is served."""
        self.operator_token = secrets.token_hex(16)
        """Whoever bears it may do everything, and meets no faults but those that say so."""
        self.denied: set[str] = set()
        """What clients may not do: ``create rayjobs``, ``get pods/log``, ``* secrets``."""
        self.log_file: LogFile = self._set_log_file
        """Where a container's log lies, by namespace, pod and container."""
        self.running = threading.Event()
        self.port = 0
        self._logs: dict[tuple[str, str, str], Path] = {}
        self._certificates = Certificates() if tls else None
        self._listener: _Listener | None = None
        for name in ("default", "kube-system"):
            self.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        for kind in KINDS:
            if kind.custom and (kueue or kind.group != "kueue.x-k8s.io"):
                self.create(definition_of(kind))

    @property
    def url(self) -> str:
        scheme = "http" if self._certificates is None else "https"
        return f"{scheme}://127.0.0.1:{self.port}"

    @property
    def authority(self) -> bytes | None:
        """The certificate that vouches for the server, where it speaks TLS."""
        return None if self._certificates is None else self._certificates.authority

    def start(self) -> None:
        """Listen, on the same port as the last time."""
        context = None if self._certificates is None else self._certificates.context()
        self._listener = _Listener(self, context)
        self.port = self._listener.server_address[1]
        self.running.set()
        for target in (self._listener.serve, self._collect):
            threading.Thread(target=target, daemon=True).start()

    def stop(self) -> None:
        """Listen no more, and cut every connection."""
        self.running.clear()
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    @contextmanager
    def down(self) -> Iterator[None]:
        """Nobody answers at the server's port."""
        self.stop()
        yield
        self.start()

    def _collect(self) -> None:
        while self.running.is_set():
            if self.store.to_collect.wait(0.5):
                self.store.to_collect.clear()
                self.deletions.collect()
                time.sleep(_COLLECT_SECONDS)

    def kinds(self) -> list[Kind]:
        """The kinds that are served now: custom ones need their definition."""
        defined = {name for plural, _, name in self.store.objects if plural.startswith("custom")}
        return [one for one in KINDS if not one.custom or one.full_name in defined]

    def create(self, document: Object, *, status: Object | None = None) -> Object:
        """The object as it was created; with its namespace where that is missing."""
        kind = kind_of(document)
        assert kind is not None, (
            f"no such kind: {document.get('apiVersion')} {document.get('kind')}"
        )
        namespace = ""
        if kind.namespaced:
            namespace = document.get("metadata", {}).get("namespace", "default")
            self.namespace(namespace)
        made, _ = self.store.create(kind, namespace, document, Write(strictly=True))
        if status is None:
            return made
        return self.set_status(kind.plural, made["metadata"]["name"], status, namespace=namespace)

    def namespace(self, name: str) -> None:
        """Make a namespace unless it is there."""
        if (NAMESPACES.plural, "", name) not in self.store.objects:
            self.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})

    def get(self, plural: str, name: str, *, namespace: str = "default") -> Object:
        """Raises ApiError where it is not there."""
        kind = BY_PLURAL[plural]
        return self.store.get(kind, namespace if kind.namespaced else "", name)

    def set_status(
        self, plural: str, name: str, status: Object, *, namespace: str = "default"
    ) -> Object:
        """The object with that status in place of its own."""
        kind = BY_PLURAL[plural]
        where = namespace if kind.namespaced else ""
        write = Write(subresource="status")
        return self.store.patch(kind, where, name, lambda one: {**one, "status": status}, write)[0]

    def change(
        self,
        plural: str,
        name: str,
        change: Callable[[Object], object],
        *,
        namespace: str = "default",
    ) -> Object:
        """The object after ``change``, which is given a copy to alter."""
        kind = BY_PLURAL[plural]

        def changed(one: Object) -> Object:
            change(one)
            return one

        where = namespace if kind.namespaced else ""
        return self.store.patch(kind, where, name, changed, Write())[0]

    def delete(self, plural: str, name: str, *, namespace: str = "default") -> None:
        """Delete at once; finalizers are waited for, grace is not."""
        kind = BY_PLURAL[plural]
        where = namespace if kind.namespaced else ""
        self.deletions.delete(kind, where, name, Deletion(grace_seconds=0))

    def compact(self) -> None:
        """Forget the past: watches from older versions are answered with 410."""
        self.store.compact()

    def set_log(self, pod: str, path: Path, *, container: str = "", namespace: str = "") -> None:
        """Let a file be the log of a pod; of all containers and namespaces unless given."""
        self._logs[namespace, pod, container] = path

    def _set_log_file(self, namespace: str, pod: str, container: str) -> Path | None:
        names = [(where, pod, inner) for where in (namespace, "") for inner in (container, "")]
        return next((self._logs[name] for name in names if name in self._logs), None)

    def asked(self, method: str = "", path: str = "") -> list[Request]:
        """The clients' requests so far with that method, whose path a pattern is found in."""
        return [
            one
            for one in list(self.requests)
            if one.user == "client" and method in ("", one.method) and re.search(path, one.path)
        ]

    def may(self, verb: str, resource: str) -> bool:
        """Whether clients may do that."""
        return not self.denied & {f"{verb} {resource}", f"* {resource}", f"{verb} *", "* *"}

    def kubeconfig(self, path: Path, *, context: str = "test", namespace: str = "default") -> Path:
        """Write a configuration for clients, with one context, which is the current one."""
        cluster: Object = {"server": self.url}
        if self.authority is not None:
            cluster["certificate-authority-data"] = base64.b64encode(self.authority).decode()
        user = {} if self.token is None else {"token": self.token}
        path.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": context,
                    "contexts": [
                        {
                            "name": context,
                            "context": {
                                "cluster": context,
                                "user": context,
                                "namespace": namespace,
                            },
                        }
                    ],
                    "clusters": [{"name": context, "cluster": cluster}],
                    "users": [{"name": context, "user": user}],
                }
            )
        )
        return path

    def list(self, plural: str, *, namespace: str = "") -> list[Object]:
        """All objects of a kind, of one namespace or of all."""
        return self.store.listed(BY_PLURAL[plural], namespace)


@contextmanager
def api_server(**options: Any) -> Iterator[ApiServer]:
    """A server that listens; the options are those of ApiServer."""
    server = ApiServer(**options)
    server.start()
    try:
        yield server
    finally:
        server.stop()


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, owner: ApiServer, context: ssl.SSLContext | None) -> None:
        self.context = context
        self.open = True
        self.connections: set[socket.socket] = set()
        handler = type("BoundHandler", (Handler,), {"owner": owner, "listener": self})
        super().__init__(("127.0.0.1", owner.port), handler)

    def serve(self) -> None:
        self.serve_forever(poll_interval=0.05)

    def close(self) -> None:
        self.open = False
        self.shutdown()
        self.server_close()
        for one in list(self.connections):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def finish_request(self, request: Any, client_address: Any) -> None:
        if self.context is not None:
            request.settimeout(10)
            request = self.context.wrap_socket(request, server_side=True)
            request.settimeout(None)
        self.connections.add(request)
        try:
            super().finish_request(request, client_address)
        finally:
            self.connections.discard(request)
            if self.context is not None:
                request.close()

    def handle_error(self, *_: object) -> None:
        """Nothing: connections are cut by tests all the time."""
