"""The DeepSpeed ZeRO-3 engine: the only file that knows DeepSpeed, and its few private names."""

from __future__ import annotations

import functools
import gc
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from rotescale.engine import gloo
from rotescale.engine.base import (
    OptimizerSettings,
    Row,
    SliceReader,
    configure_groups,
    parameter_groups,
    row_loss,
)
from rotescale.engine.frozen_rows import FrozenRows
from rotescale.engine.mapped import map_copy, map_zeros
from rotescale.spec import EngineSpec, EvaluationMode
from rotescale.step_clock import StepClock
from rotescale.storage import local_cache
from rotescale.tensors import PARTS, Part, TensorSlice, partition
from rotescale.zero3_sizes import zero3_sizes

if "DS_ACCELERATOR" not in os.environ:
    os.environ["DS_ACCELERATOR"] = "cuda" if torch.cuda.is_available() else "cpu"

import deepspeed
from deepspeed.runtime.zero import stage3
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

with suppress(ImportError):
    # What DeepSpeed imports in its first ``initialize`` takes seconds: a fork server has it then.
    import deepspeed.runtime.zero.muon.muon_optimizer


_TIMEOUT_SECONDS = 1800.0
_COLLECTIVES = ("all_reduce", "all_gather", "all_gather_into_tensor", "reduce_scatter_fn")
"""Of deepspeed.comm, what ZeRO-3's optimizer calls beside the gathers before a layer."""
_GATHERS = ("all_gather_into_tensor", "allgather_fn")
"""Of deepspeed.comm, what puts parameters together."""


def deepspeed_config(
    spec: EngineSpec,
    settings: OptimizerSettings,
    *,
    world_size: int,
    layer_parameters: int = 0,
    model_parameters: int | None = None,
    on_gpu: bool = False,
) -> dict[str, Any]:
    """The configuration of DeepSpeed: pure, so that a dry run can show it.

    Micro batch and accumulation are 1: how many passes a step takes is decided by packing, and
    the accumulation boundary is set by hand. Torch's own fused AdamW needs no compiler, on the
    CPU neither, so it also updates what is offloaded. ``layer_parameters`` and
    ``model_parameters`` are as ``zero3_sizes`` takes them.
    """
    sizes = zero3_sizes(
        spec, layer_parameters=layer_parameters, model_parameters=model_parameters, on_gpu=on_gpu
    )
    offload: dict[str, Any] = {}
    if spec.offload_optimizer != "none":
        # Files that are mapped are memory to DeepSpeed.
        offload["offload_optimizer"] = {
            "device": "cpu",
            "pin_memory": on_gpu and spec.offload_optimizer == "cpu",
        }
    return {
        "train_batch_size": world_size,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.max_grad_norm or 0.0,
        "communication_data_type": spec.gradient_dtype,
        "data_types": {"grad_accum_dtype": spec.gradient_dtype},
        "bf16": {"enabled": spec.precision == "bf16"},
        "zero_optimization": {
            "stage": 3,
            "sub_group_size": spec.sub_group_size,
            "stage3_param_persistence_threshold": sizes.kept,
            "stage3_max_live_parameters": sizes.gathered,
            "stage3_max_reuse_distance": sizes.gathered,
            "stage3_prefetch_bucket_size": sizes.prefetch,
            "reduce_bucket_size": sizes.bucket,
            "overlap_comm": sizes.overlaps,
            # On the CPU a bucket that gradients are copied into saves no fragmentation.
            "contiguous_gradients": on_gpu,
            **offload,
        },
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": 0.0,
                "betas": list(settings.betas),
                "eps": settings.epsilon,
                "weight_decay": settings.weight_decay,
                "torch_adam": True,
                "fused": True,
            },
        },
    }


