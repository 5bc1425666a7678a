"""Makes the documents of the shipped benchmark tasks out of the shipped texts.

``python tests/unit/shipped_tasks.py`` writes them; a test compares.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rotescale.data.replay import read_documents
from rotescale.evaluation.harness.tasks import SHIPPED

TEXTS = SHIPPED.parent
NAMES = ("constitution", "dictionary")
OF_EACH = 60
CONTEXT_WORDS = 40
CONTINUATION_WORDS = 8
CHOICES = 4
LEAST_WORDS = 28


def paragraphs(name: str) -> list[list[str]]:
    """The words of each paragraph that is long enough, in the order of the text."""
    found = [text.split() for text in read_documents(TEXTS / f"{name}.txt")]
    return [words for words in found if len(words) >= LEAST_WORDS]


def continuations() -> Iterator[dict[str, Any]]:
    """The start of a paragraph, and what follows: its own next words, or another's."""
    for name in NAMES:
        draw = random.Random(name)
        cut = [_cut(words) for words in _spread(paragraphs(name))]
        for place, (context, own) in enumerate(cut):
            others = draw.sample([one for _, one in cut if one != own], CHOICES - 1)
            choices = [own, *others]
            draw.shuffle(choices)
            yield {
                **{"text": name, "number": place, "context": context},
                **{"choices": choices, "gold": choices.index(own)},
            }


def last_words() -> Iterator[dict[str, Any]]:
    """A paragraph's end without its last word."""
    for name in NAMES:
        whole = [w for w in paragraphs(name) if re.fullmatch(r"[a-z]{4,}\.", w[-1])]
        for place, words in enumerate(_spread(whole)):
            context = " ".join(words[-CONTEXT_WORDS - 1 : -1])
            word = words[-1].removesuffix(".")
            yield {"text": name, "number": place, "context": context, "word": word}


def _spread(whole: list[list[str]]) -> list[list[str]]:
    """Evenly over the text."""
    count = min(OF_EACH, len(whole))
    return [whole[place * len(whole) // count] for place in range(count)]


def _cut(words: list[str]) -> tuple[str, str]:
    at = min(CONTEXT_WORDS, len(words) - CONTINUATION_WORDS)
    return " ".join(words[:at]), " ".join(words[at : at + CONTINUATION_WORDS])


def shipped_files() -> dict[Path, str]:
    """Each file and what stands in it, the texts in turn, so that a limit takes from both."""
    made = {"continuation.jsonl": continuations(), "last_word.jsonl": last_words()}
    return {
        SHIPPED / name: "".join(
            json.dumps(document) + "\n"
            for document in sorted(documents, key=lambda document: document["number"])
        )
        for name, documents in made.items()
    }


if __name__ == "__main__":
    for path, text in shipped_files().items():
        path.write_text(text, encoding="utf-8")
