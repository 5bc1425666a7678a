"""What is decided about workers' devices, where the driver's machine is another one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import micro_spec, run_workers
from planning_helpers import CONFIGS, experiment, gpus, planned

from rotescale.checkpoint.attempts import start_attempt
from rotescale.devices import (
    check_devices,
    chosen_attention,
    evaluation_mode,
    require_flash_attention,
    require_flash_capability,
    with_cores,
)
from rotescale.errors import SpecError
from rotescale.launch_spec import LaunchSpec
from rotescale.planning.architecture import architecture_of
from rotescale.planning.place import node_of
from rotescale.planning.plan import make_plan
from rotescale.planning.workload import count_work
from rotescale.preparation import Resolved, prepare_run, versions
from rotescale.run_dir import Outcome, RunDir
from rotescale.spec_file import dump_json, load_spec, parse_spec

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


H100 = {"like": "h100-8"}
DEEP = (
    *("model.weights.num_layers=16", "phases.0.global_batch=64"),
    "engine.evaluation_mode=sharded",
)


def on_a_cluster(tmp_path: Path, model_cache: Path, **fields: Any) -> LaunchSpec:
    places = {"storage": str(tmp_path / "runs"), "model_cache": str(model_cache)}
    return gpus(2, **places | fields)


def mode_of(name: str, launch: LaunchSpec) -> str:
    """As preparation decides it, for a model of the size that a plan counts."""
    sizes = planned(name, launch).sizes
    return evaluation_mode(
        experiment(name),
        launch if launch.kuberay is None else launch.inside_the_cluster(),
        num_parameters=sizes.total,
        num_trainable=sizes.trainable,
    )


def test_a_driver_without_a_gpu_prepares_for_workers_that_have_them(
    tmp_path: Path, model_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    spec, launch = micro_spec(), on_a_cluster(tmp_path, model_cache)
    resolved = Resolved.read(prepare_run(spec, launch))
    plan = make_plan(
        *(spec, launch, node_of(launch)),
        architecture=architecture_of(spec.model.weights),
        work=count_work(spec),
    )
    assert (resolved.evaluation_mode, resolved.num_parameters) == (
        plan.evaluation_mode,
        plan.sizes.total,
    )
    assert os.environ["DS_ACCELERATOR"] == "cpu", "of this machine, whatever the workers have"


@pytest.mark.parametrize("profile", ["h100-node", "h100-4x8-infiniband", "eks-p5", "ray-4x8-h100"])
@pytest.mark.parametrize("name", ["qwen2.5-1.5b", "qwen2.5-32b", "llama-3.1-70b"])
def test_a_run_evaluates_as_its_plan_says(profile: str, name: str) -> None:
    launch = load_spec(LaunchSpec, CONFIGS / "launch" / f"{profile}.yaml")
    assert mode_of(name, launch) == planned(name, launch).evaluation_mode


@pytest.mark.parametrize(
    ("workers", "gib", "expected"),
    # 30.9 GB of state over the workers, and 3.1 GB of copy for each, in 70 % of the memory.
    [([1, 8], 40, "sharded"), (8, 40, "replicated"), ([1, 8], 48, "replicated")],
)
def test_a_copy_must_fit_for_the_least_and_the_most_workers(
    workers: int | list[int], gib: int, expected: str
) -> None:
    launch = gpus(workers, {"like": "l4-8", "gpu_memory_gib": gib})
    assert mode_of("qwen2.5-1.5b", launch) == expected
    assert planned("qwen2.5-1.5b", launch).evaluation_mode == expected


def test_workers_of_a_node_share_its_memory_and_nodes_do_not() -> None:
    raw = {"place": "ray", "address": "auto", "num_workers": 8, "cpus_per_worker": 4}
    modes = []
    for cores in (32, 4):
        node = {"like": "cpu", "cpus": cores, "host_memory_gib": 60}
        launch = parse_spec(LaunchSpec, raw | {"node": node}, where="test")
        modes.append(mode_of("qwen2.5-1.5b", launch))
        assert modes[-1] == planned("qwen2.5-1.5b", launch).evaluation_mode
    assert modes == ["sharded", "replicated"]


@pytest.mark.parametrize("on_gpus", [0, 1])
def test_a_cluster_whose_nodes_nobody_names_evaluates_sharded(on_gpus: int) -> None:
    raw = {"place": "ray", "address": "auto", "gpus_per_worker": on_gpus}
    launch = parse_spec(LaunchSpec, raw, where="test")
    sizes = {"num_parameters": 1000, "num_trainable": 1000}
    assert evaluation_mode(micro_spec(), launch, **sizes) == "sharded"
    wanted = micro_spec("engine.evaluation_mode=replicated")
    assert evaluation_mode(wanted, launch, **sizes) == "replicated"


def test_gpus_are_looked_for_where_this_machine_trains(tmp_path: Path) -> None:
    elsewhere, here = gpus(2), parse_spec(LaunchSpec, {"gpus_per_worker": 1}, where="test")
    check_devices(micro_spec(), elsewhere)
    for spec, launch in (
        (micro_spec(), here),
        # The eager engine runs in the driver.
        (micro_spec("engine.kind=eager"), elsewhere),
    ):
        with pytest.raises(SpecError, match="torch sees no GPU here; use a launch spec"):
            check_devices(spec, launch)
    with pytest.raises(SpecError, match="cpu has no GPU, but gpus_per_worker is 1"):
        check_devices(micro_spec(), gpus(2, "cpu"))


def test_a_worker_without_its_gpu_ends_the_run_with_what_to_do(
    tmp_path: Path, model_cache: Path
) -> None:
    run_dir = prepare_run(micro_spec(), on_a_cluster(tmp_path, model_cache))
    run_workers(run_dir, world_size=1)
    outcome = Outcome.read(run_dir)
    assert outcome is not None
    assert (outcome.status, outcome.error, outcome.exit_code) == ("failed", "SpecError", 2)
    assert "sees no GPU on node" in outcome.message
    assert "--retry" in outcome.message
    assert run_dir.newest_attempt() is None


def test_a_node_that_has_lost_its_gpu_ends_no_run(tmp_path: Path, model_cache: Path) -> None:
    run_dir = prepare_run(micro_spec(), on_a_cluster(tmp_path, model_cache))
    begun(run_dir)
    assert run_workers(run_dir, world_size=1) == [1]
    assert Outcome.read(run_dir) is None
    log = run_dir.worker_log(attempt=0, rank=0)
    assert "replace the node" in log.read_text(encoding="utf-8")


def begun(run_dir: RunDir) -> None:
    """As a set of workers leaves it that has started and was lost."""
    start_attempt(run_dir, world_size=1)


# Activations


@pytest.mark.parametrize(
    ("gpu_memory_gib", "wanted", "expected"),
    [
        (79.1, "auto", False),
        (2.15, "auto", True),
        (2.15, "false", False),
        (79.1, "true", True),
        (None, "auto", False),
    ],
)
def test_a_run_computes_activations_again_where_its_plan_says_so(
    gpu_memory_gib: float | None, wanted: str, expected: bool, tmp_path: Path, model_cache: Path
) -> None:
    """Training this deep model takes 2.17 GiB, or 2.14 with activations computed again."""
    node = None if gpu_memory_gib is None else H100 | {"gpu_memory_gib": gpu_memory_gib}
    launch = on_a_cluster(tmp_path, model_cache, node=node)
    spec = micro_spec(*DEEP, f"model.activation_checkpointing={wanted}")
    resolved = Resolved.read(prepare_run(spec, launch))
    assert resolved.model.activation_checkpointing is expected
    assert resolved.applied_to(spec).model.activation_checkpointing is expected
    if node is not None:
        plan = make_plan(
            *(spec, launch, node_of(launch)),
            architecture=architecture_of(spec.model.weights),
            work=count_work(spec),
        )
        assert plan.checkpoints_activations is expected


# Cores


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "auto"),
        ({"place": "local", "num_workers": 4}, "auto"),
        ({"gpus_per_worker": 1}, 1.0),
        ({"place": "ray", "address": "auto"}, 1.0),
        ({"cpus_per_worker": 2}, 2.0),
    ],
)
def test_only_workers_on_one_machines_cpu_share_all_its_cores(
    fields: dict[str, Any], expected: object
) -> None:
    assert parse_spec(LaunchSpec, fields, where="test").cpus_per_worker == expected


def test_a_cluster_names_a_number_of_cores() -> None:
    fields = {"place": "ray", "address": "auto", "cpus_per_worker": "auto"}
    with pytest.raises(SpecError, match="cpus_per_worker: auto is for place: local, and the place"):
        parse_spec(LaunchSpec, fields, where="test")


@pytest.mark.parametrize(
    ("workers", "cores", "expected"),
    [((2, 2), 16, 8.0), ((1, 3), 16, 5.0), ((4, 4), 2, 1.0), ((1, 1), 6, 6.0)],
)
def test_cores_are_shared_among_the_most_workers(
    workers: tuple[int, int], cores: int, expected: float
) -> None:
    assert LaunchSpec(num_workers=workers).sharing(cores).worker_cores == expected
    assert LaunchSpec(num_workers=workers, cpus_per_worker=3).sharing(cores).worker_cores == 3


def test_a_run_that_goes_on_keeps_its_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = RunDir(tmp_path)

    def cores(found: int, *, workers: int = 2) -> float:
        monkeypatch.setattr("rotescale.devices.cpu_cores", lambda: found)
        launch = with_cores(LaunchSpec(num_workers=(workers, workers)), run_dir)
        (tmp_path / "launch.json").write_text(dump_json(launch))
        return launch.worker_cores

    assert cores(8) == 4
    assert cores(16) == 4, "the machine has more, or shows more of them"
    assert cores(16, workers=4) == 4, "with other workers nothing is the same anyway"
    assert cores(4, workers=4) == 1, "so many are not there any more"
    fixed = LaunchSpec(num_workers=(4, 4), cpus_per_worker=2)
    assert with_cores(fixed, run_dir).worker_cores == 2


# Attention


@pytest.fixture
def with_flash_attention(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What pip leaves of flash-attn, as far as its version goes."""
    folder = tmp_path / "packages" / "flash_attn-2.8.3.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: flash-attn\nVersion: 2.8.3\n")
    monkeypatch.syspath_prepend(str(folder.parent))


