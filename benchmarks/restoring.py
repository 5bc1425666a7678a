"""Per rank: reading what was saved, at the same and at another world size, and loading a model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import torch
import xxhash
from torch.distributed.device_mesh import init_device_mesh

from peers import dcp_load, initialize, quiet, sharded_state, transformers_model
from ranks import PeakMemory, timed
from rotescale.checkpoint.manifest import MANIFEST, load_manifest
from rotescale.checkpoint.slices import CheckpointReader
from rotescale.engine.zero3 import Zero3Engine, deepspeed_config
from rotescale.model.prepare import load_prepared
from rotescale.tensors import PARTS, Part, TensorSlice, partition
from subjects import SETTINGS, Subject, builder


@dataclass(frozen=True, slots=True)
class Restored:
    """What one rank has measured of one way to restore a state."""

    seconds: float
    digest: str
    """Of this rank's slices afterwards."""
    peak_bytes: int
    extra_bytes: int
    initialize_seconds: float = 0.0
    """Of ``seconds``, what ``deepspeed.initialize`` took, the same for ours and peers."""


def state_digest(state: Iterable[tuple[TensorSlice, Part, torch.Tensor]]) -> str:
    """Of names, parts and bits of the slices."""
    digest = xxhash.xxh3_128()
    for piece, part, tensor in state:
        digest.update(f"{part}/{piece.name}/{piece.start}/{piece.stop}".encode())
        digest.update(tensor.detach().contiguous().numpy().data.cast("B"))
    return digest.hexdigest()


def measure_restoring(
    subject: Subject, prepared: Path, folder: Path, ways: tuple[str, ...]
) -> dict[str, Restored]:
    """Collective: every rank calls this. Load the state in each way, in turn, on one engine.

    Everything is overwritten before each, so what is found afterwards was read. Each is done
    twice and the second time counts; so all files come from memory.
    """
    engine = Zero3Engine(builder(prepared), spec=subject.engine, settings=SETTINGS)
    mesh = init_device_mesh("cpu", (engine.world_size,))
    actions: dict[str, Callable[[], None]] = {
        "ours": lambda: _load_ours(engine, folder / "ours"),
        "dcp": lambda: dcp_load(sharded_state(engine.state(PARTS), mesh), folder / "dcp"),
        "deepspeed": lambda: _load_deepspeed(engine, folder / "deepspeed", "saved"),
        "universal": lambda: _load_universal(engine, folder / "deepspeed"),
    }
    found: dict[str, Restored] = {}
    for _ in range(2):
        for way in ways:
            for _, _, tensor in engine.state(PARTS) if found else ():
                tensor.fill_(-1.0)
            memory = PeakMemory()
            seconds = timed(actions[way]).seconds
            digest = state_digest(engine.state(PARTS))
            found[way] = Restored(seconds, digest, memory.peak, memory.extra)
    return found


def _load_ours(engine: Zero3Engine, directory: Path) -> None:
    manifest = load_manifest(directory / MANIFEST)
    with CheckpointReader(directory, manifest) as reader:
        engine.load(reader, optimizer_step=manifest.step)


def _load_deepspeed(engine: Zero3Engine, directory: Path, tag: str) -> None:
    with quiet():
        path, _ = engine._engine.load_checkpoint(str(directory), tag=tag)
    assert path is not None, directory


def _load_universal(engine: Zero3Engine, directory: Path) -> None:
    # What {"checkpoint": {"load_universal": true}} in DeepSpeed's configuration sets.
    engine._engine._config.load_universal_checkpoint = True
    _load_deepspeed(engine, directory, "universal")


def load_our_model(subject: Subject, prepared: Path) -> Restored:
    """Collective: every rank calls this. An engine with the model's weights, by byte range."""
    build = builder(prepared)

    def load() -> Any:
        engine = Zero3Engine(build, spec=subject.engine, settings=SETTINGS)
        with load_prepared(prepared).reader() as reader:
            engine.load(reader, optimizer_step=None)
        return engine.state(PARTS[:1])

    return _measured_load(load)


def load_transformers_model(subject: Subject, prepared: Path) -> Restored:
    """Collective: every rank calls this. An engine with the model's weights, by transformers."""
    base = load_prepared(prepared).base
    builder(prepared)

    def load() -> Any:
        config = deepspeed_config(
            subject.engine, SETTINGS, world_size=torch.distributed.get_world_size()
        )
        with quiet():
            model = transformers_model(base, config)
        return _masters(initialize(model, config))

    return _measured_load(load)


def _masters(engine: Any) -> list[tuple[TensorSlice, Part, torch.Tensor]]:
    """This rank's slices of the master weights, as our engine tells them of its own."""
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    found: list[tuple[TensorSlice, Part, torch.Tensor]] = []
    for name, parameter in engine.module.named_parameters():
        place = partition(parameter.ds_numel, rank=rank, world_size=world_size)
        piece = TensorSlice(name, tuple(parameter.ds_shape), *place)
        local = deepspeed.utils.safe_get_local_fp32_param(parameter)
        found.append((piece, "master", local.flatten()[: piece.num_elements]))
    return found


def _measured_load(load: Callable[[], Any]) -> Restored:
    """Time ``load``, and what of it is spent in ``deepspeed.initialize``."""
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    original, spent = deepspeed.initialize, [0.0]

    def initialize_timed(*arguments: Any, **options: Any) -> Any:
        started = time.perf_counter()
        try:
            return original(*arguments, **options)
        finally:
            spent[0] += time.perf_counter() - started

    deepspeed.initialize = initialize_timed
    state: list[Any] = []
    memory = PeakMemory()
    seconds = timed(lambda: state.extend(load())).seconds
    peak, extra = memory.peak, memory.extra
    deepspeed.initialize = original
    return Restored(seconds, state_digest(state), peak, extra, spent[0])
