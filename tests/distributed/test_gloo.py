"""Our collectives for CPUs give what DeepSpeed's own give, on any number of ranks."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from helpers import run_ranks

# Fewer elements than ranks, sizes that do not divide, a matrix, and one of nothing but its last.
SHAPES = [(1,), (2,), (7,), (4, 6), (5, 5), (30_000,)]


def compare(out: Path, way: str) -> None:
    """Collective: both on the same tensors; write how far they are apart."""
    import deepspeed
    import torch.distributed as dist
    from deepspeed.runtime.comm.coalesced_collectives import reduce_scatter_coalesced

    from rotescale.engine import gloo, shared_memory

    # Most tensors take several turns.
    shared_memory.PAGE_BYTES = 4096
    if way == "messages":
        # As if each rank had a machine of its own.
        shared_memory._machine = lambda: (os.environ["RANK"],)
    if os.environ["RANK"] == "1":
        if way == "one opens none":
            shared_memory._open = lambda *_: None
        if way == "one has none":
            shared_memory._offer = lambda: (None, None, None)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    group = dist.new_group(list(range(world_size)))
    generator = torch.Generator().manual_seed(rank)
    apart: dict[str, float] = {"reduced": 0.0, "gathered": 0.0}
    for dtype in (torch.float32, torch.bfloat16):
        for where in (None, group):
            tensors = [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]
            before = [tensor.clone() for tensor in tensors]
            theirs = reduce_scatter_coalesced([tensor.clone() for tensor in tensors], where)
            ours = gloo.reduce_scatter(tensors, where)
            for tensor, was in zip(tensors, before, strict=True):
                size = -(-tensor.numel() // world_size)
                others = torch.ones(tensor.numel(), dtype=torch.bool)
                others[rank * size : (rank + 1) * size] = False
                assert torch.equal(tensor.flatten()[others], was.flatten()[others])
            # Of a bucket of such tensors alone the last ranks own nothing.
            [alone] = gloo.reduce_scatter([torch.tensor([3.0 + rank]).to(dtype)], where)
            assert alone.tolist() == ([3.0 + (world_size - 1) / 2] if rank == 0 else [])
            assert [one.shape for one in ours] == [other.shape for other in theirs]
            for one, other in zip(ours, theirs, strict=True):
                # Theirs divides first, which in bf16 rounds elsewhere.
                difference = (one.float() - other.float()).abs()
                scale = 1e-6 if dtype == torch.float32 else 2e-2
                apart["reduced"] = max(apart["reduced"], *(difference / scale).tolist(), 0.0)
            for size in (1, 3, 10_000):
                part = torch.randn(size, generator=generator).to(dtype)
                expected, found, in_place = (part.new_empty(size * world_size) for _ in range(3))
                dist.all_gather_into_tensor(expected, part, group=where)
                gloo.all_gather(found, part, where, timed=nullcontext)
                own = in_place.chunk(world_size)[rank]
                own.copy_(part)
                first = gloo.all_gather(in_place, own, where, async_op=True, timed=nullcontext)
                # Another one is begun before the first is waited for, as ZeRO-3 prefetches.
                again = torch.empty_like(in_place)
                second = gloo.all_gather(again, part, where, async_op=True, timed=nullcontext)
                assert first is not None
                assert second is not None
                second.wait()
                first.wait()
                for one in (found, in_place, again):
                    apart["gathered"] += float((one != expected).sum())
    if world_size == 3:
        # A gather among some leaves the others' count as it was.
        some = dist.new_group([1, 2])
        if rank:
            pair = torch.empty(2)
            gloo.all_gather(pair, torch.tensor([float(rank)]), some, timed=nullcontext)
            assert pair.tolist() == [1.0, 2.0]
        whole = torch.empty(3)
        gloo.all_gather(whole, torch.tensor([float(rank)]), timed=nullcontext)
        assert whole.tolist() == [0.0, 1.0, 2.0]
    shares = {memory is not None for memory in gloo._memories.values()}
    assert shares == (set() if world_size == 1 else {way == "memory"})
    (out / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(apart))


@pytest.mark.parametrize(
    ("world_size", "way"),
    [
        *((1, "memory"), (2, "memory"), (3, "memory"), (2, "messages"), (3, "messages")),
        *((3, "one opens none"), (3, "one has none")),
    ],
)
def test_reductions_and_gathers_are_deepspeeds(world_size: int, way: str, tmp_path: Path) -> None:
    codes = run_ranks(compare, tmp_path, way, world_size=world_size, logs=tmp_path / "logs")
    assert codes == [0] * world_size
    for rank in range(world_size):
        apart = json.loads((tmp_path / f"rank-{rank}.json").read_text())
        assert apart["reduced"] <= 1
        assert apart["gathered"] == 0


def die_between_turns(out: Path) -> None:
    """The last rank leaves before it has written; the others must notice."""
    import torch.distributed as dist

    from rotescale.engine import gloo

    dist.init_process_group("gloo")
    gloo.reduce_scatter([torch.ones(4)])
    assert list(gloo._memories.values()) != [None]
    if dist.get_rank() == 1:
        os._exit(0)
    with pytest.raises(RuntimeError, match=r"[Cc]onnection|closed|peer"):
        gloo.reduce_scatter([torch.ones(4)])
    (out / "noticed").touch()
    os._exit(0)


def test_a_rank_that_dies_is_noticed(tmp_path: Path) -> None:
    assert run_ranks(die_between_turns, tmp_path, world_size=2, logs=tmp_path / "logs") == [0, 0]
    assert (tmp_path / "noticed").exists()
