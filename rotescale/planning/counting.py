"""How many parameters a model has, and how many of them learn."""

from __future__ import annotations

import bisect
import fnmatch
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from rotescale.errors import SpecError
from rotescale.planning.architecture import Architecture, Shapes, parameter_shapes
from rotescale.spec import LoraSpec, ModelSpec

_EMBEDDINGS = frozenset({"model.embed_tokens.weight", "lm_head.weight"})


@dataclass(frozen=True)
class ParameterCount:
    """How many parameters a model has that is trained as a spec wants."""

    sizes: tuple[int, ...]
    """Elements of each parameter, adapters included; tied ones once."""
    trained_sizes: tuple[int, ...]
    """Elements of each that has a master, two moments and a gradient."""
    multiplied: int
    """Those that each token of a row is multiplied with: all but embeddings and output matrix."""

    @cached_property
    def total(self) -> int:
        """All parameters."""
        return sum(self.sizes)

    @cached_property
    def trainable(self) -> int:
        """Those that are trained."""
        return sum(self.trained_sizes)

    @cached_property
    def largest(self) -> int:
        """Elements of the largest parameter."""
        return max(self.sizes)

    @cached_property
    def largest_trained(self) -> int:
        """Elements of the largest one that is trained."""
        return max(self.trained_sizes)

    def below(self, threshold: int) -> int:
        """Elements of the parameters that are smaller than ``threshold``."""
        ascending, sums = self._ascending
        return sums[bisect.bisect_left(ascending, threshold)]

    @cached_property
    def _ascending(self) -> tuple[list[int], list[int]]:
        """The sizes in order, and what the first n of them sum up to: it is asked very often."""
        ascending = sorted(self.sizes)
        return ascending, [0, *itertools.accumulate(ascending)]


def count_parameters(spec: ModelSpec, architecture: Architecture) -> ParameterCount:
    """What of the model is trained, as the spec's ``frozen`` and ``lora`` want it."""
    shapes = parameter_shapes(architecture)
    if spec.lora is not None:
        shapes, trained = _with_adapters(spec.lora, shapes)
    else:
        trained = shapes.keys() - _frozen(spec.frozen, shapes)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    rows = sum(sizes.get(name, 0) for name in _EMBEDDINGS)
    return ParameterCount(
        sizes=tuple(sizes.values()),
        trained_sizes=tuple(size for name, size in sizes.items() if name in trained),
        multiplied=sum(sizes.values()) - rows,
    )


def flops_per_token(count: ParameterCount) -> float:
    """Operations of a token's forward and backward pass, without the output matrix.

    2 per parameter forward, 2 for the gradients of inputs and 2 for those of weights that learn:
    6 in all ("Scaling Laws for Neural Language Models", Kaplan et al., 2020, section 2.1).
    """
    return 4 * count.multiplied + 2 * min(count.trainable, count.multiplied)


def flops_per_target(architecture: Architecture) -> float:
    """Operations of the output matrix, forward and backward, at a token that is predicted."""
    return 6 * architecture.hidden_size * architecture.vocab_size


def _frozen(patterns: Sequence[str], shapes: Shapes) -> set[str]:
    found: set[str] = set()
    for index, pattern in enumerate(patterns):
        matched = {name for name in shapes if fnmatch.fnmatchcase(name, pattern)}
        if not matched:
            raise SpecError(
                f"model.frozen.{index}: {pattern!r} matches no parameter; write a pattern such as "
                "'*.mlp.*'"
            )
        found |= matched
    if len(found) == len(shapes):
        raise SpecError(
            f"model.frozen: {list(patterns)} freezes all parameters, and nothing is left to "
            "train; name fewer"
        )
    return found


def _with_adapters(lora: LoraSpec, shapes: Shapes) -> tuple[Shapes, set[str]]:
    """All parameters of the adapted model, and the names of those that are trained."""
    embeddings = _EMBEDDINGS & shapes.keys()
    matrices = {
        name.removesuffix(".weight"): shape
        for name, shape in shapes.items()
        if len(shape) > 1 and name not in embeddings
    }
    chosen = set(matrices) if not lora.target_modules else set()
    for index, target in enumerate(lora.target_modules):
        matched = {
            layer
            for layer in matrices
            if fnmatch.fnmatchcase(layer, target) or fnmatch.fnmatchcase(layer, f"*.{target}")
        }
        if not matched:
            raise SpecError(
                f"model.lora.target_modules.{index}: {target!r} matches no linear layer; name "
                f"ends such as {sorted({layer.rpartition('.')[2] for layer in matrices})}"
            )
        chosen |= matched
    adapters: Shapes = {}
    for layer in chosen:
        num_out, num_in = matrices[layer]
        adapters |= {f"{layer}.lora_A": (lora.r, num_in), f"{layer}.lora_B": (num_out, lora.r)}
    trained = set(adapters) | (embeddings if lora.train_embeddings else set())
    return shapes | adapters, trained
