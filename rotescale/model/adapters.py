"""Puts LoRA adapters into a model: the only file that knows peft."""

from __future__ import annotations

from typing import TypeVar

from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from rotescale.errors import SpecError
from rotescale.model.lora import AdaptedLayout
from rotescale.spec import LoraSpec

_Model = TypeVar("_Model", bound=nn.Module)


def adapt(model: _Model, *, lora: LoraSpec, adapted: AdaptedLayout) -> _Model:
    """The same model with adapters, their values not set; what is not trained wants no gradient.

    Works plainly, inside ``deepspeed.zero.Init`` and on the meta device. Raises SpecError where
    peft adapts the architecture in another way, or not at all.
    """
    config = LoraConfig(
        r=lora.r,
        # peft divides by r, whatever number it is.
        lora_alpha=lora.alpha,
        target_modules=list(adapted.layers),
        lora_dropout=0.0,
        bias="none",
        init_lora_weights=False,
    )
    try:
        inject_adapter_in_model(config, model)
    except ValueError as error:
        raise SpecError(_remedy(model, str(error))) from error
    parameters = dict(model.named_parameters())
    wrong = parameters.keys() ^ adapted.shapes.keys()
    if wrong:
        raise SpecError(_remedy(model, f"of {min(wrong)!r} it makes something else"))
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in adapted.trained)
    return model


def _remedy(model: nn.Module, problem: str) -> str:
    return (
        f"model.lora.target_modules: peft cannot adapt these layers of {type(model).__name__} "
        f"({problem}); name fewer of them, such as those of the attention"
    )
