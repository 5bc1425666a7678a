"""A Kubernetes cluster as a run needs it: few calls, and what may be asked again is asked again.

The official client speaks to the API server; it knows kubeconfig, its plug-ins and certificates.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from launcher.job import PlaceUnavailableError
from launcher.patience import PATIENCE_SECONDS, capped, patiently, told_seconds
from rotescale.credentials import hidden
from rotescale.errors import SpecError

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

Object = dict[str, Any]
"""An object of Kubernetes, with the field names of its JSON."""

_TIMEOUT = (10.0, 60.0)
_FOLLOW_TIMEOUT = (10.0, 90.0)
_RETRIED = (429, 500, 502, 503, 504)
_CONFLICT, _NOT_FOUND = 409, 404
FORBIDDEN = 403
"""``RefusedError.status`` where the account has not the right."""
_NO_LOG = (400, _NOT_FOUND)
"""Of a container that has not begun, and of a pod that is gone."""
_FINE = range(200, 300)
_CONFLICT_WAITS = (0.5, 1.0, 2.0)
"""Seconds before each new try."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Where objects of a kind are found."""

    group: str
    """Such as ``ray.io/v1``; ``v1`` for the core's."""
    plural: str
    is_namespaced: bool = True

    def path(self, namespace: str, name: str | None = None) -> str:
        """The URL's path of one object, or of all."""
        root = f"/api/{self.group}" if self.group == "v1" else f"/apis/{self.group}"
        space = f"/namespaces/{namespace}" if self.is_namespaced else ""
        return f"{root}{space}/{self.plural}" + ("" if name is None else f"/{name}")


RAY_JOBS = Kind("ray.io/v1", "rayjobs")
CONFIG_MAPS = Kind("v1", "configmaps")
PODS = Kind("v1", "pods")
EVENTS = Kind("v1", "events")
WORKLOADS = Kind("kueue.x-k8s.io/v1beta2", "workloads")
KINDS = {"RayJob": RAY_JOBS, "ConfigMap": CONFIG_MAPS, "Pod": PODS}


