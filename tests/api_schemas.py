"""What the tests' Kubernetes API server says of an object's fields: unknown, wrong, left out."""

from __future__ import annotations

import copy
import functools
import json
import re
from typing import Any

import jsonschema
from api_errors import Cause, cause, invalid, undecodable
from api_kinds import RAYCLUSTERS, RAYJOBS, Kind
from api_patches import Path, keys_by_name
from kuberay_schema import kubernetes_definitions, kubernetes_validator, ray_job_schema, strict

Object = dict[str, Any]
Schema = dict[str, Any]
_METADATA = {
    *("name", "generateName", "namespace", "uid", "resourceVersion", "generation", "selfLink"),
    *("creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "labels"),
    *("annotations", "ownerReferences", "finalizers", "managedFields"),
}
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_ROLE_NAME = re.compile(r"[^/%]+")
_LABEL = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_KEY = re.compile(r"([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_SUBDOMAIN = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or "
    "'.', and must start and end with an alphanumeric character"
)


def fitted(kind: Kind, document: Object, *, strictly: bool) -> tuple[Object, list[str]]:
    """The document without unknown fields and with defaults, and the warnings about it.

    Raises ApiError where a field is wrong, or with ``strictly`` where one is unknown.
    """
    found = copy.deepcopy(document)
    schema = _schema(kind)
    warnings = [f'unknown field "{path}"' for path in unknown_fields(kind, found)]
    if strictly and warnings:
        raise undecodable(kind, f"strict decoding error: {', '.join(warnings)}")
    if kind.custom and schema is not None:
        _set_defaults(found, schema)
    _require_valid(kind, found)
    return found, warnings


def unknown_fields(kind: Kind, document: Object) -> list[str]:
    """The fields that the kind does not have; they are dropped from the document."""
    metadata = document.get("metadata", {})
    found = [f"metadata.{key}" for key in metadata if key not in _METADATA]
    for path in found:
        del metadata[path.removeprefix("metadata.")]
    schema = _schema(kind)
    return found if schema is None else found + _pruned(document, schema, "")


@functools.cache
def _schema(kind: Kind) -> Schema | None:
    """The schema of a kind; none for Kueue's, which are not at hand."""
    if not kind.custom:
        found: Schema = dict(kubernetes_validator(kind.kind, kind.api_version).schema)
        return found
    if kind is RAYJOBS:
        return ray_job_schema()
    if kind is RAYCLUSTERS:
        # A RayJob holds the spec of its RayCluster.
        fields = ray_job_schema()["properties"]
        free = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        spec = fields["spec"]["properties"]["rayClusterSpec"]
        return {"type": "object", "properties": {**fields, "spec": spec, "status": free}}
    return None


@functools.cache
def _validator(kind: Kind) -> jsonschema.Draft202012Validator | None:
    if not kind.custom:
        return kubernetes_validator(kind.kind, kind.api_version)
    schema = _schema(kind)
    return None if schema is None else jsonschema.Draft202012Validator(strict(schema))


def _resolved(schema: Schema) -> Schema:
    while "$ref" in schema:
        schema = kubernetes_definitions()["$defs"][schema["$ref"].rpartition("/")[2]]
    return schema


def _pruned(value: Any, schema: Schema, path: str) -> list[str]:
    """Drop what the schema does not know; the paths of what was dropped."""
    schema = _resolved(schema)
    found: list[str] = []
    if isinstance(value, list) and "items" in schema:
        for number, one in enumerate(value):
            found += _pruned(one, schema["items"], f"{path}[{number}]")
    if not isinstance(value, dict):
        return found
    fields, others = schema.get("properties"), schema.get("additionalProperties")
    for key in list(value):
        inner = f"{path}.{key}".lstrip(".")
        if inner == "metadata":
            continue
        if fields is not None and key in fields:
            found += _pruned(value[key], fields[key], inner)
        elif isinstance(others, dict):
            found += _pruned(value[key], others, inner)
        elif fields is not None and not others and not _is_free(schema):
            del value[key]
            found.append(inner)
    return found


def _is_free(schema: Schema) -> bool:
    return bool(schema.get("x-kubernetes-preserve-unknown-fields"))


def _set_defaults(value: Any, schema: Schema) -> None:
    if isinstance(value, list):
        for one in value:
            _set_defaults(one, schema.get("items", {}))
    if not isinstance(value, dict):
        return
    for key, inner in schema.get("properties", {}).items():
        if "default" in inner and key not in value:
            value[key] = copy.deepcopy(inner["default"])
        if key in value:
            _set_defaults(value[key], inner)
    if isinstance(schema.get("additionalProperties"), dict):
        for one in value.values():
            _set_defaults(one, schema["additionalProperties"])


def _require_valid(kind: Kind, document: Object) -> None:
    validator = _validator(kind)
    causes = metadata_causes(kind, document.get("metadata", {}))
    errors = [] if validator is None else list(validator.iter_errors(document))
    wrong_types = [one for one in errors if one.validator == "type"]
    if wrong_types and not kind.custom:
        error = wrong_types[0]
        wanted = error.validator_value
        raise undecodable(
            kind,
            f"json: cannot unmarshal {_type_of(error.instance)} into Go struct field "
            f"{kind.kind}.{_place(error)} of type {wanted}",
        )
    for error in errors:
        # Of its own kinds the server asks fewer fields than their schemas say.
        if kind.custom or not _place(error).startswith("status"):
            causes += [one for one in _causes(error) if one not in causes]
    if causes:
        raise invalid(kind, document.get("metadata", {}).get("name", ""), causes)


def _place(error: jsonschema.ValidationError) -> str:
    found = ""
    for step in error.absolute_path:
        found += f"[{step}]" if isinstance(step, int) else f".{step}"
    return found.lstrip(".")


def _type_of(value: Any) -> str:
    names = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array"}
    return names.get(type(value), "null" if value is None else "object")


def _causes(error: jsonschema.ValidationError) -> list[Cause]:
    place, said = _place(error), json.dumps(error.instance)
    match error.validator:
        case "required":
            missing = [one for one in error.validator_value if one not in error.instance]
            places = [f"{place}.{one}".lstrip(".") for one in missing]
            return [cause(one, "Required value", "FieldValueRequired") for one in places]
        case "type":
            wanted = error.validator_value
            message = (
                f'Invalid value: "{_type_of(error.instance)}": {place} in body must be of type '
                f'{wanted}: "{_type_of(error.instance)}"'
            )
            return [cause(place, message, "FieldValueTypeInvalid")]
        case "enum":
            known = ", ".join(json.dumps(one) for one in error.validator_value)
            message = f"Unsupported value: {said}: supported values: {known}"
            return [cause(place, message, "FieldValueNotSupported")]
        case _:
            message = f"Invalid value: {said}: {place} in body: {error.message[:200]}"
            return [cause(place, message)]


def metadata_causes(kind: Kind, metadata: Object) -> list[Cause]:
    """What is wrong with the name and the labels of an object."""
    found: list[Cause] = []
    name = metadata.get("name")
    pattern = _ROLE_NAME if kind.group == "rbac.authorization.k8s.io" else _NAME
    if not name:
        found.append(
            cause(
                "metadata.name",
                "Required value: name or generateName is required",
                "FieldValueRequired",
            )
        )
    elif not pattern.fullmatch(str(name)) or len(str(name)) > 253:
        found.append(cause("metadata.name", f"Invalid value: {json.dumps(name)}: {_SUBDOMAIN}"))
    for key, value in (metadata.get("labels") or {}).items():
        if not _KEY.fullmatch(key) or not _LABEL.fullmatch(str(value)):
            text = "a valid label must be an empty string or consist of alphanumeric characters"
            found.append(cause("metadata.labels", f"Invalid value: {json.dumps(value)}: {text}"))
    for key in metadata.get("annotations") or {}:
        if not _KEY.fullmatch(key):
            text = "name part must consist of alphanumeric characters, '-', '_' or '.'"
            found.append(cause("metadata.annotations", f"Invalid value: {json.dumps(key)}: {text}"))
    return found


def list_keys(kind: Kind, path: Path) -> tuple[str, ...]:
    """The fields that tell the items of the list at ``path`` apart, for server-side apply."""
    schema = _schema(kind) if kind.custom and path[:1] != ("metadata",) else None
    if schema is None:
        return keys_by_name(path)
    for step in path:
        while "items" in schema:
            schema = schema["items"]
        inner = schema.get("properties", {}).get(step, schema.get("additionalProperties"))
        if not isinstance(inner, dict):
            return ()
        schema = inner
    found: list[str] = schema.get("x-kubernetes-list-map-keys", [])
    return tuple(found)


def frozen_causes(kind: Kind, old: Object, new: Object) -> list[Cause]:
    """Changes of what may not change."""
    if kind.plural in ("configmaps", "secrets") and old.get("immutable"):
        text = "Forbidden: field is immutable when `immutable` is set"
        return [
            cause(field, text, "FieldValueForbidden")
            for field in ("immutable", "data", "binaryData")
            if old.get(field) != new.get(field)
        ]
    if kind.plural == "pods" and _frozen_pod(old) != _frozen_pod(new):
        text = (
            "Forbidden: pod updates may not change fields other than "
            "`spec.containers[*].image`,`spec.initContainers[*].image`,"
            "`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing "
            "tolerations),`spec.terminationGracePeriodSeconds`"
        )
        return [cause("spec", text, "FieldValueForbidden")]
    template = ("spec", "template")
    if kind.plural == "jobs" and old["spec"].get("template") != new["spec"].get("template"):
        return [cause(".".join(template), "Invalid value: {}: field is immutable")]
    return []


def _frozen_pod(pod: Object) -> Object:
    spec = copy.deepcopy(pod.get("spec", {}))
    # The scheduler's binding sets the node, once.
    for field in (
        "activeDeadlineSeconds",
        "tolerations",
        "terminationGracePeriodSeconds",
        "nodeName",
    ):
        spec.pop(field, None)
    for container in (*spec.get("containers", []), *spec.get("initContainers", [])):
        container.pop("image", None)
    return {"spec": spec}
