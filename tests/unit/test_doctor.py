"""Doctor: a line is ok where all is well, and else names the remedy; looking changes nothing."""

from __future__ import annotations

import copy
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import api_schemas
import pytest
import yaml
from api_kinds import RAYJOBS
from api_server import ApiServer, api_server
from kuberay_helpers import FULL, experiment
from kuberay_schema import ROOT, check_as_kubernetes_does, ray_job_schema

from launcher import cli
from launcher.doctor import Check, answer_of, inside_checks, room_check
from launcher.kuberay import doctor
from launcher.kuberay.cluster import KubernetesCluster
from launcher.kuberay.doctor import (
    NEEDED,
    NEEDED_TO_PROBE,
    NEEDED_WITH_QUEUE,
    kuberay_checks,
)
from launcher.kuberay.launcher import KubeRayLauncher
from launcher.kuberay.names import job_name
from launcher.kuberay.pods import probe_pod
from rotescale.errors import SpecError
from rotescale.kuberay_spec import RAY_VERSION
from rotescale.launch_spec import LaunchSpec
from rotescale.probe import MARK, PACKAGES, probe, visible_gpus
from rotescale.spec_file import parse_spec

Object = dict[str, Any]
NAMESPACE = "research"
FOUND: Object = {
    "python": "3.11.9",
    "names": None,
    "versions": dict.fromkeys(PACKAGES, "1.0") | {"ray": RAY_VERSION},
    "storage": "",
    "model_cache": "",
    "shared_memory": 1 << 30,
    "gpus": 8,
}


