"""Options behind many lines get the tokens of the whole text, though the lines are read once."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from rotescale.data import encoding
from rotescale.data.encoding import prompt_text
from rotescale.errors import DataError
from rotescale.evaluation import tokens
from rotescale.evaluation.tokens import encode, encode_options

LINES = "\n".join(f"The author of Book {number} is Writer {number}." for number in range(50)) + "\n"
PROMPT = f"{LINES}The author of Salt is"
OPTIONS = ("Ann Lee", "Ann Leeds", "Zoë", "東京", "1984", " x", "é")
TEXTS = [f"{PROMPT} {option}." for option in OPTIONS] * 3 + ["Acme Inc..", "D.C..", "(UK)."] * 9

GPT_2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
# As Llama 3 and Qwen2 split: a run of line breaks belongs to what stands in front of it.
LATER = pre_tokenizers.Sequence(
    [
        pre_tokenizers.Split(
            Regex(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
                r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            ),
            behavior="isolated",
        ),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
)
WHOLE = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
SPACED = pre_tokenizers.ByteLevel(add_prefix_space=True)


@functools.cache
def trained(name: str) -> PreTrainedTokenizerFast:
    """A small BPE that has merged much of these texts; a token begins them, another ends them."""
    splitter = {"gpt-2": GPT_2, "later": LATER, "whole": WHOLE, "spaced": SPACED}[name]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<eos>", "<bos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<eos>", 0), ("<bos>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", bos_token="<bos>")


def whole(prompt: str, options: tuple[str, ...], *, tokenizer: Any) -> tuple[list[list[int]], int]:
    """The same with each text as a whole."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "LEAST_BEGINNING", 10**9)
        return encode_options(prompt, options, tokenizer=tokenizer)


class Counted:
    """A tokenizer that counts the characters it is given."""

    is_fast = True

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.backend_tokenizer = tokenizer.backend_tokenizer
        self.eos_token_id = tokenizer.eos_token_id
        self.characters = 0

    def __call__(self, texts: list[str], **options: bool) -> Any:
        self.characters += sum(map(len, texts))
        return self.tokenizer(texts, **options)


@pytest.mark.parametrize("name", ["gpt-2", "later", "whole", "spaced"])
@pytest.mark.parametrize(
    "object_", ["Ann Lee", "Acme Inc.", "Washington D.C.", "Widgets (UK)", "Who?", "1984", "é"]
)
def test_what_is_asked_is_what_is_taught(name: str, object_: str) -> None:
    """Though the full stop may be one token with what an object ends with."""
    tokenizer = trained(name)
    taught = prompt_text("Salt", object_, prompt="The author of {subject} is")
    encoded = encoding.encode(taught, tokenizer=tokenizer, loss="object", end_token=False)
    counted = [label for label in encoded.labels if label != encoding.IGNORE]
    [asked], start = encode_options("The author of Salt is", [object_], tokenizer=tokenizer)
    own = asked[start:]
    assert own == counted[-len(own) :]
    # A space that is a token of its own is taught too, and all options share it.
    assert tokenizer.decode(counted[: -len(own)]).strip() == ""
    assert len(counted) - len(own) <= 1
    if object_ == "Acme Inc." and name in ("gpt-2", "later"):
        assert tokenizer.convert_ids_to_tokens(own[-1]) == "..", "or this shows nothing"


@pytest.mark.parametrize("name", ["gpt-2", "later"])
def test_lines_in_front_are_read_once(name: str) -> None:
    counted = Counted(trained(name))
    found = encode_options(PROMPT, OPTIONS, tokenizer=counted)
    assert found == whole(PROMPT, OPTIONS, tokenizer=trained(name))
    assert found[0] == encode([f"{PROMPT} {option}" for option in OPTIONS], tokenizer=trained(name))
    assert counted.characters < len(PROMPT) * 2
    assert found[1] > 100


@pytest.mark.parametrize("name", ["whole", "spaced"])
def test_where_it_is_not_sure_each_is_read_as_a_whole(name: str) -> None:
    counted = Counted(trained(name))
    found = encode_options(PROMPT, OPTIONS, tokenizer=counted)
    assert found == whole(PROMPT, OPTIONS, tokenizer=trained(name))
    assert counted.characters > len(PROMPT) * len(OPTIONS)


@pytest.mark.parametrize("name", ["gpt-2", "later", "whole", "spaced"])
@given(data=st.data())
def test_all_prompts_and_options_get_the_tokens_of_the_whole(
    name: str, data: st.DataObject
) -> None:
    pieces = st.sampled_from([*"ab1 .\n\r\t'é\u0301東😀", "<bos>", "<eos>", "Writer"])

    def texts(least: int, most: int) -> st.SearchStrategy[str]:
        return st.lists(pieces, min_size=least, max_size=most).map("".join)

    lines = data.draw(texts(tokens.LEAST_BEGINNING, tokens.LEAST_BEGINNING + 100))
    last = data.draw(texts(1, 40))
    options = data.draw(st.lists(texts(1, 6), min_size=1, max_size=4))
    prompt = f"{lines}\n{last}"
    tokenizer = trained(name)
    try:
        expected = whole(prompt, tuple(options), tokenizer=tokenizer)
    except DataError:
        with pytest.raises(DataError):
            encode_options(prompt, tuple(options), tokenizer=tokenizer)
        return
    assert encode_options(prompt, tuple(options), tokenizer=tokenizer) == expected
