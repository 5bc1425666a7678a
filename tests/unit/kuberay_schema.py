"""Schemas that rendered RayJobs are held to: KubeRay's own where it is at hand, and one by hand."""

from __future__ import annotations

import copy
import functools
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import referencing
import yaml
from kubernetes_validate.utils import schema_contents

Schema = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]
KUBERNETES = "1.37"
_NUMBER = r"(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))"
_QUANTITY = rf"^(\+|-)?{_NUMBER}(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?{_NUMBER}))?$"


def _crd_folder() -> Path:
    return Path(os.environ.get("ROTESCALE_KUBERAY_CRDS") or ROOT.parent / "shared" / "crds")


def crd_folder() -> Path:
    """Where KubeRay's custom resource definitions lie; skips the test, aloud, where they do not."""
    folder = _crd_folder()
    if not (folder / "ray.io_rayjobs.yaml").is_file():
        pytest.skip(
            f"KubeRay's CRDs are not in {folder}: RayJobs are held to the schema by hand only; "
            "name the folder with ray.io_rayjobs.yaml in ROTESCALE_KUBERAY_CRDS"
        )
    return folder


@functools.cache
def open_api_schema(folder: Path) -> Schema:
    """The schema of RayJobs as their definition has it."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    definition = yaml.load((folder / "ray.io_rayjobs.yaml").read_text(), Loader=loader)
    version = next(one for one in definition["spec"]["versions"] if one["name"] == "v1")
    found: Schema = version["schema"]["openAPIV3Schema"]
    return found


@functools.cache
def _crd_schema(folder: Path) -> Schema:
    found: Schema = strict(open_api_schema(folder))
    return found


def ray_job_schema() -> Schema:
    """The definition's own schema of RayJobs where it is at hand, and else the one by hand."""
    folder = _crd_folder()
    if (folder / "ray.io_rayjobs.yaml").is_file():
        return open_api_schema(folder)
    by_hand: Schema = dict(BY_HAND.schema)
    status = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    return {**by_hand, "properties": {**by_hand["properties"], "status": status}}


def crd_validator() -> jsonschema.Draft202012Validator:
    """The definition's own schema, without the fields that it does not know."""
    return jsonschema.Draft202012Validator(_crd_schema(crd_folder()))


