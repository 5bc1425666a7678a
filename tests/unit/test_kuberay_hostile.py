"""Hostile specs and profiles are refused in one line, or rendered as text that does nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hostile import RAY, SECRETS, TOKENS, Case, command, hold, hostile_cases, put, require_refused
from kuberay_helpers import FABRICS, FULL, MICRO
from kuberay_schema import BY_HAND, as_pod, check_as_kubernetes_does, faults

from launcher.kuberay.render import ENTRYPOINT, render
from launcher.kuberay.rules import broken_rules, pod_templates
from rotescale.errors import SpecError
from rotescale.launch_spec import LaunchSpec
from rotescale.spec import ExperimentSpec
from rotescale.spec_file import parse_spec, read_fields

PLACES = [put(FULL, ("kuberay", "fabric"), fabric) for fabric in FABRICS.values()]


def expanded(text: str) -> str:
    """A variable's value as Kubernetes makes it: $(NAME) is another's value, $$ a dollar."""
    return re.sub(r"\$\$|\$\([^)]*\)", lambda m: "$" if m[0] == "$$" else "(expanded)", text)


def require_inert(printed: str, launch: dict[str, Any]) -> None:
    """What was rendered is legal, and what was hostile is only text in places for text."""
    manifests = list(yaml.safe_load_all(printed))
    assert list(broken_rules(manifests)) == []
    config_map, ray_job = manifests
    assert faults(BY_HAND, ray_job) == []
    assert ray_job["spec"]["entrypoint"] == ENTRYPOINT
    expected = {"ray-head", "ray-worker", "tcpxo-daemon"}
    plain = {one["name"]: str(one["value"]) for one in asked_for(launch)}
    check_as_kubernetes_does(config_map)
    for _, template in pod_templates(ray_job):
        check_as_kubernetes_does(as_pod(template))
        for container in template["spec"]["containers"]:
            assert container["name"] in expected
            assert set(commands(container)) <= COMMANDS
            values = {one["name"]: one.get("value") for one in container["env"]}
            for name in plain.keys() & values.keys():
                assert expanded(values[name]) == plain[name]
    for name in (ray_job["metadata"]["name"], ray_job["metadata"]["namespace"]):
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name, re.ASCII)


def asked_for(launch: dict[str, Any]) -> list[dict[str, Any]]:
    variables = launch["kuberay"].get("environment", {})
    return [{"name": name, "value": value} for name, value in variables.items()]


def commands(container: dict[str, Any]) -> list[str]:
    hook = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
    words = [*container.get("command", []), *container.get("args", []), *hook]
    return [word for word in words if not word.isdecimal()]


def known_commands() -> set[str]:
    """Every word of a command in the jobs of all fabrics, none of which is a spec's."""
    found = set()
    for fabric in FABRICS.values():
        launch = parse_spec(LaunchSpec, put(FULL, ("kuberay", "fabric"), fabric), where="x")
        spec = parse_spec(ExperimentSpec, read_fields(MICRO), where="x")
        for _, template in pod_templates(render(spec, launch)[1]):
            for container in template["spec"]["containers"]:
                found |= set(commands(container))
    return found


COMMANDS = known_commands()


def test_hostile_values_are_refused_or_do_nothing(tmp_path: Path) -> None:
    def check(case: Case) -> int:
        code, printed, told = command("render", tmp_path, case.spec, case.launch)
        case.require_secrets_kept(printed, told)
        if code == 0:
            require_inert(printed, case.launch)
        else:
            require_refused(printed, told)
        return code

    outcomes = hold(hostile_cases(PLACES), check)
    # A generator of refused cases alone would prove little.
    assert set(outcomes) == {0, SpecError.exit_code}
    assert sum(outcomes.values()) >= 200
    assert min(outcomes.values()) >= 20


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: !!python/object/apply:os.system [id]\n", "a spec has no tags"),
        ("name: !!timestamp x\n", "a spec has no tags"),
        ("!evil {}\n", "a spec has no tags"),
        ("name: a\nname: b\n", "'name' stands twice"),
        (f"kuberay: {'[' * 500_000}{']' * 500_000}\n", "nested too deeply"),
        (f"kuberay:\n{'- ' * 400_000}\n", "nested too deeply"),
        ("num_workers: " + "9" * 5000 + "\n", "integer string conversion"),
        ("name: " + "x" * (1 << 20) + "\n", "a spec has at most 1048576"),
        ("a: &a [x, x]\nname: &b [*a, *a]\n", "name: Input should be a valid string"),
        ("name: &a [*a]\n", "name: Input should be a valid string"),
        ("name: 2026-99-99\n", "not valid YAML"),
        ('name: "\\ud800"\n', "half of a surrogate pair is no character"),
        ("name: \x07\n", "not valid YAML"),
        ("? [a]\n: b\n", "cannot be a key"),
        ("- a\n", "a spec is a mapping"),
        ("", "a spec is a mapping"),
    ],
)
def test_hostile_yaml(text: str, words: str, tmp_path: Path) -> None:
    code, printed, told = command("render", tmp_path, read_fields(MICRO), text)
    assert (code, printed) == (SpecError.exit_code, "")
    assert words in told
    assert len(told) < 2000


