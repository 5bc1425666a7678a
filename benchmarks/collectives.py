"""ZeRO-3's two collectives on CPUs: ours through shared memory and by messages, and the usual ones.

Run it from the repository: ``python benchmarks/collectives.py [--json PATH] [--models LIST]``.

A step's worth on two ranks, in float32: all gradients reduced in buckets, and all weights gathered.
The peers are DeepSpeed's ``reduce_scatter_coalesced`` over Gloo, and Gloo's all-gather into one
tensor, all begun before the first is waited for. All are timed in turn, on the same tensors;
results must be equal.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed

from ranks import run_ranks
from report import Detail, Row, median, print_details, print_rows, write_rows
from rotescale.model.build import parameter_shapes
from rotescale.zero3_sizes import zero3_sizes
from subjects import SUBJECTS, make_folder

_WORLD_SIZE = 2
_REPEATS = 5
_WAYS = ("ours, shared memory", "ours, messages", "DeepSpeed on Gloo")


class Found(NamedTuple):
    """Of one rank: seconds of every run, by collective and way, and whether all results agree."""

    seconds: dict[tuple[str, str], list[float]]
    agree: bool


def main() -> None:
    """Time all ways, in turn, and print what they took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="smollm2-135m", help="comma-separated: %(default)s")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    rows: list[Row] = []
    for name in options.models.split(","):
        with tempfile.TemporaryDirectory(prefix="rotescale-collectives-") as folder:
            prepared = make_folder(SUBJECTS[name], out=Path(folder))
            shapes = list(parameter_shapes(prepared.config()).values())
            bucket = zero3_sizes(SUBJECTS[name].engine).bucket
            found = run_ranks(_measure, shapes, bucket, world_size=_WORLD_SIZE, logs=Path(folder))
        seconds = {key: list(map(max, *(one[0][key] for one in found))) for key in found[0][0]}
        for what in ("reduce", "gather"):
            print_details(f"{name}: {what}", [Detail(way, seconds[what, way]) for way in _WAYS])
            ours, peer = (median(seconds[what, way]) for way in (_WAYS[0], _WAYS[2]))
            rows.append(Row(f"{what}_vs_gloo", name, ours, peer, all(one[1] for one in found)))
    print_rows(rows)
    if options.json:
        write_rows(rows, options.json)


def _measure(shapes: Sequence[tuple[int, ...]], bucket: int) -> Found:
    """Collective: every rank calls this."""
    import deepspeed
    from deepspeed.runtime.comm.coalesced_collectives import reduce_scatter_coalesced

    from rotescale.engine import gloo
    from rotescale.engine.shared_memory import SharedMemory

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    generator = torch.Generator().manual_seed(distributed.get_rank())
    gradients = [torch.randn(shape, generator=generator) for shape in shapes]
    held = [torch.empty_like(gradient) for gradient in gradients]
    buckets = _buckets(held, bucket)
    parts = [gradient.flatten()[: -(-gradient.numel() // _WORLD_SIZE)] for gradient in gradients]
    wholes = [part.new_empty(_WORLD_SIZE * len(part)) for part in parts]
    # Which way is taken is decided once for each group.
    by_memory, by_messages = (distributed.new_group(range(_WORLD_SIZE)) for _ in range(2))
    shared = SharedMemory.join(by_memory)
    if shared is None:
        raise RuntimeError("processes of this machine cannot share memory (memfd, /proc/PID/fd)")
    gloo._memories.update({by_memory: shared, by_messages: None})

    def reduce(one: Callable[..., Any]) -> list[Tensor]:
        return [part for tensors in buckets for part in one(tensors)]

    def gather(one: Callable[..., Any]) -> list[Tensor]:
        # As ZeRO-3 does: all are begun, then waited for.
        for work in [one(whole, part) for whole, part in zip(wholes, parts, strict=True)]:
            work.wait()
        return wholes

    ways: dict[tuple[str, str], Callable[[], list[Tensor]]] = {}
    for way, group in zip(_WAYS, (by_memory, by_messages, None), strict=True):
        if group is None:
            reduces: Callable[..., Any] = reduce_scatter_coalesced
            gathers: Callable[..., Any] = partial(distributed.all_gather_into_tensor, async_op=True)
        else:
            reduces = partial(gloo.reduce_scatter, group=group)
            gathers = partial(gloo.all_gather, group=group, async_op=True, timed=nullcontext)
        ways["reduce", way] = partial(reduce, reduces)
        ways["gather", way] = partial(gather, gathers)
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in ways}
    expected: dict[str, list[Tensor]] = {}
    agree = True
    for number in range(1 + _REPEATS):
        for (what, way), call in ways.items():
            for one, gradient in zip(held, gradients, strict=True):
                one.copy_(gradient)
            for whole in wholes:
                whole.fill_(torch.nan)
            distributed.barrier()
            began = time.perf_counter()
            result = call()
            took = time.perf_counter() - began
            wanted = expected.setdefault(what, [one.clone() for one in result])
            agree &= all(map(torch.equal, result, wanted))
            if number:
                seconds[what, way].append(took)
    return Found(seconds, agree)


def _buckets(gradients: Sequence[Tensor], size: int) -> list[list[Tensor]]:
    """As ZeRO-3 fills them: what does not fit any more begins the next."""
    buckets: list[list[Tensor]] = [[]]
    for gradient in gradients:
        if buckets[-1] and sum(one.numel() for one in buckets[-1]) + gradient.numel() > size:
            buckets.append([])
        buckets[-1].append(gradient)
    return buckets


if __name__ == "__main__":
    main()
