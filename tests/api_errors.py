"""How the tests' Kubernetes API server says no: Status objects, worded as the real one does."""

from __future__ import annotations

from typing import Any

from api_kinds import Kind

_REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    406: "NotAcceptable",
    409: "Conflict",
    410: "Expired",
    413: "RequestEntityTooLarge",
    415: "UnsupportedMediaType",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}
Cause = dict[str, str]


class ApiError(Exception):
    """An answer that is a Status of failure."""

    def __init__(
        self,
        code: int,
        message: str,
        *,
        reason: str | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.reason = _REASONS.get(code, "Unknown") if reason is None else reason
        self.details = details or {}

    def status(self) -> dict[str, Any]:
        """The body of the answer."""
        found: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "details": self.details,
            "code": self.code,
        }
        return {
            key: value for key, value in found.items() if value not in ("", {}) or key == "metadata"
        }


def _about(kind: Kind, name: str) -> dict[str, Any]:
    found = {"name": name, "group": kind.group, "kind": kind.plural}
    return {key: value for key, value in found.items() if value}


def no_such_path() -> ApiError:
    """There is no kind at that address."""
    return ApiError(404, "the server could not find the requested resource")


def not_found(kind: Kind, name: str) -> ApiError:
    return ApiError(404, f'{kind.full_name} "{name}" not found', details=_about(kind, name))


def already_exists(kind: Kind, name: str) -> ApiError:
    message = f'{kind.full_name} "{name}" already exists'
    return ApiError(409, message, reason="AlreadyExists", details=_about(kind, name))


def conflict(kind: Kind, name: str, why: str = "") -> ApiError:
    """Somebody else was faster; or ``why``."""
    why = why or (
        "the object has been modified; please apply your changes to the latest version and try "
        "again"
    )
    message = f'Operation cannot be fulfilled on {kind.full_name} "{name}": {why}'
    return ApiError(409, message, details=_about(kind, name))


def fields_conflict(managers: dict[str, list[str]]) -> ApiError:
    """Server-side apply meets fields that others have set; ``managers`` to paths."""
    causes = [
        {"reason": "FieldManagerConflict", "message": f'conflict with "{manager}"', "field": path}
        for manager, paths in managers.items()
        for path in paths
    ]
    lines = [
        f'{"conflicts" if len(paths) > 1 else "conflict"} with "{manager}": '
        + ", ".join(sorted(paths))
        for manager, paths in managers.items()
    ]
    number = f"{len(causes)} conflict{'s' if len(causes) > 1 else ''}"
    message = f"Apply failed with {number}: " + "\n".join(lines)
    return ApiError(409, message, details={"causes": causes})


def invalid(kind: Kind, name: str, causes: list[Cause]) -> ApiError:
    """What the schema, or a rule about the kind, has against the object."""
    said = [f"{one['field']}: {one['message']}" for one in causes]
    listed = said[0] if len(said) == 1 else f"[{', '.join(said)}]"
    title = f"{kind.kind}.{kind.group}" if kind.group else kind.kind
    details = {**_about(kind, name), "kind": kind.kind, "causes": causes}
    return ApiError(422, f'{title} "{name}" is invalid: {listed}', details=details)


def cause(field: str, message: str, reason: str = "FieldValueInvalid") -> Cause:
    return {"reason": reason, "message": message, "field": field}


def undecodable(kind: Kind, why: str) -> ApiError:
    """The body is no such object; with strict validation, an unknown field is enough."""
    return ApiError(
        400,
        f'{kind.kind} in version "{kind.version}" cannot be handled as a {kind.kind}: {why}',
    )


def forbidden(verb: str, kind: Kind, *, subresource: str, name: str, namespace: str) -> ApiError:
    resource = f"{kind.plural}/{subresource}" if subresource else kind.plural
    subject = f'{kind.full_name} "{name}"' if name else kind.full_name
    where = f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
    message = (
        f'{subject} is forbidden: User "test" cannot {verb} resource "{resource}" in API group '
        f'"{kind.group}" {where}'
    )
    return ApiError(403, message, details=_about(kind, name))


def expired(version: int, oldest: int) -> ApiError:
    return ApiError(410, f"too old resource version: {version} ({oldest})")


def too_large_version(version: int, current: int) -> ApiError:
    """A client has seen a version that this server has not, or not yet."""
    causes = [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]
    return ApiError(
        504,
        f"Timeout: Too large resource version: {version}, current: {current}",
        details={"retryAfterSeconds": 1, "causes": causes},
    )
