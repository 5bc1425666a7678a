"""LoRA: the parameters of an adapted model, what they start from, and what they merge into."""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from rotescale.errors import CheckpointError, SpecError
from rotescale.model.build import ModelLayout, model_layout
from rotescale.model.frozen import TrainedReader
from rotescale.model.key_tokens import seeded_generator
from rotescale.model.prepare import PreparedModel
from rotescale.spec import LoraSpec


@dataclass(frozen=True)
class AdaptedLayout:
    """The parameters of a model with adapters, by the names that peft gives them."""

    layers: tuple[str, ...]
    """Names of the linear layers that have adapters."""
    shapes: dict[str, tuple[int, ...]]
    """Shape of each parameter, adapters included; tied parameters once."""
    trained: frozenset[str]
    """What is trained: ``A`` and ``B`` of every adapter, and the embeddings if wanted."""
    sources: Mapping[str, str]
    """Name of each parameter of the base -> its name in the base."""
    merged: Mapping[str, str]
    """Name in the base of a matrix that has an adapter -> its layer."""

    @classmethod
    def of(cls, lora: LoraSpec, layout: ModelLayout) -> AdaptedLayout:
        """What the spec makes of a model of that layout.

        Raises SpecError where it has no linear layers, or a target names none of them.
        """
        layers = _layers(lora, layout)
        merged = {f"{layer}.weight": layer for layer in layers}
        sources = {_moved(name, merged): name for name in layout.shapes}
        shapes = {name: layout.shapes[source] for name, source in sources.items()}
        adapters: dict[str, tuple[int, ...]] = {}
        for matrix, layer in merged.items():
            num_out, num_in = layout.shapes[matrix]
            adapters |= {a_name(layer): (lora.r, num_in), b_name(layer): (num_out, lora.r)}
        embeddings = layout.vocabulary if lora.train_embeddings else ()
        trained = frozenset((*adapters, *embeddings))
        return cls(layers, shapes | adapters, trained, sources, merged)


def a_name(layer: str) -> str:
    """The name of the layer's ``A``, (r, in)."""
    return f"{layer}.lora_A.default.weight"


def b_name(layer: str) -> str:
    """The name of the layer's ``B``, (out, r)."""
    return f"{layer}.lora_B.default.weight"


def is_adapter(name: str) -> bool:
    """Whether that is the name of an adapter's matrix."""
    return ".lora_A." in name or ".lora_B." in name


class LoraReader:
    """Ranges of an adapted model: each part by its own name, and merged by the base's names.

    What is trained comes from a checkpoint, or else is what training starts from: ``A`` drawn per
    (seed, name, row), so that who reads which part of it changes nothing, ``B`` zero, embeddings
    the base's. Closes both readers.
    """

    def __init__(
        self, trained: TrainedReader | None, *, prepared: PreparedModel, lora: LoraSpec
    ) -> None:
        """``trained`` is the checkpoint; None: the start.

        Raises CheckpointError where it holds other tensors than the spec trains.
        """
        layout = model_layout(prepared.config())
        self._adapted = AdaptedLayout.of(lora, layout)
        if trained is not None:
            _check(trained.shapes, self._adapted)
        self.shapes = layout.shapes
        """Shape of each parameter of the merged model, in its order; tied parameters once."""
        self._scale = lora.alpha / lora.r
        self._seed = prepared.seed
        self._trained = trained
        self._base = prepared.reader()
        self._last_a: tuple[str, torch.Tensor] | None = None

    @property
    def bytes_read(self) -> int:
        """Bytes read so far, from checkpoint and prepared model."""
        return self._base.bytes_read + (self._trained.bytes_read if self._trained else 0)

    def read(self, name: str, part: str, start: int, stop: int) -> torch.Tensor:
        """Elements ``[start, stop)`` of the flattened parameter: (stop - start,) float32, CPU.

        The name of a matrix in the base reads ``W + (alpha / r) B A``, rounded once.
        """
        if name in self._adapted.merged:
            assert part == "master", f"{part} of the merged {name}"
            return self._read_merged(name, start, stop)
        if name not in self._adapted.trained:
            return self._base.read(self._adapted.sources.get(name, name), part, start, stop)
        if self._trained is not None:
            return self._trained.read(name, part, start, stop)
        assert part == "master", f"{part} of {name} at the start"
        if name in self._adapted.sources:
            return self._base.read(name, part, start, stop)
        return self._start(name, start, stop)

    def close(self) -> None:
        """Close the files; a later read opens them again."""
        if self._trained is not None:
            self._trained.close()
        self._base.close()

    def __enter__(self) -> LoraReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, name: str, start: int, stop: int) -> torch.Tensor:
        """As peft starts them: ``A`` as torch's linear layers of that width, ``B`` at zero."""
        _, width = self._adapted.shapes[name]
        if ".lora_B." in name or start == stop:
            return torch.zeros(stop - start)
        bound = 1 / math.sqrt(width)
        first, last = _rows(start, stop, width=width)
        rows = [
            torch.rand(width, generator=seeded_generator(f"{self._seed}\0{name}\0{row}"))
            for row in range(first, last)
        ]
        values = torch.cat(rows).mul_(2 * bound).sub_(bound)
        return values[start - first * width : stop - first * width]

    def _read_merged(self, name: str, start: int, stop: int) -> torch.Tensor:
        layer = self._adapted.merged[name]
        width = self.shapes[name][1]
        values = self._base.read(name, "master", start, stop)
        if start == stop:
            return values
        first, last = _rows(start, stop, width=width)
        low, high = self._whole_a(layer), self._rows_of_b(layer, first, last)
        change = (high @ low).flatten()[start - first * width : stop - first * width]
        return values.double().add_(change, alpha=self._scale).float()

    def _whole_a(self, layer: str) -> torch.Tensor:
        """(r, in) float64; kept until another layer's is asked for."""
        if self._last_a is None or self._last_a[0] != layer:
            name = a_name(layer)
            shape = self._adapted.shapes[name]
            flat = self.read(name, "master", 0, math.prod(shape))
            self._last_a = (layer, flat.view(shape).double())
        return self._last_a[1]

    def _rows_of_b(self, layer: str, first: int, last: int) -> torch.Tensor:
        """Rows ``[first, last)``: (last - first, r) float64."""
        name = b_name(layer)
        width = self._adapted.shapes[name][1]
        return self.read(name, "master", first * width, last * width).view(-1, width).double()


