"""What looks like a credential is found and hidden; what does not is left as it is."""

from __future__ import annotations

import ast
import sys

import pytest

from rotescale.credentials import found_in, found_inside, hidden, names_one
from rotescale.errors import SpecError, exit_with_error

CREDENTIALS = {
    "hf_QmVyR2hhaW5UaGVXb3JsZElzTm90": "a Hugging Face token",
    "ghp_R2l0SHViVG9rZW5UaGF0SXNMb25n": "a GitHub token",
    "github_pat_R2l0SHViVG9rZW5UaGF0SXNMb25n": "a GitHub token",
    "glpat-R2l0TGFiVG9rZW4x": "a GitLab token",
    "pypi-AgEIcHlwaS5vcmcCJGZha2U": "a package index token",
    "AKIAQX3EXAMPLE7PLMNB": "an AWS access key",
    "AIzaSyR29vZ2xlS2V5VGhhdElzTG9uZ0Vub3Vn": "a Google API key",
    "xoxb-123456789012-abcdef": "a Slack token",
    "sk-proj-T3BlbkFJLWtleS1vZi1zb21l": "an API key",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl": "a JSON web token",
    "-----BEGIN OPENSSH PRIVATE KEY-----": "a private key",
    "https://someone:hunter2@example.com": "a password in a URL",
}


@pytest.mark.parametrize(("text", "kind"), CREDENTIALS.items())
def test_a_credential_is_found_wherever_it_stands(text: str, kind: str) -> None:
    if kind == "a password in a URL":
        assert hidden(text).endswith("example.com"), "the rest is not hidden"
        text = text.removeprefix("https").removesuffix("example.com")
        assert found_in(f"https{text}x") == kind
        return
    for around in ("{}", "a {} b", "'{}'", "key={};", "x\n{}\ny"):
        assert found_in(around.format(text)) == kind
        assert text not in hidden(around.format(text))
        assert kind in hidden(around.format(text))


def test_a_private_key_is_hidden_to_its_end() -> None:
    head, foot = "-----BEGIN RSA PRIVATE KEY-----", "-----END RSA PRIVATE KEY-----"
    key = f"{head}\nProc-Type: 4,ENCRYPTED\n\nMIIEowIBAAKCAQEA\n{foot}"
    assert hidden(f"a {key} b") == "a (hidden: looks like a private key) b"
    assert hidden(f"a {head}\nMIIEowIBAAKCAQEA") == "a (hidden: looks like a private key)"


@pytest.mark.parametrize(
    "value",
    [
        *("{}", ["a", ("{}",)], {"a": {"b": "{}"}}, {"{}": 1}, {1: [{"a": {"{}"}}]}),
        *(1, None, ["a"], {"a": "b"}),
    ],
)
def test_a_credential_is_found_however_deep_it_lies(value: object) -> None:
    token = "hf_QmVyR2hhaW5UaGVXb3JsZElzTm90"
    holds = "{}" in repr(value)
    filled = ast.literal_eval(repr(value).replace("{}", token)) if holds else value
    assert found_inside(filled) == ("a Hugging Face token" if holds else None)


def test_what_repeats_itself_is_looked_at_once() -> None:
    nested: list[object] = ["x"]
    for _ in range(60):
        nested = [nested] * 10
    assert found_inside(nested) is None


@pytest.mark.parametrize(
    "text",
    [
        *("", "hf_", "hf_hub", "sk-learn", "The Mechanical Widow", "registry.example.com:5000/a:1"),
        *("task-force-of-the-long-experiment-name", "disk-usage-aaaaaaaaaaaaaaaaaaaaaaaa"),
        *("https://example.com:8265/a@b", "s3://bucket/runs", "max_new_tokens", "eyJ", "AKIA"),
        "arn:aws:eks:us-east-1:123456789012:cluster/research",
    ],
)
def test_what_is_none_is_left(text: str) -> None:
    assert found_in(text) is None
    assert hidden(text) == text


@pytest.mark.parametrize(
    "name",
    [
        *("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "WANDB_API_KEY", "PASSWORD"),
        *("PGPASSWORD", "hf_token", "GOOGLE_APPLICATION_CREDENTIALS", "SSH_PRIVATE_KEY", "APIKEY"),
    ],
)
def test_names_of_credentials(name: str) -> None:
    assert names_one(name)


@pytest.mark.parametrize("name", ["TOKENIZERS_PARALLELISM", "KEYS", "NCCL_DEBUG", "MONKEY", "HOME"])
def test_names_of_none(name: str) -> None:
    assert not names_one(name)


def test_an_error_shows_none(capsys: pytest.CaptureFixture[str]) -> None:
    token = next(iter(CREDENTIALS))
    with pytest.raises(SystemExit), exit_with_error():
        raise SpecError(f"place.yaml: name: no name (got {token!r})")
    assert token not in capsys.readouterr().err
    assert sys.exc_info() == (None, None, None)


@pytest.mark.parametrize(
    "text", [one * 100_000 for one in ("aaaa", "eyJ-", "://:", "sk-a", "-----BEGIN ")]
)
def test_a_long_text_of_beginnings_is_none(text: str) -> None:
    assert found_in(text) is None
    assert hidden(text) == text
