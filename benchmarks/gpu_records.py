"""What the records of a whole run of ``gpu_check.py`` say."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Any

from rotescale.launch_spec import LaunchSpec
from rotescale.memory_gauge import peaks
from rotescale.planning.architecture import architecture_of
from rotescale.planning.place import node_of
from rotescale.planning.plan import Plan, make_plan
from rotescale.planning.workload import count_work
from rotescale.preflight.run import EVENT as PREFLIGHT_EVENT
from rotescale.preparation import Resolved
from rotescale.records import Records, read_records
from rotescale.run_dir import RunDir
from rotescale.spec import ExperimentSpec
from rotescale.step_clock import shares
from rotescale.utilisation import device_of

_WARM_UP_STEPS = 3


def planned_bytes(plan: Plan, *, on_gpu: bool) -> int:
    """What is planned of that which a worker's peak in training is measured by.

    On a GPU that is what torch has allocated, to which nothing of CUDA's own belongs; on the CPU
    all that the process holds.
    """
    moments = (plan.device["training"], plan.device["update"])
    return max(moment.total - (moment.system if on_gpu else 0) for moment in moments)


@dataclass(frozen=True)
class Whole:
    """A run that has ended, by its specs."""

    spec: ExperimentSpec
    launch: LaunchSpec

    def records(self) -> Records:
        """What it has recorded so far."""
        return read_records(RunDir.of(self.launch.storage, self.spec.name))

    def preflight(self) -> dict[str, Any]:
        """What its nodes reached before it trained."""
        event = [one for one in self.records().events if one.name == PREFLIGHT_EVENT][-1]
        products = [p for node in event.details["nodes"] for p in node["matmul_tflops"]]
        return {**event.details, "slowest_tflops": min(products)}

    def speed(self) -> dict[str, Any]:
        """Tokens a second once it was warm, and what share of the devices' peak that is."""
        records = self.records()
        steps = records.steps[_WARM_UP_STEPS:]
        device = device_of(records.events, steps[-1].attempt)
        seconds = sum(step.seconds for step in steps)
        return {
            "steps": len(steps),
            "median_step_seconds": median(step.seconds for step in steps),
            "tokens_per_second": sum(step.num_tokens for step in steps) / seconds,
            "flops_per_second": None if device is None else device.flops_per_second(steps),
            "share_of_peak": None if device is None else device.share_of_peak(steps),
            "device": None if device is None else device.describe(),
            "parts": shares(step.parts for step in steps),
        }

    def memory(self) -> dict[str, Any]:
        """What a worker held at most in training, and what the plan said, in bytes.

        ``planned_beside`` is what the plan leaves on a GPU for CUDA's own and the allocator's; it
        is in neither of the two.
        """
        found = {peak.moment: peak.most for peak in peaks(self.records())}
        node = node_of(self.launch if self.launch.node else self._somewhere())
        # What was decided by the GPUs that are here, which the plan's node may not be.
        model = Resolved.read(RunDir.of(self.launch.storage, self.spec.name)).model
        decided = {"activation_checkpointing": model.activation_checkpointing}
        plan = make_plan(
            self.spec.model_copy(update={"model": self.spec.model.model_copy(update=decided)}),
            self.launch,
            node,
            architecture=architecture_of(self.spec.model.weights),
            work=count_work(self.spec),
        )
        on_gpu = self.launch.gpus_per_worker > 0
        planned = planned_bytes(plan, on_gpu=on_gpu)
        if not on_gpu:
            # Copies for checkpoints lie in the same memory.
            planned += plan.host.snapshot // self.launch.num_workers[1]
        measured = found["training"]
        return {
            "planned": planned,
            "measured": measured,
            "error": planned / measured - 1,
            "planned_beside": plan.device["training"].system if on_gpu else 0,
        }

    def _somewhere(self) -> LaunchSpec:
        """The launch spec with a node for the plan, whose memory by part does not depend on it."""
        if not self.launch.gpus_per_worker:
            return self.launch
        raw = self.launch.model_dump() | {"node": "h100-8"}
        return LaunchSpec.model_validate(raw)

    def stall(self) -> dict[str, Any]:
        """How long training waited for its full checkpoints, and what these took, in seconds."""
        records = self.records()
        saves = [
            event.details
            for event in records.events
            if event.name == "checkpoint" and event.details["kind"] == "full"
        ]
        # The first one allocates the memory that the others use again.
        later = saves[1:] or saves
        timed = (
            *("stall_seconds", "copy_stall_seconds", "copy_seconds"),
            *("write_seconds", "total_seconds"),
        )
        return {
            "saves": len(saves),
            **{name: median(save[name] for save in later) for name in timed},
            "first_stall_seconds": saves[0]["stall_seconds"],
            "pinned": all(save["pinned"] for save in saves),
            "bytes": saves[-1]["num_bytes"],
            "step_seconds": median(step.seconds for step in records.steps[_WARM_UP_STEPS:]),
        }
