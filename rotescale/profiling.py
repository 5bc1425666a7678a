"""A trace of chosen steps, kernel by kernel, for chrome://tracing and ui.perfetto.dev."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from rotescale.launch_spec import ProfileSpec
from rotescale.run_dir import RunDir
from rotescale.storage import StoragePath, make_folder, write_atomic


class StepProfiler:
    """One rank's profiler, between steps on or off. Without a spec it does nothing.

    The step before the first chosen one warms the profiler up, where there is one. A trace is
    written where the last chosen step ends, or the phase does before it.
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
        self._open = ExitStack()
        self._profile: profile | None = None

    def before_step(self, phase: str, step: int) -> None:
        """``step`` of the phase comes next, counted from 1."""
        spec = self._spec
        if spec is None or self._profile is not None or spec.phase not in (None, phase):
            return
        first, last = spec.steps
        warm_up = 0 if step == first else 1
        if step + warm_up != first:
            return
        path = self._run_dir.profile(phase, steps=spec.steps, rank=self._rank)
        self._profile = self._open.enter_context(
            profile(
                activities=self._activities,
                schedule=schedule(wait=0, warmup=warm_up, active=last - first + 1, repeat=1),
                on_trace_ready=lambda made: self._write(made, path),
                record_shapes=True,
            )
        )

    def after_step(self, step: int) -> None:
        """``step``, counted from 1, has ended."""
        if self._profile is None or self._spec is None:
            return
        self._profile.step()
        if step >= self._spec.steps[1]:
            self.close()

    def close(self) -> None:
        """Write what there is, if the profiler is on; the phase has no further step."""
        self._open.close()
        self._profile = None

    def _write(self, made: profile, path: StoragePath) -> None:
        with tempfile.TemporaryDirectory() as folder:
            # The suffix makes torch compress it.
            local = Path(folder) / "trace.json.gz"
            made.export_chrome_trace(str(local))
            make_folder(path.parent)
            write_atomic(path, local.read_bytes())
        if self._rank == 0:
            self._report(f"trace of steps {self._told()}: {path}")

    def _told(self) -> str:
        assert self._spec is not None
        first, last = self._spec.steps
        return f"{first} to {last}" if last > first else str(first)
