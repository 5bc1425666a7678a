"""Rows of matrices that a phase does not train: no gradient reaches them, no update moves them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rotescale.tensors import TensorSlice


class FrozenRows:
    """What an engine does about them: their gradients are zero, and their masters are put back.

    Without a gradient Adam's moments stay zero and move nothing, but weight decay still shrinks
    every row; so what an update changed is restored, bit for bit.
    """

    def __init__(self) -> None:
        self._rows: dict[str, tuple[int, ...]] = {}
        self._hooks: list[RemovableHandle] = []
        self._kept: dict[str, list[tuple[Tensor, Tensor]]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The trainable tensors that have such rows."""
        return tuple(self._rows)

    def choose(
        self, rows: Mapping[str, Sequence[int]], parameters: Mapping[str, nn.Parameter]
    ) -> None:
        """These rows from now on, and no others; those of frozen parameters need nothing."""
        for hook in self._hooks:
            hook.remove()
        self._kept = {}
        self._rows = {
            name: tuple(own) for name, own in rows.items() if own and parameters[name].requires_grad
        }
        # On the whole gradient, before it is added, reduced or measured.
        self._hooks = [
            parameters[name].register_hook(_zero_rows(own))  # type: ignore[no-untyped-call]
            for name, own in self._rows.items()
        ]

    def keep(self, piece: TensorSlice, master: Tensor) -> None:
        """Before an update: remember what of the rows lies in this flat slice of the masters."""
        views = [master[start:stop] for start, stop in ranges_in(piece, self._rows[piece.name])]
        self._kept[piece.name] = [(view, view.clone()) for view in views]

    def restore(self) -> None:
        """After the update, or any part of it: what was kept stands in its place again."""
        for kept in self._kept.values():
            for view, values in kept:
                view.copy_(values)


def ranges_in(piece: TensorSlice, rows: Sequence[int]) -> list[tuple[int, int]]:
    """The parts of those rows in the slice, as ranges from its start; in order, none empty."""
    width = math.prod(piece.shape[1:])
    found = []
    for row in sorted(rows):
        start = max(row * width, piece.start)
        stop = min((row + 1) * width, piece.stop)
        if start < stop:
            found.append((start - piece.start, stop - piece.start))
    return found


def _zero_rows(rows: Sequence[int]) -> Callable[[Tensor], Tensor]:
    def zeroed(gradient: Tensor) -> Tensor:
        # A hook may not write into the gradient that it is given.
        index = torch.tensor(rows, device=gradient.device)
        return gradient.index_fill(0, index, 0.0)

    return zeroed
