"""The peers, each through its public interface and with the best settings that it has for this.

All of them work on the state of the same DeepSpeed engine: the float32 masters and the two moments
of every parameter, partitioned over the ranks by ZeRO-3.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import (
    AsyncCheckpointerType,
    AsyncSaveResponse,
    async_save,
    save,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from rotescale.engine.base import parameter_groups
from rotescale.tensors import Part, TensorSlice

# DeepSpeed's import looks for a GPU unless told that there is none.
os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed as deepspeed
from deepspeed.checkpoint import ds_to_universal

State = Sequence[tuple[TensorSlice, Part, Tensor]]


def sharded_state(state: State, mesh: DeviceMesh) -> dict[str, Tensor]:
    """The slices as DTensors of the flattened tensors, so that DCP can reshard them too.

    Each is a view with a storage of its own, because DCP's stager fails at a DTensor whose local
    part begins within a storage, and its writer copies a tensor that is part of a larger storage.
    """
    return {
        f"{part}/{piece.name}": DTensor.from_local(
            torch.from_numpy(local.numpy()),
            mesh,
            [Shard(0)],
            run_check=False,
            shape=torch.Size([torch.Size(piece.shape).numel()]),
            stride=(1,),
        )
        for piece, part, local in state
    }


class AsyncDcp:
    """``torch.distributed.checkpoint.async_save``, with staging memory that is used again.

    ``thread``: staged by a thread beside the next forward and backward, written by a thread.
    ``process``: staged into shared memory, written by a process of its own.
    """

    def __init__(self, kind: str) -> None:
        in_process = kind == "process"
        # Pinned memory and non-blocking copies need a GPU. Staging by a thread into memory that
        # another process reads is refused by the copy of shared storages, so it blocks there.
        self._stager = DefaultStager(
            StagingOptions(
                use_pinned_memory=False,
                use_shared_memory=in_process,
                use_async_staging=not in_process,
                use_non_blocking_copy=False,
            )
        )
        self._type = AsyncCheckpointerType.PROCESS if in_process else AsyncCheckpointerType.THREAD
        # The thread's collectives must not mix with those of training.
        self._group = torch.distributed.new_group(backend="gloo")
        self._response: Any = None

    def start(self, state: dict[str, Tensor], folder: Path) -> None:
        """Collective: every rank calls this. Begin a save."""
        self._response = async_save(
            state,
            storage_writer=FileSystemWriter(folder),
            planner=DefaultSavePlanner(enable_plan_caching=True),
            process_group=self._group,
            async_checkpointer_type=self._type,
            async_stager=self._stager,
        )

    def before_update(self) -> None:
        """Wait until the state is staged."""
        if isinstance(self._response, AsyncSaveResponse):
            self._response.staging_completion.result()

    def finish(self) -> None:
        """Wait until the checkpoint is written."""
        if isinstance(self._response, AsyncSaveResponse):
            self._response.upload_completion.result()
        elif self._response is not None:
            self._response.result()
        self._response = None

    def close(self) -> None:
        """Free the staging memory."""
        self._stager.close()


def dcp_save(state: dict[str, Tensor], folder: Path) -> None:
    """Collective: every rank calls this. DCP's blocking save."""
    save(state, storage_writer=FileSystemWriter(folder))


def dcp_load(state: dict[str, Tensor], folder: Path) -> None:
    """Collective: every rank calls this. DCP's load into the tensors of ``state``."""
    load(state, storage_reader=FileSystemReader(folder))


def initialize(model: Any, config: dict[str, Any]) -> Any:
    """Collective: every rank calls this. A DeepSpeed engine as ours makes it."""
    engine, *_ = deepspeed.initialize(
        model=model, config=config, model_parameters=parameter_groups(model)
    )
    return engine


def convert_to_universal(checkpoint: Path, out: Path) -> float:
    """DeepSpeed's offline conversion with two workers; the seconds it takes.

    It forks, so the process must not have started threads of its own.
    """
    arguments = argparse.Namespace(
        input_folder=str(checkpoint),
        output_folder=str(out),
        num_extract_workers=2,
        num_merge_workers=2,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=False,
    )
    started = time.perf_counter()
    ds_to_universal.main(arguments)
    return time.perf_counter() - started


def transformers_model(folder: Path, config: dict[str, Any]) -> Any:
    """Collective: every rank calls this. transformers' own load into ZeRO-3 partitions."""
    from transformers import AutoModelForCausalLM
    from transformers.integrations import HfDeepSpeedConfig

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    # transformers partitions what it loads as long as this object lives.
    keeper = HfDeepSpeedConfig(config)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa", local_files_only=True
    )
    del keeper
    return model.train()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep progress bars and notes of the peers off the terminal."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield
