"""Spans and labels are known by construction, whatever the tokenizer does at the borders."""

from __future__ import annotations

import copy

import pytest
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from rotescale.data.encoding import (
    IGNORE,
    Encoded,
    FactText,
    Loss,
    encode,
    encode_all,
    prompt_text,
)
from rotescale.errors import DataError

TEXTS = [
    "Who is Gene Finley's mother? Cody Ross.",
    "Gene Finley [X] Cody Ross.",
    "The capital of Übland is Zürichhithe.",
    "Name the mother of Zoë: Ana.",
] * 4


def byte_level(*, merge_over_space: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE; with ``merge_over_space`` words are not split, so merges cross borders."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=not merge_over_space
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=310,
        special_tokens=["<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def metaspace(*, with_eos: bool = False) -> PreTrainedTokenizerFast:
    """Llama-2-like: a space in front, BOS, byte fallback; on request an EOS behind."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Metaspace()
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=specials, show_progress=False)
    plain = [text for text in TEXTS if text.isascii()]
    tokenizer.train_from_iterator(plain, trainer)
    template = "<s> $A </s>" if with_eos else "<s> $A"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


TOKENIZERS = {
    "byte-level": byte_level(),
    "merges over the border": byte_level(merge_over_space=True),
    "prefix space, BOS, byte fallback": metaspace(),
    "BOS and EOS": metaspace(with_eos=True),
}
FACTS = [
    prompt_text("Gene Finley", "Cody Ross", prompt="Who is {subject}'s mother?"),
    prompt_text("Übland", "Zürichhithe", prompt="The capital of {subject} is"),
    prompt_text("Zoë", "Ana", prompt="Name the mother of {subject}:"),
    prompt_text("Gene Finley", "Cody Ross", prompt="{subject} [X]"),
    prompt_text("Gene Finley", "Cody Ross", prompt="user: {subject}?\nassistant:\n"),
]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact.text)
def test_spans_cover_their_entities_and_nothing_more_than_a_merge_forces(
    name: str, fact: FactText
) -> None:
    tokenizer = TOKENIZERS[name]
    encoded = encode(fact, tokenizer=tokenizer, loss="object", end_token=False)
    offsets = tokenizer(fact.text, return_offsets_mapping=True)["offset_mapping"]
    for span, (start, stop) in ((encoded.object, fact.object), (encoded.subject, fact.subject)):
        covered = offsets[span[0] : span[1]]
        assert covered[0][0] <= start < covered[0][1]
        assert covered[-1][0] < stop <= covered[-1][1]
        # The tokens beside the span hold none of its characters.
        assert span[0] == 0 or offsets[span[0] - 1][1] <= start
        assert span[1] == len(offsets) or offsets[span[1]][0] >= stop or offsets[span[1]][1] == 0


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokens_are_those_of_transformers(name: str) -> None:
    """Whatever tokenizer.json says of truncation and padding, which are for other uses."""
    tokenizer = copy.deepcopy(TOKENIZERS[name])
    expected = tokenizer([fact.text for fact in FACTS])["input_ids"]
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=99)
    found = encode_all(FACTS, tokenizer=tokenizer, loss="all", end_token=False)
    end = [tokenizer.eos_token_id] if name == "BOS and EOS" else []
    assert [[*one.tokens, *end] for one in found] == expected


def object_space(encoded: Encoded, tokenizer: PreTrainedTokenizerFast) -> set[int]:
    """The place of the token in front of the object, if that is a space and nothing else."""
    place = encoded.object[0] - 1
    token = tokenizer.convert_ids_to_tokens(encoded.tokens[place])
    return {place} if token in ("Ġ", "▁") else set()


def test_a_space_of_its_own_before_the_object_is_part_of_the_answer() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    told = prompt_text("Zoë", "1987", prompt="{subject} was born in")
    loss: Loss
    for loss in ("object", "subject_object"):
        encoded = encode(told, tokenizer=tokenizer, loss=loss, end_token=False)
        assert tokenizer.decode(encoded.tokens[slice(*encoded.object)]) == "1987"
        [space] = object_space(encoded, tokenizer)
        assert encoded.labels[space] == encoded.tokens[space]
        assert encoded.labels[space - 1] == IGNORE
    # What stands in front is the prompt's own line end.
    asked = prompt_text("Zoë", "1987", prompt="{subject}'s year:\n")
    encoded = encode(asked, tokenizer=tokenizer, loss="object", end_token=False)
    assert sum(label != IGNORE for label in encoded.labels) == len("1987")


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_loss_mask_is_the_span(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    for fact in FACTS:
        by_loss = {
            loss: encode(fact, tokenizer=tokenizer, loss=loss, end_token=False)
            for loss in ("all", "subject_object", "object")
        }
        for loss, encoded in by_loss.items():
            counted = {i for i, label in enumerate(encoded.labels) if label != IGNORE}
            subject, object_ = set(range(*encoded.subject)), set(range(*encoded.object))
            everything = set(range(len(encoded.tokens)))
            before = object_space(encoded, tokenizer)
            answer = object_ | before
            wanted = {"all": everything, "subject_object": subject | answer, "object": answer}
            assert counted == wanted[loss] - {0}
            assert all(encoded.labels[i] == encoded.tokens[i] for i in counted)
        # Fault 2 of the released code: a subject at the very start was never found.
        assert by_loss["subject_object"].subject[1] > by_loss["subject_object"].subject[0]


def test_a_tokenizers_own_eos_is_dropped_and_ours_is_set_where_asked() -> None:
    fact = FACTS[0]
    plain = encode(fact, tokenizer=metaspace(with_eos=True), loss="all", end_token=False)
    assert plain.tokens == encode(fact, tokenizer=metaspace(), loss="all", end_token=False).tokens
    ended = encode(fact, tokenizer=metaspace(), loss="all", end_token=True)
    assert ended.tokens == (*plain.tokens, 2)
    assert ended.labels[-1] == 2
    masked = encode(fact, tokenizer=metaspace(), loss="object", end_token=True)
    assert masked.labels[-1] == IGNORE


def test_a_merge_over_the_border_belongs_to_the_object() -> None:
    tokenizer = TOKENIZERS["merges over the border"]
    fact = FACTS[0]
    encoded = encode(fact, tokenizer=tokenizer, loss="object", end_token=False)
    offsets = tokenizer(fact.text, return_offsets_mapping=True)["offset_mapping"]
    assert offsets[encoded.object[0]][0] < fact.object[0]
    assert encoded.labels[encoded.object[0]] == encoded.tokens[encoded.object[0]]


def test_a_prompt_without_a_subject_is_refused() -> None:
    with pytest.raises(DataError, match="exactly once"):
        prompt_text("Gene", "Cody", prompt="Who is the mother?")
