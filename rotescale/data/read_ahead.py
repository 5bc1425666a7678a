"""Reads the examples of the next step while this one is computed."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

from rotescale.data.stream import StepData, Stream


class ReadAhead:
    """One rank's steps of a stream, in order, each read and packed while the one before is at work.

    What reading raises is raised by the step that asks for it. A step out of order is read at once.
    """

    def __init__(self, stream: Stream, *, rank: int, world_size: int, stop: int) -> None:
        """Nothing is read from step ``stop`` on."""
        self._stream = stream
        self._rank = rank
        self._world_size = world_size
        self._stop = stop
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        self._next: tuple[int, Future[StepData]] | None = None

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def step(self, step: int) -> StepData:
        """What ``Stream.step`` gives for the rank in step 0, 1, …; the step after it is begun."""
        ready, self._next = self._next, None
        data = ready[1].result() if ready is not None and ready[0] == step else self._read(step)
        if step + 1 < self._stop:
            self._next = (step + 1, self._thread.submit(self._read, step + 1))
        return data

    def _read(self, step: int) -> StepData:
        return self._stream.step(step, rank=self._rank, world_size=self._world_size)
