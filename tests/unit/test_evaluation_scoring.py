"""Scoring: the token tree equals scoring one option at a time, for any tokenizer and attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from rotescale.errors import DataError, TrainingError
from rotescale.evaluation.scoring import (
    OptionScores,
    attention_window,
    build_tree,
    forward_of,
    score_tree,
    score_trees,
)
from rotescale.evaluation.tokens import encode
from rotescale.evaluation.tree import grow, text_tree, tree_mask

PROMPT = "Who is Gene Finley's mother?"
OPTIONS = (
    "Cody Ross",
    "Cody Rossi",
    "Cody",
    "Ann Lee",
    "Eve",
    "1984",
    "Ann Lee Ross",
    "東京",
    "Zoë",
)
TEXTS = [f"{PROMPT} {option}." for option in OPTIONS] * 3 + ["mother? Cody Ross", "mother? Ann"] * 9
PADDED_VOCABULARY = 640


def byte_level(*, merges_over_border: bool) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=not merges_over_border
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        # Short texts, lest the whole prompt become one token.
        ["? Cody", "? Cat", "? Cup"] * 5 if merges_over_border else TEXTS,
        trainers.BpeTrainer(
            vocab_size=260 if merges_over_border else 300,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=["<|end|>"],
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


def sentencepiece_like(*, ends: bool = False) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    # Without the last options' characters, so that these fall back to bytes.
    tokenizer.train_from_iterator(
        [text for text in TEXTS if text.isascii() and "1984" not in text],
        trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if ends else "<s> $A", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


TOKENIZERS = {
    "byte_level": byte_level(merges_over_border=False),
    "merging": byte_level(merges_over_border=True),
    "sentencepiece": sentencepiece_like(),
    "with_end": sentencepiece_like(ends=True),
}


def micro_model(architecture: str, *, attention: str = "sdpa", **changes: Any) -> Any:
    torch.manual_seed(0)
    classes: dict[str, tuple[Any, Any]] = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "phi3": (Phi3Config, Phi3ForCausalLM),
    }
    config_class, model_class = classes[architecture]
    config = config_class(
        vocab_size=PADDED_VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=256,
        initializer_range=0.3,
        pad_token_id=0,
        attn_implementation=attention,
        **changes,
    )
    return model_class(config).eval()


@torch.no_grad()
def score_one_by_one(
    model: Any, prompt: str, options: tuple[str, ...], *, tokenizer: Any, num_tokens: int
) -> OptionScores:
    """The reference: one ordinary forward pass per option."""
    sequences, starts = [], []
    for option in options:
        # As texts are trained on, which tells what may be merged with the full stop.
        text = f"{prompt} {option}."
        encoding = tokenizer(text, return_offsets_mapping=True)
        characters = {*range(len(prompt) + 1, len(text) - 1)}
        own = [
            place
            for place, span in enumerate(encoding["offset_mapping"])
            if characters & {*range(*span)}
        ]
        sequences.append(list(encoding["input_ids"][: own[-1] + 1]))
        starts.append(own[0])
    parting = 0
    while all(ids[: parting + 1] == sequences[0][: parting + 1] for ids in sequences):
        parting += 1
    start = min(*starts, parting)
    sums, greedy = [], []
    for ids in sequences:
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :, :num_tokens]
        predicted = logits.log_softmax(dim=-1)[range(start - 1, len(ids) - 1), ids[start:]]
        sums.append(predicted.double().sum())
        greedy.append(logits[start - 1 : -1].argmax(dim=-1).tolist() == ids[start:])
    lengths = torch.tensor([len(ids) - start for ids in sequences])
    return OptionScores(torch.stack(sums), lengths, torch.tensor(greedy))


def score(model: Any, *, tokenizer: Any, prompt: str = PROMPT, num_tokens: int) -> OptionScores:
    window = attention_window(model.config)
    tree = build_tree(prompt, OPTIONS, tokenizer=tokenizer, window=window)
    return score_tree(forward_of(model), tree, num_tokens=num_tokens)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "phi3"])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_tree_equals_one_by_one(name: str, architecture: str, attention: str) -> None:
    tokenizer = TOKENIZERS[name]
    model = micro_model(architecture, attention=attention)
    num_tokens = len(tokenizer)
    ours = score(model, tokenizer=tokenizer, num_tokens=num_tokens)
    reference = score_one_by_one(model, PROMPT, OPTIONS, tokenizer=tokenizer, num_tokens=num_tokens)
    torch.testing.assert_close(
        ours.log_probabilities, reference.log_probabilities, rtol=1e-5, atol=0
    )
    assert ours.log_probabilities.dtype == torch.float64
    assert ours.log_probabilities.argmax() == reference.log_probabilities.argmax()
    assert torch.equal(ours.num_option_tokens, reference.num_option_tokens)
    assert torch.equal(ours.is_greedy, reference.is_greedy)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "phi3"])
def test_several_trees_in_a_pass_equal_each_by_itself(architecture: str, attention: str) -> None:
    tokenizer = TOKENIZERS["byte_level"]
    model = micro_model(architecture, attention=attention)
    forward, num_tokens = forward_of(model), len(tokenizer)
    prompts = (PROMPT, "mother", "Who is Ann's mother? Cody, I think; and what do you think?")
    trees = [build_tree(prompt, OPTIONS, tokenizer=tokenizer) for prompt in prompts]
    together = score_trees(forward, trees, num_tokens=num_tokens)
    for tree, ours in zip(trees, together, strict=True):
        assert_equal_scores(ours, score_tree(forward, tree, num_tokens=num_tokens))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "phi3"])
def test_a_beginning_is_computed_once(architecture: str, attention: str) -> None:
    tokenizer = TOKENIZERS["byte_level"]
    model = micro_model(architecture, attention=attention)
    forward, num_tokens = forward_of(model), len(tokenizer)
    context = "Ann Lee is Cody's mother. Zoë is Eve's mother."
    prompts = [f"{context} {prompt}" for prompt in (PROMPT, "mother", "Who is Zoë?")]
    trees = [build_tree(prompt, OPTIONS, tokenizer=tokenizer) for prompt in prompts]
    beginning = forward.prefill(trees[0].tokens[:15])
    # Then with less of it, since a text may share no more.
    for num_shared, some in ((15, trees[:2]), (15, trees[2:]), (11, trees)):
        ours = score_trees(
            forward, some, num_tokens=num_tokens, num_shared=num_shared, beginning=beginning
        )
        for tree, scores in zip(some, ours, strict=True):
            assert_equal_scores(scores, score_tree(forward, tree, num_tokens=num_tokens))


def test_a_model_with_a_window_shares_no_beginning() -> None:
    assert forward_of(micro_model("phi3")).shares_beginnings
    assert not forward_of(micro_model("phi3", sliding_window=4)).shares_beginnings


def assert_equal_scores(ours: OptionScores, theirs: OptionScores) -> None:
    torch.testing.assert_close(ours.log_probabilities, theirs.log_probabilities, rtol=1e-5, atol=0)
    assert torch.equal(ours.num_option_tokens, theirs.num_option_tokens)
    assert torch.equal(ours.is_greedy, theirs.is_greedy)


@torch.no_grad()
def test_what_the_model_would_say_is_greedy() -> None:
    model = micro_model("llama")
    said = [5, 9]
    for _ in range(3):
        logits = model(input_ids=torch.tensor([said])).logits[0, -1, :300]
        said.append(int(logits.argmax()))
    first, last = [*said[:2], said[2] + 1, *said[3:]], [*said[:4], said[4] + 1]
    tree = grow([first, said, last], start=2, window=None)
    scores = score_tree(forward_of(model), tree, num_tokens=300)
    assert scores.is_greedy.tolist() == [False, True, False]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_sliding_window_is_respected(attention: str) -> None:
    tokenizer = TOKENIZERS["sentencepiece"]
    model = micro_model("phi3", attention=attention, sliding_window=4)
    assert attention_window(model.config) == 4
    ours = score(model, tokenizer=tokenizer, num_tokens=len(tokenizer))
    reference = score_one_by_one(
        model, PROMPT, OPTIONS, tokenizer=tokenizer, num_tokens=len(tokenizer)
    )
    torch.testing.assert_close(
        ours.log_probabilities, reference.log_probabilities, rtol=1e-5, atol=0
    )
    model.config.sliding_window = None
    without = score(model, tokenizer=tokenizer, num_tokens=len(tokenizer))
    assert not torch.allclose(without.log_probabilities, ours.log_probabilities, rtol=1e-3)


def test_a_prompt_longer_than_a_window_of_some_layers_is_refused() -> None:
    model = micro_model("qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=1)
    with pytest.raises(DataError, match="sliding window of 4"):
        score(model, tokenizer=TOKENIZERS["byte_level"], num_tokens=300)


def test_attention_without_tree_masks_is_refused() -> None:
    model = micro_model("llama")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(DataError, match="set_attn_implementation"):
        forward_of(model)
    model = micro_model("llama")
    model.config.layer_types = ["linear_attention", "full_attention"]
    with pytest.raises(DataError, match="linear_attention"):
        forward_of(model)


def test_what_is_longer_than_the_models_context_is_refused() -> None:
    forward = forward_of(micro_model("llama"))
    # A text's last token is predicted, and needs no place.
    score_tree(forward, text_tree([5] * 257), num_tokens=300)
    with pytest.raises(DataError, match="257 tokens, and the model's context has 256"):
        score_tree(forward, text_tree([5] * 258), num_tokens=300)
    forward.prefill(torch.tensor([5] * 256))
    with pytest.raises(DataError, match="what prompts begin with: 257 tokens"):
        forward.prefill(torch.tensor([5] * 257))


def test_bf16_models_are_scored() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    model = micro_model("llama").bfloat16()
    ours = score(model, tokenizer=tokenizer, num_tokens=len(tokenizer))
    reference = score(model.float(), tokenizer=tokenizer, num_tokens=len(tokenizer))
    torch.testing.assert_close(
        ours.log_probabilities, reference.log_probabilities, rtol=0.1, atol=0.5
    )


@pytest.mark.parametrize("tied", [False, True])
def test_logits_of_a_bf16_model_are_fp32(tied: bool) -> None:
    """Rounded to bfloat16 options would tie, and a tie is no answer."""
    model = micro_model("llama", tie_word_embeddings=tied).bfloat16()
    head = model.get_output_embeddings()
    hidden: list[torch.Tensor] = []
    head.register_forward_pre_hook(lambda _, inputs: hidden.append(inputs[0]))
    tree = text_tree([5, 6, 7, 8])
    kept = torch.arange(3)
    logits = forward_of(model)(
        tree.tokens[None], tree.depths[None], attention_mask=tree_mask([tree]), logits_to_keep=kept
    )
    assert logits.dtype == torch.float32
    exact = hidden[0].double() @ head.weight.double().T
    torch.testing.assert_close(logits.double(), exact, rtol=1e-5, atol=1e-5)
    assert not torch.equal(logits, logits.bfloat16().float())
    # Others that use the model find it as it was.
    assert "forward" not in vars(head)
    assert model(input_ids=tree.tokens[None]).logits.dtype == torch.bfloat16


def test_merges_over_the_border_belong_to_the_option() -> None:
    tokenizer = TOKENIZERS["merging"]
    [alone] = encode([PROMPT], tokenizer=tokenizer)
    [whole] = encode([f"{PROMPT} Cody"], tokenizer=tokenizer)
    assert whole[: len(alone)] != alone, "the tokenizer of this test must merge over the border"
    tree = build_tree(PROMPT, ("Cody", "Zoë"), tokenizer=tokenizer)
    for option, text in enumerate(("Cody", "Zoë")):
        own = tree.targets[tree.owners == option].tolist()
        [ids] = encode([f"{PROMPT} {text}"], tokenizer=tokenizer)
        assert own == ids[len(ids) - len(own) :]
        # Both are judged given the same tokens in front.
        assert ids[: len(ids) - len(own)] == tree.tokens[: len(ids) - len(own)].tolist()
        assert tokenizer.decode(own).endswith(text)


def test_options_tokens_are_those_that_touch_it() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    tree = build_tree(PROMPT, ("Cody Ross", "Ann Lee"), tokenizer=tokenizer)
    for option, text in enumerate((" Cody Ross", " Ann Lee")):
        assert tokenizer.decode(tree.targets[tree.owners == option]) == text


def test_a_border_token_counts_where_it_tells_options_apart() -> None:
    # "1984" is split behind a lone space token and Cody is not: both count from the space on.
    tokenizer = TOKENIZERS["sentencepiece"]
    tree = build_tree(PROMPT, ("Cody", "1984"), tokenizer=tokenizer)
    texts = [
        "".join(tokenizer.convert_ids_to_tokens(tree.targets[tree.owners == option].tolist()))
        for option in (0, 1)
    ]
    # The tokenizer's words end with the full stop, which this one was trained on.
    assert texts[0] == "▁Cody."
    assert texts[1].startswith("▁<0x31>")


def test_rows_that_are_no_token_are_masked() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    model = micro_model("llama")
    num_tokens = len(tokenizer)
    forward = forward_of(model)

    def loud(*inputs: Any, **named: Any) -> torch.Tensor:
        logits = forward(*inputs, **named).clone()
        logits[..., num_tokens:] = 1e4
        return logits

    tree = build_tree(PROMPT, OPTIONS, tokenizer=tokenizer)
    plain = score_tree(forward, tree, num_tokens=num_tokens)
    assert torch.equal(
        plain.log_probabilities,
        score_tree(loud, tree, num_tokens=num_tokens).log_probabilities,
    )


def test_errors_teach() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    with pytest.raises(DataError, match="non-empty"):
        build_tree(PROMPT, ("Ann", ""), tokenizer=tokenizer)
    tree = build_tree(PROMPT, ("Ann", "Eve"), tokenizer=tokenizer)
    with pytest.raises(DataError, match="not this model's"):
        score_tree(forward_of(micro_model("llama")), tree, num_tokens=5)

    def broken(*inputs: torch.Tensor, **named: torch.Tensor) -> torch.Tensor:
        return torch.full((1, len(named["logits_to_keep"]), PADDED_VOCABULARY), float("nan"))

    with pytest.raises(TrainingError, match="not finite"):
        score_tree(broken, tree, num_tokens=300)