AUTO = ("model.attention=auto", "engine.precision=bf16")


def test_attention_is_sdpa_without_the_package() -> None:
    assert chosen_attention(micro_spec(*AUTO), gpus(2), earlier=None) == "sdpa"
    assert "flash-attn" not in versions()


@pytest.mark.usefixtures("with_flash_attention")
def test_flash_attention_is_chosen_where_package_gpus_and_bf16_are_there() -> None:
    auto, on_gpus = micro_spec(*AUTO), gpus(2)
    assert chosen_attention(auto, on_gpus, earlier=None) == "flash_attention_2"
    assert versions()["flash-attn"] == "2.8.3"
    assert chosen_attention(micro_spec("model.attention=auto"), on_gpus, earlier=None) == "sdpa"
    assert chosen_attention(auto, LaunchSpec(), earlier=None) == "sdpa"
    assert chosen_attention(micro_spec(AUTO[1]), on_gpus, earlier=None) == "sdpa", "as it says"


@pytest.mark.usefixtures("with_flash_attention")
def test_a_run_that_goes_on_keeps_its_attention(tmp_path: Path, model_cache: Path) -> None:
    launch = on_a_cluster(tmp_path, model_cache)
    for wanted, found in (("sdpa", "sdpa"), ("auto", "sdpa"), ("flash_attention_2",) * 2):
        spec = micro_spec(f"model.attention={wanted}", AUTO[1])
        resolved = Resolved.read(prepare_run(spec, launch))
        assert resolved.applied_to(spec).model.attention == found
    # Where it can be kept, and nothing else is said.
    assert chosen_attention(micro_spec(*AUTO), launch, earlier="flash_attention_2") != "sdpa"
    assert chosen_attention(micro_spec(*AUTO), LaunchSpec(), earlier="flash_attention_2") == "sdpa"


def test_flash_attention_is_refused_where_it_is_known_to_be_in_vain() -> None:
    with pytest.raises(SpecError, match=r"flash_attention_2 computes in bf16, but .* is fp32; set"):
        micro_spec("model.attention=flash_attention_2")
    spec = micro_spec("model.attention=flash_attention_2", AUTO[1])
    with pytest.raises(SpecError, match="flash_attention_2 is for GPUs, but gpus_per_worker is 0"):
        check_devices(spec, LaunchSpec())
    check_devices(spec, gpus(2))


def test_a_worker_without_flash_attention_says_what_to_install() -> None:
    with pytest.raises(SpecError, match="node n7 flash-attn is not installed; install flash-attn"):
        require_flash_attention("n7")


def test_a_gpu_that_is_too_old_for_flash_attention_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = torch.device("cuda:0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    require_flash_capability(device, node="n7")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    with pytest.raises(SpecError, match=r"capability 8\.0 .* node n7 has one of 7\.5; set"):
        require_flash_capability(device, node="n7")