def _rows(start: int, stop: int, *, width: int) -> tuple[int, int]:
    """First row, and the one after the last, of the elements ``[start, stop)``."""
    return start // width, -(-stop // width)


def _moved(name: str, merged: Mapping[str, str]) -> str:
    """Where peft moves a parameter of the base: those of an adapted layer one level down."""
    layer, _, leaf = name.rpartition(".")
    return f"{layer}.base_layer.{leaf}" if f"{layer}.weight" in merged else name


def _layers(lora: LoraSpec, layout: ModelLayout) -> tuple[str, ...]:
    """The linear layers that the targets name, in the model's order; without targets all."""
    if not layout.linear_layers:
        raise SpecError(
            f"model.lora: {layout.architecture} has no linear layers (torch.nn.Linear) beside its "
            "output embedding, so there is nothing to adapt; train it whole (lora: null), or "
            "choose another model"
        )
    if not lora.target_modules:
        return layout.linear_layers
    found: set[str] = set()
    for index, target in enumerate(lora.target_modules):
        matched = {
            layer
            for layer in layout.linear_layers
            if fnmatch.fnmatchcase(layer, target) or fnmatch.fnmatchcase(layer, f"*.{target}")
        }
        if not matched:
            leaves = dict.fromkeys(layer.rpartition(".")[2] for layer in layout.linear_layers)
            known = leaves if "." not in target else layout.linear_layers
            [close] = difflib.get_close_matches(target, known, n=1, cutoff=0.0)
            raise SpecError(
                f"model.lora.target_modules.{index}: {target!r} matches none of the "
                f"{len(layout.linear_layers)} linear layers; did you mean {close!r}?"
            )
        found |= matched
    return tuple(layer for layer in layout.linear_layers if layer in found)


def _check(saved: Mapping[str, tuple[int, ...]], adapted: AdaptedLayout) -> None:
    """Refuse a checkpoint of another LoRA configuration, or of none."""
    remedy = "(model.lora); go on with the spec that it was written under"
    wrong = adapted.trained ^ saved.keys()
    if wrong:
        name = min(wrong)
        state = "holds" if name in saved else "lacks"
        raise CheckpointError(
            f"the checkpoint {state} tensor {name!r}, unlike what the spec trains {remedy}"
        )
    for name, shape in saved.items():
        if shape != adapted.shapes[name]:
            raise CheckpointError(
                f"the checkpoint's tensor {name!r} has shape {list(shape)}, not the "
                f"{list(adapted.shapes[name])} that the spec trains {remedy}"
            )