def test_aliases_that_would_fill_the_memory(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    code, _, told = command(
        "render", tmp_path, read_fields(MICRO), "\n".join([*lines, "name: *a11", ""])
    )
    assert code == SpecError.exit_code
    assert len(told) < 20_000


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("namespace", "rotescаle", "kuberay.namespace"),
        ("namespace", "../kube-system", "kuberay.namespace"),
        ("image", "evil.example.com/x:1\n", "kuberay.image"),
        ("image", "rotescale", "pin it by a tag other than latest"),
        ("image", "rotescale:latest", "pin it by a tag other than latest"),
        ("environment", {"HF_TOKEN": "x"}, "put it into a secret of the namespace"),
        ("environment", {"A": SECRETS["HF_TOKEN"]}, "put it into a secret of the namespace"),
        ("environment", {"RAY_ADDRESS": "x"}, "RAY_ADDRESS is set by Ray"),
        ("environment", {"RAY_AUTH_MODE": "disabled"}, "RAY_AUTH_MODE is set by Ray"),
        ("environment", {"LD_PRELOAD": "/checkpoints/x.so"}, "LD_PRELOAD is set by"),
        ("environment", {"A=B": "x"}, "kuberay.environment"),
        ("environment", {"A": "a\nb"}, "kuberay.environment"),
        ("secrets", {"HF_TOKEN": "hunter2"}, "kuberay.secrets.HF_TOKEN"),
        ("secrets", {"HF_TOKEN": {"secret": "Hunter2!", "key": "k"}}, "kuberay.secrets"),
        ("volumes", [{"claim": "c", "path": "/etc/rotescale/x"}], "is the container's own"),
        ("volumes", [{"claim": "c", "path": "/checkpoints/../etc"}], "kuberay.volumes.0.path"),
        ("volumes", [{"claim": "c", "path": "/dev/shm"}], "/dev is the container's own"),
        ("grace_seconds", 10**9, "kuberay.grace_seconds"),
        ("retries", 10**30, "kuberay.retries"),
        ("deadline_seconds", 2**31, "kuberay.deadline_seconds"),
        ("ray_version", "2.51.0", "no token authentication"),
        ("token", "hunter2", "kuberay.token: unknown key"),
    ],
)
def test_what_is_refused_says_which_field(
    field: str, value: Any, words: str, tmp_path: Path
) -> None:
    launch = put(FULL, ("kuberay", field), value)
    code, printed, told = command("render", tmp_path, read_fields(MICRO), launch)
    assert (code, printed) == (SpecError.exit_code, "")
    assert words in told
    for secret in ("hunter2", "Hunter2!", SECRETS["HF_TOKEN"]):
        assert secret not in told


def texts_with(token: str) -> Iterator[Any]:
    """The credential by itself, anywhere in a long text, and in lists and mappings."""
    yield from (token, "x" * 90 + " " + token, "x" * 185 + " " + token, f"{token} " + "x" * 300)
    yield from ([token], {"a": token}, {token: "a"}, {"a": ["b", {"c": token}]})


FIELDS: list[tuple[Any, ...]] = [
    *(("name",), ("storage",), ("kuberay", "image"), ("kuberay", "environment", "A")),
    *(("kuberay", "environment"), ("kuberay", "head", "node_selector")),
    *(("kuberay", "head", "node_selector", "pool"), ("kuberay", "volumes", 0, "claim")),
    ("kuberay", "workers", "tolerations"),
]


@pytest.mark.parametrize("token", [*TOKENS, SECRETS["AWS_ACCESS_KEY_ID"]])
def test_no_part_of_a_credential_is_repeated(token: str, tmp_path: Path) -> None:
    # What every key begins with, or a URL's host, is no secret.
    secret = "Tr0ub4dor&3" if "://" in token else token
    parts = [secret[place : place + 9] for place in range(len(secret) - 8)]
    telling = [part for part in parts if "-----" not in part and "KEY" not in part]
    assert telling
    for path in FIELDS:
        for value in texts_with(token):
            code, printed, told = command(
                "render", tmp_path, read_fields(MICRO), put(FULL, path, value)
            )
            assert code == SpecError.exit_code, (path, value)
            require_refused(printed, told)
            assert not [part for part in telling if part in told], (path, value, told)


@pytest.mark.parametrize("folder", ["/checkpoints/tasks", "tasks", "", "$(id)"])
@pytest.mark.parametrize(
    "place",
    [FULL, {}, {"place": "ray", "address": "auto", "storage": "/shared/runs", "ray": RAY}],
    ids=["kuberay", "local", "ray"],
)
def test_a_spec_brings_no_code_with_it(place: Any, folder: str, tmp_path: Path) -> None:
    evaluation = {"harness_tasks": ["innocent"], "harness_folder": folder}
    spec = {**read_fields(MICRO), "evaluation": evaluation}
    code, printed, told = command("render", tmp_path, spec, place)
    assert (code, printed) == (SpecError.exit_code, "")
    assert "set allow_task_code: true in the launch spec" in told
    # A spec cannot allow it to itself.
    code, _, told = command("render", tmp_path, {**spec, "allow_task_code": True}, place)
    assert code == SpecError.exit_code
    assert "allow_task_code: unknown key" in told


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("$$", "$"),
        ("$A", "$A"),
        ("$(A)", "(expanded)"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$(expanded)"),
    ],
)
def test_the_expansion_is_as_kubernetes_does_it(text: str, meant: str) -> None:
    assert expanded(text) == meant
