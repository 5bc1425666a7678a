"""Each rule of the operator, of Kueue and of pods: a sound job is broken in one place."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from kuberay_helpers import FABRICS, experiment, job, place, rendered
from kuberay_schema import BY_HAND, crd_validator, faults

from launcher.kuberay import render, rules
from launcher.kuberay.pod_rules import POD_RULES
from launcher.kuberay.rules import broken_rules, check
from rotescale.errors import SpecError

Change = Callable[[dict[str, Any]], object]


def cluster(ray_job: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = ray_job["spec"]["rayClusterSpec"]
    return found


def head(ray_job: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = cluster(ray_job)["headGroupSpec"]
    return found


def group(ray_job: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = cluster(ray_job)["workerGroupSpecs"][0]
    return found


def pod(ray_job: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = group(ray_job)["template"]["spec"]
    return found


def container(ray_job: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = pod(ray_job)["containers"][0]
    return found


def spec(**values: Any) -> Change:
    return lambda j: j["spec"].update(values)


def without(*fields: str) -> Change:
    return lambda j: [j["spec"].pop(field) for field in fields]


def both(*changes: Change) -> Change:
    return lambda j: [change(j) for change in changes]


def no_queue(ray_job: dict[str, Any]) -> None:
    del ray_job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]
    del ray_job["metadata"]["labels"]["kueue.x-k8s.io/priority-class"]
    del ray_job["spec"]["suspend"]


def broken(change: Change, *, fabric: str = "infiniband") -> list[str]:
    ray_job = job(fabric=fabric)
    change(ray_job)
    return list(broken_rules([rendered(fabric=fabric)[0], ray_job]))


RULES: list[tuple[str, Change, str]] = [
    ("long name", lambda j: j["metadata"].update(name="x" * 48), "at most 47"),
    ("name with a dot", lambda j: j["metadata"].update(name="a.b"), "at most 47"),
    ("name from a digit", lambda j: j["metadata"].update(name="1a"), "from a letter on"),
    ("name with a capital", lambda j: j["metadata"].update(name="aB"), "lower-case"),
    ("name with a Greek letter", lambda j: j["metadata"].update(name="αb"), "lower-case"),
    ("name with a line end", lambda j: j["metadata"].update(name="a\n"), "lower-case"),
    ("unknown mode", spec(submissionMode="Sidecar"), "'Sidecar' never starts; use one of K8sJob"),
    (
        "suspend without shutdown",
        both(no_queue, spec(suspend=True, shutdownAfterJobFinishes=False)),
        "suspend needs shutdownAfterJobFinishes",
    ),
    (
        "ttl without shutdown",
        both(no_queue, without("shutdownAfterJobFinishes")),
        "ttlSecondsAfterFinished 600 needs shutdownAfterJobFinishes",
    ),
    ("negative ttl", spec(ttlSecondsAfterFinished=-1), "ttlSecondsAfterFinished -1 is negative"),
    (
        "deletion rules beside shutdown",
        both(
            no_queue,
            spec(deletionStrategy={"deletionRules": [{}]}, ttlSecondsAfterFinished=0),
        ),
        "deletionRules go with neither",
    ),
    (
        "deletion rules beside ttl",
        both(
            no_queue,
            without("shutdownAfterJobFinishes"),
            spec(deletionStrategy={"deletionRules": [{}]}),
        ),
        "deletionRules go with neither",
    ),
    (
        "deletion rules under Kueue",
        spec(deletionStrategy={"deletionRules": [{}]}),
        "deletionRules do not go with Kueue",
    ),
    ("sidecar and selector", spec(clusterSelector={"a": "b"}), "SidecarMode does not go with clus"),
    ("sidecar and template", spec(submitterPodTemplate={}), "not go with submitterPodTemplate"),
    ("sidecar and submitter", spec(submitterConfig={}), "not go with submitterConfig"),
    (
        "sidecar and a head that restarts",
        lambda j: head(j)["template"]["spec"].update(restartPolicy="OnFailure"),
        "SidecarMode: the head's restartPolicy is OnFailure; set Never",
    ),
    (
        "retries on a cluster that is there",
        both(no_queue, spec(submissionMode="HTTPMode", clusterSelector={"a": "b"})),
        "backoffLimit does not go with clusterSelector",
    ),
    (
        "retries of an interactive job",
        spec(submissionMode="InteractiveMode"),
        "backoffLimit does not go with InteractiveMode",
    ),
    ("negative retries", spec(backoffLimit=-1), "backoffLimit -1 is negative"),
    ("no least", lambda j: group(j).pop("minReplicas"), "minReplicas and maxReplicas are needed"),
    ("no most", lambda j: group(j).pop("maxReplicas"), "minReplicas and maxReplicas are needed"),
    ("too many", lambda j: group(j).update(replicas=9), "not between minReplicas and maxReplicas"),
    (
        "resources twice",
        lambda j: head(j).update(resources={"CPU": "1"}),
        "group head: num-cpus in rayStartParams beside resources",
    ),
    (
        "resources of workers twice",
        lambda j: group(j).update(rayStartParams={"num-gpus": "8"}, resources={"GPU": "8"}),
        "group workers: num-gpus in rayStartParams beside resources",
    ),
    (
        "labels as parameters",
        lambda j: group(j)["rayStartParams"].update(labels="a=b"),
        "labels stand in rayStartParams",
    ),
    ("no auth", lambda j: cluster(j).pop("authOptions"), "authOptions.mode is not token"),
    ("no auth mode", lambda j: cluster(j).update(authOptions={}), "authOptions.mode is not token"),
    (
        "auth off",
        lambda j: cluster(j)["authOptions"].update(mode="disabled"),
        "authOptions.mode is not token",
    ),
    ("old Ray", lambda j: cluster(j).update(rayVersion="2.51.9"), "rayVersion 2.51.9 has no token"),
    ("no version", lambda j: cluster(j).pop("rayVersion"), "has no token authentication"),
    (
        "gated policy",
        lambda j: cluster(j).update(networkPolicy={}),
        "networkPolicy needs a feat",
    ),
    ("gated TLS", lambda j: cluster(j).update(tlsOptions={}), "tlsOptions needs a feature gate"),
    (
        "gated rocksdb",
        lambda j: cluster(j).update(gcsFaultToleranceOptions={"backend": "rocksdb"}),
        "rocksdb needs a feature gate",
    ),
    ("Kueue and selector", spec(clusterSelector={"a": "b"}), "Kueue takes no RayJob with cluster"),
    (
        "Kueue without shutdown",
        both(without("shutdownAfterJobFinishes", "suspend"), spec(ttlSecondsAfterFinished=0)),
        "Kueue needs shutdownAfterJobFinishes",
    ),
    ("Kueue and no suspend", without("suspend"), "Kueue starts what is suspended"),
    (
        "too many groups for Kueue",
        lambda j: cluster(j).update(workerGroupSpecs=cluster(j)["workerGroupSpecs"] * 18),
        "18 worker groups; Kueue takes 17",
    ),
    (
        "priority without queue",
        lambda j: j["metadata"]["labels"].pop("kueue.x-k8s.io/queue-name"),
        "priority-class without kueue.x-k8s.io/queue-name",
    ),
    ("work on the head", lambda j: head(j)["rayStartParams"].pop("num-cpus"), "head takes work"),
    ("driver off the head", spec(entrypointNumCpus=1), "entrypointNumCpus moves the driver off"),
    ("driver on a GPU", spec(entrypointNumGpus=1), "entrypointNumGpus moves the driver off"),
    ("entrypoint", spec(entrypoint="rotescale run $(id) --on x"), "not the fixed command"),
    ("second command", spec(entrypoint=render.ENTRYPOINT + "; id"), "not the fixed command"),
    ("second line", spec(entrypoint=render.ENTRYPOINT + "\n"), "not the fixed command"),
    ("no hook", lambda j: container(j).pop("lifecycle"), "has no preStop hook"),
    (
        "a hook longer than the grace",
        lambda j: pod(j).update(terminationGracePeriodSeconds=100),
        "its preStop takes 285 s of a grace of 100",
    ),
    (
        "a head that goes first",
        lambda j: pod(j).update(terminationGracePeriodSeconds=400),
        "the head's grace of 360 s ends before the workers'",
    ),
    ("no volume", lambda j: pod(j)["volumes"].pop(0), "volumeMount volume-0 of ray-worker has no"),
    (
        "a volume twice",
        lambda j: pod(j)["volumes"].append({"name": "local", "emptyDir": {}}),
        "volume local is given twice",
    ),
    (
        "two volumes at one place",
        lambda j: container(j)["volumeMounts"].append({"name": "local", "mountPath": "/dev/shm"}),
        "two volumes are mounted at /dev/shm",
    ),
    (
        "a pod that restarts",
        lambda j: pod(j).update(restartPolicy="Always"),
        "restartPolicy Always",
    ),
    (
        "requests below limits",
        lambda j: container(j)["resources"]["requests"].update(cpu="1"),
        "requests and limits of ray-worker differ",
    ),
    (
        "no memory",
        lambda j: container(j).update(resources={"limits": {"cpu": "1"}, "requests": {"cpu": "1"}}),
        "lack cpu or memory",
    ),
    ("host network", lambda j: pod(j).update(hostNetwork=True), "hostNetwork is set"),
    (
        "token",
        lambda j: pod(j).pop("automountServiceAccountToken"),
        "token for Kubernetes is",
    ),
    (
        "host path",
        lambda j: pod(j)["volumes"].append({"name": "x", "hostPath": {"path": "/"}}),
        "host path / is mounted",
    ),
    (
        "another fabric's host path",
        lambda j: pod(j)["volumes"].append({"name": "x", "hostPath": {"path": "/sys"}}),
        "host path /sys is mounted",
    ),
    (
        "capabilities kept",
        lambda j: container(j)["securityContext"]["capabilities"].pop("drop"),
        "keeps capabilities; drop ALL",
    ),
    (
        "another capability",
        lambda j: container(j)["securityContext"]["capabilities"]["add"].append("SYS_ADMIN"),
        "adds SYS_ADMIN; its fabric does not need it",
    ),
    (
        "another fabric's capability",
        lambda j: container(j)["securityContext"]["capabilities"].update(add=["NET_ADMIN"]),
        "adds NET_ADMIN; its fabric does not need it",
    ),
    (
        "the workers' capability on the head",
        lambda j: head(j)["template"]["spec"]["containers"][0]["securityContext"][
            "capabilities"
        ].update(add=["IPC_LOCK"]),
        "ray-head adds IPC_LOCK",
    ),
    (
        "privileged",
        lambda j: container(j)["securityContext"].update(privileged=True),
        "may gain privileges",
    ),
    (
        "privileges by set-uid programs",
        lambda j: container(j)["securityContext"].pop("allowPrivilegeEscalation"),
        "may gain privileges",
    ),
    ("root", lambda j: pod(j)["securityContext"].pop("runAsNonRoot"), "runs as root where the"),
    (
        "root in the container",
        lambda j: container(j)["securityContext"].update(runAsUser=0),
        "the container of Ray runs as root",
    ),
    (
        "an image that is written to",
        lambda j: container(j)["securityContext"].pop("readOnlyRootFilesystem"),
        "ray-worker may change its image; set readOnlyRootFilesystem",
    ),
    (
        "no room for Ray's sessions",
        lambda j: container(j).update(
            volumeMounts=[m for m in container(j)["volumeMounts"] if m["name"] != "tmp"]
        ),
        "ray-worker has nowhere to write /tmp",
    ),
    (
        "no room for caches",
        lambda j: container(j).update(
            volumeMounts=[m for m in container(j)["volumeMounts"] if m["name"] != "home"]
        ),
        "ray-worker has nowhere to write /home/rotescale",
    ),
    (
        "Ray's token in a variable",
        lambda j: container(j)["env"].append({"name": "RAY_AUTH_TOKEN", "value": "x"}),
        "RAY_AUTH_TOKEN is set by the operator",
    ),
    (
        "a secret's value beside its reference",
        lambda j: container(j)["env"][-1].update(value="x"),
        "HF_TOKEN has a value and a reference",
    ),
    (
        "a credential in a variable",
        lambda j: container(j)["env"][0].update(value="hf_" + "a" * 30),
        "holds a Hugging Face token; put it into a secret",
    ),
    (
        "a credential in a key",
        lambda j: j["metadata"]["annotations"].update({"hf_" + "a" * 30: "x"}),
        "holds a Hugging Face token; put it into a secret",
    ),
    (
        "a spec that is not there",
        lambda j: head(j)["template"]["spec"]["volumes"][-1]["configMap"].update(name="other"),
        "ConfigMap other is not among the manifests",
    ),
]


@pytest.mark.parametrize(("change", "words"), [r[1:] for r in RULES], ids=[r[0] for r in RULES])
def test_a_broken_rule_is_found(change: Change, words: str) -> None:
    found = broken(change)
    assert any(words in one for one in found), found


def test_every_rule_is_broken_by_one_of_these() -> None:
    told = set()
    for _, change, _ in RULES:
        ray_job = job(fabric="infiniband")
        change(ray_job)
        templates = [template for _, template in rules.pod_templates(ray_job)]
        told |= {rule for rule in rules.JOB_RULES if list(rule(ray_job))}
        told |= {rule for rule in POD_RULES if any(list(rule(one)) for one in templates)}
    assert told == {*rules.JOB_RULES, *POD_RULES}


@pytest.mark.parametrize("fabric", FABRICS)
def test_what_is_rendered_breaks_none(fabric: str) -> None:
    check(rendered(fabric=fabric))
    assert broken(lambda _: None, fabric=fabric) == []


def test_the_error_lists_every_broken_rule_with_its_object() -> None:
    manifests = rendered()
    ray_job = copy.deepcopy(manifests[1])
    del cluster(ray_job)["authOptions"]
    del container(ray_job)["lifecycle"]
    with pytest.raises(SpecError, match=r"RayJob micro-\w+: authOptions.*; RayJob.*pod of group w"):
        check([manifests[0], ray_job])


def test_a_credential_is_named_by_kind_and_place_not_by_value() -> None:
    token = "hf_" + "Ab3" * 10
    with pytest.raises(SpecError) as caught:
        experiment(f"model.key_tokens.template={token}")
    assert token not in str(caught.value)
    assert "model.key_tokens.template: looks like a Hugging Face token" in str(caught.value)
    spec_map, ray_job = copy.deepcopy(rendered())
    spec_map["data"]["experiment.json"] += token
    (broken,) = broken_rules([spec_map, ray_job])
    assert token not in broken
    assert "data.experiment.json holds a Hugging Face token" in broken


def test_a_spec_that_no_config_map_holds() -> None:
    paths = ", ".join(f"/checkpoints/{'x' * 200}-{number}.csv" for number in range(5000))
    with pytest.raises(SpecError, match=r"bytes, and Kubernetes takes 1048576"):
        render.render(experiment(f"facts={{source: files, paths: [{paths}]}}"), place())


@pytest.mark.parametrize(
    "change",
    [
        spec(submissionMode="Sidecar"),
        spec(suspend=True, shutdownAfterJobFinishes=False),
        lambda j: cluster(j).pop("authOptions"),
        lambda j: pod(j)["volumes"].pop(0),
        spec(clusterSelector={"a": "b"}),
    ],
)
def test_the_api_server_would_have_accepted_it(change: Change) -> None:
    """Why there are rules beside the schema."""
    ray_job = job()
    change(ray_job)
    assert faults(crd_validator(), ray_job) == []


def test_the_schema_by_hand_knows_no_field_that_is_not_written() -> None:
    ray_job = job()
    ray_job["spec"]["clusterSelector"] = {"a": "b"}
    assert faults(BY_HAND, ray_job)
