"""The guide in k8s/README.md: its commands are real, and its edits lead to what a run asks for."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from kuberay_helpers import CONFIGS
from kuberay_schema import ROOT

from launcher.cli import app, understood
from launcher.kuberay.render import render
from rotescale.launch_spec import LaunchSpec
from rotescale.spec import ExperimentSpec
from rotescale.spec_file import load_spec

GUIDE = (ROOT / "k8s" / "README.md").read_text()
CLOUDS = ("gke", "eks")
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "BUCKET": "my-runs",
    "IMAGE": "registry.test:5000/me/rotescale:0.1.0",
    "REGION": "eu-west-1",
    "FILES": "fs-0fedcba9876543210",
}


def commands() -> list[str]:
    """Each command of the guide's blocks, on one line."""
    blocks = re.findall(r"^```\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]


def commands_of(program: str) -> list[list[str]]:
    return [shlex.split(one)[1:] for one in commands() if one.startswith(f"{program} ")]


def edits(cloud: str) -> list[str]:
    """The guide's commands of sed for a cloud: those of its block."""
    block = next(
        block
        for block in re.findall(r"^```\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
        if f"kubectl apply -k k8s/{cloud}\n" in block
    )
    lines = block.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("sed ")]


def edited(cloud: str, folder: Path) -> Path:
    """A copy of what the edits touch, after all of them."""
    for name in ("k8s", "configs"):
        shutil.copytree(ROOT / name, folder / name)
    for edit in edits(cloud):
        subprocess.run(["bash", "-c", edit], cwd=folder, env=ENVIRONMENT, check=True, timeout=60)
    return folder


def test_every_command_of_the_launcher_is_one() -> None:
    found = commands_of("rotescale-launch")
    assert {"plan", "doctor", "submit", "status", "logs", "cancel"} <= {one[0] for one in found}
    group: Any = typer.main.get_command(app)
    for name, *arguments in found:
        # Parsing alone: unknown commands, options and missing arguments raise.
        with group.commands[name].make_context(name, understood([name, *arguments])[1:]) as context:
            spec = context.params.get("spec_path")
        assert spec is None or (ROOT / spec).is_file()
        named = [one for one in arguments if one.endswith(".yaml")]
        assert all(one == "mine.yaml" or (ROOT / one).is_file() for one in named)
        runs = [context.params.get("run")] if "run" in context.params else []
        for run in runs:
            assert (CONFIGS / "experiments" / f"{run}.yaml").is_file()


@pytest.mark.parametrize("cloud", CLOUDS)
def test_the_edits_make_a_place_that_runs_the_experiment(cloud: str, tmp_path: Path) -> None:
    folder = edited(cloud, tmp_path)
    launch = load_spec(LaunchSpec, folder / "mine.yaml")
    assert launch.kuberay is not None
    assert launch.storage == {"gke": "gs", "eks": "s3"}[cloud] + "://my-runs/runs"
    assert launch.kuberay.image == ENVIRONMENT["IMAGE"]
    assert launch.kuberay.environment.get("AWS_REGION") in (None, ENVIRONMENT["REGION"])
    for name in ("qwen2.5-7b", "micro"):
        spec = load_spec(ExperimentSpec, CONFIGS / "experiments" / f"{name}.yaml")
        assert len(render(spec, launch)) == 2
    assert "example" not in (folder / "mine.yaml").read_text().replace("# The price is an ex", "")


@pytest.mark.parametrize("cloud", CLOUDS)
def test_the_edited_queue_admits_the_pods_of_the_place(cloud: str, tmp_path: Path) -> None:
    folder = edited(cloud, tmp_path)
    launch = load_spec(LaunchSpec, folder / "mine.yaml")
    assert launch.kuberay is not None
    queues = list(yaml.safe_load_all((folder / "k8s" / "kueue" / "queues.yaml").read_text()))
    (levels,) = [one["spec"]["levels"] for one in queues if one["kind"] == "Topology"]
    assert levels == [{"nodeLabel": "kubernetes.io/hostname"}]
    labels = [
        one["spec"]["nodeLabels"]
        for one in queues
        if one["kind"] == "ResourceFlavor" and "nodeLabels" in one.get("spec", {})
    ]
    assert labels == [launch.kuberay.workers.node_selector]
    classes = (folder / "k8s" / "eks" / "storage-class.yaml").read_text()
    assert (ENVIRONMENT["FILES"] in classes) == (cloud == "eks")


def test_names_are_those_of_the_manifests() -> None:
    applied = {one[-1] for one in commands_of("kubectl") if one[:2] == ["apply", "-k"]}
    assert applied == {"k8s/gke", "k8s/eks", "k8s/kueue"}
    assert all((ROOT / name / "kustomization.yaml").is_file() for name in applied)
    secrets = [one for one in commands_of("kubectl") if "secret" in one]
    (secret,) = [one[one.index("generic") + 1 :] for one in secrets]
    deleted = [one[4:] for one in commands_of("kubectl") if one[2:4] == ["delete", "pvc"]]
    for cloud in CLOUDS:
        launch = load_spec(LaunchSpec, CONFIGS / "launch" / f"{cloud}-h100-node.yaml")
        assert launch.kuberay is not None
        reference = launch.kuberay.secrets["HF_TOKEN"]
        assert secret[0] == reference.secret
        assert secret[1].startswith(f"--from-file={reference.key}=")
        needed = {volume.claim for volume in launch.kuberay.volumes}
        assert not needed & {claim for one in deleted for claim in one}
        assert launch.kuberay.service_account == "rotescale-run"
        assert launch.kuberay.namespace == "rotescale"
    assert "/subject/ns/rotescale/sa/rotescale-run" in GUIDE
    assert "--service-account-name rotescale-run" in GUIDE


def test_the_operators_are_where_and_what_the_project_takes_them_to_be() -> None:
    charts = {one[1]: one for one in commands_of("helm") if one[0] == "install"}
    versions = {name: one[one.index("--version") + 1] for name, one in charts.items()}
    assert versions["kuberay-operator"].startswith("1.7.")
    assert versions["kueue"].startswith("0.19.")
    words = (ROOT / "docs" / "kubernetes.md").read_text()
    assert "1.7 or later" in words
    assert "Kueue 0.19" in words
    policy = yaml.safe_load((ROOT / "k8s" / "base" / "network-policy.yaml").read_text())
    allowed = [
        peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
        for rule in policy["spec"]["ingress"]
        for peer in rule["from"]
        if "namespaceSelector" in peer
    ]
    chart = charts["kuberay-operator"]
    assert allowed == [chart[chart.index("--namespace") + 1]]
