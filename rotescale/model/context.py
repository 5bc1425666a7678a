"""How long a text a model reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rotescale.errors import DataError

_STRETCHED = ("linear", "yarn")
"""Kinds of rotary positions whose factor may stand beside the length that it stretches."""


def context_length(config: Any) -> int | None:
    """Tokens of the longest text that a transformers config's model reads; None: it has no limit.

    Beyond it a model with learned positions fails, and one with rotary ones answers badly, but for
    those that stretch by themselves (``dynamic``). The limit is ``max_position_embeddings``, or
    what a factor makes of it.
    """
    found = getattr(config, "max_position_embeddings", None)
    if found is None:
        return None
    limit = int(found)
    for rope in _rotary(config):
        kind = rope.get("rope_type", rope.get("type"))
        if kind == "dynamic":
            return None
        if kind in _STRETCHED and rope.get("factor"):
            original = rope.get("original_max_position_embeddings") or found
            limit = max(limit, int(float(original) * float(rope["factor"])))
    return limit


def _rotary(config: Any) -> list[Mapping[str, Any]]:
    """What is said of rotary positions, once or by kind of layer."""
    said = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    parts = [said, *(part for part in said.values() if isinstance(part, Mapping))]
    return [part for part in parts if isinstance(part, Mapping)]


def require_context(context: int | None, length: int, *, what: str) -> None:
    """DataError where ``what`` has more tokens than the model's context."""
    if context is not None and length > context:
        raise DataError(
            f"{what}: {length} tokens, and the model's context has {context} "
            "(max_position_embeddings of its config.json); take shorter texts, or fewer examples "
            "in front of a question (evaluation.in_context)"
        )
