"""What is rendered for Kubernetes: the same each time, legal to KubeRay, and all of the profile."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from kuberay_helpers import (
    EXPERIMENTS,
    FABRICS,
    LAUNCHES,
    MICRO,
    PROFILES,
    experiment,
    job,
    place,
    rendered,
)
from kuberay_schema import (
    BY_HAND,
    ROOT,
    as_pod,
    changed,
    check_as_kubernetes_does,
    crd_validator,
    faults,
    places,
)
from launcher_command import launcher_command

from launcher import plain_yaml
from launcher.kuberay.names import MAX_JOB_NAME, job_name
from launcher.kuberay.render import ENTRYPOINT, render
from launcher.kuberay.rules import broken_rules, pod_templates
from rotescale.errors import SpecError
from rotescale.kuberay_spec import RAY_VERSION
from rotescale.launch_spec import LaunchSpec
from rotescale.nodes import HOST_VARIABLE
from rotescale.spec import ExperimentSpec
from rotescale.spec_file import load_spec

DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


def shipped(profile: Path) -> list[list[dict[str, Any]]]:
    """Every shipped experiment on that profile."""
    launch = load_spec(LaunchSpec, profile)
    return [render(load_spec(ExperimentSpec, path), launch) for path in EXPERIMENTS]


def pods(ray_job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        place.removeprefix("pod of group ").removesuffix(" pod"): template["spec"]
        for place, template in pod_templates(ray_job)
    }


def variables(pod: dict[str, Any], container: int = 0) -> dict[str, Any]:
    listed = pod["containers"][container]["env"]
    assert len({one["name"] for one in listed}) == len(listed)
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in listed}


# What is shipped


@pytest.mark.parametrize("profile", PROFILES, ids=lambda path: path.stem)
def test_every_profile_runs_every_experiment(profile: Path) -> None:
    everything = shipped(profile)
    assert len(everything) == len(EXPERIMENTS) > 10
    for manifests in everything:
        assert list(broken_rules(manifests)) == []
        config_map, ray_job = manifests
        assert faults(BY_HAND, ray_job) == []
        check_as_kubernetes_does(config_map)
        for _, template in pod_templates(ray_job):
            check_as_kubernetes_does(as_pod(template))
    names = {manifests[1]["metadata"]["name"] for manifests in everything}
    assert len(names) == len(EXPERIMENTS), "each run is an object of its own"


@pytest.mark.parametrize("profile", PROFILES, ids=lambda path: path.stem)
def test_kuberays_own_schema_takes_every_profile_and_experiment(profile: Path) -> None:
    validator = crd_validator()
    for manifests in shipped(profile):
        assert faults(validator, manifests[1]) == []


@pytest.mark.parametrize("fabric", FABRICS)
def test_a_place_that_says_everything(fabric: str) -> None:
    manifests = rendered(fabric=fabric)
    assert list(broken_rules(manifests)) == []
    assert faults(BY_HAND, manifests[1]) == []
    for _, template in pod_templates(manifests[1]):
        check_as_kubernetes_does(as_pod(template))


def test_the_schema_by_hand_judges_as_kuberays_own() -> None:
    """Each value of a job of each fabric is left out, or is of another type, or has a stranger."""
    own = crd_validator()
    judged = {True: 0, False: 0}
    # What all fabrics, both groups, or all variables have in common is judged alike.
    seen: set[tuple[str, ...]] = set()
    for fabric in FABRICS:
        whole = job(fabric=fabric)
        for path in places(whole):
            kind = tuple(str(step) for step in path if not isinstance(step, int))
            if kind[0] != "spec" or kind in seen:
                continue
            seen.add(kind)
            for broken in mutations(whole, path):
                verdict = BY_HAND.is_valid(broken)
                assert verdict == own.is_valid(broken), (path, faults(own, broken))
                judged[verdict] += 1
    assert judged[True] > 50
    assert judged[False] > 200


def mutations(document: Any, path: tuple[Any, ...]) -> list[Any]:
    def leave_out(parent: Any, key: Any) -> None:
        del parent[key]

    def other_type(parent: Any, key: Any) -> None:
        parent[key] = 7 if isinstance(parent[key], str | dict | list) else "seven"

    def stranger(parent: Any, key: Any) -> None:
        parent[key] = {**parent[key], "stranger": "x"}

    value = document
    for step in path:
        value = value[step]
    changes = [leave_out, other_type, *([stranger] if isinstance(value, dict) else [])]
    return [changed(document, path, change) for change in changes]


# Names


@pytest.mark.parametrize(
    "name", ["a", "0", "a.b", "a-b", "a_b", "0.1", "x" * 80, "3" * 80, "a" + "-" * 60 + "b"]
)
def test_a_name_is_legal(name: str) -> None:
    found = job_name(name, storage="s3://bucket/runs")
    assert DNS_1035.fullmatch(found)
    assert len(found) <= MAX_JOB_NAME


def test_a_name_is_the_runs_and_no_others() -> None:
    runs = [(name, where) for name in ("a.b", "a-b", "a_b", "a--b") for where in ("/x", "/y")]
    names = [job_name(name, storage=where) for name, where in runs]
    assert len(set(names)) == len(runs)
    assert names == [job_name(name, storage=where) for name, where in runs]
    assert job_name("llama-3.1-70b", storage="/x").startswith("llama-3-1-70b-")
    for one, other in (("/x", "/x/"), ("/x/y", "/x//y"), ("s3://abc/x", "s3://abc/x/")):
        assert job_name("a", storage=one) == job_name("a", storage=other), "it is one folder"


def test_rendering_is_the_same_each_time_and_reads_nothing() -> None:
    code = (
        "import sys; sys.path[:0] = ['tests/unit', '.'];"
        "from kuberay_helpers import rendered; from launcher import plain_yaml;"
        "sys.stdout.write(plain_yaml.dump(rendered(fabric='tcpxo')))"
    )
    texts = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
            env={"PYTHONHASHSEED": seed, "HF_TOKEN": "hf_" + "a" * 30, "USER": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert texts == {plain_yaml.dump(rendered(fabric="tcpxo"))}


def test_a_change_of_the_experiment_keeps_the_job_and_renames_its_spec() -> None:
    one = render(experiment(), place())
    other = render(experiment("seed=1"), place())
    assert one[1]["metadata"]["name"] == other[1]["metadata"]["name"]
    assert one[0]["metadata"]["name"] != other[0]["metadata"]["name"]
    digest = "rotescale/spec-digest"
    assert one[1]["metadata"]["annotations"][digest] != other[1]["metadata"]["annotations"][digest]


# How the experiment reaches the cluster


def test_the_driver_reads_the_same_experiment_and_its_own_place(tmp_path: Path) -> None:
    template = "[X:{relation}] 中\u2028\x85'\"\\ 🙂"
    spec, launch = experiment(f"model.key_tokens.template={json.dumps(template)}"), place()
    config_map, ray_job = render(spec, launch)
    for name, text in config_map["data"].items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert load_spec(ExperimentSpec, tmp_path / "experiment.json") == spec
    inside = load_spec(LaunchSpec, tmp_path / "launch.json")
    assert (inside.place, inside.address, inside.kuberay) == ("ray", "auto", None)
    assert (inside.storage, inside.num_workers) == (launch.storage, launch.num_workers)
    assert ray_job["spec"]["entrypoint"] == ENTRYPOINT
    head = pods(ray_job)["head"]
    mounted = {one["name"]: one["mountPath"] for one in head["containers"][0]["volumeMounts"]}
    spec_volume = next(one for one in head["volumes"] if "configMap" in one)
    assert spec_volume["configMap"]["name"] == config_map["metadata"]["name"]
    for name in config_map["data"]:
        assert f"{mounted[spec_volume['name']]}/{name}" in ENTRYPOINT
    assert config_map["immutable"] is True


def test_a_time_is_all_that_is_ever_added_to_the_entrypoint() -> None:
    noon = "2026-11-27T12:00:00+00:00"
    manifests = render(experiment(), place(), retry_before=noon)
    assert manifests[1]["spec"]["entrypoint"] == f"{ENTRYPOINT} --retry-before {noon}"
    with pytest.raises(ValueError, match="isoformat"):
        render(experiment(), place(), retry_before="$(id)")
    assert list(broken_rules(manifests)) == []


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("facts={source: files, paths: [mother.csv]}", "facts.paths 'mother.csv'"),
        ("facts={source: trex, path: /data/trex}", "facts.path '/data/trex'"),
        ("facts={source: dataset, dataset: ./folder}", "facts.dataset './folder'"),
        ("facts={source: dataset, dataset: folder/facts.csv}", "facts.dataset"),
        ("model.weights={kind: folder, path: ~/model}", "model.weights.path"),
        ("model.weights={kind: folder, path: /checkpoints/../etc}", "model.weights.path"),
        ("model.weights={kind: folder, path: /checkpoints-of-mine/x}", "model.weights.path"),
        ("phases.memorize.replay={share: 0.5, paths: [a.txt]}", "phases.memorize.replay.paths"),
        (
            "phases.memorize.known={share: 0.5, facts: {source: files, paths: [/tmp/a.csv]}}",
            "phases.memorize.known.facts.paths",
        ),
        (
            "evaluation={harness_tasks: [x], harness_folder: /tmp/tasks}",
            "evaluation.harness_folder '/tmp/tasks'",
        ),
    ],
)
def test_files_that_the_pods_do_not_see_are_refused(override: str, field: str) -> None:
    with pytest.raises(SpecError, match=r"on no volume of the pods \(/checkpoints, /models\)") as e:
        render(experiment(override), place("allow_task_code=true"))
    assert field in str(e.value)


@pytest.mark.parametrize(
    "override",
    [
        "facts={source: files, paths: [/checkpoints/facts/mother.csv]}",
        "facts={source: dataset, dataset: someone/facts}",
        "model.weights={kind: folder, path: /models/llama}",
        "evaluation={harness_tasks: [x], harness_folder: /models/tasks}",
        "evaluation={harness_folder: tasks}",
    ],
)
def test_files_on_a_volume_and_what_is_on_the_hub_are_taken(override: str) -> None:
    assert len(render(experiment(override), place("allow_task_code=true"))) == 2


# What the profile says


def test_the_profile_is_all_there() -> None:
    ray_job = job()
    spec, cluster = ray_job["spec"], ray_job["spec"]["rayClusterSpec"]
    assert ray_job["metadata"]["namespace"] == "research"
    assert ray_job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research"
    assert ray_job["metadata"]["labels"]["kueue.x-k8s.io/priority-class"] == "high"
    assert spec["suspend"] is spec["shutdownAfterJobFinishes"] is True
    assert spec["submissionMode"] == "SidecarMode"
    assert (spec["ttlSecondsAfterFinished"], spec["backoffLimit"]) == (600, 3)
    assert (spec["activeDeadlineSeconds"], spec["preRunningDeadlineSeconds"]) == (604800, 3600)
    assert cluster["authOptions"] == {"mode": "token", "secretName": "ray-token"}
    assert cluster["rayVersion"] == RAY_VERSION
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    group = cluster["workerGroupSpecs"][0]
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] == 4
    annotations = group["template"]["metadata"]["annotations"]
    assert annotations == {"kueue.x-k8s.io/podset-required-topology": "example.com/rail"}
    assert "context" not in json.dumps(ray_job)
    assert "123456789012" not in json.dumps(ray_job)


def test_head_and_workers() -> None:
    found = pods(job())
    head, workers = found["head"], found["workers"]
    assert head["containers"][0]["resources"]["limits"] == {"cpu": "4", "memory": "16Gi"}
    amounts = {"cpu": "96", "memory": "1500Gi", "nvidia.com/gpu": "8"}
    assert workers["containers"][0]["resources"] == {"limits": amounts, "requests": amounts}
    assert head["nodeSelector"] == {"pool": "cpu"}
    assert workers["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
        {"key": "spot", "operator": "Equal", "value": "true"},
    ]
    assert workers["terminationGracePeriodSeconds"] == 300
    memory = next(one for one in workers["volumes"] if one["name"] == "shared-memory")
    assert memory["emptyDir"] == {"medium": "Memory", "sizeLimit": "16Gi"}
    for pod in (head, workers):
        claims = {
            one["persistentVolumeClaim"]["claimName"]: one["persistentVolumeClaim"]["readOnly"]
            for one in pod["volumes"]
            if "persistentVolumeClaim" in one
        }
        assert claims == {"checkpoints": False, "models": True}
        assert pod["imagePullSecrets"] == [{"name": "registry"}]
        assert pod["automountServiceAccountToken"] is False
        assert variables(pod)["HF_TOKEN"] == {"secretKeyRef": {"name": "hub", "key": "token"}}
        assert variables(pod)["TORCH_NCCL_ASYNC_ERROR_HANDLING"] == "1"
        assert variables(pod)["NCCL_DEBUG"] == "WARN"


@pytest.mark.parametrize("fabric", FABRICS)
def test_nothing_is_written_but_claims_and_the_pods_own_folders(fabric: str) -> None:
    for pod in pods(job(fabric=fabric)).values():
        container = pod["containers"][0]
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        mounts = {one["mountPath"]: one["name"] for one in container["volumeMounts"]}
        empty = {one["name"] for one in pod["volumes"] if one.get("emptyDir") == {}}
        own = {folder for folder, name in mounts.items() if name in empty}
        environment = variables(pod)
        assert own == {"/tmp", environment["HOME"], environment["ROTESCALE_LOCAL"]}


def test_a_place_without_a_queue_starts_at_once() -> None:
    ray_job = job("kuberay.queue=null", "kuberay.priority=null", "kuberay.topology=null")
    assert "suspend" not in ray_job["spec"]
    assert not [key for key in ray_job["metadata"]["labels"] if key.startswith("kueue")]


def test_a_place_without_gpus_asks_for_none() -> None:
    workers = pods(job("gpus_per_worker=0"))["workers"]
    assert set(workers["containers"][0]["resources"]["limits"]) == {"cpu", "memory"}


def test_kubernetes_puts_nothing_into_a_variable() -> None:
    price = variables(pods(job())["workers"])["PRICE"]
    assert price == "$$5 $$(HOME) $$$$(HOME) `id`"


def test_workers_know_which_node_of_kubernetes_they_are_on() -> None:
    found = pods(job())
    node_name = {"fieldRef": {"fieldPath": "spec.nodeName"}}
    assert variables(found["workers"])[HOST_VARIABLE] == node_name
    assert HOST_VARIABLE not in variables(found["head"])
    with pytest.raises(SpecError, match=f"{HOST_VARIABLE} is set by"):
        place(f"kuberay.environment.{HOST_VARIABLE}=gpu-1")


def test_each_fabric_pins_what_it_needs_and_no_more() -> None:
    plain = pods(job())["workers"]["containers"][0]
    found = {fabric: pods(job(fabric=fabric))["workers"] for fabric in FABRICS}

    def added(fabric: str, what: Any) -> dict[str, Any]:
        of_fabric = what(found[fabric]["containers"][0])
        return {key: value for key, value in of_fabric.items() if key not in what(plain)}

    def environment(container: dict[str, Any]) -> dict[str, Any]:
        return {one["name"]: one.get("value") for one in container["env"]}

    def limits(container: dict[str, Any]) -> dict[str, Any]:
        return dict(container["resources"]["limits"])

    assert added("infiniband", limits) == {"rdma/ib": "1"}
    assert added("infiniband", environment) == {
        "NCCL_IB_HCA": "mlx5",
        "NCCL_SOCKET_IFNAME": "eth0",
    }
    assert added("efa", limits) == {"vpc.amazonaws.com/efa": "32", "hugepages-2Mi": "5120Mi"}
    assert added("efa", environment) == {"FI_PROVIDER": "efa"}
    assert added("tcpxo", limits) == {}
    granted = {
        (fabric, container["name"]): container["securityContext"]["capabilities"].get("add", [])
        for fabric, pod in found.items()
        for container in pod["containers"]
    }
    assert granted == {
        ("none", "ray-worker"): [],
        ("infiniband", "ray-worker"): ["IPC_LOCK"],
        ("efa", "ray-worker"): [],
        ("tcpxo", "ray-worker"): [],
        ("tcpxo", "tcpxo-daemon"): ["NET_ADMIN", "NET_BIND_SERVICE"],
    }
    volumes = [(fabric, volume) for fabric, pod in found.items() for volume in pod["volumes"]]
    assert {fabric for fabric, volume in volumes if "hostPath" in volume} == {"tcpxo"}


def test_tcpxo_reads_the_nodes_own_settings_before_ray_starts() -> None:
    ray_job = job(fabric="tcpxo")
    assert ray_job["metadata"]["annotations"]["ray.io/overwrite-container-cmd"] == "true"
    found = pods(ray_job)
    script = found["workers"]["containers"][0]["args"][-1]
    assert re.search(r"source \S+/nccl-env-profile.sh \|\| exit 1;.*KUBERAY_GEN_RAY_START", script)
    assert "nccl-env-profile" not in found["head"]["containers"][0]["args"][-1]
    assert not [name for name in variables(found["workers"]) if name.startswith("NCCL_FASTRAK_IF")]
    metadata = ray_job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["metadata"]
    interfaces = json.loads(metadata["annotations"]["networking.gke.io/interfaces"])
    assert [one["interfaceName"] for one in interfaces] == [f"eth{i}" for i in range(9)]
    devices = yaml.safe_load(metadata["annotations"]["devices.gke.io/container.tcpxo-daemon"])
    assert {"path": "/dev/nvidia7"} in devices


# YAML


@pytest.mark.parametrize(
    "text",
    [
        *("1e5", "0x10", "0o14", "1_000", "12:30", "yes", "No", "on", "y", "null", "~", ".inf"),
        *("true", "2026-11-27", "1.5", "-1", "", " a ", "a: b", "a #b", "- a", "*a", "&a", "!a"),
        *("%a", "@a", "`a`", "{a}", "[a]", "|", ">", "'", '"', "\\", "a\nb", "a\n", "\n", "\t"),
        *("ä", "\x85", "\u2028", "\ufeff", "\x00", "🙂", "a" * 300, "a " * 200, "<<", "="),
    ],
)
def test_yaml_gives_back_every_text(text: str) -> None:
    document = {"value": text, "list": [text], "map": {"x": {"y": text}}}
    written = plain_yaml.dump([document])
    assert list(yaml.safe_load_all(written)) == [document]
    # A reader of YAML 1.2 takes more for numbers, so only plain words stand without quotes.
    line = written.splitlines()[1].removeprefix("value: ")
    assert line.startswith(('"', "|")) or re.fullmatch(r"[A-Za-z/][\w./@:-]*", line)


def test_a_digest_that_reads_as_a_number_is_quoted() -> None:
    assert plain_yaml.dump([{"a": "1234e567"}]) == '---\na: "1234e567"\n'


# The command line


@pytest.mark.parametrize("command", [("render",), ("submit", "--dry-run")])
def test_render_prints_the_manifests(
    command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = next(path for path in PROFILES if path.stem == "h100-4x8-infiniband")
    arguments = (*command, str(MICRO), "--on", str(profile), "--set", "seed=3")
    assert launcher_command(monkeypatch, *arguments) == 0
    printed = list(yaml.safe_load_all(capsys.readouterr().out))
    assert printed == render(experiment("seed=3"), load_spec(LaunchSpec, profile))
    assert json.loads(printed[0]["data"]["experiment.json"])["seed"] == 3


@pytest.mark.parametrize("path", LAUNCHES, ids=lambda path: path.stem)
def test_every_launch_spec_renders_what_its_place_takes(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    launch = load_spec(LaunchSpec, path)
    assert launcher_command(monkeypatch, "render", str(MICRO), "--on", str(path)) == 0
    documents = list(yaml.safe_load_all(capsys.readouterr().out))
    if launch.place == "kuberay":
        assert [one["kind"] for one in documents] == ["ConfigMap", "RayJob"]
        files = documents[0]["data"]
    elif launch.ray is not None:
        (request,) = documents
        assert request["jobs_url"] == launch.ray.jobs_url
        assert request["post"]["body"]["entrypoint"].startswith("rotescale-launch supervise ")
        files = request["put"]["files"]
    else:
        (command,) = documents
        assert re.search(r"-m launcher\.cli supervise \S+experiment\.json --on ", command["run"])
        files = command["files"]
    sent = {Path(name).name: json.loads(text) for name, text in files.items()}
    assert sent["experiment.json"]["name"] == "micro"
    assert sent["launch.json"]["name"] == launch.name
    assert list(tmp_path.iterdir()) == [], "nothing is written"


def test_submit_without_a_cluster_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    arguments = ("submit", str(MICRO), "--on", str(PROFILES[0]))
    assert launcher_command(monkeypatch, *arguments) == SpecError.exit_code
    assert "set KUBECONFIG" in capsys.readouterr().err


def test_no_process_here_is_the_driver_of_a_run_on_kubernetes() -> None:
    with pytest.raises(SpecError, match=r"place: kuberay is started by the launcher"):
        place().require_runnable()
    place().inside_the_cluster().require_runnable()


def test_render_needs_no_training_package() -> None:
    """Each is made impossible to import, in a process of its own."""
    code = (
        "import sys\n"
        "for name in ('torch', 'ray', 'deepspeed', 'transformers', 'datasets', 'kubernetes',"
        " 'jsonschema', 'obstore'):\n"
        "    sys.modules[name] = None\n"
        "from launcher import cli\n"
        f"sys.argv = ['rotescale-launch', 'render', {str(MICRO)!r}, '--on', {str(PROFILES[0])!r}]\n"
        "cli.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert [one["kind"] for one in yaml.safe_load_all(done.stdout)] == ["ConfigMap", "RayJob"]


def test_the_rays_are_one_version() -> None:
    pinned = (ROOT / "constraints.txt").read_text().splitlines()
    assert f"ray=={RAY_VERSION}" in pinned
