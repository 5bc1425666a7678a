"""Hostile specs and profiles at the other places, and in plans: refused in a line, or inert."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hostile import RAY, VALUES, Case, command, hold, hostile_cases, put, require_refused
from hypothesis import strategies as st
from kuberay_helpers import FULL, MICRO

from launcher.ray_jobs import ENTRYPOINT
from rotescale.errors import SpecError
from rotescale.spec_file import read_fields
from rotescale.storage import storage_path

LOCAL: dict[str, Any] = {
    **{"name": "here", "place": "local", "num_workers": 2, "cpus_per_worker": 1},
    **{"storage": "/checkpoints/runs", "model_cache": "/checkpoints/models"},
    "node": {"like": "l4-8", "price_per_hour": 4},
    "restarts": {"infrastructure": 3},
    "limits": {"step_seconds": 60},
    "preflight": {"matmul_tflops": 1},
    "profile": {"steps": [3, 5], "phase": "memorize"},
}
ON_RAY = {
    **LOCAL,
    **{"name": "there", "place": "ray", "address": "auto"},
    "ray": {**RAY, "ca_file": "/etc/ssl/ca.pem"},
}
ON_PODS = put({**FULL, "node": LOCAL["node"]}, ("kuberay", "fabric"), {"kind": "none"})
UNFIT = 1
HUGE = (10**9, 2**31, 2**53, 2**53 + 1, 2**63, 10**30, 10**300)
KNOWN: list[dict[str, Any]] = [
    {},
    {"model": {"weights": {"kind": "wheel"}}},
    {"model": {"weights": {"kind": "hub", "repository": "meta-llama/Llama-3.1-70B"}}},
    {"facts": {"source": "generated", "relations": ["mother"], "num_facts": 1000}},
]


def require_one_command(document: dict[str, Any], case: Case) -> None:
    """A shell finds the launcher's own words in it, and the run's folder."""
    lexer = shlex.shlex(document["run"], posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words = list(lexer)
    submitted = Path(words[6]).parent
    folder = submitted.parent
    root = storage_path(case.launch["storage"])
    assert isinstance(root, Path)
    assert folder == root.absolute() / case.spec["name"]
    assert words == [
        *("PYTHONUNBUFFERED=1", "COLUMNS=120", sys.executable, "-m", "launcher.cli", "supervise"),
        *(f"{submitted}/experiment.json", "--on", f"{submitted}/launch.json"),
        *(">>", f"{folder}/logs/driver.log"),
    ]
    assert set(document["files"]) == {"submitted/experiment.json", "submitted/launch.json"}


def require_fixed_request(document: dict[str, Any], case: Case) -> None:
    """The job's command and variables are no spec's."""
    body = document["post"]["body"]
    assert body["entrypoint"] == ENTRYPOINT
    assert set(body) == {"entrypoint", "submission_id", "runtime_env", "metadata"}
    assert set(body["runtime_env"]) == {"working_dir", "env_vars"}
    assert set(body["runtime_env"]["env_vars"]) == {"RAY_JOB_STOP_WAIT_TIME_S"}
    root = storage_path(case.launch["storage"])
    assert body["metadata"]["rotescale-run-folder"] == str(root / case.spec["name"])
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", body["submission_id"], re.ASCII)
    assert set(document["put"]["files"]) == {"experiment.json", "launch.json"}


@pytest.mark.parametrize(
    ("place", "require_inert"),
    [(LOCAL, require_one_command), (ON_RAY, require_fixed_request)],
    ids=["local", "ray"],
)
def test_what_is_started_elsewhere(
    place: dict[str, Any],
    require_inert: Callable[[dict[str, Any], dict[str, Any]], None],
    tmp_path: Path,
) -> None:
    def check(case: Case) -> int:
        code, printed, told = command("render", tmp_path, case.spec, case.launch)
        case.require_secrets_kept(printed, told)
        if code:
            require_refused(printed, told)
        else:
            document = yaml.safe_load(printed)
            require_inert(document, case)
            for text in document.get("files", document.get("put", {}).get("files")).values():
                assert isinstance(json.loads(text), dict)
        return code

    outcomes = hold(hostile_cases([place]), check)
    assert set(outcomes) == {0, SpecError.exit_code}
    assert min(outcomes.values()) >= 20


@pytest.mark.parametrize("place", [LOCAL, ON_RAY, ON_PODS], ids=["local", "ray", "kuberay"])
def test_plans(place: dict[str, Any], tmp_path: Path) -> None:
    def check(case: Case) -> int:
        code, printed, told = command("plan", tmp_path, case.spec, case.launch)
        case.require_secrets_kept(printed, told)
        if code not in (0, UNFIT):
            require_refused(printed, told)
        else:
            assert "It fits" in printed or "does not fit" in printed, printed
            assert told == ""
            assert len(printed) < 20_000
        return code

    numbers = st.one_of(st.integers(1, 2**60), st.floats(0, 1e110), st.sampled_from(HUGE))
    # Of models that are at hand, since a plan reads their numbers.
    cases = hostile_cases([place], changes=KNOWN, values=st.one_of(numbers, VALUES))
    outcomes = hold(cases, check)
    assert set(outcomes) <= {0, UNFIT, SpecError.exit_code}
    assert outcomes[SpecError.exit_code] >= 20
    assert outcomes[0] + outcomes[UNFIT] >= 15


@pytest.mark.parametrize(
    "value", HUGE, ids=["1e9", "2^31", "2^53", "2^53+1", "2^63", "1e30", "1e300"]
)
@pytest.mark.parametrize(
    "field",
    [
        *("facts.num_facts", "phases.0.epochs", "phases.0.global_batch", "phases.0.token_budget"),
        *("phases.1.facts_per_relation", "phases.1.num_prompts", "phases.0.schedule_epochs"),
        *("evaluation.held_out_facts", "evaluation.generation_facts", "evaluation.test_prompts"),
        *("model.weights.hidden_size", "model.weights.num_layers", "model.weights.vocab_size"),
        *("model.key_tokens.count", "engine.row_tokens", "checkpoints.every_steps"),
        *("launch.num_workers", "launch.cpus_per_worker", "launch.node.cpus"),
        *("launch.node.host_memory_gib", "launch.node.gpus_per_node", "launch.node.price_per_hour"),
        *("launch.limits.step_seconds", "launch.max_failures", "launch.restarts.infrastructure"),
    ],
)
def test_plans_of_huge_numbers(field: str, value: int, tmp_path: Path) -> None:
    code, printed, told = planned(field, value, tmp_path)
    if code in (0, UNFIT):
        assert "It fits" in printed or "does not fit" in printed, printed
        assert len(printed) < 20_000
    else:
        assert code == SpecError.exit_code
        require_refused(printed, told)


def planned(field: str, value: float, folder: Path) -> tuple[int, str, str]:
    """``plan`` with that number in that field: exit code, output, errors."""
    spec: dict[str, Any] = {
        **read_fields(MICRO),
        **{"engine": {}, "checkpoints": {}},
        "model": {"weights": {"kind": "random"}, "key_tokens": {"template": "[X{number}]"}},
    }
    launch = LOCAL
    first, *rest = field.split(".")
    if first == "launch":
        launch = put(launch, tuple(rest), value)
    else:
        path = tuple(int(part) if part.isdigit() else part for part in (first, *rest))
        if field == "facts.num_facts":
            spec["facts"] = {"source": "generated", "relations": ["mother"]}
        spec = put(spec, path, value)
    return command("plan", folder, spec, launch)


@pytest.mark.parametrize(
    ("field", "most"),
    [
        ("launch.num_workers", 65_536),
        ("launch.node.price_per_hour", 1e100),
        ("launch.node.host_memory_gib", 1e100),
        ("launch.cpus_per_worker", 1e100),
        ("launch.limits.step_seconds", 1e100),
        ("model.weights.num_layers", 10_000),
        ("model.key_tokens.count", 1000),
        ("evaluation.held_out_facts", 2**53),
        ("phases.0.epochs", 2**53),
    ],
)
def test_the_largest_number_is_planned_and_the_next_is_refused(
    field: str, most: float, tmp_path: Path
) -> None:
    code, _, told = planned(field, most, tmp_path)
    assert code in (0, UNFIT), told
    code, printed, told = planned(
        field, most * 2 if isinstance(most, float) else most + 1, tmp_path
    )
    assert code == SpecError.exit_code
    require_refused(printed, told)
