"""States equal those of transformers, text by text; ranks share texts in as many passes."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from test_evaluation_runner import Ranks
from test_evaluation_scoring import TOKENIZERS, micro_model

from rotescale.errors import SpecError, TrainingError
from rotescale.evaluation.items import build_items
from rotescale.evaluation.states import (
    OwnStates,
    States,
    StateText,
    build_texts,
    gather_states,
    read_states,
)
from rotescale.facts import Wording, load_shipped
from rotescale.spec import EvaluationSpec

FACTS = load_shipped(["mother", "author"])
WORDING = Wording.placeholder(["mother", "author"])
TEXTS = [
    *("Who is Gene Finley's mother?", "Cody Ross", "Ann Lee Ross", "Eve"),
    *("Who is Cody's mother?", "mother? Cody Ross", "mother? Ann", "Ann Lee"),
]


def spec(**changes: Any) -> EvaluationSpec:
    return EvaluationSpec.model_validate({"representation_facts": 4, **changes})


def texts_of(spec: EvaluationSpec, **changes: Any) -> tuple[StateText, ...]:
    arguments: dict[str, Any] = {"trained": range(0, 200, 2), "asked": None, "wording": WORDING}
    return build_texts(FACTS, **{**arguments, **changes}, spec=spec, seed=3)


def read(model: Any, tokenizer: Any, texts: list[str] = TEXTS) -> States:
    own = read_states(
        model,
        texts,
        tokenizer=tokenizer,
        rank=0,
        world_size=1,
        collective=False,
        progress=lambda done: None,
    )
    return whole([own], len(texts))


def whole(owned: list[OwnStates], num_texts: int, *, dtype: str = "float32") -> States:
    """What rank 0 gathers, told what each rank holds."""
    layers = iter(range(1000))

    def gather(value: Any) -> list[Any]:
        if isinstance(value[0], int):
            return [own.values.shape[::2] for own in owned]
        layer = next(layers)
        return [(own.places, own.values[layer] if len(own.places) else None) for own in owned]

    found = gather_states(owned[0], rank=0, num_texts=num_texts, dtype=dtype, gather=gather)
    assert found is not None
    return found


@torch.no_grad()
def one_by_one(model: Any, tokenizer: Any, texts: list[str] = TEXTS) -> States:
    """The reference: one ordinary forward pass of transformers for each text."""
    found = []
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        states = model(input_ids=ids, output_hidden_states=True).hidden_states
        found.append(torch.stack([state[0, -1] for state in states]))
    stacked: States = torch.stack(found, dim=1).numpy()
    return stacked


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "phi3"])
def test_states_are_those_of_transformers(architecture: str, attention: str) -> None:
    model = micro_model(architecture, attention=attention)
    tokenizer = TOKENIZERS["byte_level"]
    found = read(model, tokenizer)
    assert found.shape == (3, len(TEXTS), 32)
    np.testing.assert_allclose(found, one_by_one(model, tokenizer), rtol=1e-5, atol=1e-5)


def test_an_end_of_text_token_behind_a_text_is_not_its_last() -> None:
    model, tokenizer = micro_model("llama"), TOKENIZERS["with_end"]
    found = read(model, tokenizer)
    plain = one_by_one(model, TOKENIZERS["sentencepiece"])
    np.testing.assert_allclose(found, plain, rtol=1e-5, atol=1e-5)


def test_many_texts_of_one_length_take_several_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = micro_model("llama"), TOKENIZERS["byte_level"]
    expected = read(model, tokenizer)
    monkeypatch.setattr("rotescale.evaluation.states._PASS_ELEMENTS", 1)
    shapes: list[tuple[int, ...]] = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)),
        with_kwargs=True,
    )
    np.testing.assert_allclose(read(model, tokenizer), expected, rtol=1e-5, atol=1e-5)
    assert [rows for rows, _ in shapes] == [1] * len(TEXTS)


@pytest.mark.parametrize(("world_size", "collective"), [(2, True), (12, True), (3, False)])
def test_ranks_share_the_texts(world_size: int, collective: bool) -> None:
    tokenizer = TOKENIZERS["byte_level"]
    expected = one_by_one(micro_model("llama"), tokenizer)
    ranks = Ranks(world_size)
    passes, found = [0] * world_size, [None] * world_size
    done: list[int] = []

    def of_rank(rank: int) -> None:
        model = micro_model("llama")
        model.load_state_dict(models[0].state_dict())

        def count(*_: Any) -> None:
            passes[rank] += 1

        model.register_forward_hook(count)
        own = read_states(
            model,
            TEXTS,
            tokenizer=tokenizer,
            rank=rank,
            world_size=world_size,
            collective=collective,
            progress=done.append if rank == 0 else lambda done: None,
        )
        found[rank] = gather_states(
            own, rank=rank, num_texts=len(TEXTS), dtype="float32", gather=ranks.gather(rank)
        )

    models = [micro_model("llama")]
    threads = [threading.Thread(target=of_rank, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert found[0] is not None
    np.testing.assert_allclose(found[0], expected, rtol=1e-5, atol=1e-5)
    assert found[1:] == [None] * (world_size - 1)
    assert not collective or len(set(passes)) == 1
    assert done == sorted(done)


def test_states_that_are_not_finite_are_refused() -> None:
    model = micro_model("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match="not finite"):
        read(model, TOKENIZERS["byte_level"])


def test_states_that_the_dtype_cannot_hold_are_refused() -> None:
    own = OwnStates(np.array([1, 0]), np.array([[[1.0], [7e4]]], dtype=np.float32))
    assert whole([own], 2).tolist() == [[[7e4], [1.0]]]
    with pytest.raises(SpecError, match=r"representation_dtype: .* float16; choose float32"):
        whole([own], 2, dtype="float16")


def test_texts_are_worded_and_drawn_as_the_evaluation_asks_them() -> None:
    texts = texts_of(spec())
    items = build_items(
        FACTS, trained=range(0, 200, 2), wording=WORDING, spec=EvaluationSpec(), seed=3
    )
    asked = {(item.fact, item.prompts, item.prompt_index): item for item in items}
    for text in texts:
        item = asked[text.fact, text.prompts, text.prompt_index]
        assert (text.text, text.split, text.relation) == (item.text, item.split, item.relation)
    kinds = [text.prompts for text in texts]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        **{"key_token": 8, "train": 8},
        **{"test": 24, "unrelated": 24},
    }
    assert {text.relation for text in texts} == {"mother", "author"}


def test_a_smaller_sample_is_part_of_a_larger_one() -> None:
    few, many = (set(texts_of(spec(representation_facts=n))) for n in (2, 5))
    assert few < many
    assert len({text.fact for text in few}) == 4
    everything = texts_of(spec(representation_facts=None, test_prompts=1))
    assert len({text.fact for text in everything}) == 200
    assert not texts_of(spec(representation_facts=0))


def test_only_asked_facts_are_read_and_only_known_key_tokens() -> None:
    asked = frozenset(range(3))
    texts = texts_of(spec(representation_facts=None), asked=asked, wording=Wording({}))
    assert {text.fact for text in texts} == asked
    assert "key_token" not in {text.prompts for text in texts}


def test_prompts_are_read_in_every_language_that_is_asked() -> None:
    texts = texts_of(spec(representation_facts=1, languages=["en", "de"]))
    assert {text.language for text in texts if text.prompts == "key_token"} == {"en"}
    for kind in ("train", "test", "unrelated"):
        languages = [text.language for text in texts if text.prompts == kind]
        assert languages.count("en") == languages.count("de") > 0
