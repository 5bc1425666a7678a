"""The tests' own Kubernetes API server, as the official client and kubectl see it."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import subprocess
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kuberay_helpers
import pytest
import urllib3
import yaml
from api_server import FOR_EVER, ApiServer, Fault, api_server
from kubernetes import client, config, watch
from kubernetes.client import ApiException

Object = dict[str, Any]
RAY = ("ray.io", "v1", "default", "rayjobs")


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with api_server() as found:
        yield found


@pytest.fixture
def api(server: ApiServer, tmp_path: Path) -> client.ApiClient:
    """The official client, without retries of its own."""
    return connected(server, tmp_path)


def connected(server: ApiServer, folder: Path) -> client.ApiClient:
    settings = client.Configuration()
    config.load_kube_config(
        str(server.kubeconfig(folder / "config")), client_configuration=settings
    )
    settings.retries = urllib3.Retry(0)
    return client.ApiClient(settings)


def spec_map(name: str = "a", **fields: Any) -> Object:
    metadata = {"name": name, **fields.pop("metadata", {})}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, **fields}


def pod(name: str = "a", **metadata: Any) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, **metadata},
        "spec": {"containers": [{"name": "main", "image": "x"}]},
    }


def ray_job() -> Object:
    found = kuberay_helpers.job()
    found["metadata"]["namespace"] = "default"
    return found


def refused(code: int, call: Callable[[], object]) -> Object:
    """The Status with which the server refuses."""
    with pytest.raises(ApiException) as caught:
        call()
    assert caught.value.status == code, caught.value.body
    found: Object = json.loads(caught.value.body)
    return found


def soon(true: Callable[[], object]) -> None:
    """Wait until it holds."""
    until = time.monotonic() + 30
    while not true():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_versions_and_generations(api: client.ApiClient) -> None:
    jobs = client.CustomObjectsApi(api)
    made = jobs.create_namespaced_custom_object(*RAY, ray_job())
    name, metadata = made["metadata"]["name"], made["metadata"]
    assert metadata["generation"] == 1
    assert metadata["uid"]
    assert made["spec"]["rayClusterSpec"]["workerGroupSpecs"][0].get("numOfHosts", 1) == 1
    again = refused(409, lambda: jobs.create_namespaced_custom_object(*RAY, ray_job()))
    assert (again["reason"], again["details"]["name"]) == ("AlreadyExists", name)

    labelled = jobs.patch_namespaced_custom_object(*RAY, name, {"metadata": {"labels": {"a": "b"}}})
    assert labelled["metadata"]["generation"] == 1
    changed = jobs.patch_namespaced_custom_object(*RAY, name, {"spec": {"suspend": False}})
    assert changed["metadata"]["generation"] == 2
    same = jobs.patch_namespaced_custom_object(*RAY, name, {"spec": {"suspend": False}})
    assert same["metadata"]["resourceVersion"] == changed["metadata"]["resourceVersion"]
    stale = refused(409, lambda: jobs.replace_namespaced_custom_object(*RAY, name, labelled))
    assert stale["reason"] == "Conflict"
    assert (
        refused(404, lambda: jobs.get_namespaced_custom_object(*RAY, "b"))["reason"] == "NotFound"
    )


def test_status_is_its_own_resource(api: client.ApiClient) -> None:
    jobs = client.CustomObjectsApi(api)
    document = {**ray_job(), "status": {"jobStatus": "SUCCEEDED"}}
    made = jobs.create_namespaced_custom_object(*RAY, document)
    assert "status" not in made
    name = made["metadata"]["name"]
    change = {"status": {"jobStatus": "RUNNING"}, "spec": {"suspend": False}}
    told = jobs.patch_namespaced_custom_object_status(*RAY, name, change)
    assert told["status"]["jobStatus"] == "RUNNING"
    assert told["spec"]["suspend"] is True
    assert told["metadata"]["generation"] == 1
    other = jobs.patch_namespaced_custom_object(*RAY, name, {"status": {"jobStatus": "FAILED"}})
    assert other["status"]["jobStatus"] == "RUNNING"


def test_the_definition_is_held_to(api: client.ApiClient) -> None:
    jobs = client.CustomObjectsApi(api)
    wrong = ray_job()
    wrong["spec"]["backoffLimit"] = "many"
    del wrong["spec"]["rayClusterSpec"]["headGroupSpec"]
    said = refused(422, lambda: jobs.create_namespaced_custom_object(*RAY, wrong))
    causes = {one["field"]: one["reason"] for one in said["details"]["causes"]}
    assert causes == {
        "spec.backoffLimit": "FieldValueTypeInvalid",
        "spec.rayClusterSpec.headGroupSpec": "FieldValueRequired",
    }
    unknown = ray_job()
    unknown["spec"]["entryPoint"] = "x"
    said = refused(
        400,
        lambda: jobs.create_namespaced_custom_object(*RAY, unknown, field_validation="Strict"),
    )
    assert 'strict decoding error: unknown field "spec.entryPoint"' in said["message"]
    made, _, headers = jobs.create_namespaced_custom_object_with_http_info(*RAY, unknown)
    assert "entryPoint" not in made["spec"]
    assert headers["Warning"] == '299 - "unknown field \\"spec.entryPoint\\""'


def test_a_dry_run_leaves_nothing(server: ApiServer, api: client.ApiClient) -> None:
    jobs = client.CustomObjectsApi(api)
    version = server.store.version
    made = jobs.create_namespaced_custom_object(*RAY, ray_job(), dry_run="All")
    assert made["metadata"]["uid"]
    wrong = ray_job()
    wrong["spec"]["suspend"] = "yes"
    refused(422, lambda: jobs.create_namespaced_custom_object(*RAY, wrong, dry_run="All"))
    assert server.store.version == version
    assert server.list("rayjobs") == []


def test_immutable_maps_and_other_refusals(server: ApiServer, api: client.ApiClient) -> None:
    core = client.CoreV1Api(api)
    core.create_namespaced_config_map("default", spec_map(immutable=True, data={"a": "1"}))
    change = {"data": {"a": "2"}}
    said = refused(422, lambda: core.patch_namespaced_config_map("a", "default", change))
    assert "field is immutable when `immutable` is set" in said["message"]
    refused(422, lambda: core.create_namespaced_config_map("default", spec_map("A_b")))
    refused(404, lambda: core.create_namespaced_config_map("nowhere", spec_map()))
    maps = f"{server.url}/api/v1/namespaces/default/configmaps"
    assert urllib3.request("POST", maps, json=spec_map("b", data={"a": 1})).status == 400
    server.denied.add("create secrets")
    secret = {"metadata": {"name": "s"}, "data": {}}
    assert refused(403, lambda: core.create_namespaced_secret("default", secret))["details"] == {
        "kind": "secrets"
    }
    reviews = client.AuthorizationV1Api(api)
    for verb, allowed in (("create", False), ("get", True)):
        asked = {"spec": {"resourceAttributes": {"verb": verb, "resource": "secrets"}}}
        assert reviews.create_self_subject_access_review(asked).status.allowed is allowed


def test_selectors_and_pages(server: ApiServer, api: client.ApiClient) -> None:
    core = client.CoreV1Api(api)
    for number in range(5):
        server.create(pod(f"p{number}", labels={"odd": str(number % 2), "run": "a"}))
    server.set_status("pods", "p3", {"phase": "Running"})

    def names(**selectors: Any) -> str:
        items = core.list_namespaced_pod("default", **selectors).items
        return "".join(one.metadata.name[1:] for one in items)

    assert names(label_selector="odd=1,run") == "13"
    assert names(label_selector="odd notin (1), run in (a, b)") == "024"
    assert names(label_selector="odd!=1") == "024"
    assert names(label_selector="!odd") == ""
    assert names(field_selector="status.phase=Running") == "3"
    assert names(field_selector="metadata.name!=p3,status.phase!=Running") == "0124"
    refused(400, lambda: names(field_selector="spec.image=x"))
    page = core.list_namespaced_pod("default", limit=2)
    assert page.metadata.remaining_item_count == 3
    rest = core.list_namespaced_pod("default", _continue=page.metadata._continue)
    assert [one.metadata.name for one in rest.items] == ["p2", "p3", "p4"]
    server.compact()
    server.create(pod("q"))
    server.compact()
    refused(410, lambda: core.list_namespaced_pod("default", _continue=page.metadata._continue))
    refused(504, lambda: core.list_namespaced_pod("default", resource_version="1000"))


def test_watches(server: ApiServer, api: client.ApiClient) -> None:
    core = client.CoreV1Api(api)
    server.create(pod("a", labels={"run": "x"}))
    since = core.list_namespaced_pod("default").metadata.resource_version
    seen: list[tuple[str, str]] = []

    def look() -> None:
        stream = watch.Watch().stream(
            core.list_namespaced_pod,
            "default",
            label_selector="run=x",
            resource_version=since,
            timeout_seconds=30,
        )
        for event in stream:
            seen.append((event["type"], event["object"].metadata.name))
            if len(seen) == 4:
                return

    thread = threading.Thread(target=look)
    thread.start()
    server.create(pod("b", labels={"run": "x"}))
    server.create(pod("c", labels={"run": "y"}))
    server.set_status("pods", "a", {"phase": "Running"})
    server.change("pods", "b", lambda one: one["metadata"]["labels"].update(run="z"))
    server.delete("pods", "a")
    thread.join(30)
    assert seen == [("ADDED", "b"), ("MODIFIED", "a"), ("DELETED", "b"), ("DELETED", "a")]


def test_a_watch_from_too_long_ago(server: ApiServer, api: client.ApiClient) -> None:
    core = client.CoreV1Api(api)
    server.create(pod("a"))
    server.compact()
    old = {"resource_version": "2", "timeout_seconds": 5}
    stream = watch.Watch().stream(core.list_namespaced_pod, "default", **old)
    with pytest.raises(ApiException, match="too old resource version") as caught:
        list(stream)
    assert caught.value.status == 410
    server.faults.add(Fault(path="watch", status=410))
    call = watch.Watch().stream(core.list_namespaced_pod, "default", timeout_seconds=1)
    refused(410, lambda: list(call))
    new = {"resource_version": "5000", "timeout_seconds": 1}
    call = watch.Watch().stream(core.list_namespaced_pod, "default", **new)
    assert refused(504, lambda: list(call))["details"]["causes"]


def test_deletion(server: ApiServer, api: client.ApiClient) -> None:
    core, jobs = client.CoreV1Api(api), client.CustomObjectsApi(api)
    made = jobs.create_namespaced_custom_object(*RAY, ray_job())
    metadata = made["metadata"]
    owner = {"apiVersion": "ray.io/v1", "kind": "RayJob", "controller": True}
    owner |= {"name": metadata["name"], "uid": metadata["uid"]}
    server.create(spec_map("owned", metadata={"ownerReferences": [owner]}))
    server.create(spec_map("free"))
    jobs.patch_namespaced_custom_object(
        *RAY, metadata["name"], {"metadata": {"finalizers": ["ray.io/x"]}}
    )
    jobs.delete_namespaced_custom_object(*RAY, metadata["name"])
    assert server.get("rayjobs", metadata["name"])["metadata"]["deletionTimestamp"]
    assert len(server.list("configmaps")) == 2
    jobs.patch_namespaced_custom_object(*RAY, metadata["name"], {"metadata": {"finalizers": None}})
    soon(lambda: [one["metadata"]["name"] for one in server.list("configmaps")] == ["free"])
    assert server.list("rayjobs") == []

    server.create(pod("a"))
    server.change("pods", "a", lambda one: one["spec"].update(nodeName="node"))
    core.delete_namespaced_pod("a", "default")
    assert server.get("pods", "a")["metadata"]["deletionGracePeriodSeconds"] == 30
    core.delete_namespaced_pod("a", "default", grace_period_seconds=0)
    assert server.list("pods") == []
    wrong = {"preconditions": {"uid": "other"}}
    refused(409, lambda: core.delete_namespaced_config_map("free", "default", body=wrong))
    core.delete_namespace("default")
    soon(lambda: not server.list("configmaps"))


def test_foreground_and_orphans(server: ApiServer, api: client.ApiClient) -> None:
    core = client.CoreV1Api(api)
    for name in ("a", "b"):
        made = server.create(spec_map(name))
        owner = {"apiVersion": "v1", "kind": "ConfigMap", "name": name}
        owner["uid"] = made["metadata"]["uid"]
        server.create(spec_map(f"of-{name}", metadata={"ownerReferences": [owner]}))
    core.delete_namespaced_config_map("a", "default", propagation_policy="Foreground")
    soon(lambda: len(server.list("configmaps")) == 2)
    core.delete_namespaced_config_map("b", "default", propagation_policy="Orphan")
    assert [one["metadata"]["name"] for one in server.list("configmaps")] == ["of-b"]


def test_logs(server: ApiServer, api: client.ApiClient, tmp_path: Path) -> None:
    core = client.CoreV1Api(api)
    file = tmp_path / "log"
    file.write_text("2026-01-01T00:00:00.5Z one\n2026-01-01T00:00:01.5Z two\n")
    server.create(pod())
    server.set_log("a", file)
    assert core.read_namespaced_pod_log("a", "default") == "one\ntwo\n"
    assert core.read_namespaced_pod_log("a", "default", tail_lines=1) == "two\n"
    stamped = core.read_namespaced_pod_log("a", "default", timestamps=True, tail_lines=1)
    assert stamped == "2026-01-01T00:00:01.500000Z two\n"
    url = f"{server.url}/api/v1/namespaces/default/pods/a/log"
    late = urllib3.request("GET", url, fields={"sinceTime": "2026-01-01T00:00:01Z"})
    assert late.data == b"two\n"
    following = watch.Watch().stream(core.read_namespaced_pod_log, "a", "default")
    assert [next(following), next(following)] == ["one", "two"]
    with file.open("a") as log:
        log.write("three\n")
    assert next(following) == "three"
    server.set_status("pods", "a", {"phase": "Succeeded"})
    assert list(following) == []
    server.faults.add(Fault(path="/log", end_after=1))
    assert urllib3.request("GET", url, fields={"follow": "true"}).data == b"one\n"
    state = [{"name": "main", "state": {"waiting": {"reason": "ContainerCreating"}}}]
    server.set_status("pods", "a", {"phase": "Pending", "containerStatuses": state})
    assert (
        "is waiting to start"
        in refused(400, lambda: core.read_namespaced_pod_log("a", "default"))["message"]
    )


def test_faults(server: ApiServer, api: client.ApiClient) -> None:
    core = client.CoreV1Api(api)
    server.create(pod())

    def names() -> list[str]:
        return [one.metadata.name for one in core.list_namespaced_pod("default").items]

    fault = server.faults.add(
        Fault(method="GET", path="/pods$", status=429, retry_after=3, times=2)
    )
    for _ in range(2):
        with pytest.raises(ApiException) as caught:
            names()
        assert caught.value.headers["Retry-After"] == "3"
    assert names() == ["a"]
    assert fault.hits == 2
    server.faults.add(Fault(path="/pods", cut_after=10))
    with pytest.raises((urllib3.exceptions.HTTPError, http.client.IncompleteRead)):
        names()
    server.faults.add(Fault(method="POST", lost=True))
    with pytest.raises(urllib3.exceptions.HTTPError):
        core.create_namespaced_config_map("default", spec_map())
    assert server.get("configmaps", "a")
    server.faults.add(Fault(path="watch", end_after=1, error_event=410))
    stream = watch.Watch().stream(core.list_namespaced_pod, "default", timeout_seconds=20)
    assert next(stream)["object"].metadata.name == "a"
    with pytest.raises(ApiException, match="410"):
        next(stream)
    broken = server.faults.add(Fault(status=500, times=FOR_EVER))
    for _ in range(3):
        refused(500, names)
    server.faults.remove(broken)
    with server.down(), pytest.raises(urllib3.exceptions.HTTPError):
        names()
    assert names() == ["a"]
    assert len(server.asked("POST", "/configmaps$")) == 1


def test_tokens_over_tls(tmp_path: Path) -> None:
    with api_server(tls=True, token="right") as server:
        core = client.CoreV1Api(connected(server, tmp_path))
        assert core.list_namespaced_pod("default").items == []
        server.token = "another"
        assert refused(401, lambda: core.list_namespaced_pod("default"))["reason"] == "Unauthorized"
        with pytest.raises(urllib3.exceptions.HTTPError, match="CERTIFICATE_VERIFY_FAILED"):
            urllib3.request("GET", f"{server.url}/version", retries=False)


def test_a_cluster_without_kueue(tmp_path: Path) -> None:
    with api_server(kueue=False) as server:
        api = connected(server, tmp_path)
        groups = [one.name for one in client.ApisApi(api).get_api_versions().groups]
        assert "ray.io" in groups
        assert "kueue.x-k8s.io" not in groups
        names = [
            one.metadata.name
            for one in client.ApiextensionsV1Api(api).list_custom_resource_definition().items
        ]
        assert names == ["rayclusters.ray.io", "rayjobs.ray.io"]
        queues = ("kueue.x-k8s.io", "v1beta2", "default", "localqueues")
        jobs = client.CustomObjectsApi(api)
        refused(404, lambda: jobs.list_namespaced_custom_object(*queues))


def test_strategic_and_json_patches(server: ApiServer, api: client.ApiClient) -> None:
    core = client.CoreV1Api(api)
    server.create(pod())
    url = f"{server.url}/api/v1/namespaces/default/pods/a"
    change = {"spec": {"containers": [{"name": "main", "image": "y"}]}}
    merged = urllib3.request(
        "PATCH",
        url,
        body=json.dumps(change),
        headers={"Content-Type": "application/strategic-merge-patch+json"},
    ).json()
    assert merged["spec"]["containers"] == [{"name": "main", "image": "y"}]
    operations = [
        {"op": "test", "path": "/metadata/name", "value": "a"},
        {"op": "add", "path": "/metadata/labels", "value": {"a/b": "c"}},
        {"op": "replace", "path": "/metadata/labels/a~1b", "value": "d"},
    ]
    assert core.patch_namespaced_pod("a", "default", operations).metadata.labels == {"a/b": "d"}
    bad = [{"op": "test", "path": "/metadata/name", "value": "b"}]
    refused(422, lambda: core.patch_namespaced_pod("a", "default", bad))
    server.create(ray_job())
    path = f"{server.url}/apis/ray.io/v1/namespaces/default/rayjobs/{ray_job()['metadata']['name']}"
    answer = urllib3.request(
        "PATCH",
        path,
        body="{}",
        headers={"Content-Type": "application/strategic-merge-patch+json"},
    )
    assert answer.status == 415


def test_who_has_set_what(server: ApiServer) -> None:
    def apply(manager: str, document: Object, *, force: bool = False) -> tuple[int, Object]:
        url = f"{server.url}/api/v1/namespaces/default/configmaps/a"
        answer = urllib3.request(
            "PATCH",
            f"{url}?fieldManager={manager}&force={str(force).lower()}",
            body=json.dumps(document),
            headers={"Content-Type": "application/apply-patch+yaml"},
        )
        return answer.status, answer.json()

    status, made = apply("one", spec_map(data={"a": "1", "b": "2"}))
    assert status == 201
    version = made["metadata"]["resourceVersion"]
    status, same = apply("one", spec_map(data={"a": "1", "b": "2"}))
    assert (status, same["metadata"]["resourceVersion"]) == (200, version)
    assert apply("two", spec_map(data={"c": "3"}))[1]["data"] == {"a": "1", "b": "2", "c": "3"}
    status, said = apply("two", spec_map(data={"a": "9"}))
    assert status == 409
    assert said["details"]["causes"] == [
        {"reason": "FieldManagerConflict", "message": 'conflict with "one"', "field": ".data.a"}
    ]
    assert apply("two", spec_map(data={"a": "9"}), force=True)[1]["data"] == {"a": "9", "b": "2"}
    assert apply("one", spec_map())[1]["data"] == {"a": "9"}


@pytest.fixture
def kubectl(server: ApiServer, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    program = shutil.which("kubectl")
    if program is None:
        reason = "kubectl is not installed (on Debian: apt-get install kubernetes-client)"
        warnings.warn(f"NOT RUN, the API server as kubectl sees it: {reason}", stacklevel=1)
        pytest.skip(reason)
    settings = str(server.kubeconfig(tmp_path / "config"))
    environment = {**os.environ, "KUBECONFIG": settings, "HOME": str(tmp_path)}

    def run(*arguments: str, document: Any = None) -> subprocess.CompletedProcess[str]:
        listed = document if isinstance(document, list) else [document]
        return subprocess.run(
            [program, *arguments, *(("-f", "-") if document else ())],
            input=yaml.safe_dump_all(listed) if document else "",
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


def test_kubectl_applies_diffs_gets_and_deletes(
    server: ApiServer, kubectl: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    job = ray_job()
    name = job["metadata"]["name"]
    both = [spec_map(metadata={"namespace": "default"}, data={"a": "1"}), job]
    new = kubectl("diff", document=both)
    assert new.returncode == 1, new.stderr
    assert f"+  name: {name}" in new.stdout
    assert server.list("rayjobs") == []
    made = kubectl("apply", document=both)
    assert made.stdout == f"configmap/a created\nrayjob.ray.io/{name} created\n", made.stderr
    assert kubectl("diff", document=both).returncode == 0
    job["spec"]["backoffLimit"] = 9
    changed = kubectl("diff", document=both)
    assert (changed.returncode, "+  backoffLimit: 9" in changed.stdout) == (1, True)
    assert server.get("rayjobs", name)["spec"]["backoffLimit"] == 3
    applied = kubectl("apply", document=both)
    assert applied.returncode == 0, applied.stderr
    assert server.get("rayjobs", name)["spec"]["backoffLimit"] == 9
    server.set_status("rayjobs", name, {"jobStatus": "RUNNING"})
    listed = kubectl("get", "rayjobs")
    assert "RUNNING" in listed.stdout, listed.stderr
    found = kubectl("get", "rayjob", name, "-o", "jsonpath={.status.jobStatus}")
    assert found.stdout == "RUNNING"
    job["spec"]["nonsense"] = True
    refused_one = kubectl("apply", document=job)
    assert 'unknown field "spec.nonsense"' in refused_one.stderr
    gone = kubectl("delete", "rayjob", name)
    assert gone.returncode == 0, gone.stderr
    assert server.list("rayjobs") == []


def test_kubectl_applies_on_the_server(
    server: ApiServer, kubectl: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    job = ray_job()
    made = kubectl("apply", "--server-side", document=job)
    assert made.returncode == 0, made.stderr
    version = server.get("rayjobs", job["metadata"]["name"])["metadata"]["resourceVersion"]
    same = kubectl("diff", "--server-side", document=job)
    assert (same.returncode, same.stdout) == (0, ""), same.stdout + same.stderr
    kubectl("apply", "--server-side", document=job)
    found = server.get("rayjobs", job["metadata"]["name"])
    assert found["metadata"]["resourceVersion"] == version
    assert found["metadata"]["managedFields"][0]["operation"] == "Apply"
    job["spec"]["backoffLimit"] = 9
    changed = kubectl("diff", "--server-side", document=job)
    assert (changed.returncode, "+  backoffLimit: 9" in changed.stdout) == (1, True)
    assert kubectl("logs", "nobody").stderr.startswith("error: error from server (NotFound)")
    deleted = kubectl("delete", document=job)
    assert deleted.returncode == 0, deleted.stderr
