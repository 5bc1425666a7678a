"""Generation: batches equal single prompts and transformers' own greedy decoding."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from rotescale.errors import DataError
from rotescale.evaluation.generation import generate

TEXTS = [
    "Who is Gene Finley's mother?",
    "Gene",
    "The capital of Nowhere is the city of",
    "Where did she study, and when?",
    "A",
]
VOCABULARY = 300


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|end|>"],
        show_progress=False,
    )
    raw.train_from_iterator(TEXTS * 5, trainer)
    # No padding token, like many causal models.
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>")


def micro_model(architecture: str) -> Any:
    torch.manual_seed(1)
    config_class, model_class = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    }[architecture]
    config = config_class(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        initializer_range=0.3,
        eos_token_id=0,
        bos_token_id=None,
    )
    return model_class(config).eval()


def run(model: Any, texts: list[str], *, tokenizer: Any, **changes: Any) -> list[str]:
    options: dict[str, Any] = {
        "num_tokens": len(tokenizer),
        "max_new_tokens": 12,
        "all_done": bool,
        **changes,
    }
    return generate(model, texts, tokenizer=tokenizer, **options)


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_batch_equals_single_and_transformers(
    architecture: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = micro_model(architecture)
    together = run(model, TEXTS, tokenizer=tokenizer)
    assert together == [run(model, [text], tokenizer=tokenizer)[0] for text in TEXTS]
    for text, ours in zip(TEXTS, together, strict=True):
        inputs = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        made = model.generate(**inputs, do_sample=False, max_new_tokens=12, pad_token_id=0)
        ids = [token for token in made[0, inputs["input_ids"].shape[1] :].tolist() if token != 0]
        assert ours == tokenizer.decode(ids).strip().partition("\n")[0].strip()
    assert len(set(together)) == len(TEXTS)


def test_rows_that_are_no_token_are_never_chosen(tokenizer: PreTrainedTokenizerFast) -> None:
    model = micro_model("llama")
    expected = run(model, TEXTS, tokenizer=tokenizer)

    class Loud:
        """The model with a padded vocabulary whose spare rows win."""

        config = SimpleNamespace()

        device, generation_config = model.device, model.generation_config

        def __call__(self, **inputs: Any) -> Any:
            output = model(**inputs)
            spare = torch.full((*output.logits.shape[:-1], 20), 1e4)
            return SimpleNamespace(
                logits=torch.cat([output.logits, spare], dim=-1),
                past_key_values=output.past_key_values,
            )

    assert run(Loud(), TEXTS, tokenizer=tokenizer) == expected


class Scripted:
    """A model that continues row i with ``scripts[i]``, then with the end token; counts passes."""

    config = SimpleNamespace()

    device = torch.device("cpu")
    generation_config = SimpleNamespace(eos_token_id=[0])

    def __init__(self, scripts: list[list[int]]) -> None:
        self.scripts = scripts
        self.num_passes = 0

    def __call__(self, **inputs: Any) -> Any:
        logits = torch.zeros(len(inputs["input_ids"]), 1, VOCABULARY)
        for row in range(len(logits)):
            script = self.scripts[row] if row < len(self.scripts) else []
            step = self.num_passes
            logits[row, 0, script[step] if step < len(script) else 0] = 1.0
        self.num_passes += 1
        return SimpleNamespace(logits=logits, past_key_values=None)


def ids(text: str, tokenizer: Any) -> list[int]:
    return list(tokenizer(text)["input_ids"])


def test_stops_when_every_text_has_ended(tokenizer: PreTrainedTokenizerFast) -> None:
    scripts = [ids("Cody Ross", tokenizer), ids("\n\nAnn\nWho", tokenizer)]
    model = Scripted(scripts)
    made = run(model, TEXTS[:2], tokenizer=tokenizer, max_new_tokens=50)
    assert made == ["Cody Ross", "Ann"]
    line = len(ids("\n\nAnn\n", tokenizer))
    assert model.num_passes == max(len(scripts[0]) + 1, line)


def test_an_answer_fits_into_the_models_context(tokenizer: PreTrainedTokenizerFast) -> None:
    model = micro_model("llama")
    model.config.max_position_embeddings = 20
    size = len(ids("a b", tokenizer))
    run(model, ["a b"], tokenizer=tokenizer, max_new_tokens=20 - size)
    with pytest.raises(DataError, match=r"21 tokens, and the model's context has 20"):
        run(model, ["a b"], tokenizer=tokenizer, max_new_tokens=21 - size)


def test_length_is_bounded(tokenizer: PreTrainedTokenizerFast) -> None:
    model = Scripted([ids("abcdefgh", tokenizer)])
    assert run(model, TEXTS[:1], tokenizer=tokenizer, max_new_tokens=1) != ["abcdefgh"]
    assert model.num_passes == 1


def test_a_rank_that_is_done_goes_on_with_the_others(tokenizer: PreTrainedTokenizerFast) -> None:
    told: list[bool] = []

    def all_done(done: bool) -> bool:
        told.append(done)
        return len(told) == 7

    model = Scripted([ids("Ann", tokenizer)])
    assert run(model, TEXTS[:1], tokenizer=tokenizer, all_done=all_done) == ["Ann"]
    assert model.num_passes == 7
    assert told[-1]


def test_no_texts_still_take_part(tokenizer: PreTrainedTokenizerFast) -> None:
    model = Scripted([])
    told: list[bool] = []

    def all_done(done: bool) -> bool:
        told.append(done)
        return len(told) == 3

    assert run(model, [], tokenizer=tokenizer, all_done=all_done) == []
    assert model.num_passes == 3
    assert told == [True] * 3
    assert run(micro_model("llama"), [], tokenizer=tokenizer) == []
