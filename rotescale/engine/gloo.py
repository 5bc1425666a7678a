"""ZeRO-3's two collectives on CPUs, without the copies that Gloo's own make.

Gloo reduces and scatters by an all-reduce of a copy, which moves twice what is needed, and gathers
into a buffer of its own that is copied once more. Here each rank gets just what it lacks: from
memory that all map where they run on one machine, else by messages. Both take what DeepSpeed
0.19.8 passes to its own, and return what it expects.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch import distributed as dist

from rotescale.engine.shared_memory import SharedMemory
from rotescale.tensors import partition

_tags: WeakKeyDictionary[Any, Iterator[int]] = WeakKeyDictionary()
"""Of each group: its ranks make the same collectives in the same order, so their counts agree."""

_memories: WeakKeyDictionary[Any, SharedMemory | None] = WeakKeyDictionary()
"""Of each group, while it lives: what its ranks share, if they can."""

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
    memory = _memory(group)
    if memory is None:
        _add_messages(tensors, parts, group)
    else:
        _add_written(tensors, parts, memory, group)
    for part in parts:
        part.div_(world_size)
    return parts


def _add_messages(tensors: Sequence[Tensor], parts: Sequence[Tensor], group: Any) -> None:
    """Add the others' gradients, which come in one message from each."""
    rank, world_size = dist.get_rank(group), dist.get_world_size(group)
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


def _add_written(
    tensors: Sequence[Tensor], parts: Sequence[Tensor], memory: SharedMemory, group: Any
) -> None:
    """Add the others' gradients, as many in a turn as a page holds for all of them."""
    rank, world_size = dist.get_rank(group), dist.get_world_size(group)
    others = [other for other in range(world_size) if other != rank]
    dtype = parts[0].dtype
    room = len(memory.page(dtype)) // len(others)
    owned = [-(-tensor.numel() // world_size) for tensor in tensors]
    for pieces in _pieces(owned, room):
        page = memory.page(dtype)
        for place, other in enumerate(others):
            for number, piece, start in pieces:
                sent = _part(tensors[number], other, world_size)[piece]
                page[place * room + start :][: len(sent)].copy_(sent)
        memory.turn(group)
        for other in others:
            theirs = memory.written(other, dtype)[(rank - (rank > other)) * room :]
            for number, piece, start in pieces:
                own = parts[number][piece]
                own.add_(theirs[start : start + len(own)])


def _pieces(sizes: Sequence[int], room: int) -> Iterator[list[tuple[int, slice, int]]]:
    """All elements of things of these sizes, in order, ``room`` at a time.

    Of each piece: of which thing, which of its elements, and where it begins among ``room``.
    """
    pieces: list[tuple[int, slice, int]] = []
    filled = 0
    for number, size in enumerate(sizes):
        done = 0
        while done < size:
            taken = min(size - done, room - filled)
            pieces.append((number, slice(done, done + taken), filled))
            done, filled = done + taken, filled + taken
            if filled == room:
                yield pieces
                pieces, filled = [], 0
    if pieces:
        yield pieces


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
    the rank's own place in it. With ``async_op`` both must be left alone until ``wait``; through
    shared memory nothing is on its way, and all parts are there when this returns.
    """
    rank, world_size = dist.get_rank(group), dist.get_world_size(group)
    places = output.view(-1).chunk(world_size)
    if places[rank].data_ptr() != part.data_ptr():
        places[rank].copy_(part.view(-1))
    memory = _memory(group) if world_size > 1 else None
    if memory is not None:
        with timed():
            _read_written(places, part.view(-1), memory, group)
        return Messages((), timed) if async_op else None
    tag = next(_tags.setdefault(_key(group), itertools.cycle(range(1, 1 << 20))))
    works = []
    for other in range(world_size):
        if other == rank:
            continue
        whom = other if group is None else dist.get_global_rank(group, other)
        works.append(dist.irecv(places[other], whom, group=group, tag=tag))
        works.append(dist.isend(part.view(-1), whom, group=group, tag=tag))
    messages = Messages(tuple(works), timed)
    if async_op:
        return messages
    messages.wait()
    return None


def _read_written(places: Sequence[Tensor], part: Tensor, memory: SharedMemory, group: Any) -> None:
    """Take the others' parts, as much in a turn as a page holds."""
    rank = dist.get_rank(group)
    room = len(memory.page(part.dtype))
    for start in range(0, len(part), room):
        piece = part[start : start + room]
        memory.page(part.dtype)[: len(piece)].copy_(piece)
        memory.turn(group)
        for other, place in enumerate(places):
            if other != rank:
                place[start : start + room].copy_(memory.written(other, part.dtype)[: len(piece)])


def _memory(group: Any) -> SharedMemory | None:
    """Collective: every rank of the group calls this. What they share, found at its first call."""
    key = _key(group)
    if key not in _memories:
        _memories[key] = SharedMemory.join(group)
    return _memories[key]


def _key(group: Any) -> Any:
    return dist.group.WORLD if group is None else group
