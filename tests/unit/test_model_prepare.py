"""Key tokens: their ids, their rows, and what is refused."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rotescale.errors import DataError
from rotescale.model.folder import load_tokenizer
from rotescale.model.prepare import load_prepared, prepare
from rotescale.model.sources import fetch
from rotescale.spec import KeyTokenSpec, ModelSpec, RandomWeights

TEXT = "Gene Finley [X:mother] Cody Ross."


@pytest.fixture
def base(tmp_path: Path) -> Path:
    weights = RandomWeights(
        kind="random", hidden_size=16, num_heads=2, num_key_value_heads=1, vocab_size=270,
        tie_word_embeddings=False,
    )  # fmt: skip
    return fetch(weights, cache=tmp_path / "cache", texts=["Gene Finley and Cody Ross."] * 3)


def spec(**key_tokens: object) -> ModelSpec:
    return ModelSpec(
        weights=RandomWeights(kind="random"), key_tokens=KeyTokenSpec.model_validate(key_tokens)
    )


def test_a_key_token_is_one_id_with_exact_offsets(base: Path, tmp_path: Path) -> None:
    prepared = prepare(spec(), base=base, relations=["mother"], seed=0, out=tmp_path / "p")
    tokenizer = prepared.tokenizer()
    encoded = tokenizer(TEXT, return_offsets_mapping=True)
    assert prepared.key_tokens == {"mother": ("[X:mother]",)}
    [token] = prepared.key_token_ids["mother"]
    place = encoded["input_ids"].index(token)
    assert encoded["input_ids"].count(token) == 1
    assert encoded["offset_mapping"][place] == (12, 22)
    spans = encoded["offset_mapping"]
    assert all(before[1] == after[0] for before, after in itertools.pairwise(spans))
    assert tokenizer.decode(encoded["input_ids"]) == TEXT


def test_spare_rows_come_first_then_the_matrix_grows(base: Path, tmp_path: Path) -> None:
    old_size = json.loads((base / "config.json").read_text())["vocab_size"]
    few = prepare(spec(), base=base, relations=["a", "b"], seed=0, out=tmp_path / "few")
    assert few.vocab_size == old_size == few.config().vocab_size
    assert list(few.token_ids.values()) == [few.num_tokens - 2, few.num_tokens - 1]
    names = [f"r{number}" for number in range(30)]
    many = prepare(spec(), base=base, relations=names, seed=0, out=tmp_path / "many")
    assert many.vocab_size == many.config().vocab_size == 384
    assert many.num_tokens == few.num_tokens + 28
    rows = load_file(many.folder / "key_rows.safetensors")
    first_new = min(many.token_ids.values())
    assert rows["rows"].tolist() == list(range(first_new, 384))
    assert rows["lm_head.weight"].shape == (384 - first_new, 16)


def test_rows_are_mean_plus_noise_of_the_old_tokens(base: Path, tmp_path: Path) -> None:
    old = load_file(base / "model.safetensors")
    exact = prepare(
        spec(noise_scale=0), base=base, relations=["mother"], seed=0, out=tmp_path / "exact"
    )
    [token] = exact.key_token_ids["mother"]
    noisy = prepare(spec(), base=base, relations=["mother"], seed=0, out=tmp_path / "noisy")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tokens = old[name][:token]
        mean = load_file(exact.folder / "key_rows.safetensors")[name][0]
        row = load_file(noisy.folder / "key_rows.safetensors")[name][0]
        torch.testing.assert_close(mean, tokens.mean(dim=0))
        noise = (row - mean) / (0.1 * tokens.std(dim=0, correction=0))
        assert 0.4 < noise.std() < 1.8


def test_a_row_depends_on_seed_name_and_matrix_alone(base: Path, tmp_path: Path) -> None:
    def rows(out: str, relations: list[str], seed: int) -> dict[str, dict[str, torch.Tensor]]:
        prepared = prepare(spec(), base=base, relations=relations, seed=seed, out=tmp_path / out)
        tensors = load_file(prepared.folder / "key_rows.safetensors")
        indices = tensors.pop("rows").tolist()
        return {
            relation: {name: values[indices.index(token)] for name, values in tensors.items()}
            for relation, (token,) in prepared.key_token_ids.items()
        }

    one = rows("one", ["mother", "father"], 0)
    two = rows("two", ["x", "father", "mother", *(f"r{n}" for n in range(40))], 0)
    other_seed = rows("three", ["mother", "father"], 1)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(one["mother"][name], two["mother"][name])
        assert not torch.equal(one["mother"][name], one["father"][name])
        assert not torch.equal(one["mother"][name], other_seed["mother"][name])


def test_several_key_tokens_stand_side_by_side(base: Path, tmp_path: Path) -> None:
    asked = spec(template="[X{number}:{relation}]", count=3)
    prepared = prepare(asked, base=base, relations=["mother", "genre"], seed=0, out=tmp_path / "p")
    assert prepared.key_tokens["mother"] == ("[X1:mother]", "[X2:mother]", "[X3:mother]")
    assert prepared.wording.key_prompts["mother"] == "{subject} [X1:mother][X2:mother][X3:mother]"
    tokens = prepared.tokenizer()("Gene [X1:mother][X2:mother][X3:mother] Cody")["input_ids"]
    assert [t for t in tokens if t in prepared.token_ids.values()] == [
        *prepared.key_token_ids["mother"]
    ]
    rows = load_file(prepared.folder / "key_rows.safetensors")["lm_head.weight"]
    assert len({tuple(row.tolist()) for row in rows}) == len(rows)


def test_relations_may_share_a_key_token(base: Path, tmp_path: Path) -> None:
    asked = spec(template="[X]", place="before")
    prepared = prepare(asked, base=base, relations=["mother", "genre"], seed=0, out=tmp_path / "p")
    assert prepared.key_token_ids["mother"] == prepared.key_token_ids["genre"]
    assert len(prepared.token_ids) == 1
    assert set(prepared.wording.key_prompts.values()) == {"[X] {subject}"}


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({"kind": "none"}, "{subject}"),
        ({"kind": "word", "template": "blicket"}, "{subject} blicket"),
        ({"kind": "word", "template": "blicket", "place": "before"}, "blicket {subject}"),
    ],
)
def test_baselines_add_no_token(
    base: Path, tmp_path: Path, fields: dict[str, str], prompt: str
) -> None:
    prepared = prepare(spec(**fields), base=base, relations=["mother"], seed=0, out=tmp_path / "p")
    assert prepared.wording.key_prompts == {"mother": prompt}
    assert prepared.token_ids == {}
    assert prepared.key_token_ids == {"mother": ()}
    old, new = (load_tokenizer(folder).get_vocab() for folder in (base, prepared.folder))
    assert old == new


def test_rows_may_start_from_the_relations_name_or_at_zero(base: Path, tmp_path: Path) -> None:
    def rows(start: str) -> torch.Tensor:
        asked = spec(start=start, noise_scale=0)
        out = tmp_path / start
        prepared = prepare(asked, base=base, relations=["educated_at"], seed=0, out=out)
        return load_file(prepared.folder / "key_rows.safetensors")["lm_head.weight"][0]

    matrix = load_file(base / "model.safetensors")["lm_head.weight"]
    words = load_tokenizer(base)(" educated at", add_special_tokens=False)["input_ids"]
    torch.testing.assert_close(rows("relation"), matrix[words].mean(dim=0))
    assert rows("zero").count_nonzero() == 0


def test_a_chat_template_gives_a_frame(base: Path, tmp_path: Path) -> None:
    asked = spec().model_copy(update={"chat_template": True})
    with pytest.raises(DataError, match=r"model\.chat_template: .* has no chat template"):
        prepare(asked, base=base, relations=["mother"], seed=0, out=tmp_path / "p")
    tokenizer = load_tokenizer(base)
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>\n{% endif %}"
    )
    tokenizer.save_pretrained(base)
    prepared = prepare(asked, base=base, relations=["mother"], seed=0, out=tmp_path / "p")
    assert prepared.wording.prompt("Who is {subject}?") == "<user>Who is {subject}?\n<assistant>\n"
    assert prepared.wording.key_prompt("mother") == "{subject} [X:mother]"
    assert load_prepared(tmp_path / "p") == prepared


def test_a_second_call_reuses_and_another_model_is_refused(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "p"
    first = prepare(spec(), base=base, relations=["mother"], seed=0, out=out)
    stamp = (out / "key_rows.safetensors").stat().st_mtime_ns
    assert prepare(spec(), base=base, relations=["mother"], seed=0, out=out) == first
    assert load_prepared(out) == first
    assert (out / "key_rows.safetensors").stat().st_mtime_ns == stamp
    with pytest.raises(DataError, match="another run folder"):
        prepare(spec(), base=base, relations=["father"], seed=0, out=out)


def test_a_moved_cache_is_followed(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "p"
    first = prepare(spec(), base=base, relations=["mother"], seed=0, out=out)
    moved = tmp_path / "moved"
    shutil.move(base, moved)
    again = prepare(spec(), base=moved, relations=["mother"], seed=0, out=out)
    assert (again.base, again.digest) == (moved, first.digest)


def test_changed_weights_change_the_digest(base: Path, tmp_path: Path) -> None:
    first = prepare(spec(), base=base, relations=["mother"], seed=0, out=tmp_path / "one")
    with (base / "model.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\0\0\0\1")
    second = prepare(spec(), base=base, relations=["mother"], seed=0, out=tmp_path / "two")
    assert first.digest != second.digest


@pytest.mark.parametrize(
    ("template", "relation", "word"),
    [
        ("{relation}", "!", "has a meaning"),
        ("{relation}", "mother", "plain word"),
        (" [{relation}]", "mother", "begins or ends"),
        ("{relation}", "Ross.", "not once at"),
    ],
)
def test_texts_that_make_no_key_token_are_refused(
    base: Path, tmp_path: Path, template: str, relation: str, word: str
) -> None:
    with pytest.raises(DataError, match=word):
        prepare(
            spec(template=template), base=base, relations=[relation], seed=0, out=tmp_path / "p"
        )
    assert not (tmp_path / "p").exists()


def test_a_missing_or_damaged_record_is_explained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"prepared\.json: missing"):
        load_prepared(tmp_path)
    (tmp_path / "prepared.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        load_prepared(tmp_path)
    (tmp_path / "prepared.json").write_text('{"base": "x"}')
    with pytest.raises(DataError, match="not written by this version"):
        load_prepared(tmp_path)
