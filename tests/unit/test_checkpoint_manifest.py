"""A manifest covers every tensor once, and anything else is refused by name."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import xxhash
from checkpoint_helpers import header, save

from rotescale.checkpoint.manifest import (
    DamagedManifestError,
    FileEntry,
    Manifest,
    SliceEntry,
    check_alpha,
    is_published,
    load_manifest,
)
from rotescale.errors import CheckpointError


def entry(start: int, stop: int, **changes: Any) -> dict[str, Any]:
    fields = {
        "tensor": "w",
        "part": "master",
        "shape": (10,),
        "start": start,
        "stop": stop,
        "file": "a",
        "begin": 100 + 4 * start,
        "end": 100 + 4 * stop,
        "digests": ("0",),
    }
    return {**fields, **changes}


def build(*entries: dict[str, Any]) -> Manifest:
    files = tuple(FileEntry(name=name, num_bytes=140, digest="0") for name in ("a", "b"))
    head = dict(header(kind="weights"))
    return Manifest(**head, files=files, slices=tuple(SliceEntry(**raw) for raw in entries))


def test_whole_coverage_is_accepted_in_any_order() -> None:
    build(entry(4, 10, file="b"), entry(0, 4))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([entry(0, 4), entry(5, 10)], r"no slice holds the elements \[4, 5\)"),
        ([entry(1, 10)], r"no slice holds the elements \[0, 1\)"),
        ([entry(0, 6, file="b"), entry(4, 10)], r"two slices hold the elements \[4, 6\)"),
        ([entry(0, 9)], "end at 9 of 10"),
        ([entry(0, 11)], "end at 11 of 10"),
        ([entry(0, 4), entry(4, 10, shape=(2, 5))], "disagree on the shape"),
        ([entry(0, 10, end=136)], "36 bytes in a for 40 bytes"),
        ([entry(0, 10, begin=104, end=144)], "reach byte 144 of 140"),
        ([entry(0, 10, file="c")], "c, which is not listed"),
        ([entry(0, 10), entry(0, 10, tensor="v")], "share bytes"),
        ([entry(0, 10, digests=("0", "1"))], "2 digests for 1 blocks"),
        ([entry(0, 10, part="exp_avg")], "a weights checkpoint cannot hold"),
    ],
)
def test_bad_coverage_is_refused(entries: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(*entries)


def test_a_full_checkpoint_without_moments_is_refused() -> None:
    whole = dict(build(entry(0, 10)))
    with pytest.raises(ValueError, match="a full checkpoint cannot hold"):
        Manifest(**{**whole, "kind": "full"})


def test_load_returns_what_was_saved(tmp_path: Path) -> None:
    assert not is_published(tmp_path)
    manifest = save(tmp_path, head=header())
    assert is_published(tmp_path)
    assert load_manifest(tmp_path / "manifest.json") == manifest


def test_adapters_of_another_alpha_are_refused(tmp_path: Path) -> None:
    plain = save(tmp_path / "plain", head=header())
    assert "lora_alpha" not in json.loads((tmp_path / "plain" / "manifest.json").read_bytes())
    save(tmp_path / "lora", head=header(lora_alpha=7.5))
    adapted = load_manifest(tmp_path / "lora" / "manifest.json")
    # Whether there are adapters at all, the tensors say.
    check_alpha(tmp_path, plain, alpha=8.0)
    check_alpha(tmp_path, adapted, alpha=None)
    check_alpha(tmp_path, adapted, alpha=7.5)
    with pytest.raises(CheckpointError, match=r"model\.lora\.alpha 7\.5, not 8\.0; go on with"):
        check_alpha(tmp_path, adapted, alpha=8.0)


def with_fields(text: bytes, *, digest: bool, **changes: Any) -> bytes:
    """A manifest's content with other fields, and with a digest that fits them, or none."""
    fields = {**json.loads(text), **changes}
    del fields["digest"]
    body = json.dumps(fields, separators=(",", ":")).encode()[:-1]
    end = f',"digest":"{xxhash.xxh3_128_hexdigest(body)}"' if digest else ""
    return body + end.encode() + b"}\n"


@pytest.mark.parametrize(
    ("digest", "field", "value", "message"),
    [
        (False, "version", 2, r"version 2 .* reads version 3; use the rotescale that wrote it"),
        (True, "version", 4, r"version 4 .* reads version 3; use the rotescale that wrote it"),
        (False, "format", "other", "no rotescale-checkpoint"),
    ],
)
def test_another_format_is_refused_and_is_no_damage(
    tmp_path: Path, digest: bool, field: str, value: Any, message: str
) -> None:
    save(tmp_path, head=header())
    path = tmp_path / "manifest.json"
    path.write_bytes(with_fields(path.read_bytes(), digest=digest, **{field: value}))
    with pytest.raises(CheckpointError, match=message) as caught:
        load_manifest(path)
    assert not isinstance(caught.value, DamagedManifestError)


@pytest.mark.parametrize(
    ("digest", "field", "value", "message"),
    [
        (True, "step", -1, "step: .*delete this file"),
        (True, "surprise", 1, "surprise"),
        (False, "step", 50, "no digest at its end"),
    ],
)
def test_a_field_that_cannot_be_is_damage(
    tmp_path: Path, digest: bool, field: str, value: Any, message: str
) -> None:
    save(tmp_path, head=header())
    path = tmp_path / "manifest.json"
    path.write_bytes(with_fields(path.read_bytes(), digest=digest, **{field: value}))
    with pytest.raises(DamagedManifestError, match=message) as caught:
        load_manifest(path)
    assert caught.value.path == path


def test_any_changed_byte_is_found(tmp_path: Path) -> None:
    """Also one that validates: a digit of a step, of the version, or of the digest itself."""
    save(tmp_path, head=header())
    path = tmp_path / "manifest.json"
    whole = path.read_bytes()
    for place in range(len(whole)):
        flipped = whole[place] ^ (1 << place % 7)
        path.write_bytes(whole[:place] + bytes([flipped]) + whole[place + 1 :])
        with pytest.raises(DamagedManifestError):
            load_manifest(path)
    path.write_bytes(whole)
    load_manifest(path)


def test_half_a_manifest_is_damage(tmp_path: Path) -> None:
    assert not is_published(tmp_path)
    save(tmp_path, head=header())
    path = tmp_path / "manifest.json"
    whole = path.read_bytes()
    for length in (0, 1, 50, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert is_published(tmp_path)
        with pytest.raises(DamagedManifestError, match="no digest"):
            load_manifest(path)
    assert not is_published(tmp_path / "nowhere")


def test_the_error_can_be_handed_to_other_ranks(tmp_path: Path) -> None:
    error = DamagedManifestError(tmp_path / "manifest.json", "half of it")
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.path, copy.damage, str(copy)) == (error.path, error.damage, str(error))
