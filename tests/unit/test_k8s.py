"""What lies in k8s/: legal, in step with the profiles, and an image that is pinned."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from kuberay_helpers import CONFIGS, PROFILES
from kuberay_schema import ROOT, check_as_kubernetes_does

from launcher import plain_yaml
from launcher.kuberay.pods import USER_ID
from launcher.kuberay.render import render
from launcher.kuberay.rules import pod_templates
from rotescale.launch_spec import LaunchSpec
from rotescale.spec import ExperimentSpec
from rotescale.spec_file import load_spec

K8S = ROOT / "k8s"
MANIFESTS = sorted(path for path in K8S.rglob("*.yaml") if path.name != "kustomization.yaml")
FOLDERS = sorted(path.parent for path in K8S.rglob("kustomization.yaml"))
DOCKERFILE = (K8S / "Dockerfile").read_text()


def objects(folder: str) -> list[dict[str, Any]]:
    return [
        one
        for path in sorted((K8S / folder).glob("*.yaml"))
        if path.name != "kustomization.yaml"
        for one in yaml.safe_load_all(path.read_text())
    ]


def named(kind: str, folder: str) -> dict[str, dict[str, Any]]:
    return {one["metadata"]["name"]: one for one in objects(folder) if one["kind"] == kind}


QUEUES = ("kueue", "kueue-eks", "kueue-gke")
"""The folders with a queue: one as an example, and it with the labels of each cloud."""


def queues_of(folder: str) -> dict[tuple[str, str], dict[str, Any]]:
    """The objects of a folder with a queue, by kind and name, as kustomize changes them."""
    listed = yaml.safe_load((K8S / folder / "kustomization.yaml").read_text())
    assert folder == "kueue" or listed["resources"] == ["../kueue"]
    found = {(one["kind"], one["metadata"]["name"]): one for one in objects("kueue")}
    for patch in listed.get("patches", []):
        one = found[patch["target"]["kind"], patch["target"]["name"]]
        for change in yaml.safe_load(patch["patch"]):
            _, spec, field = change["path"].split("/")
            assert (change["op"], spec) == ("replace", "spec")
            assert field in one["spec"]
            one["spec"][field] = change["value"]
    return found


def profiles() -> list[LaunchSpec]:
    return [load_spec(LaunchSpec, path) for path in PROFILES]


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text().splitlines()
    listed = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {name.lower().replace("_", "-"): version for name, version in listed}


def test_the_example_is_what_is_rendered() -> None:
    """``rotescale-launch render SPEC --on PROFILE > k8s/example-rayjob.yaml`` makes it anew."""
    spec = load_spec(ExperimentSpec, CONFIGS / "experiments" / "llama-3.1-70b.yaml")
    launch = load_spec(LaunchSpec, CONFIGS / "launch" / "h100-4x8-infiniband.yaml")
    written = (K8S / "example-rayjob.yaml").read_text()
    assert written == plain_yaml.dump(render(spec, launch))


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_kubernetes_takes_what_is_its_own(path: Path) -> None:
    checked = 0
    for one in yaml.safe_load_all(path.read_text()):
        if one["apiVersion"].partition("/")[0] not in ("kueue.x-k8s.io", "ray.io"):
            check_as_kubernetes_does(one)
            checked += 1
        assert one["metadata"]["name"]
    assert checked or path.parent.name == "kueue"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_kustomize_builds_each_folder(folder: Path) -> None:
    listed = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    assert all((folder / name).exists() for name in listed)
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed: the folders are not built by kustomize")
    done = subprocess.run(
        ["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=True
    )
    built = list(yaml.safe_load_all(done.stdout))
    assert len(built) >= 5
    if folder.name in QUEUES:
        found = {(one["kind"], one["metadata"]["name"]): one for one in built}
        assert found == queues_of(folder.name)
    namespaces = {one["metadata"].get("namespace") for one in built}
    assert namespaces <= {"rotescale", None}


def test_the_profiles_use_what_is_there() -> None:
    claims, accounts = named("PersistentVolumeClaim", "base"), named("ServiceAccount", "base")
    queues, priorities = named("LocalQueue", "kueue"), named("WorkloadPriorityClass", "kueue")
    for launch in profiles():
        assert launch.kuberay is not None
        assert {volume.claim for volume in launch.kuberay.volumes} <= claims.keys()
        assert launch.kuberay.service_account in accounts
        assert launch.kuberay.namespace in named("Namespace", "base")
        assert launch.kuberay.queue is None or launch.kuberay.queue in queues
        assert launch.kuberay.priority is None or launch.kuberay.priority in priorities
    assert all(one["spec"]["accessModes"] == ["ReadWriteMany"] for one in claims.values())


def test_a_queue_has_the_level_and_the_nodes_of_each_profile_with_a_topology() -> None:
    """Kueue admits no pod that asks for another level, or for a node that its flavor is not."""
    topologies = {}
    for folder in QUEUES:
        found = queues_of(folder)
        flavor = found["ResourceFlavor", "rotescale-h100"]["spec"]
        levels = [
            one["nodeLabel"] for one in found["Topology", flavor["topologyName"]]["spec"]["levels"]
        ]
        assert levels[-1] == "kubernetes.io/hostname"
        assert len(set(levels)) == len(levels)
        topologies[folder] = (levels, flavor["nodeLabels"])
    asked = {}
    for launch in profiles():
        assert launch.kuberay is not None
        if launch.kuberay.topology is not None:
            asked[launch.name] = (
                launch.kuberay.topology.level,
                launch.kuberay.workers.node_selector,
            )
    fitting = {
        name: [
            folder
            for folder, (levels, labels) in topologies.items()
            if level in levels and labels == selector
        ]
        for name, (level, selector) in asked.items()
    }
    assert fitting == {
        "h100-4x8-infiniband": ["kueue"],
        "eks-p5": ["kueue-eks"],
        "gke-a3": ["kueue-gke"],
    }


def test_the_queue_knows_every_resource_that_is_asked_for() -> None:
    queue = named("ClusterQueue", "kueue")["rotescale"]
    (group,) = queue["spec"]["resourceGroups"]
    flavors = named("ResourceFlavor", "kueue")
    for flavor in group["flavors"]:
        assert flavor["name"] in flavors
        assert [one["name"] for one in flavor["resources"]] == group["coveredResources"]
    spec = load_spec(ExperimentSpec, CONFIGS / "experiments" / "micro.yaml")
    for launch in profiles():
        assert launch.kuberay is not None
        if launch.kuberay.queue is None:
            continue
        for _, template in pod_templates(render(spec, launch)[1]):
            for container in template["spec"]["containers"]:
                assert container["resources"]["requests"].keys() <= set(group["coveredResources"])


def test_nobody_is_given_more_than_is_used() -> None:
    roles = [one for one in objects("base") if one["kind"] in ("Role", "ClusterRole")]
    assert [one["kind"] for one in roles] == ["Role"], "nothing beyond the namespace"
    for rule in roles[0]["rules"]:
        assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
        assert "secrets" not in rule["resources"]
        assert not {"pods/exec", "pods/attach", "pods/portforward"} & set(rule["resources"])
    bindings = [one for one in objects("base") if one["kind"].endswith("Binding")]
    bound = {subject["name"] for one in bindings for subject in one["subjects"]}
    assert bound == {"rotescale-submit"}, "the pods' account has no rights"
    account = named("ServiceAccount", "base")["rotescale-run"]
    assert account["automountServiceAccountToken"] is False


def test_the_network_policy_is_about_the_pods_of_runs() -> None:
    policy = named("NetworkPolicy", "base")["rotescale-runs"]["spec"]
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    spec = load_spec(ExperimentSpec, CONFIGS / "experiments" / "micro.yaml")
    for _, template in pod_templates(render(spec, profiles()[0])[1]):
        labels = template["metadata"]["labels"]
        assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    open_to_all = [rule for rule in policy["ingress"] if not rule.get("from")]
    assert open_to_all == []
    web = next(
        peer["ipBlock"]
        for rule in policy["egress"]
        for peer in rule["to"]
        if peer.get("ipBlock", {}).get("cidr") == "0.0.0.0/0"
    )
    assert web["except"] == ["169.254.0.0/16"], "a node's own credentials are served there"


def link_local(*folders: str) -> set[tuple[str, str, int]]:
    """Address, protocol and port of what pods may reach on their own node."""
    return {
        (peer["ipBlock"]["cidr"].removesuffix("/32"), port["protocol"], port["port"])
        for folder in folders
        for policy in named("NetworkPolicy", folder).values()
        for rule in policy["spec"]["egress"]
        for peer in rule["to"]
        if peer.get("ipBlock", {}).get("cidr", "").startswith("169.254.")
        for port in rule["ports"]
    }


def test_names_are_asked_for_wherever_a_cluster_answers() -> None:
    dns = {
        (address, protocol, 53)
        for address in ("169.254.20.10", "169.254.169.254")
        for protocol in ("UDP", "TCP")
    }
    assert link_local("base") == dns | {("169.254.170.23", "TCP", 80)}
    assert link_local("eks") == set(), "a node's role stays out of reach on EC2"


def test_gkes_metadata_is_open_on_gke_alone() -> None:
    assert link_local("gke") == {
        *(("169.254.169.254", "TCP", port) for port in (80, 8080)),
        *(("169.254.169.252", "TCP", port) for port in (987, 988)),
    }
    runs = named("NetworkPolicy", "base")["rotescale-runs"]["spec"]["podSelector"]
    (policy,) = named("NetworkPolicy", "gke").values()
    assert policy["spec"]["podSelector"] == runs
    assert policy["spec"]["policyTypes"] == ["Egress"]
    for folder in FOLDERS:
        listed = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
        assert folder.name == "gke" or not any("gke" in name for name in listed)


@pytest.mark.parametrize("folder", ["gke", "eks"])
def test_claims_of_a_cloud_are_on_a_shared_file_system(folder: str) -> None:
    kustomization = yaml.safe_load((K8S / folder / "kustomization.yaml").read_text())
    assert "../base" in kustomization["resources"]
    (patch,) = kustomization["patches"]
    assert patch["target"] == {"kind": "PersistentVolumeClaim"}
    (change,) = yaml.safe_load(patch["patch"])
    assert change["path"] == "/spec/storageClassName"
    own = named("StorageClass", folder)
    assert change["value"] in (own or {"standard-rwx"})
    for storage_class in own.values():
        assert storage_class["parameters"]["uid"] == str(USER_ID), "the pods write it"


def test_the_image_has_the_cuda_of_torchs_wheel() -> None:
    base = re.search(r"^FROM nvidia/cuda:(\d+)\.(\d+)\.\d+-", DOCKERFILE, re.MULTILINE)
    assert base is not None
    wheel = pins("k8s/constraints-image.txt")["cuda-toolkit"].split(".")
    assert [base[1], base[2]] == wheel[:2]
    assert f"startswith('{base[1]}.{base[2]}')" in DOCKERFILE, "and the build looks itself"
    # Where the torch of this machine is built for GPUs, it says itself which CUDA it wants.
    for requirement in metadata.requires("torch") or []:
        wanted = re.match(r"cuda-toolkit\b[^=]*==([0-9.]+)", requirement)
        if wanted is not None:
            assert wanted[1].split(".")[:2] == wheel[:2]


PYTHON_OF = {"ubuntu22.04": (3, 10), "ubuntu24.04": (3, 12)}
"""Of the Linux that a base image brings."""


def test_image_and_constraints_are_for_one_python() -> None:
    base = re.search(r"^FROM nvidia/cuda:\S+-(ubuntu[0-9.]+)$", DOCKERFILE, re.MULTILINE)
    assert base is not None
    major, minor = PYTHON_OF[base[1]]
    text = (K8S / "constraints-image.txt").read_text()
    resolved = re.findall(r"for\s+(?:# )?Python (\d+)\.(\d+) on", text)
    assert resolved == [(str(major), str(minor))]
    assert f"sys.version_info[:2] == ({major}, {minor})" in DOCKERFILE, "and the build looks itself"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    least = re.fullmatch(r">=(\d+)\.(\d+)", project["requires-python"])
    assert least is not None
    assert (major, minor) >= (int(least[1]), int(least[2]))


def test_the_image_is_pinned_and_not_roots() -> None:
    assert pins("constraints.txt").keys().isdisjoint(pins("k8s/constraints-image.txt"))
    assert "constraints/constraints.txt" in DOCKERFILE
    assert "constraints/constraints-image.txt" in DOCKERFILE
    users = re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE)
    assert users == [f"{USER_ID}:{USER_ID}"]
    assert f"--uid {USER_ID}" in DOCKERFILE
    assert not re.search(r"\b(latest|sudo|curl)\b|ADD http", DOCKERFILE)
    # NCCL loads them as it starts; the base image has neither.
    assert {"libibverbs1", "ibverbs-providers"} <= set(DOCKERFILE.split())
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines()[1:-1]}
    copied = re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.MULTILINE)
    assert {name for line in copied for name in line.split()} == allowed
    assert all((ROOT / name).exists() for name in allowed)
