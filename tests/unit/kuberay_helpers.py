"""Profiles and experiments for the tests of what is rendered for Kubernetes."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

from launcher.kuberay.render import render
from rotescale.launch_spec import LaunchSpec
from rotescale.spec import ExperimentSpec
from rotescale.spec_file import load_spec, overridden_spec, read_fields

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
EXPERIMENTS = sorted((CONFIGS / "experiments").glob("*.yaml"))
MICRO = CONFIGS / "experiments" / "micro.yaml"
LAUNCHES = sorted((CONFIGS / "launch").glob("*.yaml"))
PROFILES = [path for path in LAUNCHES if read_fields(path).get("place") == "kuberay"]

FULL: dict[str, Any] = {
    "name": "full",
    "place": "kuberay",
    "num_workers": 32,
    "gpus_per_worker": 1,
    "cpus_per_worker": 4,
    "storage": "/checkpoints/runs",
    "model_cache": "/checkpoints/models",
    "kuberay": {
        "context": "arn:aws:eks:us-east-1:123456789012:cluster/research",
        "namespace": "research",
        "image": "registry.example.com:5000/team/rotescale:0.1.0",
        "pull_secret": "registry",
        "head": {"cpus": 4, "memory": "16Gi", "node_selector": {"pool": "cpu"}},
        "workers": {
            "cpus": 96,
            "memory": "1500Gi",
            "tolerations": [
                {"key": "nvidia.com/gpu"},
                {"key": "spot", "operator": "Equal", "value": "true", "effect": None},
            ],
            "node_selector": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"},
        },
        "queue": "research",
        "priority": "high",
        "topology": {"level": "example.com/rail"},
        "volumes": [
            {"claim": "checkpoints", "path": "/checkpoints"},
            {"claim": "models", "path": "/models", "read_only": True},
        ],
        "environment": {"NCCL_IB_TC": "106", "PRICE": "$5 $(HOME) $$(HOME) `id`"},
        "secrets": {"HF_TOKEN": {"secret": "hub", "key": "token"}},
        "auth_secret": "ray-token",
        "start_deadline_seconds": 3600,
    },
}
"""A place that says everything that can be said, but for the fabric."""

FABRICS: dict[str, dict[str, Any]] = {
    "none": {"kind": "none"},
    "infiniband": {"kind": "infiniband"},
    "efa": {"kind": "efa"},
    "tcpxo": {"kind": "tcpxo"},
}


def experiment(*overrides: str, path: Path = MICRO) -> ExperimentSpec:
    return load_spec(ExperimentSpec, path, overrides)


def place(*overrides: str, fabric: str = "none") -> LaunchSpec:
    """The full place with changes to it."""
    fields = copy.deepcopy(FULL)
    fields["kuberay"]["fabric"] = FABRICS[fabric]
    return overridden_spec(LaunchSpec, fields, overrides, where="place.yaml")


@functools.cache
def rendered(*overrides: str, fabric: str = "none") -> list[dict[str, Any]]:
    """What the micro experiment is there; not to be changed."""
    return render(experiment(), place(*overrides, fabric=fabric))


def job(*overrides: str, fabric: str = "none") -> dict[str, Any]:
    """The RayJob of the full place, a copy to break."""
    return copy.deepcopy(rendered(*overrides, fabric=fabric)[1])
