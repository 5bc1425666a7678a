"""The peers of ``training.py``: transformers' Trainer and TRL's SFTTrainer, set up like ours."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset, SequentialSampler

from peers import deepspeed, quiet
from rotescale.engine.base import OptimizerSettings
from rotescale.engine.zero3 import deepspeed_config
from rotescale.spec import EngineSpec

Measured = tuple[list[float], list[float], int]
"""Seconds and loss of each step, and tokens computed by all ranks, padding included."""


class _Examples(Dataset):  # type: ignore[type-arg]
    """Examples in the order in which the steps take them."""

    def __init__(self, steps: Sequence[Sequence[Any]]) -> None:
        self._examples = [example for step in steps for example in step]

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, place: int) -> dict[str, list[int]]:
        tokens, labels = self._examples[place]
        return {"input_ids": list(tokens), "labels": list(labels)}


def train_with_trainer(
    folder: Path,
    engine: EngineSpec,
    settings: OptimizerSettings,
    steps: Sequence[Sequence[Any]],
    each: int,
    learning_rate: float,
) -> Measured:
    """Collective: every rank calls this. transformers' Trainer, padding to the longest text.

    ``each`` examples at once on every rank, with gradients accumulated to a step's batch.
    """
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    def make(model: Any, tokenizer: Any, shared: dict[str, Any], callbacks: list[Any]) -> Any:
        return _in_order(Trainer)(
            model=model,
            args=TrainingArguments(**shared),
            train_dataset=_Examples(steps),
            data_collator=DataCollatorForSeq2Seq(tokenizer, padding=True),
            callbacks=callbacks,
        )

    return _train(make, folder, engine, settings, steps, each, learning_rate)


def train_with_sft(
    folder: Path,
    engine: EngineSpec,
    settings: OptimizerSettings,
    steps: Sequence[Sequence[Any]],
    each: int,
    learning_rate: float,
) -> Measured:
    """Collective: every rank calls this. TRL's SFTTrainer, ``each`` examples of a rank in one row.

    It packs them without padding (``padding_free``, which its ``packing`` sets too), so that the
    steps have the examples of ours.
    """
    import datasets
    from trl import SFTConfig, SFTTrainer

    def make(model: Any, tokenizer: Any, shared: dict[str, Any], callbacks: list[Any]) -> Any:
        listed = _Examples(steps)
        return _in_order(SFTTrainer)(
            model=model,
            args=SFTConfig(**shared, padding_free=True, max_length=None, packing=False),
            train_dataset=datasets.Dataset.from_list([listed[i] for i in range(len(listed))]),
            processing_class=tokenizer,
            callbacks=callbacks,
        )

    return _train(make, folder, engine, settings, steps, each, learning_rate)


def _in_order(trainer: Any) -> Any:
    """The same trainer, taking its examples as they come."""

    class InOrder(trainer):  # type: ignore[misc]
        def _get_train_sampler(self, *_: Any, **__: Any) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)

    return InOrder


def _train(
    make: Callable[..., Any],
    folder: Path,
    engine: EngineSpec,
    settings: OptimizerSettings,
    steps: Sequence[Sequence[Any]],
    each: int,
    learning_rate: float,
) -> Measured:
    from transformers import AutoModelForCausalLM, TrainerCallback, TrainingArguments

    from rotescale.model.prepare import load_prepared

    # Left to itself, accelerate takes processes on CPUs for one each.
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    world_size = torch.distributed.get_world_size()
    config = deepspeed_config(engine, settings, world_size=world_size)
    config |= {
        "train_batch_size": len(steps[0]),
        "train_micro_batch_size_per_gpu": each,
        "gradient_accumulation_steps": len(steps[0]) // (each * world_size),
    }
    config["optimizer"]["params"]["lr"] = learning_rate
    shared: dict[str, Any] = {
        "output_dir": os.devnull + "-unused",
        "deepspeed": config,
        "use_cpu": True,
        "per_device_train_batch_size": each,
        "gradient_accumulation_steps": config["gradient_accumulation_steps"],
        "max_steps": len(steps),
        "learning_rate": learning_rate,
        "lr_scheduler_type": "constant",
        "max_grad_norm": settings.max_grad_norm or 0.0,
        "gradient_checkpointing": False,
        "bf16": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_num_workers": 0,
        "seed": 0,
    }
    # There have to be arguments before the model, so that ZeRO-3 partitions it as it is loaded.
    kept = TrainingArguments(**shared)
    prepared = load_prepared(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(prepared.base, dtype=torch.float32)
    tokens = 0

    def count(_: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        nonlocal tokens
        tokens += named["input_ids"].numel() if model.training else 0

    model.register_forward_pre_hook(count, with_kwargs=True)
    seconds: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        began = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            Clock.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(time.perf_counter() - Clock.began)

    tokenizer = prepared.tokenizer()
    # Padding is masked, so any token will do.
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    with quiet():
        trainer = make(model, tokenizer, shared, [Clock()])
        trainer.train()
    del kept
    losses = [float(row["loss"]) for row in trainer.state.log_history if "loss" in row]
    total = torch.tensor([tokens])
    torch.distributed.all_reduce(total)
    return seconds, losses, int(total)
