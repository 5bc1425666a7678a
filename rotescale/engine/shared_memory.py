"""Memory that all ranks of one machine map: what one has written there, the others read.

On one machine a message through Gloo is copied into the kernel and out of it again, in small
pieces, by threads that take the cores from what computes. Here Gloo says when a page is written,
and nothing else goes through it.
"""

from __future__ import annotations

import mmap
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist

from rotescale.zero3_sizes import PAGE_BYTES

_TOKEN_BYTES = 16


class _Offer(NamedTuple):
    """Where a rank's memory is to be found."""

    machine: tuple[str, ...]
    pid: int
    descriptor: int
    token: bytes
    """What stands at its beginning."""


class SharedMemory:
    """A page to write for each rank of a group, which all others read, in turns.

    In a turn every rank writes what it has into ``page``, calls ``turn``, and reads what the
    others wrote by ``written``. Each has two pages, so that it may write the next turn's while
    others still read: before it comes back to the first, it has met them once more.
    """

    def __init__(self, *, rank: int, maps: list[Tensor]) -> None:
        self._rank = rank
        self._maps = maps
        self._writing, self._reading = 0, 1

    @staticmethod
    def join(group: Any) -> SharedMemory | None:
        """Collective: every rank of ``group`` calls this. None where they cannot share memory.

        They can on one Linux machine, in the same namespaces of processes and networks.
        """
        rank, world_size = dist.get_rank(group), dist.get_world_size(group)
        own, descriptor, offer = _offer()
        offers: list[_Offer | None] = [None] * world_size
        dist.all_gather_object(offers, offer, group=group)
        maps = [own if other == rank else _open(found, offer) for other, found in enumerate(offers)]
        opened = [one for one in maps if one is not None]
        all_opened = torch.tensor([len(opened) == world_size], dtype=torch.int32)
        dist.all_reduce(all_opened, op=dist.ReduceOp.MIN, group=group)
        if descriptor is not None:
            # The mappings hold what it refers to; when they go, so does the memory.
            os.close(descriptor)
        return SharedMemory(rank=rank, maps=opened) if bool(all_opened) else None

    def page(self, dtype: torch.dtype) -> Tensor:
        """Flat, ``PAGE_BYTES`` of ``dtype``: what this rank writes in this turn."""
        return self._maps[self._rank][self._writing].view(dtype)

    def turn(self, group: Any) -> None:
        """Collective: every rank of the group calls this. Returns when all have written."""
        dist.barrier(group)
        self._writing, self._reading = self._reading, self._writing

    def written(self, rank: int, dtype: torch.dtype) -> Tensor:
        """Flat: what ``rank`` has written before the last turn."""
        return self._maps[rank][self._reading].view(dtype)


def _offer() -> tuple[Tensor | None, int | None, _Offer | None]:
    """This rank's memory, its descriptor, and where others find it; None where there is none."""
    token = secrets.token_bytes(_TOKEN_BYTES)
    descriptor = None
    try:
        # It has no name that a killed process could leave behind.
        descriptor = os.memfd_create("rotescale-messages")
        os.ftruncate(descriptor, 2 * PAGE_BYTES)
        os.pwrite(descriptor, token, 0)
        return _map(descriptor), descriptor, _Offer(_machine(), os.getpid(), descriptor, token)
    except (AttributeError, OSError):
        if descriptor is not None:
            os.close(descriptor)
        return None, None, None


def _open(offer: _Offer | None, own: _Offer | None) -> Tensor | None:
    """Another rank's memory; None where it cannot be reached from here."""
    if offer is None or own is None or offer.machine != own.machine:
        return None
    with suppress(OSError):
        descriptor = os.open(f"/proc/{offer.pid}/fd/{offer.descriptor}", os.O_RDWR | os.O_CLOEXEC)
        try:
            if os.pread(descriptor, _TOKEN_BYTES, 0) == offer.token:
                return _map(descriptor)
        finally:
            os.close(descriptor)
    return None


def _map(descriptor: int) -> Tensor:
    """(2, PAGE_BYTES) uint8"""
    pages = mmap.mmap(descriptor, 2 * PAGE_BYTES)
    # Made while a model is asked, it must serve training too.
    with torch.inference_mode(mode=False):
        return torch.frombuffer(pages, dtype=torch.uint8).view(2, PAGE_BYTES)


def _machine() -> tuple[str, ...]:
    """What processes have in common that see each other's ids, and the same network."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    namespaces = (Path("/proc/self/ns", kind).readlink() for kind in ("pid", "net"))
    return boot, *(str(namespace) for namespace in namespaces)
