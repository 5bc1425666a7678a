"""Work that needs no accelerator, done in a thread while the part before it is computed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
_END = object()


@contextmanager
def made_ahead(things: Iterable[T]) -> Iterator[Iterator[T]]:
    """The same things in the same order, each made in a thread while the one before it is used.

    What making one raises is raised where it would come. Who leaves early waits for the one that is
    being made, and no other is begun.
    """
    source = iter(things)

    def in_order() -> Iterator[T]:
        following = thread.submit(next, source, _END)
        while (one := following.result()) is not _END:
            following = thread.submit(next, source, _END)
            yield one  # type: ignore[misc]

    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as thread:
        yield in_order()
