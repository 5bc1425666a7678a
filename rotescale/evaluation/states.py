"""Hidden states at the last token of prompts: which prompts are read, and how, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rotescale.errors import SpecError, TrainingError
from rotescale.evaluation.items import build_items, drawn_places
from rotescale.evaluation.tokens import encode
from rotescale.facts import FactSet, Wording
from rotescale.spec import EvaluationSpec

States = npt.NDArray[np.floating[Any]]
"""(num_layers, num_texts, hidden) float32 or float16: first the embeddings, then after each block.

As transformers has it in ``output_hidden_states``, the last one is after the final norm too.
"""

_ALL_BUT_CONTROLS: dict[str, int | None] = {
    **{"trained_facts": None, "held_out_facts": None, "key_token_facts": None},
    **{"control_facts": 0, "generation_facts": 0},
}
_MOST_TEXTS = 32
_PASS_ELEMENTS = 1 << 26
"""Elements of all layers' states in one pass, of which the last tokens' are kept: 256 MiB."""


@dataclass(frozen=True, slots=True)
class StateText:
    """One prompt about one fact, whose last token's states are read."""

    fact: int
    """Place in the fact set."""
    relation: str
    split: str
    prompts: str
    """``key_token``, ``train``, ``test`` or ``unrelated``."""
    prompt_index: int
    """Place of the prompt among those of its kind."""
    language: str
    text: str


def build_texts(
    fact_set: FactSet,
    *,
    trained: Collection[int],
    asked: Collection[int] | None,
    wording: Wording,
    spec: EvaluationSpec,
    seed: int,
) -> tuple[StateText, ...]:
    """The prompts that are read at each stage, worded as the evaluation asks them.

    ``spec.representation_facts`` of each relation, over both splits: the first ones in the order
    from which the evaluation draws its samples too. The arguments are ``build_items``'.
    """
    facts = frozenset(
        place
        for relation in fact_set.relations
        for place in drawn_places(fact_set, relation.name, asked=asked, seed=seed)[
            : spec.representation_facts
        ]
    )
    items = build_items(
        fact_set,
        trained=trained,
        asked=facts,
        wording=wording,
        spec=spec.model_copy(update=_ALL_BUT_CONTROLS),
        seed=seed,
    )
    return tuple(
        StateText(
            fact=item.fact,
            relation=item.relation,
            split=item.split,
            prompts=item.prompts,
            prompt_index=item.prompt_index,
            language=item.language,
            text=item.text,
        )
        for item in items
    )


@dataclass(frozen=True, slots=True)
class OwnStates:
    """What one rank has read."""

    places: npt.NDArray[np.int64]
    """(num_own,): which texts"""
    values: npt.NDArray[np.float32]
    """(num_layers, num_own, hidden); of a rank without texts (0, 0, 0)"""


def read_states(
    model: Any,
    texts: Sequence[str],
    *,
    tokenizer: Any,
    rank: int,
    world_size: int,
    collective: bool,
    progress: Callable[[int], None],
) -> OwnStates:
    """The states at the last token of this rank's share of the texts.

    Collective: every rank calls this, with the same texts. Where ``collective`` is true the forward
    passes are collective too, and their number is equal on all ranks: a rank whose share is read
    reads the last again. ``progress`` is called after each pass with the number of texts read so
    far, over all ranks.

    Texts of one pass have equally many tokens, so nothing is padded or masked, and the values are
    those of one text alone, for any attention. Only last tokens are kept.

    Raises TrainingError where a state is not finite.
    """
    tokens = encode(texts, tokenizer=tokenizer)
    batches = _batches([len(ids) for ids in tokens], config=model.config)
    mine = batches[rank::world_size]
    places = np.array([place for batch in mine for place in batch], dtype=np.int64)
    values = np.zeros((0, 0, 0), dtype=np.float32)
    num_read = 0
    for number in range(-(-len(batches) // world_size) if collective else len(mine)):
        # A rank whose batches are used up reads the last one again, so that the pass takes place.
        batch = batches[min(rank + number * world_size, len(batches) - 1)]
        read = _read(model, torch.tensor([tokens[place] for place in batch]))
        if number < len(mine):
            if not number:
                values = np.empty((len(read), len(places), read.shape[-1]), dtype=np.float32)
            values[:, num_read : num_read + len(batch)] = read
            num_read += len(batch)
        progress(sum(map(len, batches[: (number + 1) * world_size])))
    return OwnStates(places, values)


def gather_states(
    own: OwnStates,
    *,
    rank: int,
    num_texts: int,
    dtype: str,
    gather: Callable[[Any], list[Any]],
) -> States | None:
    """All ranks' states (num_layers, num_texts, hidden) of ``dtype`` on rank 0; None elsewhere.

    Collective: every rank calls this. ``gather`` brings every rank's value to every rank, one layer
    at a time, so that only rank 0 holds more than its own states and one layer.

    Raises SpecError on rank 0 where a state is too large for the dtype.
    """
    num_layers, hidden = max(gather((own.values.shape[0], own.values.shape[2])))
    whole = np.empty((num_layers, num_texts, hidden), dtype=dtype) if rank == 0 else None
    for layer in range(num_layers):
        part = own.values[layer] if len(own.places) else None
        for places, values in gather((own.places, part)):
            if whole is not None and len(places):
                with np.errstate(over="ignore"):
                    whole[layer, places] = values
    if whole is not None and not np.isfinite(whole).all():
        raise SpecError(
            f"evaluation.representation_dtype: a hidden state is too large for {dtype}; choose "
            "float32, under a new run name"
        )
    return whole


def _batches(lengths: Sequence[int], *, config: Any) -> list[list[int]]:
    """Places of texts, those of one pass together: of one length, and not too many."""
    text_config = config.get_text_config()
    per_token = (text_config.num_hidden_layers + 1) * text_config.hidden_size
    batches: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda place: lengths[place]):
        length = lengths[place]
        most = min(_MOST_TEXTS, max(1, _PASS_ELEMENTS // (per_token * length)))
        if not batches or lengths[batches[-1][0]] != length or len(batches[-1]) >= most:
            batches.append([])
        batches[-1].append(place)
    return batches


@torch.no_grad()
def _read(model: Any, tokens: torch.Tensor) -> npt.NDArray[np.float32]:
    """States at the last of ``tokens`` (num_texts, T) int64: (num_layers, num_texts, hidden)."""
    output = model(
        input_ids=tokens.to(model.device),
        output_hidden_states=True,
        use_cache=False,
        logits_to_keep=1,
    )
    last = torch.stack([state[:, -1].float() for state in output.hidden_states])
    if not bool(torch.isfinite(last).all()):
        raise TrainingError(
            "the model gives a hidden state that is not finite; its weights hold NaN or have "
            "diverged: lower the learning rate, or start from an earlier checkpoint"
        )
    read: npt.NDArray[np.float32] = last.cpu().numpy()
    return read