def strict(schema: Any) -> Any:
    """An OpenAPI v3 schema of Kubernetes as JSON schema that refuses unknown fields."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {
        key: strict(value) for key, value in schema.items() if key not in ("format", "properties")
    }
    if isinstance(schema.get("properties"), dict):
        # Names of fields, among them perhaps "format" and "properties", are no keywords.
        found["properties"] = {key: strict(one) for key, one in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            found.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        found["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    return found


def _fields(*required: str, **properties: Schema) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _map(values: Schema) -> Schema:
    return {"type": "object", "additionalProperties": values}


_TEXT: Schema = {"type": "string"}
_WHOLE: Schema = {"type": "integer"}
_FLAG: Schema = {"type": "boolean"}
_AMOUNT: Schema = {"anyOf": [_WHOLE, _TEXT], "pattern": _QUANTITY}


def _container() -> Schema:
    amounts = _map(_AMOUNT)
    return _fields(
        "name",
        name=_TEXT,
        image=_TEXT,
        imagePullPolicy=_TEXT,
        command=_list(_TEXT),
        args=_list(_TEXT),
        ports=_list(_fields("containerPort", containerPort=_WHOLE, name=_TEXT)),
        env=_list(
            _fields(
                "name",
                name=_TEXT,
                value=_TEXT,
                valueFrom=_fields(
                    secretKeyRef=_fields("key", name=_TEXT, key=_TEXT),
                    fieldRef=_fields("fieldPath", fieldPath=_TEXT),
                ),
            )
        ),
        resources=_fields(limits=amounts, requests=amounts),
        lifecycle=_fields(preStop=_fields(exec=_fields(command=_list(_TEXT)))),
        securityContext=_fields(
            allowPrivilegeEscalation=_FLAG,
            readOnlyRootFilesystem=_FLAG,
            capabilities=_fields(add=_list(_TEXT), drop=_list(_TEXT)),
            runAsNonRoot=_FLAG,
            runAsUser=_WHOLE,
        ),
        volumeMounts=_list(
            _fields("mountPath", "name", mountPath=_TEXT, name=_TEXT, readOnly=_FLAG)
        ),
    )


def _template() -> Schema:
    pod = _fields(
        "containers",
        restartPolicy=_TEXT,
        terminationGracePeriodSeconds=_WHOLE,
        serviceAccountName=_TEXT,
        automountServiceAccountToken=_FLAG,
        enableServiceLinks=_FLAG,
        imagePullSecrets=_list(_fields(name=_TEXT)),
        nodeSelector=_map(_TEXT),
        securityContext=_fields(
            runAsNonRoot=_FLAG,
            runAsUser=_WHOLE,
            runAsGroup=_WHOLE,
            fsGroup=_WHOLE,
            fsGroupChangePolicy=_TEXT,
            seccompProfile=_fields("type", type=_TEXT),
        ),
        tolerations=_list(_fields(key=_TEXT, operator=_TEXT, value=_TEXT, effect=_TEXT)),
        containers=_list(_container()),
        volumes=_list(
            _fields(
                "name",
                name=_TEXT,
                configMap=_fields(name=_TEXT),
                emptyDir=_fields(medium=_TEXT, sizeLimit=_AMOUNT),
                hostPath=_fields("path", path=_TEXT),
                persistentVolumeClaim=_fields("claimName", claimName=_TEXT, readOnly=_FLAG),
            )
        ),
    )
    return _fields(metadata=_fields(labels=_map(_TEXT), annotations=_map(_TEXT)), spec=pod)


def _cluster() -> Schema:
    return _fields(
        "headGroupSpec",
        rayVersion=_TEXT,
        authOptions=_fields(mode={**_TEXT, "enum": ["disabled", "token"]}, secretName=_TEXT),
        headGroupSpec=_fields(
            "template", serviceType=_TEXT, rayStartParams=_map(_TEXT), template=_template()
        ),
        workerGroupSpecs=_list(
            _fields(
                *("groupName", "maxReplicas", "minReplicas", "template"),
                groupName=_TEXT,
                replicas=_WHOLE,
                minReplicas=_WHOLE,
                maxReplicas=_WHOLE,
                rayStartParams=_map(_TEXT),
                template=_template(),
            )
        ),
    )


BY_HAND = jsonschema.Draft202012Validator(
    _fields(
        apiVersion=_TEXT,
        kind=_TEXT,
        metadata={"type": "object"},
        spec=_fields(
            entrypoint=_TEXT,
            submissionMode=_TEXT,
            suspend=_FLAG,
            shutdownAfterJobFinishes=_FLAG,
            ttlSecondsAfterFinished=_WHOLE,
            backoffLimit=_WHOLE,
            activeDeadlineSeconds=_WHOLE,
            preRunningDeadlineSeconds={"type": "integer", "minimum": 1},
            rayClusterSpec=_cluster(),
        ),
    )
)
"""Exactly the fields of a RayJob that rotescale writes, with KubeRay's types and required ones."""


def faults(validator: jsonschema.Draft202012Validator, document: Any) -> list[str]:
    """What the schema says against the document, each with its place."""
    return [f"{one.json_path}: {one.message[:200]}" for one in validator.iter_errors(document)]


@functools.cache
def kubernetes_validator(kind: str, api_version: str) -> jsonschema.Draft202012Validator:
    """What ``kubernetes_validate.validate`` makes anew, from 2 MB of JSON, at each call."""
    group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api_version)
    schemas = [_kubernetes_schema(f"{kind.lower()}-{group}"), kubernetes_definitions()]
    resources = [referencing.Resource.from_contents(schema) for schema in schemas]
    return jsonschema.Draft202012Validator(schemas[0], registry=resources @ referencing.Registry())


def _kubernetes_schema(name: str) -> Schema:
    folder = f"kubernetes-json-schema/v{KUBERNETES}.0-local-strict"
    found: Schema = schema_contents(f"{folder}/{name}.json", KUBERNETES)
    return found


@functools.cache
def kubernetes_definitions() -> Schema:
    """The definitions that the schemas of Kubernetes' own kinds refer to."""
    return _kubernetes_schema("_definitions")


def check_as_kubernetes_does(document: dict[str, Any]) -> None:
    """Raises where Kubernetes' own strict schema of that kind refuses the document."""
    kubernetes_validator(document["kind"], document["apiVersion"]).validate(document)


def as_pod(template: dict[str, Any]) -> dict[str, Any]:
    """The pod that would be made from a template."""
    metadata = {"name": "a-pod", **template["metadata"]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value below a document."""
    inner: Any = node.items() if isinstance(node, dict) else ()
    for key, value in enumerate(node) if isinstance(node, list) else inner:
        yield (*path, key)
        yield from places(value, (*path, key))


def changed(document: Any, path: tuple[Any, ...], change: Callable[[Any, Any], object]) -> Any:
    """A copy of the document; ``change`` is given what holds the value at ``path``, and its key."""
    copied = copy.deepcopy(document)
    parent = copied
    for step in path[:-1]:
        parent = parent[step]
    change(parent, path[-1])
    return copied
