"""The reference engine: plain torch in one process, short enough to be believed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rotescale.engine.base import (
    OptimizerSettings,
    Row,
    SliceReader,
    configure_groups,
    parameter_groups,
    row_loss,
)
from rotescale.engine.frozen_rows import FrozenRows
from rotescale.spec import EngineSpec, EvaluationMode
from rotescale.step_clock import StepClock
from rotescale.tensors import Part, TensorSlice


class EagerEngine:
    """One process that owns the whole of every tensor."""

    rank = 0
    world_size = 1

    def __init__(
        self, build: Callable[[], nn.Module], *, spec: EngineSpec, settings: OptimizerSettings
    ) -> None:
        """``build`` makes the model, with any weights, in the spec's precision."""
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.clock = StepClock.of(self.device)
        self._gradient_dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[spec.gradient_dtype]
        self._fuses_loss = spec.fused_loss
        self._model = build().to(self.device).train()
        named = dict(self._model.named_parameters())
        self._parameters = {name: p for name, p in named.items() if p.requires_grad}
        self._frozen = {name: p for name, p in named.items() if not p.requires_grad}
        self._frozen_loaded = False
        self._frozen_rows = FrozenRows()
        self._masters = {
            name: nn.Parameter(p.detach().float().clone()) for name, p in self._parameters.items()
        }
        self._new_optimizer()
        self.configure(settings)

    def _new_optimizer(self) -> None:
        by_identity = {id(p): self._masters[name] for name, p in self._parameters.items()}
        groups = parameter_groups(self._model)
        for group in groups:
            group["params"] = [by_identity[id(p)] for p in group["params"]]
        self._optimizer = torch.optim.AdamW(groups, fused=True)

    def configure(self, settings: OptimizerSettings) -> None:
        """Set AdamW, clipping and frozen rows for the phase that follows."""
        self._settings = settings
        configure_groups(self._optimizer.param_groups, settings)
        self._frozen_rows.choose(settings.frozen_rows, self._parameters | self._frozen)

    def slices(self) -> tuple[TensorSlice, ...]:
        """Every trainable tensor, whole."""
        return tuple(_whole(name, parameter) for name, parameter in self._parameters.items())

    def load(self, reader: SliceReader, *, optimizer_step: int | None) -> None:
        """Read every tensor; with ``optimizer_step`` the moments too."""
        self._new_optimizer()
        self.configure(self._settings)
        for piece in self.slices():
            master = self._masters[piece.name]
            master.data.copy_(self._read(reader, piece, "master"))
            self._parameters[piece.name].data.copy_(master.data)
            self._optimizer.state[master] = {
                "step": torch.tensor(float(optimizer_step or 0), device=self.device),
                "exp_avg": torch.zeros_like(master),
                "exp_avg_sq": torch.zeros_like(master),
            }
            if optimizer_step is not None:
                state = self._optimizer.state[master]
                state["exp_avg"].copy_(self._read(reader, piece, "exp_avg"))
                state["exp_avg_sq"].copy_(self._read(reader, piece, "exp_avg_sq"))
        if not self._frozen_loaded:
            for name, parameter in self._frozen.items():
                parameter.data.copy_(self._read(reader, _whole(name, parameter), "master"))
            self._frozen_loaded = True

    def _read(self, reader: SliceReader, piece: TensorSlice, part: Part) -> Tensor:
        flat = reader.read(piece.name, part=part, start=piece.start, stop=piece.stop)
        return flat.view(piece.shape)

    def state(self, parts: Sequence[Part]) -> list[tuple[TensorSlice, Part, Tensor]]:
        """The tensors themselves, flat, float32."""
        found: list[tuple[TensorSlice, Part, Tensor]] = []
        for piece in self.slices():
            master = self._masters[piece.name]
            for part in parts:
                source = master if part == "master" else self._optimizer.state[master][part]
                found.append((piece, part, source.detach().flatten()))
        return found

    def backward(self, row: Row, *, scale: float, last: bool) -> Tensor:
        """Add the gradients of one row to those of the masters."""
        with self.clock.part("forward"):
            loss = row_loss(self._model, row, fused=self._fuses_loss)
        with self.clock.part("backward"):
            (loss * scale).backward()  # type: ignore[no-untyped-call]
            for name, parameter in self._parameters.items():
                if parameter.grad is None:
                    continue
                gradient = parameter.grad.to(self._gradient_dtype).float()
                master = self._masters[name]
                master.grad = gradient if master.grad is None else master.grad + gradient
                parameter.grad = None
        return loss.detach()

    def step(self, *, learning_rate: float) -> float:
        """Clip, update, and return the gradient norm; no update where it is not finite."""
        with self.clock.part("optimizer"):
            return self._update(learning_rate)

    def _update(self, learning_rate: float) -> float:
        limit = self._settings.max_grad_norm
        norm = nn.utils.clip_grad_norm_(
            self._masters.values(), float("inf") if limit is None else limit
        )
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        if torch.isfinite(norm):
            for name in self._frozen_rows.names:
                master = self._masters[name].detach()
                self._frozen_rows.keep(_whole(name, master), master.flatten())
            self._optimizer.step()
            self._frozen_rows.restore()
        self._optimizer.zero_grad()
        for name, parameter in self._parameters.items():
            parameter.data.copy_(self._masters[name].data)
        return norm.item()

    @contextmanager
    def evaluation_model(self, mode: EvaluationMode) -> Iterator[nn.Module]:
        """The model itself: it is whole, whichever mode is asked for."""
        self._model.eval()
        with torch.inference_mode():
            yield self._model
        self._model.train()

    def all_sum(self, values: Sequence[float]) -> list[float]:
        """The values: there is one rank."""
        return list(values)

    def all_gather(self, value: Any) -> list[Any]:
        """The value, alone: there is one rank."""
        return [copy.copy(value)]

    def close(self) -> None:
        """Free the model."""
        del self._model, self._parameters, self._frozen, self._masters, self._optimizer


def _whole(name: str, parameter: Tensor) -> TensorSlice:
    return TensorSlice(name, tuple(parameter.shape), 0, parameter.numel())
