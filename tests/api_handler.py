"""One connection to the tests' Kubernetes API server: from a request to its answer."""

from __future__ import annotations

import base64
import json
import select
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import parse_qsl, urlsplit

import yaml
from api_deletion import Deletion
from api_errors import ApiError, expired, forbidden, too_large_version
from api_faults import Request, error_of
from api_kinds import NAMESPACES, PODS, Kind, table
from api_patches import json_patch, merge_patch, strategic_patch
from api_places import Place, discovered, place_of
from api_selectors import Test, selector
from api_store import Write
from api_streams import LogRequest, WatchRequest, event, log_lines, log_request, watch

if TYPE_CHECKING:
    from api_server import ApiServer

Object = dict[str, Any]
_WATCH_SECONDS = 1800.0
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


class Handler(BaseHTTPRequestHandler):
    """Bound to its server by a subclass."""

    owner: ClassVar[ApiServer]
    listener: ClassVar[Any]
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        address = urlsplit(self.path)
        self.query = dict(parse_qsl(address.query, keep_blank_values=True))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        bearer = f"Bearer {self.owner.operator_token}"
        self.user = "operator" if self.headers.get("Authorization") == bearer else "client"
        self.fault = self.owner.faults.take(self.command, self.path, self.user)
        agent = self.headers.get("User-Agent", "")
        self.manager = self.query.get("fieldManager") or agent.partition("/")[0] or "unknown"
        self.warnings: list[str] = []
        try:
            self.owner.requests.append(
                Request(self.command, address.path, self.query, _parsed(body), agent, self.user)
            )
            if self.fault.delay_seconds:
                threading.Event().wait(self.fault.delay_seconds)
            if self.fault.status is not None:
                raise error_of(self.fault.status, self.owner.store.version)
            self._require_token()
            self._answer_to(address.path, body)
        except ApiError as error:
            self._send(error.code, error.status())
        except (ConnectionError, ssl.SSLError):
            self.close_connection = True

    do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = _serve  # noqa: N815

    def _require_token(self) -> None:
        wanted = self.owner.token
        if self.user == "operator" or wanted is None:
            return
        if self.headers.get("Authorization") != f"Bearer {wanted}":
            raise ApiError(401, "Unauthorized")

    def _answer_to(self, path: str, body: bytes) -> None:
        parts = [part for part in path.split("/") if part]
        if self.command == "GET" and (found := discovered(parts, self.owner.kinds())) is not None:
            self._send(200, found)
        elif parts == ["openapi", "v2"]:
            # An empty document, in the encoding that kubectl asks for.
            self._send(200, b"", kind="application/com.github.proto-openapi.spec.v2.v1.0+protobuf")
        elif parts[:1] in (["healthz"], ["livez"], ["readyz"]):
            self._send(200, b"ok")
        elif parts[-1:] == ["selfsubjectaccessreviews"] and self.command == "POST":
            self._send(201, self._reviewed(_document(body)))
        else:
            self._answer_about(place_of(parts, self.owner.kinds()), body)

    def _reviewed(self, review: Object) -> Object:
        asked = review.get("spec", {}).get("resourceAttributes", {})
        resource = asked.get("resource", "")
        if asked.get("subresource"):
            resource += f"/{asked['subresource']}"
        allowed = self.owner.may(asked.get("verb", ""), resource)
        status = {"allowed": allowed}
        return {**review, "status": status if allowed else {**status, "reason": "denied by a test"}}

    def _answer_about(self, place: Place, body: bytes) -> None:
        self._require_allowed(place)
        if self.command == "GET":
            self._answer_get(place)
        elif self.command == "POST":
            if place.name:
                raise ApiError(
                    405, "the server does not allow this method on the requested resource"
                )
            write = self._write(place)
            document = self._required_kind(place.kind, _document(body))
            made, self.warnings = self.owner.store.create(
                place.kind, place.namespace, document, write
            )
            self._send(201, made)
        elif self.command == "PUT":
            document = self._required_kind(place.kind, _document(body))
            made, self.warnings = self.owner.store.replace(
                place.kind, place.namespace, document, self._write(place), name=place.name
            )
            self._send(200, made)
        elif self.command == "PATCH":
            self._answer_patch(place, body)
        else:
            self._answer_delete(place, body)

    def _require_allowed(self, place: Place) -> None:
        verb = _VERBS.get(self.command, "get" if place.name else "list")
        if self.command == "GET" and self._is_watch():
            verb = "watch"
        if self.command == "DELETE" and not place.name:
            verb = "deletecollection"
        resource = place.kind.plural + (f"/{place.subresource}" if place.subresource else "")
        if self.user == "client" and not self.owner.may(verb, resource):
            raise forbidden(
                verb,
                place.kind,
                subresource=place.subresource,
                name=place.name,
                namespace=place.namespace,
            )

    def _required_kind(self, kind: Kind, document: Object) -> Object:
        given = (document.get("apiVersion", kind.api_version), document.get("kind", kind.kind))
        if given != (kind.api_version, kind.kind):
            raise ApiError(
                400,
                f"the API version in the data ({given[0]}, {given[1]}) does not match the expected "
                f"API version ({kind.api_version}, {kind.kind})",
            )
        return document

    def _write(self, place: Place) -> Write:
        dry_run = self.query.get("dryRun", "")
        if dry_run not in ("", "All"):
            raise ApiError(400, f'Invalid value: "{dry_run}": dryRun: supported values: "All"')
        return Write(
            manager=self.manager,
            subresource=place.subresource,
            dry_run=dry_run == "All",
            strictly=self.query.get("fieldValidation", "Warn") == "Strict",
            force=self.query.get("force", "") == "true",
        )

    def _is_watch(self) -> bool:
        return self.query.get("watch", "false").lower() in ("true", "1")

    def _answer_get(self, place: Place) -> None:
        store = self.owner.store
        if place.subresource == "log":
            asked = log_request(store, place.namespace, place.name, self.query)
            self._stream(self._log_lines(place, asked), "text/plain")
            return
        fields = self.query.get("fieldSelector", "")
        if place.name and self._is_watch():
            fields = ",".join(filter(None, (fields, f"metadata.name={place.name}")))
        elif place.name:
            self._send_objects(place.kind, [store.get(place.kind, place.namespace, place.name)])
            return
        test = selector(place.kind, labels=self.query.get("labelSelector", ""), fields=fields)
        if self._is_watch():
            self._stream(self._events(place, test), "application/json")
        else:
            self._send_list(place, test)

    def _log_lines(self, place: Place, asked: LogRequest) -> Iterator[bytes]:
        path = self.owner.log_file(place.namespace, place.name, asked.container)
        return log_lines(self.owner.store, path, asked, self._goes_on)

    def _events(self, place: Place, test: Test) -> Iterator[bytes]:
        version = self.query.get("resourceVersion", "")
        asked = WatchRequest(
            kind=place.kind,
            namespace=place.namespace,
            selected=test,
            version=version,
            bookmarks=self.query.get("allowWatchBookmarks", "") == "true",
            initial_events=self.query.get("sendInitialEvents", "") == "true",
            timeout_seconds=float(self.query.get("timeoutSeconds") or _WATCH_SECONDS),
        )
        return watch(self.owner.store, asked, self._goes_on)

    def _goes_on(self) -> bool:
        """Whether the server runs and the client is still there."""
        if not self.listener.open:
            return False
        readable, _, _ = select.select([self.connection], [], [], 0)
        # A client that waits for a stream says nothing, until it closes.
        return not readable

    def _send_list(self, place: Place, test: Test) -> None:
        store = self.owner.store
        with store.changed:
            version = store.version
            asked = self.query.get("resourceVersion", "")
            if asked and int(asked) > version:
                raise too_large_version(int(asked), version)
            found = [one for one in store.listed(place.kind, place.namespace) if test(one)]
            metadata: Object = {"resourceVersion": str(version)}
            start = 0
            if "continue" in self.query:
                token = json.loads(base64.b64decode(self.query["continue"]))
                start, metadata["resourceVersion"] = token["start"], token["version"]
                if int(token["version"]) < store.oldest:
                    raise expired(int(token["version"]), store.oldest)
            limit = int(self.query.get("limit") or 0)
            if limit and start + limit < len(found):
                token = {"start": start + limit, "version": metadata["resourceVersion"]}
                metadata["continue"] = base64.b64encode(json.dumps(token).encode()).decode()
                metadata["remainingItemCount"] = len(found) - start - limit
            found = found[start : start + limit if limit else None]
        self._send_objects(place.kind, found, metadata)

    def _send_objects(
        self, kind: Kind, objects: list[Object], metadata: Object | None = None
    ) -> None:
        if "as=Table" in self.headers.get("Accept", ""):
            version = metadata["resourceVersion"] if metadata else ""
            self._send(200, {**table(kind, objects, version), "metadata": metadata or {}})
        elif metadata is None:
            self._send(200, objects[0])
        else:
            listed = {"kind": f"{kind.kind}List", "apiVersion": kind.api_version}
            self._send(200, {**listed, "metadata": metadata, "items": objects})

    def _answer_patch(self, place: Place, body: bytes) -> None:
        store, write = self.owner.store, self._write(place)
        kind, namespace, name = place.kind, place.namespace, place.name
        media = self.headers.get("Content-Type", "").partition(";")[0]
        if media == "application/apply-patch+yaml":
            if not self.query.get("fieldManager"):
                raise ApiError(422, "fieldManager: Required value: is required for apply patch")
            document = self._required_kind(kind, yaml.safe_load(body))
            document.setdefault("metadata", {})["name"] = name
            made, self.warnings, created = store.apply(kind, namespace, name, document, write)
            self._send(201 if created else 200, made)
            return
        patch = json.loads(body)
        if media == "application/merge-patch+json":
            made, self.warnings = store.patch(
                kind, namespace, name, lambda old: merge_patch(old, patch), write
            )
        elif media == "application/json-patch+json":
            made, self.warnings = store.patch(
                kind, namespace, name, lambda old: json_patch(old, patch), write
            )
        elif media == "application/strategic-merge-patch+json" and not kind.custom:
            made, self.warnings = store.patch(
                kind, namespace, name, lambda old: strategic_patch(old, patch), write
            )
        else:
            known = "application/json-patch+json, application/merge-patch+json, "
            known += "application/apply-patch+yaml"
            raise ApiError(
                415,
                "the body of the request was in an unknown format - accepted media types include: "
                + known,
            )
        self._send(200, made)

    def _answer_delete(self, place: Place, body: bytes) -> None:
        store, how = self.owner.store, self._deletion(body)
        kind = place.kind
        if not place.name:
            test = selector(
                kind,
                labels=self.query.get("labelSelector", ""),
                fields=self.query.get("fieldSelector", ""),
            )
            found = [one for one in store.listed(kind, place.namespace) if test(one)]
            for one in found:
                where = one["metadata"].get("namespace", "")
                self.owner.deletions.delete(kind, where, one["metadata"]["name"], how)
            version = {"resourceVersion": str(store.version)}
            self._send_objects(kind, found, version)
            return
        found_one, gone = self.owner.deletions.delete(kind, place.namespace, place.name, how)
        if not gone or kind in (PODS, NAMESPACES):
            self._send(200, found_one)
            return
        details = {
            "name": place.name,
            "group": kind.group,
            "kind": kind.plural,
            "uid": found_one["metadata"]["uid"],
        }
        status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
        self._send(200, {**status, "details": {k: v for k, v in details.items() if v}})

    def _deletion(self, body: bytes) -> Deletion:
        options = _document(body) if body else {}
        conditions = options.get("preconditions") or {}
        grace = options.get("gracePeriodSeconds", self.query.get("gracePeriodSeconds"))
        policy = options.get("propagationPolicy") or self.query.get("propagationPolicy")
        dry_run = options.get("dryRun") or self.query.get("dryRun")
        if options.get("orphanDependents"):
            policy = "Orphan"
        return Deletion(
            propagation=policy or "Background",
            grace_seconds=None if grace is None else int(grace),
            uid=conditions.get("uid"),
            version=conditions.get("resourceVersion"),
            dry_run=bool(dry_run),
        )

    def _send(self, status: int, body: Object | bytes, *, kind: str = "") -> None:
        if self.fault.lost:
            self.close_connection = True
            return
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        kind = kind or ("text/plain" if isinstance(body, bytes) else "application/json")
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        for one in self.warnings:
            quoted = one.replace('"', '\\"')
            self.send_header("Warning", f'299 - "{quoted}"')
        if self.fault.retry_after is not None:
            self.send_header("Retry-After", str(self.fault.retry_after))
        self.end_headers()
        cut = self.fault.cut_after
        self.wfile.write(data if cut is None else data[:cut])
        self.close_connection = self.close_connection or cut is not None

    def _stream(self, lines: Iterator[bytes], kind: str) -> None:
        """Send each line as a chunk as soon as it is there."""
        if self.fault.lost:
            self.close_connection = True
            return
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        told, size = 0, 0
        for line in self._until_the_fault(lines):
            if not line:
                continue
            cut = self.fault.cut_after
            if cut is not None and size + len(line) > cut:
                self._chunk(line[: cut - size])
                self.close_connection = True
                return
            self._chunk(line)
            told, size = told + 1, size + len(line)
        if self.fault.cut_after is not None or not self.listener.open:
            self.close_connection = True
            return
        with suppress(OSError):
            self.wfile.write(b"0\r\n\r\n")

    def _until_the_fault(self, lines: Iterator[bytes]) -> Iterator[bytes]:
        end, code = self.fault.end_after, self.fault.error_event
        end = 0 if end is None and code is not None else end
        told = 0
        while end is None or told < end:
            line = next(lines, None)
            if line is None:
                break
            yield line
            told += bool(line)
        if code is not None:
            yield event("ERROR", error_of(code, self.owner.store.version).status())

    def _chunk(self, data: bytes) -> None:
        if data:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            self.wfile.flush()

    def log_message(self, *_: object) -> None:
        """Nothing: tests look at the requests."""


def _parsed(body: bytes) -> Any:
    if not body:
        return None
    try:
        return json.loads(body)
    except ValueError:
        return body.decode(errors="replace")


def _document(body: bytes) -> Object:
    if body.startswith(b"k8s\0"):
        raise ApiError(415, "this server takes JSON only, no protobuf")
    try:
        found = json.loads(body)
    except ValueError as error:
        raise ApiError(400, f"unable to decode the body: {error}") from None
    if not isinstance(found, dict):
        raise ApiError(400, "the body is no object")
    return found