def place() -> LaunchSpec:
    fields = copy.deepcopy(FULL)
    fields["kuberay"]["context"] = None
    return parse_spec(LaunchSpec, fields, where="place.yaml")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    """A cluster on which nothing is wrong."""
    with api_server() as found:
        monkeypatch.setenv("KUBECONFIG", str(found.kubeconfig(tmp_path / "kubeconfig")))
        found.namespace(NAMESPACE)
        for claim, modes in (("checkpoints", ["ReadWriteMany"]), ("models", ["ReadOnlyMany"])):
            found.create(
                {
                    **{"apiVersion": "v1", "kind": "PersistentVolumeClaim"},
                    "metadata": {"name": claim, "namespace": NAMESPACE},
                    "spec": {"accessModes": modes},
                },
                status={"phase": "Bound"},
            )
        for kind, name in (
            *(("Secret", "hub"), ("Secret", "registry"), ("Secret", "ray-token")),
            ("ServiceAccount", "rotescale-run"),
        ):
            found.create(
                {
                    **{"apiVersion": "v1", "kind": kind},
                    "metadata": {"name": name, "namespace": NAMESPACE},
                }
            )
        found.create(
            {
                **{"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "LocalQueue"},
                "metadata": {"name": "research", "namespace": NAMESPACE},
                "spec": {"clusterQueue": "all"},
            },
            status={"conditions": [condition("Active", "True")], "pendingWorkloads": 3},
        )
        found.create(
            {
                **{"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "WorkloadPriorityClass"},
                "metadata": {"name": "high"},
                "value": 100,
            }
        )
        for document in behind_the_queue():
            found.create(document)
        for number in range(4):
            add_node(found, f"gpu-{number}")
        add_node(found, "cpu", labels={"pool": "cpu"}, **{"nvidia.com/gpu": "0"})
        yield found


def behind_the_queue(*, level: str = "example.com/rail") -> list[Object]:
    """What Kueue has of the whole cluster: a queue of two flavors, one of them with a topology."""

    def kueue(kind: str, name: str, **spec: Any) -> Object:
        head = {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": kind}
        return {**head, "metadata": {"name": name}, "spec": spec}

    flavors = [{"name": "cpu"}, {"name": "h100"}]
    return [
        kueue("Topology", "racks", levels=[{"nodeLabel": level}]),
        kueue("ResourceFlavor", "cpu"),
        kueue("ResourceFlavor", "h100", topologyName="racks"),
        kueue("ClusterQueue", "all", resourceGroups=[{"flavors": flavors}]),
    ]


H100 = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}


def add_node(
    server: ApiServer,
    name: str,
    *,
    labels: dict[str, str] = H100,
    taints: tuple[Object, ...] = (),
    **changes: str,
) -> None:
    """A node with 8 GPUs, or with other amounts of what ``changes`` names."""
    amounts = {"cpu": "191500m", "memory": "2000Gi", "nvidia.com/gpu": "8", **changes}
    server.create(
        {
            **{"apiVersion": "v1", "kind": "Node", "spec": {"taints": list(taints)}},
            "metadata": {"name": name, "labels": labels},
        },
        status={"allocatable": amounts},
    )


def condition(kind: str, status: str, message: str = "") -> Object:
    return {
        **{"type": kind, "status": status, "reason": "Ready", "message": message},
        "lastTransitionTime": "2026-11-27T10:00:00Z",
    }


def cluster() -> KubernetesCluster:
    return KubernetesCluster(None, NAMESPACE, patience_seconds=10, sleep=lambda _: None)


def look(launch: LaunchSpec | None = None, *, with_probe: bool = False) -> dict[str, Check]:
    found = kuberay_checks(
        launch or place(),
        with_probe=with_probe,
        cluster=cluster(),
        sleep=lambda _: time.sleep(0.02),
    )
    return {check.name: check for check in found}


def test_a_cluster_in_order_and_nothing_is_changed_by_looking(server: ApiServer) -> None:
    found = look()
    assert {check.name for check in found.values() if check.verdict != "ok"} == {"inside"}
    assert found["nodes"].words.startswith("4 of 4 nodes with the labels hold a pod of 96 cores")
    assert found["queue"].words == "research, 3 workload(s) wait in it"
    asked = {(one.method, one.path.rpartition("/")[2]) for one in server.requests}
    assert found["topology"].words == "example.com/rail is a level of racks"
    posted = {path for method, path in asked if method != "GET"}
    assert posted == {"selfsubjectaccessreviews", "rayjobs"}
    assert server.list("rayjobs", namespace=NAMESPACE) == []


def test_a_crd_that_lacks_a_field_is_found_by_a_trial(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = copy.deepcopy(ray_job_schema())
    del old["properties"]["spec"]["properties"]["rayClusterSpec"]["properties"]["authOptions"]
    known = api_schemas._schema
    monkeypatch.setattr(api_schemas, "_schema", lambda k: old if k is RAYJOBS else known(k))
    check = look()["RayJob"]
    assert check.verdict == "fail"
    assert 'unknown field "spec.rayClusterSpec.authOptions"' in check.words
    assert "kubectl apply --server-side" in check.remedy


def test_a_place_that_breaks_a_rule_is_told_by_the_trial(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise SpecError("RayJob: ttlSecondsAfterFinished goes with shutdownAfterJobFinishes")

    monkeypatch.setattr(doctor, "render", refuse)
    assert look()["RayJob"].remedy == "correct the launch spec"


def replace_claim(server: ApiServer, **spec: Any) -> None:
    server.delete("persistentvolumeclaims", "checkpoints", namespace=NAMESPACE)
    server.create(
        {
            **{"apiVersion": "v1", "kind": "PersistentVolumeClaim"},
            "metadata": {"name": "checkpoints", "namespace": NAMESPACE},
            "spec": spec,
        },
        status={"phase": "Bound"},
    )


Break = Callable[[ApiServer], object]
BROKEN: list[tuple[str, Break, str, str, str]] = [
    (
        "no KubeRay",
        lambda s: s.delete("customresourcedefinitions", "rayjobs.ray.io", namespace=""),
        *("KubeRay", "fail", "install KubeRay 1.7"),
    ),
    (
        "no queue",
        lambda s: s.delete("localqueues", "research", namespace=NAMESPACE),
        *("queue", "fail", "create it (k8s/kueue"),
    ),
    (
        "a queue that admits nothing",
        lambda s: s.set_status(
            "localqueues",
            "research",
            {"conditions": [condition("Active", "False", "ClusterQueue all is missing")]},
            namespace=NAMESPACE,
        ),
        *("queue", "fail", "kubectl describe clusterqueue"),
    ),
    (
        "no priority class",
        lambda s: s.delete("workloadpriorityclasses", "high", namespace=""),
        *("WorkloadPriorityClass high", "fail", "kuberay.priority"),
    ),
    (
        "no ClusterQueue behind it",
        lambda s: s.delete("clusterqueues", "all", namespace=""),
        *("flavors", "fail", "correct the LocalQueue"),
    ),
    (
        "a flavor that is not there",
        lambda s: s.delete("resourceflavors", "cpu", namespace=""),
        *("flavors", "fail", "create it (k8s/kueue"),
    ),
    (
        "flavors that may not be read",
        lambda s: s.denied.add("get resourceflavors"),
        *("flavors", "warn", "whoever runs the cluster"),
    ),
    (
        "no topology",
        lambda s: s.delete("topologies", "racks", namespace=""),
        *("topology", "fail", "kuberay.topology.level"),
    ),
    (
        "a topology of other levels",
        lambda s: [
            s.delete("topologies", "racks", namespace=""),
            s.create(behind_the_queue(level="example.com/row")[0]),
        ],
        *("topology", "fail", "kuberay.topology.level"),
    ),
    (
        "a right that is missing",
        lambda s: s.denied.add("create rayjobs"),
        *("rights", "fail", "k8s/base/rbac.yaml"),
    ),
    (
        "no claim",
        lambda s: s.delete("persistentvolumeclaims", "models", namespace=NAMESPACE),
        *("claim models", "fail", "create it"),
    ),
    (
        "a claim for one node",
        lambda s: replace_claim(s, accessModes=["ReadWriteOnce"]),
        *("claim checkpoints", "fail", "ReadWriteMany, such as NFS"),
    ),
    (
        "no account",
        lambda s: s.delete("serviceaccounts", "rotescale-run", namespace=NAMESPACE),
        *("ServiceAccount rotescale-run", "fail", "kuberay.service_account"),
    ),
    (
        "no secret",
        lambda s: s.delete("secrets", "hub", namespace=NAMESPACE),
        *("Secret hub", "fail", "create it"),
    ),
    (
        "a secret that may not be read",
        lambda s: s.denied.add("get secrets"),
        *("Secret hub", "warn", "as it should be for secrets"),
    ),
    (
        "queues that may not be read",
        lambda s: s.denied.add("get localqueues"),
        *("queue", "warn", "k8s/base/rbac.yaml"),
    ),
    (
        "claims that may not be read",
        lambda s: s.denied.add("get persistentvolumeclaims"),
        *("claims", "warn", "k8s/base/rbac.yaml"),
    ),
    (
        "nodes that are too small",
        lambda s: [s.delete("nodes", f"gpu-{n}", namespace="") for n in range(3)],
        *("nodes", "warn", "made on demand"),
    ),
    (
        "nodes that may not be listed",
        lambda s: s.denied.add("list nodes"),
        *("nodes", "warn", "whoever runs the cluster"),
    ),
]


@pytest.mark.parametrize(
    ("spoil", "name", "verdict", "remedy"),
    [case[1:] for case in BROKEN],
    ids=[case[0] for case in BROKEN],
)
def test_what_is_wrong_is_named_with_its_remedy(
    server: ApiServer, spoil: Break, name: str, verdict: str, remedy: str
) -> None:
    spoil(server)
    found = look()
    check = found[name]
    assert check.verdict == verdict
    assert remedy in check.remedy
    assert check.words
    assert {"rights", "nodes", "inside"} <= found.keys(), "the other lines are there all the same"


def test_a_probe_that_is_not_allowed_is_a_line_of_its_own(server: ApiServer) -> None:
    server.denied.add("create pods")
    found = look(with_probe=True)
    assert "may not create pods in research" in found["rights"].words
    assert found["inside"].verdict == "fail"
    assert "this account may not do what it takes to look" in found["inside"].words
    assert found["nodes"].verdict == "ok"


TAINT = {"key": "dedicated", "value": "others", "effect": "NoSchedule"}
Nodes = list[dict[str, Any]]


@pytest.mark.parametrize(
    ("changes", "nodes", "check", "verdict", "words"),
    [
        (
            {"fabric": {"kind": "infiniband"}},
            [{}] * 4,
            *("nodes", "warn", "none has 1 rdma/ib, the most is 0 rdma/ib; room for 0, 4 wanted"),
        ),
        (
            {"fabric": {"kind": "infiniband"}},
            [{"rdma/ib": "1"}] * 4,
            *("nodes", "ok", "8 nvidia.com/gpu, 1 rdma/ib; room for 4, 4 wanted"),
        ),
        (
            {"fabric": {"kind": "efa"}},
            [{"vpc.amazonaws.com/efa": "32", "hugepages-2Mi": "5120Mi"}] * 3
            + [{"vpc.amazonaws.com/efa": "32", "hugepages-2Mi": "4Gi"}],
            *("nodes", "warn", "3 of 4 nodes with the labels"),
        ),
        # The daemon beside the workers takes 4 cores.
        (
            {"fabric": {"kind": "tcpxo"}},
            [{"cpu": "99"}] * 4,
            *("nodes", "warn", "none has 100 cores, the most is 99 cores"),
        ),
        ({"fabric": {"kind": "tcpxo"}}, [{"cpu": "100"}] * 4, *("nodes", "ok", "of 100 cores")),
        ({}, [{"taints": (TAINT,)}] * 4, *("nodes", "warn", "does not tolerate (dedicated)")),
        (
            {},
            [{"taints": ({**TAINT, "key": "nvidia.com/gpu"},)}] * 4,
            *("nodes", "ok", "4 of 4 nodes"),
        ),
        # KubeRay's own container is beside the head's.
        (
            {},
            [{}] * 4 + [{"labels": {"pool": "cpu"}, "cpu": "4"}],
            "head's node",
            "warn",
            "4.5 cor",
        ),
        (
            {},
            [{}] * 4 + [{"labels": {"pool": "cpu"}, "cpu": "4500m"}],
            "head's node",
            "ok",
            "1 of 1",
        ),
        (
            {},
            [{}] * 4,
            "head's node",
            "warn",
            "0 of 0 nodes with the labels hold a pod of 4.5 cores",
        ),
        (
            {"head": {"cpus": 4, "memory": "16Gi"}},
            [{"cpu": "100"}] * 4,
            *("head's node", "warn", "beside it there is room for 3 of their pods; 4 are wanted"),
        ),
        (
            {"head": {"cpus": 4, "memory": "16Gi"}},
            [{"cpu": "101"}] * 4,
            "head's node",
            "ok",
            "4 of 4",
        ),
        # More than one pod fits on a node.
        (
            {"workers": {"per_node": 8, "cpus": 32, "memory": "64Gi", "shared_memory": "1Gi"}},
            [{"nvidia.com/gpu": "16"}] * 2,
            *("nodes", "ok", "2 of 2 nodes with the labels hold a pod of 32 cores"),
        ),
    ],
)
def test_nodes_must_hold_all_that_the_rendered_pods_ask_for(
    server: ApiServer, changes: Object, nodes: Nodes, check: str, verdict: str, words: str
) -> None:
    for node in server.list("nodes"):
        server.delete("nodes", node["metadata"]["name"], namespace="")
    for number, node in enumerate(nodes):
        add_node(server, f"node-{number}", **node)
    fields = copy.deepcopy(FULL)
    fields["kuberay"] |= {"context": None, **changes}
    found = look(parse_spec(LaunchSpec, fields, where="place.yaml"))[check]
    assert found.verdict == verdict, found
    assert words in found.words
    assert bool(found.remedy) == (verdict != "ok")


def test_without_kueue_its_absence_is_said(server: ApiServer) -> None:
    with api_server(kueue=False) as other:
        other.namespace(NAMESPACE)
        found = {
            check.name: check
            for check in kuberay_checks(
                place(),
                with_probe=False,
                cluster=KubernetesCluster(
                    None, NAMESPACE, client=connected(other), patience_seconds=1
                ),
            )
        }
    assert found["Kueue"].verdict == found["queue"].verdict == "fail"


def connected(server: ApiServer) -> Any:
    from kubernetes import client

    settings = client.Configuration()
    settings.host = server.url
    return client.ApiClient(settings)


def answer(server: ApiServer, folder: Path, text: str) -> None:
    """Let the probe's pod print that, and end."""
    path = folder / "log"
    path.write_text(text)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for pod in server.list("pods", namespace=NAMESPACE):
            name = pod["metadata"]["name"]
            server.set_log(name, path, container="probe", namespace=NAMESPACE)
            server.set_status("pods", name, {"phase": "Succeeded"}, namespace=NAMESPACE)
            return
        time.sleep(0.02)


def test_a_pod_tells_what_is_inside_and_is_removed(server: ApiServer, tmp_path: Path) -> None:
    line = f"hello\n{MARK}{json.dumps(FOUND | {'storage': 'Permission denied'})}\n"
    threading.Thread(target=answer, args=(server, tmp_path, line)).start()
    found = look(with_probe=True)
    assert found["image"].verdict == "ok"
    assert found["storage"] == Check(
        "storage",
        "fail",
        "/checkpoints/runs: Permission denied",
        "give the workers' user write access, or name another place",
    )
    assert server.list("pods", namespace=NAMESPACE) == []


def test_an_image_that_cannot_be_pulled(server: ApiServer) -> None:
    def refuse() -> None:
        while not (pods := server.list("pods", namespace=NAMESPACE)):
            time.sleep(0.02)
        waiting = {"reason": "ImagePullBackOff", "message": "not found"}
        state = {"name": "probe", "state": {"waiting": waiting}}
        status = {"phase": "Pending", "containerStatuses": [state]}
        server.set_status("pods", pods[0]["metadata"]["name"], status, namespace=NAMESPACE)

    threading.Thread(target=refuse).start()
    found = look(with_probe=True)
    assert found["inside"].verdict == "fail"
    assert "ImagePullBackOff: not found" in found["inside"].words
    assert server.list("pods", namespace=NAMESPACE) == []


def test_the_probes_pod_is_as_safe_as_a_runs() -> None:
    launch = place()
    assert launch.kuberay is not None
    pod = probe_pod(launch.kuberay, name="probe", launch='{"storage": "$(HOME)"}')
    check_as_kubernetes_does(pod)
    (container,) = pod["spec"]["containers"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    folders = {one["mountPath"] for one in container["volumeMounts"]}
    assert {"/tmp", "/home/rotescale", "/local"} <= folders
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert pod["spec"]["automountServiceAccountToken"] is False
    values = {one["name"]: one.get("value") for one in container["env"]}
    assert values["ROTESCALE_PROBE"] == '{"storage": "$$(HOME)"}'


def allowed_by_the_role() -> set[tuple[str, str, str]]:
    """Verb, group and resource of all that the role of ``k8s/base`` allows."""
    documents = yaml.safe_load_all((ROOT / "k8s" / "base" / "rbac.yaml").read_text())
    (role,) = [one for one in documents if one["kind"] == "Role"]
    return {
        (verb, group, resource)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_the_role_allows_what_is_needed_and_nothing_else() -> None:
    needed = {
        (verb, "" if kind.group == "v1" else kind.group.partition("/")[0], kind.plural)
        for verb, kind in (*NEEDED, *NEEDED_WITH_QUEUE, *NEEDED_TO_PROBE)
    }
    of_doctor = {
        ("get", "", "persistentvolumeclaims"),
        ("get", "", "serviceaccounts"),
        ("get", "kueue.x-k8s.io", "localqueues"),
    }
    of_kubectl_apply = {("get", "", "configmaps"), ("patch", "ray.io", "rayjobs")}
    assert allowed_by_the_role() == needed | of_doctor | of_kubectl_apply


def test_the_role_is_enough_for_the_life_of_a_run(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed = {(verb, resource) for verb, _, resource in allowed_by_the_role()}
    monkeypatch.setattr(server, "may", lambda verb, resource: (verb, resource) in allowed)
    line = f"{MARK}{json.dumps(FOUND)}\n"
    threading.Thread(target=answer, args=(server, tmp_path, line)).start()
    found = look(with_probe=True)
    assert {check.name for check in found.values() if check.verdict == "fail"} == set()
    assert found["rights"].verdict == "ok"
    launch, spec = place(), experiment()
    name = job_name(spec.name, storage=launch.storage)
    launcher = KubeRayLauncher(launch, name, cluster=cluster(), sleep=lambda _: time.sleep(0.02))
    launcher.check(spec)
    assert launcher.submit(spec, retry=False)
    (spec_map,) = server.list("configmaps", namespace=NAMESPACE)
    assert spec_map["metadata"]["ownerReferences"]
    assert launcher.differences(spec) == []
    for name in ("queue", "RayJob"):
        assert name in dict(launcher.look().layers)
    assert launcher.logs(num_lines=5) == []
    assert launcher.cancel(grace_seconds=1)


@pytest.mark.parametrize(
    ("change", "name", "verdict"),
    [
        ({}, "packages", "ok"),
        ({"versions": FOUND["versions"] | {"deepspeed": None}}, "packages", "fail"),
        ({"versions": FOUND["versions"] | {"ray": "2.9.0"}}, "Ray", "fail"),
        ({"model_cache": "OSError: read-only"}, "model_cache", "fail"),
        ({"shared_memory": 1 << 20}, "/dev/shm", "warn"),
        ({"names": ""}, "DNS", "ok"),
        ({"names": "kubernetes.default.svc: Try again"}, "DNS", "fail"),
        ({"gpus": 2}, "GPUs", "ok"),
        ({"gpus": 1}, "GPUs", "fail"),
    ],
)
def test_what_a_probe_found_is_judged(change: Object, name: str, verdict: str) -> None:
    launch = LaunchSpec(num_workers=(2, 2), gpus_per_worker=1)
    checks = inside_checks(FOUND | change, launch, ray_version=RAY_VERSION)
    assert {check.name: check.verdict for check in checks}[name] == verdict


def test_gpus_are_counted_by_their_device_files(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia1", "nvidia10", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).write_text("")
    assert visible_gpus(tmp_path, None) == ["0", "1", "2"]
    visible = {"": 0, "-1": 0, "0": 1, "1,0": 2, "0,-1,1": 1, "0,1,2,3": 3}
    assert {one: len(visible_gpus(tmp_path, one)) for one in visible} == visible


@pytest.mark.parametrize(
    ("nodes", "verdict", "words"),
    [
        ([{"CPU": 8.0, "GPU": 1.0}] * 4, "ok", "4 with 32 CPUs and 4 GPUs have room for 4 workers"),
        ([{"CPU": 64.0, "GPU": 4.0}], "ok", "room for 4 workers of 8 CPU(s) and 1 GPU"),
        ([{"CPU": 8.0, "GPU": 1.0}] * 3, "warn", "4 are wanted, 2 at least"),
        # Not one of eight: no node has the cores that a worker takes.
        ([{"CPU": 4.0, "GPU": 1.0}] * 8, "fail", "room for 0 workers"),
        ([{"CPU": 64.0}] * 4, "fail", "0 GPUs have room for 0 workers"),
        ([], "fail", "0 with 0 CPUs"),
    ],
)
def test_workers_must_fit_on_nodes(nodes: list[dict[str, float]], verdict: str, words: str) -> None:
    launch = LaunchSpec(num_workers=(2, 4), cpus_per_worker=8, gpus_per_worker=1)
    check = room_check(nodes, launch)
    assert check.verdict == verdict
    assert words in check.words
    assert (check.remedy == "") == (verdict == "ok")


def test_an_answer_is_found_among_other_lines() -> None:
    assert answer_of(["x", f"(pid=1) {MARK}{{}}", "y"]) == {}
    assert answer_of(["x", "Traceback"]) is None


def test_a_probe_of_this_machine(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    found = probe(LaunchSpec(storage=str(tmp_path / "runs"), model_cache=str(file)))
    assert found["storage"] == ""
    assert "file" in found["model_cache"]
    assert found["versions"]["ray"] == RAY_VERSION
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_probe_in_a_pod_asks_for_a_name_of_the_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = LaunchSpec(storage=str(tmp_path / "runs"), model_cache=str(tmp_path / "models"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert probe(launch)["names"] is None
    asked: list[str] = []

    def no_server(name: str, _port: int) -> None:
        asked.append(name)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setattr(socket, "getaddrinfo", no_server)
    found = probe(launch)["names"]
    assert found == "kubernetes.default.svc: Temporary failure in name resolution"
    monkeypatch.setattr(socket, "getaddrinfo", lambda name, _port: asked.append(name))
    assert probe(launch)["names"] == ""
    assert asked == ["kubernetes.default.svc"] * 2


def test_the_command_line(
    server: ApiServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    profile = tmp_path / "place.yaml"
    profile.write_text(place().model_dump_json())

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["rotescale-launch", "doctor", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return int(stopped.value.code or 0), capsys.readouterr().out

    code, printed = run("--on", str(profile))
    assert (code, "fail" in printed) == (0, False)
    assert "ok   rights: all" in printed
    server.delete("localqueues", "research", namespace=NAMESPACE)
    code, printed = run("--on", str(profile), "--json")
    assert code == 1
    assert [one["name"] for one in json.loads(printed) if one["verdict"] == "fail"] == ["queue"]
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    code, printed = run("--on", str(profile))
    assert code == 1
    assert "set KUBECONFIG" in printed
    monkeypatch.chdir(tmp_path)
    assert run()[0] == 0