class RefusedError(SpecError):
    """The API server understood, and says no; ``status`` is its HTTP code."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class KubernetesCluster:
    """One namespace of a cluster.

    Reads, changes and deletions are asked for again through an outage of ``patience_seconds``, and
    then raise PlaceUnavailableError; what the server refuses raises RefusedError.
    """

    def __init__(
        self,
        context: str | None,
        namespace: str,
        *,
        client: ApiClient | None = None,
        patience_seconds: float = PATIENCE_SECONDS,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.namespace = namespace
        self._client = client or _client(context)
        self._patience_seconds = patience_seconds
        # A server that takes a request and says nothing is away, too.
        self._timeout = capped(_TIMEOUT, patience_seconds)
        self._sleep = sleep

    def get(self, kind: Kind, name: str) -> Object | None:
        """The object of that name; None where there is none."""
        try:
            found = _answer(self._ask("GET", kind.path(self.namespace, name)))
        except RefusedError as error:
            if error.status == _NOT_FOUND:
                return None
            raise
        return found

    def find(
        self, kind: Kind, *, labels: str | None = None, fields: str | None = None
    ) -> list[Object]:
        """The objects that the selectors match; none where the kind is not known there."""
        query = {"labelSelector": labels, "fieldSelector": fields}
        wanted = [(key, value) for key, value in query.items() if value is not None]
        try:
            found = _answer(self._ask("GET", kind.path(self.namespace), query=wanted))
        except RefusedError as error:
            if error.status == _NOT_FOUND:
                return []
            raise
        items: list[Object] = found.get("items") or []
        return items

    def create(self, manifest: Object, *, dry_run: bool = False) -> bool:
        """Create the object; False where one of its name is there.

        It is tried once: an answer that does not arrive may belong to something that was done.
        """
        kind = KINDS[manifest["kind"]]
        query = [("fieldValidation", "Strict")] + ([("dryRun", "All")] if dry_run else [])
        try:
            _answer(self._send("POST", kind.path(self.namespace), query=query, body=manifest))
        except RefusedError as error:
            if error.status == _CONFLICT:
                return False
            raise
        return True

    def patch(self, kind: Kind, name: str, change: Object) -> bool:
        """Merge the change into the object (RFC 7386); False where there is none of that name.

        Where others change it at the same time, it is tried again a few times.
        """
        return self._change("PATCH", kind.path(self.namespace, name), change, final=())

    def delete(self, kind: Kind, name: str, *, uid: str | None = None) -> bool:
        """Have the object removed once all that it owns is; False where there was none.

        Where others change it at the same time, it is tried again a few times. With ``uid`` that
        object alone, and none that has its name by now.
        """
        options: Object = {"apiVersion": "v1", "kind": "DeleteOptions"}
        options["propagationPolicy"] = "Foreground"
        final: tuple[int, ...] = ()
        if uid is not None:
            options["preconditions"] = {"uid": uid}
            final = (_CONFLICT,)
        return self._change("DELETE", kind.path(self.namespace, name), options, final=final)

    def _change(
        self, method: Literal["PATCH", "DELETE"], path: str, body: Object, *, final: Sequence[int]
    ) -> bool:
        """Ask for a change, again a few times where it meets somebody else's; False where there is
        nothing to be changed, or for an answer of ``final``."""
        for wait in (*_CONFLICT_WAITS, None):
            try:
                _answer(self._ask(method, path, body=body))
                break
            except RefusedError as error:
                if error.status in (_NOT_FOUND, *final):
                    return False
                if error.status != _CONFLICT or wait is None:
                    raise
            self._sleep(wait)
        return True

    def log(self, pod: str, container: str, *, num_lines: int | None = None) -> list[str]:
        """What a container has printed; nothing where it, or its pod, has not begun or is gone."""
        query = [("container", container)]
        if num_lines is not None:
            query.append(("tailLines", str(num_lines)))
        path = f"{PODS.path(self.namespace, pod)}/log"
        try:
            text: str = self._ask("GET", path, query=query, text=True)
        except RefusedError as error:
            if error.status in _NO_LOG:
                return []
            raise
        return text.splitlines()

    def follow(self, pod: str, container: str) -> Iterator[str]:
        """Its lines from the first on, as long as this connection holds.

        That it ends says nothing about the container.
        """
        import urllib3

        query = [("container", container), ("follow", "true")]
        path = f"{PODS.path(self.namespace, pod)}/log"
        try:
            answer = self._call("GET", path, query=query, timeout=_FOLLOW_TIMEOUT)
        except PlaceUnavailableError:
            return
        except RefusedError as error:
            if error.status in _NO_LOG:
                return
            raise
        rest = b""
        try:
            for piece in answer.stream(1 << 16, decode_content=False):
                *lines, rest = (rest + piece).split(b"\n")
                yield from (line.decode(errors="replace") for line in lines)
        except urllib3.exceptions.HTTPError:
            return
        finally:
            answer.release_conn()
        if rest:
            yield rest.decode(errors="replace")

    def may(self, verb: str, kind: Kind) -> bool:
        """Whether this account may do that here, as the server says."""
        group = "" if kind.group == "v1" else kind.group.partition("/")[0]
        plural, _, part = kind.plural.partition("/")
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {
                "resourceAttributes": {
                    **{"namespace": self.namespace, "verb": verb, "group": group},
                    **{"resource": plural, **({"subresource": part} if part else {})},
                }
            },
        }
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        return bool(_answer(self._ask("POST", path, body=review))["status"]["allowed"])

    def raw(self, path: str) -> Any:
        """The answer to any other path that is read; None where there is nothing."""
        try:
            return self._ask("GET", path)
        except RefusedError as error:
            if error.status == _NOT_FOUND:
                return None
            raise

    def _ask(
        self,
        method: Literal["GET", "POST", "PATCH", "DELETE"],
        path: str,
        *,
        query: list[tuple[str, str]] | None = None,
        body: Object | None = None,
        text: bool = False,
    ) -> Any:
        """An answer, however often it has to be asked for; only for what can be done twice."""
        return patiently(
            lambda: self._send(method, path, query=query, body=body, text=text),
            seconds=self._patience_seconds,
            sleep=self._sleep,
        )

    def _send(
        self,
        method: str,
        path: str,
        *,
        query: list[tuple[str, str]] | None = None,
        body: Object | None = None,
        text: bool = False,
    ) -> Any:
        import urllib3

        try:
            answer = self._call(method, path, query=query or [], body=body)
            content = answer.read().decode(errors="replace")
        except urllib3.exceptions.HTTPError as error:
            raise _unavailable(str(error)) from None
        if text:
            return content
        try:
            return json.loads(content)
        except ValueError:
            # Such as a proxy's page, or an answer that was cut off.
            raise _unavailable("its answer is no JSON") from None

    def _call(
        self,
        method: str,
        path: str,
        *,
        query: list[tuple[str, str]],
        body: Object | None = None,
        timeout: tuple[float, float] | None = None,
    ) -> Any:
        """The response, not read yet, of a request that was answered without an error."""
        import urllib3
        from kubernetes.client import ApiException

        sends = "application/merge-patch+json" if method == "PATCH" else "application/json"
        request = self._client.param_serialize(
            method,
            path,
            query_params=query,
            header_params={"Accept": "application/json", "Content-Type": sends},
            body=body,
            auth_settings=["BearerToken"],
        )
        try:
            answer = self._client.call_api(
                *request, _request_timeout=timeout or self._timeout
            ).response
            if answer.status in _FINE:
                return answer
            _, _, sent, *_ = request
            token = sent.get("authorization", "").removeprefix("Bearer ")
            said = hidden(answer.read().decode(errors="replace"), token)
            raise _explain(method, path, answer.status, said, answer.headers)
        except ApiException as error:
            # The client makes one of what TLS refuses, and of nothing else here.
            raise SpecError(
                f"Kubernetes: its certificate cannot be trusted ({error.reason}); the kubeconfig "
                "names the cluster's authority as certificate-authority"
            ) from None
        except urllib3.exceptions.HTTPError as error:
            raise _unavailable(str(getattr(error, "reason", None) or error)) from None


def _answer(found: Any) -> Object:
    """What is read, where it is a Kubernetes API server that has answered."""
    if isinstance(found, dict) and isinstance(found.get("kind"), str):
        return found
    raise SpecError(
        "Kubernetes: what answers at the kubeconfig's server is no Kubernetes API server; is the "
        "address right, and does a proxy stand before it?"
    )


def _client(context: str | None) -> ApiClient:
    """A client by kubeconfig, or by the pod's own account where this is a pod."""
    from kubernetes import client, config
    from kubernetes.config.config_exception import ConfigException

    settings = client.Configuration()
    # Each request has a limit of its own, and what may be tried again is tried again here.
    settings.retries = False
    try:
        try:
            config.load_kube_config(  # type: ignore[no-untyped-call]
                # The client's own default is what the variable was when it was imported.
                os.environ.get("KUBECONFIG"),
                context=context,
                client_configuration=settings,
            )
        except ConfigException:
            if context is not None:
                raise
            config.load_incluster_config(client_configuration=settings)  # type: ignore[no-untyped-call]
    except ConfigException as error:
        raise SpecError(
            f"kubeconfig: {hidden(str(error))}; set KUBECONFIG, or name one of kubectl config "
            "get-contexts in kuberay.context"
        ) from None
    return client.ApiClient(settings)


def _explain(
    method: str, path: str, status: int, said: str, headers: Mapping[str, str]
) -> SpecError | PlaceUnavailableError:
    """An error of the API server in our words."""
    try:
        words = hidden(str(json.loads(said)["message"]))
    except (ValueError, KeyError, TypeError):
        words = f"HTTP {status}"
    if status in _RETRIED:
        return _unavailable(words, retry_after=headers.get("Retry-After"))
    if status == 401:
        return RefusedError(f"Kubernetes takes no such login ({words}); log in again", status)
    if status == FORBIDDEN:
        return RefusedError(
            f"Kubernetes: {words}. Give this account the rights of k8s/base/rbac.yaml; "
            "rotescale-launch doctor lists what is missing",
            status,
        )
    return RefusedError(f"Kubernetes refuses {method} {path}: {words}", status)


def _unavailable(words: str, *, retry_after: str | None = None) -> PlaceUnavailableError:
    return PlaceUnavailableError(
        f"the Kubernetes API server does not answer ({hidden(words)[:300]}); what it was asked to "
        "do may have been done: look with status",
        retry_after=told_seconds(retry_after),
    )
