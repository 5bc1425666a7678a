"""What somebody might write into a spec or a profile to break out of it."""

from __future__ import annotations

import contextlib
import io
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kuberay_helpers import MICRO
from kuberay_schema import changed, places

from launcher import cli
from rotescale.spec_file import read_fields

SECRETS = {
    "HF_TOKEN": "hf_QmVyR2hhaW5UaGVXb3JsZElzTm90",
    "AWS_ACCESS_KEY_ID": "AKIAQX3EXAMPLE7PLMNB",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMIK7MDENGbPxRfiCYzzzz",
    "RAY_AUTH_TOKEN": "c29tZS10b2tlbi1vZi1SYXk",
    "RAY_CLUSTER_TOKEN": "YW5vdGhlci10b2tlbi1vZi1SYXk",
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
}
"""In the environment of whoever renders: none of it may come out."""

TOKENS = [
    *(SECRETS["HF_TOKEN"], SECRETS["AWS_ACCESS_KEY_ID"]),
    "ghp_R2l0SHViVG9rZW5UaGF0SXNMb25n",
    "sk-proj-T3BlbkFJLWtleS1vZi1zb21lLWxlbmd0aA",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl",
    "https://someone:Tr0ub4dor&3@registry.example.com/models",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEAxyzSECRETBODY\n-----END RSA PRIVATE KEY-----",
]
"""Credentials where they do not belong; none of them may come out either."""

HOSTILE: list[Any] = [
    *(
        "../../etc/passwd",
        "/checkpoints/../../etc",
        "/checkpoints/./x",
        "//etc",
        "/",
        "~",
        "~nobody-here",
    ),
    *("/checkpoints/..", "/etc/rotescale", "/dev/shm", "/proc/1/root", "file:///etc", "."),
    *("s3://bucket/../other", "s3://user:pass@bucket/x", "gs://", "http://evil.example.com/x"),
    *("$(id)", "`id`", "; id", "a && id", "a | sh", "$HOME", "${HOME}", "$(HF_TOKEN)", "$$(HOME)"),
    *("> /tmp/x", "a\nb", "a\r\nb: c", "\n- evil", "a: b", "- a", "'", '"', "'; id; '", "\\", "*"),
    *("--privileged", "-v", "a b", "\t", "\x00", "\x1b[2J", "\x85", "\u2028", "\ufeff", "%s"),
    *("rotescаle", "ｒotescale", "rote\u200bscale", "\u202eevil", "rotescale．com", "１", "ß", "İ"),
    *("a" * 64, "a" * 254, "x" * 100_000, "9" * 400, "-", "a-", ".a", "a..b", "A", "_", "", " "),
    *("yes", "null", "1e5", "0x10", "2026-11-27", "image:latest", "image", "@sha256:0", "a:b:c"),
    *(0, -1, 1, 2**31, 2**63, 10**30, 0.5, 1e308, float("inf"), float("nan"), True, None),
    *([], {}, [[]], [1], {"a": "b"}, {"a": {"b": "c"}}, ["a", "a"], {"": ""}, {"$(id)": "`id`"}),
    *({"kind": "hostPath"}, {"hostPath": {"path": "/"}}, {"privileged": True}, {"RAY_A": "x"}),
]

RAY = {"jobs_url": "https://ray.example.com", "token_variable": "RAY_CLUSTER_TOKEN"}

TEXTS = [value for value in HOSTILE if isinstance(value, str)]

EXPERIMENT_CHANGES: list[dict[str, Any]] = [
    {},
    {"facts": {"source": "files", "paths": ["/models/a.csv"], "relations_file": "/models/r.yaml"}},
    {"facts": {"source": "trex", "path": "/checkpoints/trex"}},
    {"evaluation": {"harness_tasks": ["x"], "harness_folder": "/checkpoints/tasks"}},
    {"facts": {"source": "dataset", "dataset": "someone/facts", "revision": "main"}},
    {"model": {"weights": {"kind": "folder", "path": "/models/a"}}},
    {"model": {"weights": {"kind": "hub", "repository": "a/b", "revision": "main"}}},
]


