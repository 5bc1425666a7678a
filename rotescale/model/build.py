"""Builds a causal language model from its configuration, and says what it consists of."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.initialization import no_init_weights

# Now, because transformers would import it inside zero.Init, whose changed torch breaks the import.
from transformers.modeling_utils import PreTrainedModel

from rotescale.errors import DataError

_CONSTRUCTORS: dict[str, Callable[..., torch.Tensor]] = {
    name: getattr(torch, name) for name in ("arange", "tensor", "zeros", "ones", "full")
}


@dataclass(frozen=True)
class ModelLayout:
    """The parameters of a model, found without allocating any of them."""

    architecture: str
    """The transformers class, such as ``LlamaForCausalLM``."""
    shapes: dict[str, tuple[int, ...]]
    """Shape of each parameter, in the model's order; tied parameters once."""
    aliases: dict[str, str]
    """Name of a tied parameter -> the name in ``shapes`` that stands for it."""
    input_embedding: str
    """Name of the input embedding matrix, ``(vocab_size, hidden_size)``."""
    output_embedding: str | None
    """Name of the output embedding matrix; None where it is the input embedding."""
    vocabulary: tuple[str, ...]
    """Every parameter with one row per token: the embeddings, and the output's bias if any."""
    stored_buffers: tuple[str, ...]
    """Buffers that a checkpoint of the model contains; none in the usual architectures."""
    base_prefix: str
    """Prefix of the parameters in this class; checkpoints of the bare base model omit it."""
    linear_layers: tuple[str, ...]
    """Names of the linear layers, in the model's order, without the output embedding."""


def build_model(
    config: PretrainedConfig, *, attention: str, dtype: torch.dtype, activation_checkpointing: bool
) -> nn.Module:
    """Build the model of ``config`` for training, its parameters allocated but not set.

    Works plainly and inside ``deepspeed.zero.Init``. Dropout is off, so that a step depends on its
    examples alone; ``use_cache`` is off, because packing is recognised only without a cache.
    """
    config = _without_dropout(config)
    config.use_cache = False
    with no_init_weights(), _explicit_dtypes_kept():
        model = AutoModelForCausalLM.from_config(
            config, attn_implementation=attention, dtype=dtype, trust_remote_code=False
        )
    # Tying is part of the initialisation that is skipped above.
    if config.tie_word_embeddings:
        model.tie_weights()
    if activation_checkpointing:
        # The kind without re-entry passes gradients to every input and works under ZeRO-3.
        model.activation_checkpointing_enable({"use_reentrant": False})
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    trainable: nn.Module = model.train()
    return trainable


def model_layout(config: PretrainedConfig) -> ModelLayout:
    """Names and shapes of the model of ``config``, from a model on the meta device."""
    model = meta_model(config)
    by_identity: dict[int, str] = {}
    aliases: dict[str, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        first = by_identity.setdefault(id(parameter), name)
        if first != name:
            aliases[name] = first
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    input_name = _name_of(model, model.get_input_embeddings()) + ".weight"
    output_module = _name_of(model, model.get_output_embeddings())
    output_name = aliases.get(f"{output_module}.weight", f"{output_module}.weight")
    candidates = (input_name, output_name, f"{output_module}.bias")
    parameters = set(shapes) | set(aliases)
    return ModelLayout(
        architecture=type(model).__name__,
        shapes=shapes,
        aliases=aliases,
        input_embedding=input_name,
        output_embedding=None if output_name == input_name else output_name,
        vocabulary=tuple(dict.fromkeys(name for name in candidates if name in shapes)),
        stored_buffers=tuple(name for name in model.state_dict() if name not in parameters),
        base_prefix=f"{model.base_model_prefix}.",
        linear_layers=tuple(
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear)
            and name != output_module
            and f"{name}.weight" in shapes
        ),
    )


def parameter_shapes(config: PretrainedConfig) -> dict[str, tuple[int, ...]]:
    """Shape of each parameter of the model of ``config``; tied parameters once."""
    return model_layout(config).shapes


def embedding_names(config: PretrainedConfig) -> tuple[str, str | None]:
    """Names of the input embedding and the output embedding; None where the two are one matrix."""
    layout = model_layout(config)
    return layout.input_embedding, layout.output_embedding


def meta_model(config: PretrainedConfig) -> PreTrainedModel:
    """The model of ``config`` without memory for its parameters.

    Raises DataError where transformers knows no such causal language model.
    """
    config = copy.deepcopy(config)
    try:
        with torch.device("meta"), no_init_weights():
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise DataError(
            f"config.json: model_type {config.model_type!r} cannot be built as a causal language "
            f"model ({error}); use a model that AutoModelForCausalLM of transformers supports"
        ) from error
    if config.tie_word_embeddings:
        model.tie_weights()
    return model


def _name_of(model: nn.Module, wanted: nn.Module | None) -> str:
    for name, module in model.named_modules():
        if module is wanted:
            return str(name)
    raise DataError(
        f"{type(model).__name__} names no embedding matrix that key tokens could be added to; "
        "use a causal language model with input and output embeddings"
    )


@contextmanager
def _explicit_dtypes_kept() -> Iterator[None]:
    """Let a buffer that asks for float32 be float32 inside ``zero.Init`` too.

    ``zero.Init`` casts every float tensor that is made to its own dtype; rotary frequencies in
    bfloat16 would be another model than the one that is evaluated and exported.
    """
    patched = {name: getattr(torch, name) for name in _CONSTRUCTORS}
    if patched == _CONSTRUCTORS:
        yield
        return
    device = torch.empty(0).device
    for name, construct in _CONSTRUCTORS.items():
        setattr(torch, name, _keep_dtype(construct, otherwise=patched[name], device=device))
    try:
        yield
    finally:
        for name, construct in patched.items():
            setattr(torch, name, construct)


def _keep_dtype(
    construct: Callable[..., torch.Tensor],
    *,
    otherwise: Callable[..., torch.Tensor],
    device: torch.device,
) -> Callable[..., torch.Tensor]:
    def made(*arguments: Any, **options: Any) -> torch.Tensor:
        if options.get("dtype") is None:
            return otherwise(*arguments, **options)
        return construct(*arguments, **(options | {"device": options.get("device") or device}))

    return made


def _without_dropout(config: PretrainedConfig) -> PretrainedConfig:
    config = copy.deepcopy(config)
    for name, value in vars(config).items():
        is_rate = "dropout" in name or name.endswith("_pdrop")
        if is_rate and isinstance(value, float | int) and not isinstance(value, bool):
            setattr(config, name, 0.0)
    return config
