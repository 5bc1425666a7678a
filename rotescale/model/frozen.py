"""Frozen parameters: which ones a spec names, and a model read partly from its base."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Sequence
from typing import Protocol, TypeVar

import torch
from torch import nn

from rotescale.errors import CheckpointError, SpecError
from rotescale.model.build import ModelLayout, model_layout
from rotescale.model.prepare import PreparedModel

_Model = TypeVar("_Model", bound=nn.Module)


def frozen_names(patterns: Sequence[str], layout: ModelLayout) -> frozenset[str]:
    """The parameters whose names match any of the patterns (``*`` also stands for dots).

    Raises SpecError for a pattern that matches none, and where nothing is left to train.
    """
    found: set[str] = set()
    for index, pattern in enumerate(patterns):
        matched = {name for name in layout.shapes if fnmatch.fnmatchcase(name, pattern)}
        if not matched:
            raise SpecError(f"model.frozen.{index}: {pattern!r} {_no_match(pattern, layout)}")
        found |= matched
    if len(found) == len(layout.shapes):
        raise SpecError(
            f"model.frozen: {list(patterns)} freezes all {len(found)} parameters, and nothing is "
            "left to train; name fewer"
        )
    return frozenset(found)


def freeze(model: _Model, names: frozenset[str]) -> _Model:
    """The same model, whose parameters of those names want no gradient."""
    for name, parameter in model.named_parameters():
        if name in names:
            parameter.requires_grad_(False)
    return model


class TrainedReader(Protocol):
    """A checkpoint: ranges of what was trained."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor."""
        ...

    @property
    def bytes_read(self) -> int:
        """Bytes read so far."""
        ...

    def read(self, name: str, part: str, start: int, stop: int) -> torch.Tensor:
        """Elements ``[start, stop)`` of the flattened tensor: (stop - start,) float32, CPU."""
        ...

    def close(self) -> None:
        """Close the files."""
        ...


class WholeReader:
    """Ranges of a whole model: frozen parameters from the prepared model, others from a checkpoint.

    Closes both. Where nothing is frozen, the prepared model is not opened.
    """

    def __init__(
        self, trained: TrainedReader, *, prepared: PreparedModel, frozen: Sequence[str]
    ) -> None:
        """``frozen`` are the spec's patterns.

        Raises CheckpointError where the checkpoint holds more or less than what they leave.
        """
        self._trained = trained
        self._base = prepared.reader() if frozen else None
        self._frozen: frozenset[str] = frozenset()
        if self._base is None:
            self.shapes = trained.shapes
            return
        self.shapes = self._base.shapes
        """Shape of each parameter, in the model's order; tied parameters once."""
        self._frozen = frozen_names(frozen, model_layout(prepared.config()))
        wrong = (self.shapes.keys() - self._frozen) ^ trained.shapes.keys()
        if wrong:
            name = min(wrong)
            state = "holds the frozen" if name in trained.shapes else "lacks the trainable"
            raise CheckpointError(
                f"the checkpoint {state} tensor {name!r} (model.frozen: {list(frozen)}); go on "
                "with the spec that it was written under"
            )

    @property
    def bytes_read(self) -> int:
        """Bytes read so far, from checkpoint and prepared model."""
        return self._trained.bytes_read + (self._base.bytes_read if self._base else 0)

    def read(self, name: str, part: str, start: int, stop: int) -> torch.Tensor:
        """Elements ``[start, stop)`` of the flattened parameter: (stop - start,) float32, CPU."""
        if self._base is not None and name in self._frozen:
            return self._base.read(name, part, start, stop)
        return self._trained.read(name, part, start, stop)

    def close(self) -> None:
        """Close the files; a later read opens them again."""
        self._trained.close()
        if self._base is not None:
            self._base.close()

    def __enter__(self) -> WholeReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _no_match(pattern: str, layout: ModelLayout) -> str:
    """Why the pattern matches nothing, and what would."""
    for alias, name in layout.aliases.items():
        if fnmatch.fnmatchcase(alias, pattern):
            return f"names {alias}, which is tied to {name}; name that one"
    [close] = difflib.get_close_matches(pattern, layout.shapes, n=1, cutoff=0.0)
    return f"matches none of the {len(layout.shapes)} parameters; did you mean {close!r}?"