@contextmanager
def _values_do_not_matter() -> Iterator[None]:
    """Keep ``zero.Init`` from sending rank 0's values of every parameter to all ranks.

    It does so that all start alike; here each rank reads its own part of the weights instead.
    """
    original = deepspeed.comm.broadcast
    deepspeed.comm.broadcast = lambda *arguments, **options: None
    try:
        yield
    finally:
        deepspeed.comm.broadcast = original


class Zero3Engine:
    """Parameters, gradients, masters and moments partitioned over the ranks.

    Masters and moments may be offloaded to host memory. What is frozen has neither.
    """

    def __init__(
        self,
        build: Callable[[], nn.Module],
        *,
        spec: EngineSpec,
        settings: OptimizerSettings,
        timeout_seconds: float = _TIMEOUT_SECONDS,
    ) -> None:
        """Collective: every rank calls this, with the process group's variables set.

        ``build`` makes the model, with any weights, and ``requires_grad`` off for what is frozen;
        each tensor is partitioned as it is made. ``timeout_seconds`` is how long a rank waits for
        the others in a collective before torch ends it.
        """
        # Without this, DeepSpeed compiles a shared-memory reduction for a minute at first use.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        on_gpu = torch.cuda.is_available()
        deepspeed.init_distributed(
            dist_backend="nccl" if on_gpu else "gloo",
            verbose=False,
            timeout=timedelta(seconds=timeout_seconds),
        )
        self.rank = torch.distributed.get_rank()
        self.world_size = torch.distributed.get_world_size()
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        self.device = torch.device(f"cuda:{local_rank}" if on_gpu else "cpu")
        if on_gpu:
            torch.cuda.set_device(self.device)
        self.clock = StepClock.of(self.device)
        self._build = build
        self._fuses_loss = spec.fused_loss
        configured = partial(
            deepspeed_config, spec, settings, world_size=self.world_size, on_gpu=on_gpu
        )
        with _values_do_not_matter(), deepspeed.zero.Init(config_dict_or_path=configured()):
            model: Any = build()
        if model.config.tie_word_embeddings:
            model.tie_weights()
        model.train()
        self._engine, *_ = deepspeed.initialize(
            model=model,
            config=configured(
                layer_parameters=largest_layer(model),
                model_parameters=sum(p.ds_numel for p in model.parameters()),
            ),
            model_parameters=parameter_groups(model),
        )
        self._optimizer = self._engine.optimizer
        is_on_disk = spec.offload_optimizer == "nvme"
        self._offload_folder = local_cache() / "offload" if is_on_disk else None
        if self._offload_folder is not None:
            for flat in self._optimizer.fp32_partitioned_groups_flat:
                flat.data = map_copy(flat.data, folder=self._offload_folder)
            self._reset_moments(None)
        self._originals = self._replace_collectives()
        self._parameters = dict(self._engine.module.named_parameters())
        self._frozen_loaded = False
        self._frozen_rows = FrozenRows()
        # Between AdamW's update of the masters and their copy into the parameters.
        self._optimizer.optimizer.register_step_post_hook(lambda *_: self._frozen_rows.restore())
        self.configure(settings)

    def configure(self, settings: OptimizerSettings) -> None:
        """Set AdamW, clipping and frozen rows for the phase that follows."""
        configure_groups(self._optimizer.param_groups, settings)
        self._frozen_rows.choose(settings.frozen_rows, self._parameters)
        self._optimizer.clip_grad = settings.max_grad_norm or 0.0

    def _replace_collectives(self) -> list[tuple[Any, str, Any]]:
        """Have the clock see what is waited for, and CPUs copy less.

        Returns what ``close`` puts back: where, by what name, what.
        """
        coordinator = self._optimizer.parameter_offload.get_param_coordinator()
        coordinator.fetch_sub_module = self._timed(coordinator.fetch_sub_module)
        replaced = {
            (deepspeed.comm, name): self._timed(getattr(deepspeed.comm, name))
            for name in _COLLECTIVES
        }
        if self.device.type == "cpu":
            replaced[stage3, "reduce_scatter_coalesced"] = self._timed(gloo.reduce_scatter)
            replaced |= {(deepspeed.comm, name): self._all_gather for name in _GATHERS}
        originals = [(place, name, getattr(place, name)) for place, name in replaced]
        for (place, name), replacement in replaced.items():
            setattr(place, name, replacement)
        return originals

    def _all_gather(
        self, output: Tensor, part: Tensor, group: Any = None, async_op: bool = False, **_: Any
    ) -> gloo.Messages | None:
        timed = partial(self.clock.part, "communication")
        return gloo.all_gather(output, part, group, async_op=async_op, timed=timed)

    def _timed(self, collective: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(collective)
        def timed(*arguments: Any, **options: Any) -> Any:
            with self.clock.part("communication"):
                return collective(*arguments, **options)

        return timed

    def slices(self) -> tuple[TensorSlice, ...]:
        """What this rank owns of every trainable tensor: DeepSpeed's partition, unpadded."""
        return tuple(self._slice(name) for name, p in self._parameters.items() if p.requires_grad)

    def load(self, reader: SliceReader, *, optimizer_step: int | None) -> None:
        """Collective: every rank calls this. Read the rank's own slices into its partitions."""
        self._reset_moments(optimizer_step)
        for piece in self.slices():
            for part in PARTS if optimizer_step is not None else PARTS[:1]:
                _fill(self._partition(piece.name, part), reader, piece, part=part)
        if not self._frozen_loaded:
            for name, parameter in self._parameters.items():
                if not parameter.requires_grad:
                    _fill(parameter.ds_tensor.data, reader, self._slice(name), part="master")
            self._frozen_loaded = True
        self._publish_masters()

    def _reset_moments(self, optimizer_step: int | None) -> None:
        """Moments of zero, after ``optimizer_step`` updates; None: of a new optimizer."""
        states = self._optimizer.optimizer.state
        for flat in self._optimizer.fp32_partitioned_groups_flat:
            state = states[flat]
            if not state and optimizer_step is None and self._offload_folder is None:
                # Adam makes it at the first update, and until then takes no memory for it.
                continue
            for name in PARTS[1:]:
                if name not in state:
                    state[name] = self._zeros_like(flat)
                elif optimizer_step is None:
                    state[name].zero_()
            state["step"] = torch.tensor(float(optimizer_step or 0), device=flat.device)

    def _zeros_like(self, flat: Tensor) -> Tensor:
        if self._offload_folder is None:
            return torch.zeros_like(flat)
        return map_zeros(flat.numel(), folder=self._offload_folder)

    def _slice(self, name: str) -> TensorSlice:
        parameter = self._parameters[name]
        size = parameter.ds_numel
        borders = partition(size, rank=self.rank, world_size=self.world_size)
        return TensorSlice(name, tuple(parameter.ds_shape), *borders)

    def _partition(self, name: str, part: Part) -> Tensor:
        """This rank's float32 partition of a trainable tensor: a view, with DeepSpeed's padding.

        It is a view wherever the state lives; the public getters copy what is offloaded to the
        device, which may have no room for it.
        """
        view, _ = self._optimizer._get_fp32_opt_state_partition(
            self._parameters[name],
            release_swap_buffers=False,
            optim_state_key=None if part == "master" else part,
        )
        found: Tensor = view.detach()
        return found

    def _publish_masters(self) -> None:
        """Collective: every rank calls this. Make the parameters what the masters are."""
        flats = zip(
            self._optimizer.fp16_partitioned_groups_flat,
            self._optimizer.fp32_partitioned_groups_flat,
            strict=True,
        )
        for low, master in flats:
            low.data.copy_(master.data)
        # What is gathered holds the old values: release it. The next forward gathers it anew.
        gathered = [
            p for p in self._parameters.values() if p.ds_status == ZeroParamStatus.AVAILABLE
        ]
        if gathered:
            gathered[0].partition(gathered)

    def state(self, parts: Sequence[Part]) -> list[tuple[TensorSlice, Part, Tensor]]:
        """Views of this rank's slices of masters and moments, float32, where they live."""
        return [
            (piece, part, self._partition(piece.name, part)[: piece.num_elements])
            for piece in self.slices()
            for part in parts
        ]

    def backward(self, row: Row, *, scale: float, last: bool) -> Tensor:
        """Collective: every rank calls this. Add the gradients of one row."""
        # The flag stays as it was set, so it is set before every row.
        self._engine.set_gradient_accumulation_boundary(last)
        with self.clock.part("forward"):
            loss = row_loss(self._engine, row, fused=self._fuses_loss)
        with self.clock.part("backward"):
            self._engine.backward(loss * scale)
        return loss.detach()

    def step(self, *, learning_rate: float) -> float:
        """Collective: every rank calls this. Clip, update, and return the gradient norm."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        for name in self._frozen_rows.names:
            self._frozen_rows.keep(self._slice(name), self._partition(name, "master"))
        with self.clock.part("optimizer"):
            self._engine.step()
            return float(self._engine.get_global_grad_norm())

    @contextmanager
    def evaluation_model(self, mode: EvaluationMode) -> Iterator[nn.Module]:
        """Collective: every rank enters together."""
        if mode == "replicated":
            model = self._gathered_copy()
            with torch.inference_mode():
                yield model
            del model
            gc.collect()
            return
        module: nn.Module = self._engine.module
        module.eval()
        with torch.no_grad():
            yield module
        module.train()

    def _gathered_copy(self) -> nn.Module:
        """Collective: every rank calls this. A whole model without ZeRO's hooks.

        The partitioned module would release its parameters again at the first forward, and
        its hooks are collectives; so the weights go into a model of its own.
        """
        state: dict[str, Tensor] = {}
        for name, parameter in self._parameters.items():
            with deepspeed.zero.GatheredParameters([parameter]):
                state[name] = parameter.data.detach().clone()
        with torch.device("meta"):
            model: Any = self._build()
        missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
        if model.config.tie_word_embeddings:
            model.tie_weights()
        assert not unexpected, unexpected
        live = dict(self._engine.module.named_buffers())
        for name, buffer in list(model.named_buffers()):
            if buffer.is_meta:
                owner, _, leaf = name.rpartition(".")
                model.get_submodule(owner)._buffers[leaf] = live[name].clone()
        left = [name for name, tensor in model.named_parameters() if tensor.is_meta]
        assert not left, f"not gathered: {left} (missing: {missing})"
        copy: nn.Module = model.eval()
        return copy

    def all_sum(self, values: Sequence[float]) -> list[float]:
        """Collective: every rank calls this. Element-wise sums over ranks, in float64."""
        total = torch.tensor(list(values), dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(total)
        return [float(value) for value in total.tolist()]

    def all_gather(self, value: Any) -> list[Any]:
        """Collective: every rank calls this. The value of every rank, in rank order."""
        gathered: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(gathered, value)
        return gathered

    def close(self) -> None:
        """Free the model; the process group belongs to whoever started the process."""
        for place, name, original in self._originals:
            setattr(place, name, original)
        self._engine.destroy()
        del self._engine, self._optimizer, self._parameters
        gc.collect()


def largest_layer(model: Any) -> int:
    """Parameters of the largest module among those that are listed one after the other."""
    layers: list[Any] = [
        layer for module in model.modules() if isinstance(module, nn.ModuleList) for layer in module
    ]
    return max((sum(p.ds_numel for p in layer.parameters()) for layer in layers), default=0)


def _fill(target: Tensor, reader: SliceReader, piece: TensorSlice, *, part: Part) -> None:
    """Set ``target``, a flat partition of any dtype and device, to the slice and zero padding."""
    if piece.num_elements:
        values = reader.read(piece.name, part=part, start=piece.start, stop=piece.stop)
        target[: piece.num_elements].copy_(values)
    target[piece.num_elements :].zero_()
