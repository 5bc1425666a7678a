"""What of a model is trained: all, all but what is frozen, or adapters; built, counted and read."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from torch import nn
from transformers import PretrainedConfig

from rotescale.errors import CheckpointError
from rotescale.model.build import meta_model, model_layout
from rotescale.model.frozen import TrainedReader, WholeReader, freeze, frozen_names
from rotescale.model.lora import AdaptedLayout, LoraReader, is_adapter
from rotescale.model.prepare import PreparedModel
from rotescale.model.weights import FolderReader
from rotescale.spec import ModelSpec


def trainable_part(spec: ModelSpec, config: PretrainedConfig) -> Callable[[nn.Module], nn.Module]:
    """What makes a model of ``config`` train what the spec wants, and nothing else.

    Raises SpecError where the spec names what the model does not have.
    """
    layout = model_layout(config)
    if spec.lora is None:
        return partial(freeze, names=frozen_names(spec.frozen, layout))
    # peft is slow to import, and full fine-tuning does without.
    from rotescale.model.adapters import adapt

    adapted = AdaptedLayout.of(spec.lora, layout)
    return partial(adapt, lora=spec.lora, adapted=adapted)


def check_trainable(spec: ModelSpec, config: PretrainedConfig) -> None:
    """Raises SpecError where a model of ``config`` cannot be trained as the spec wants."""
    trainable_part(spec, config)(meta_model(config))


def count_parameters(spec: ModelSpec, config: PretrainedConfig) -> tuple[int, int]:
    """Parameters of the model that is trained, adapters included, and how many of them learn."""
    layout = model_layout(config)
    if spec.lora is None:
        shapes, trained = layout.shapes, layout.shapes.keys() - frozen_names(spec.frozen, layout)
    else:
        adapted = AdaptedLayout.of(spec.lora, layout)
        shapes, trained = adapted.shapes, set(adapted.trained)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    return sum(sizes.values()), sum(sizes[name] for name in trained)


def start_reader(spec: ModelSpec, prepared: PreparedModel) -> FolderReader | LoraReader:
    """Reads what training starts from, by the names of the model that is trained."""
    if spec.lora is None:
        return prepared.reader()
    return LoraReader(None, prepared=prepared, lora=spec.lora)


def whole_reader(
    trained: TrainedReader, spec: ModelSpec, prepared: PreparedModel
) -> WholeReader | LoraReader:
    """Reads the model that is trained, by its own names, and the exported one, by ``shapes``.

    Raises CheckpointError where the checkpoint holds other tensors than the spec trains.
    """
    if spec.lora is not None:
        return LoraReader(trained, prepared=prepared, lora=spec.lora)
    adapters = [name for name in trained.shapes if is_adapter(name)]
    if adapters:
        raise CheckpointError(
            f"the checkpoint holds the adapter {adapters[0]!r}, but model.lora is not set; go on "
            "with the spec that it was written under"
        )
    return WholeReader(trained, prepared=prepared, frozen=spec.frozen)
