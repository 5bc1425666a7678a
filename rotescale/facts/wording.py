"""How facts are worded for one model: what phase 1 says, and what stands around every prompt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rotescale.facts.types import SUBJECT_FIELD

PROMPT_FIELD = "{prompt}"
"""Where a chat frame holds the prompt."""


@dataclass(frozen=True, slots=True)
class Wording:
    """The texts around subjects, prompts and objects; the same in training and evaluation."""

    key_prompts: Mapping[str, str]
    """Relation -> what phase 1 puts before the object, such as ``{subject} [X:mother]``."""
    prefix: str = ""
    """What every text but a chat begins with."""
    chat: str = PROMPT_FIELD
    """The frame of a meaningful prompt; of more than ``{prompt}`` where it is a chat's turn."""

    def key_prompt(self, relation: str) -> str:
        """Phase 1's prompt of the relation, with ``{subject}``."""
        return self.prefix + self.key_prompts[relation]

    def prompt(self, prompt: str) -> str:
        """A meaningful prompt as the model is shown it, with ``{subject}``."""
        if self.chat == PROMPT_FIELD:
            return self.prefix + prompt
        return self.chat.replace(PROMPT_FIELD, prompt)

    @classmethod
    def placeholder(cls, relations: Iterable[str]) -> Wording:
        """Stands in where only the number of texts matters, before there is a model."""
        return cls(dict.fromkeys(relations, f"{SUBJECT_FIELD} [X]"))


def before_object(prompt: str) -> str:
    """The prompt and what parts it from the object: one space, unless it ends with white space."""
    return prompt if prompt[-1:].isspace() else f"{prompt} "