def put(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy of the document with the value at ``path``."""
    return changed(document, path, lambda parent, key: parent.__setitem__(key, value))


VALUES = st.one_of(
    st.sampled_from(HOSTILE),
    st.sampled_from(TOKENS),
    st.text(max_size=80),
    st.integers(),
    st.dictionaries(st.text(max_size=12), st.text(max_size=12), max_size=3),
)


@dataclass(frozen=True)
class Case:
    """An experiment and a place, as they are written."""

    spec: dict[str, Any]
    launch: dict[str, Any]
    tokens: list[str]
    """Credentials among their values."""

    def require_secrets_kept(self, *outputs: str) -> None:
        """Neither its credentials nor the environment's are in any output."""
        for secret in (*SECRETS.values(), *self.tokens):
            for output in outputs:
                assert secret not in output


@st.composite
def hostile_cases(
    draw: st.DrawFn,
    places_to_run: Sequence[dict[str, Any]],
    *,
    changes: Sequence[dict[str, Any]] = EXPERIMENT_CHANGES,
    values: st.SearchStrategy[Any] = VALUES,
) -> Case:
    """One of the places and an experiment, with hostile values in some of their fields."""
    spec = {**read_fields(MICRO), **draw(st.sampled_from(changes))}
    launch = draw(st.sampled_from(places_to_run))
    told = []
    kinds = ["template", "path", *(["variable"] if "kuberay" in launch else [])]
    for _ in range(draw(st.integers(0, 3))):
        # Where any text is right, so that not all cases are refused.
        text = draw(st.one_of(st.sampled_from(TEXTS), st.text(max_size=80)))
        match draw(st.sampled_from(kinds)):
            case "variable":
                launch = put(launch, ("kuberay", "environment", "PRICE"), text)
            case "template":
                spec = put(spec, ("model",), {**spec["model"], "key_tokens": {"template": text}})
            case "path":
                spec = put(spec, ("facts",), {"source": "files", "paths": [f"/models/{text}.csv"]})
    for _ in range(draw(st.integers(0, 3))):
        value = draw(values)
        told += [token for token in TOKENS if value == token]
        if draw(st.integers(0, 3)):
            path = draw(st.sampled_from(list(places(launch))))
            launch = put(launch, path, value)
        else:
            path = draw(st.sampled_from(list(places(spec))))
            spec = put(spec, path, value)
    return Case(spec, launch, told)


def command(name: str, folder: Path, spec: Any, launch: Any) -> tuple[int, str, str]:
    """A command of ``rotescale-launch`` on these two files: exit code, output, errors."""
    paths = [folder / "spec.yaml", folder / "place.yaml"]
    for path, content in zip(paths, (spec, launch), strict=True):
        text = content if isinstance(content, str) else yaml.safe_dump(content)
        path.write_text(text, encoding="utf-8")
    arguments = ["rotescale-launch", name, str(paths[0]), "--on", str(paths[1])]
    output, errors = io.StringIO(), io.StringIO()
    with (
        patch.object(sys, "argv", arguments),
        patch.dict("os.environ", SECRETS),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
        pytest.raises(SystemExit) as stopped,
    ):
        cli.main()
    return int(stopped.value.code or 0), output.getvalue(), errors.getvalue()


def hold(cases: st.SearchStrategy[Case], check: Callable[[Case], int]) -> Counter[int]:
    """``check`` of 220 of the cases; how often each exit code came out."""
    outcomes: Counter[int] = Counter()

    @settings(
        max_examples=220,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases)
    def one(case: Case) -> None:
        outcomes[check(case)] += 1

    one()
    return outcomes


def require_refused(printed: str, told: str) -> None:
    """Nothing but an error in a line, which is not as long as what it is about."""
    assert printed == ""
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    assert told.endswith("\n")
    assert len(told) < 20_000
