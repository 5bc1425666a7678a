"""ZeRO-3's two collectives on CPUs, without the copies that Gloo's own make.

Gloo reduces and scatters by an all-reduce of a copy, which moves twice what is needed, and gathers
into a buffer of its own that is copied once more. Here each rank sends every other one just what
that one lacks. Both take what DeepSpeed 0.19.8 passes to its own, and return what it expects.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from rotescale.tensors import partition

_tags: dict[Any, Iterator[int]] = defaultdict(lambda: itertools.cycle(range(1, 1 << 20)))
"""Of each group: its ranks make the same collectives in the same order, so their counts agree."""

Timed = Callable[[], AbstractContextManager[None]]
"""What is entered while messages are waited for."""


def reduce_scatter(tensors: Sequence[Tensor], group: Any = None) -> list[Tensor]:
    """Collective: every rank calls this. This rank's part of each tensor's mean over the ranks.

    ``tensors`` are contiguous, of one dtype, and of the same sizes on all ranks; of n elements rank
    r owns those from r · ⌈n / ranks⌉ on, as many or what is left. Returns flat views of the
    tensors, whose own parts hold the means afterwards; the rest is as it was.

    The sums begin with a rank's own gradients and add the others' in the order of ranks.
    """
    rank, world_size = dist.get_rank(group), dist.get_world_size(group)
    parts = [_part(tensor, rank, world_size) for tensor in tensors]
    if world_size == 1:
        return parts
    own_size = sum(len(part) for part in parts)
    others = [other for other in range(world_size) if other != rank]
    sent = torch.cat([_part(tensor, r, world_size) for r in others for tensor in tensors])
    sizes = [
        0 if r == rank else sum(len(_part(tensor, r, world_size)) for tensor in tensors)
        for r in range(world_size)
    ]
    received = sent.new_empty(len(others) * own_size)
    dist.all_to_all_single(
        received,
        sent,
        output_split_sizes=[0 if r == rank else own_size for r in range(world_size)],
        input_split_sizes=sizes,
        group=group,
    )
    lengths = [len(part) for part in parts]
    for of_other in torch.split(received, own_size) if own_size else ():
        for part, added in zip(parts, torch.split(of_other, lengths), strict=True):
            part.add_(added)
    for part in parts:
        part.div_(world_size)
    return parts


def _part(tensor: Tensor, rank: int, world_size: int) -> Tensor:
    """The flat view of what a rank owns."""
    flat = tensor.view(-1)
    start, stop = partition(len(flat), rank=rank, world_size=world_size)
    return flat[start:stop]


@dataclass(frozen=True, slots=True)
class Messages:
    """A gather's messages on their way."""

    works: tuple[Any, ...]
    timed: Timed

    def wait(self) -> None:
        """Returns when all have come, and what was sent may be changed."""
        with self.timed():
            for work in self.works:
                work.wait()


def all_gather(
    output: Tensor, part: Tensor, group: Any = None, *, async_op: bool = False, timed: Timed
) -> Messages | None:
    """Collective: every rank calls this. The parts of all ranks, in their order, in ``output``.

    Both are flat and contiguous, ``output`` of ranks · n elements for parts of n. ``part`` may be
    the rank's own place in it. With ``async_op`` both must be left alone until ``wait``.
    """
    rank, world_size = dist.get_rank(group), dist.get_world_size(group)
    places = output.view(-1).chunk(world_size)
    tag = next(_tags[group])
    works = []
    for other in range(world_size):
        if other == rank:
            continue
        whom = other if group is None else dist.get_global_rank(group, other)
        works.append(dist.irecv(places[other], whom, group=group, tag=tag))
        works.append(dist.isend(part.view(-1), whom, group=group, tag=tag))
    if places[rank].data_ptr() != part.data_ptr():
        places[rank].copy_(part.view(-1))
    messages = Messages(tuple(works), timed)
    if async_op:
        return messages
    messages.wait()
    return None
