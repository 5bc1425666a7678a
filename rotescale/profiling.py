"""A trace of chosen steps, kernel by kernel, for chrome://tracing and ui.perfetto.dev."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from rotescale.launch_spec import ProfileSpec
from rotescale.run_dir import RunDir
from rotescale.storage import make_folder, write_atomic


class StepProfiler:
    """One rank's profiler, between steps on or off. Without a spec it does nothing.

    The step before the first chosen one warms the profiler up, where there is one. A trace is
    written where the last chosen step ends, or before it where the phase ends or is measured: it
    holds steps and nothing else, and its name says which.
    """

    def __init__(
        self,
        spec: ProfileSpec | None,
        run_dir: RunDir,
        *,
        rank: int,
        device: torch.device,
        report: Callable[[str], object] = lambda _: None,
    ) -> None:
        """``report`` is told, on rank 0, where its trace lies."""
        self._spec = spec
        self._run_dir = run_dir
        self._rank = rank
        self._report = report
        self._activities = [ProfilerActivity.CPU]
        if device.type == "cuda":
            self._activities.append(ProfilerActivity.CUDA)
        self._trace: _Trace | None = None

    def before_step(self, phase: str, step: int, *, is_first: bool) -> None:
        """``step`` of the phase comes next, counted from 1; ``is_first`` of this attempt."""
        spec = self._spec
        if spec is None or self._trace is not None or spec.phase not in (None, phase):
            return
        first, last = spec.steps
        # An attempt that resumes among the chosen steps traces what is left of them.
        begins = step in (first - 1, first) or (is_first and first < step <= last)
        if begins:
            self._trace = _Trace(phase, first=max(first, step), warms_up=step < first)
            self._trace.open(self._activities, active=last - self._trace.first + 1)

    def after_step(self, step: int) -> None:
        """``step``, counted from 1, has ended."""
        if self._trace is None or self._spec is None:
            return
        self._trace.last = step
        if step >= self._spec.steps[1]:
            self.close()
        else:
            self._trace.profile.step()

    def close(self) -> None:
        """Write what there is, if the profiler is on: something else than a step comes next."""
        trace, self._trace = self._trace, None
        if trace is None:
            return
        trace.profile.stop()
        if trace.last < trace.first:
            return
        steps = (trace.first, trace.last)
        path = self._run_dir.profile(trace.phase, steps=steps, rank=self._rank)
        with tempfile.TemporaryDirectory() as folder:
            # The suffix makes torch compress it.
            local = Path(folder) / "trace.json.gz"
            trace.profile.export_chrome_trace(str(local))
            make_folder(path.parent)
            write_atomic(path, local.read_bytes())
        if self._rank == 0:
            told = f"{steps[0]} to {steps[1]}" if steps[1] > steps[0] else str(steps[0])
            self._report(f"trace of steps {told} of {trace.phase}: {path}")


class _Trace:
    """A profiler at work."""

    def __init__(self, phase: str, *, first: int, warms_up: bool) -> None:
        self.phase = phase
        self.first = first
        self.last = 0
        """The last step that has ended."""
        self._warms_up = warms_up

    def open(self, activities: Sequence[ProfilerActivity], *, active: int) -> None:
        """Begin, with a step to warm up where there is one."""
        self.profile = profile(
            activities=activities,
            schedule=schedule(wait=0, warmup=int(self._warms_up), active=active, repeat=1),
            record_shapes=True,
        )
        self.profile.start()
