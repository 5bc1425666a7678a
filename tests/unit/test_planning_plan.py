"""Plans of everything that ships: whether it fits, why not, and advice that holds if followed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT
from planning_helpers import CONFIGS, EXPERIMENTS, HUB_EXPERIMENTS, cpus, gpus, place, planned

from rotescale.launch_spec import LaunchSpec
from rotescale.planning.advice import duration, gigabytes
from rotescale.planning.plan import Plan
from rotescale.planning.rates import Range
from rotescale.spec_file import load_spec

LARGE = "llama-3.1-70b"


@pytest.mark.parametrize("profile", sorted((CONFIGS / "launch").glob("*")), ids=lambda p: p.stem)
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_shipped_experiment_plans_on_every_shipped_profile(name: str, profile: Path) -> None:
    made = planned(name, load_spec(LaunchSpec, profile))
    assert made.fits == (not made.reasons)
    assert made.device_peak > 0
    assert 0 < made.total_seconds.low <= made.total_seconds.high
    assert not any("not needed" in note for note in made.notes)


def test_70b_fits_on_four_nodes_and_the_numbers_are_those_of_the_hand_calculation() -> None:
    made = planned(LARGE, gpus(32), "engine.gradient_dtype=bf16")
    assert made.fits
    assert made.num_nodes == 4
    assert made.sizes.published == 70_553_706_496
    assert gigabytes(made.sizes.state) == "1.13 TB"
    assert gigabytes(made.sizes.state_per_worker) == "35.3 GB"
    # 0.85 TB by hand, and within 1 % of 12 bytes for each published parameter.
    assert made.sizes.checkpoint == pytest.approx(0.85e12, rel=0.01)
    assert made.sizes.checkpoint == pytest.approx(12 * made.sizes.published, rel=0.01)


def test_what_the_state_would_be_with_bf16_gradients_is_what_it_is() -> None:
    one, other = planned(LARGE, gpus(32)), planned(LARGE, gpus(32), "engine.gradient_dtype=bf16")
    assert one.sizes.state_with_bf16_gradients == other.sizes.state
    assert other.sizes.state_with_bf16_gradients == other.sizes.state


@pytest.mark.parametrize("node", ["h100-8", "a100-40g-8", "l4-8"])
@pytest.mark.parametrize("name", HUB_EXPERIMENTS)
def test_the_smallest_number_fits_and_one_less_does_not(name: str, node: str) -> None:
    smallest = planned(name, gpus(8, node)).smallest
    assert smallest is not None
    assert planned(name, gpus(smallest, node)).fits
    less = smallest - 1 if smallest <= 8 else smallest - 8
    if less:
        made = planned(name, gpus(less, node))
        assert not made.fits
        assert made.reasons


@pytest.mark.parametrize("name", [LARGE, "qwen2.5-14b", "qwen2.5-1.5b"])
@pytest.mark.parametrize("node", ["h100-8", "l4-8"])
def test_a_remedy_does_what_it_says(name: str, node: str) -> None:
    made = planned(name, gpus(8, node))
    assert made.remedies
    for remedy in made.remedies:
        followed = planned(name, gpus(8, node), *remedy.setting.split())
        assert followed.device_peak == remedy.device_peak
        assert followed.fits == remedy.fits
        assert followed.smallest == remedy.smallest
        assert remedy.device_peak <= made.device_peak


def test_all_harmless_remedies_together_are_the_last() -> None:
    long = "phases.0.global_batch=4096"
    last = planned("qwen2.5-1.5b", gpus(2), long).remedies[-1]
    assert "model.activation_checkpointing=true" in last.setting
    assert "engine.offload_optimizer=cpu" in last.setting
    assert not last.changes_results


def test_why_it_does_not_fit_names_what_lacks_and_what_helps() -> None:
    made = planned(LARGE, gpus(16))
    assert not made.fits
    why, way_out = made.reasons
    assert "On 16 workers training takes" in why
    assert "the H100 has 84.9 GB" in why
    assert "is optimizer, which is spread over the workers" in why
    assert "--set engine.offload_optimizer=cpu fits it on as many workers" in way_out
    assert f"as it is, it fits on {made.smallest} workers (3 nodes)" in way_out


def test_host_memory_can_be_what_lacks() -> None:
    small_host = {"like": "h100-8", "host_memory_gib": 200}
    made = planned(LARGE, gpus(32, small_host))
    assert not made.fits
    assert "of its memory, and h100-8 has 214.7 GB" in made.reasons[0]
    assert "is snapshot" in made.reasons[0]
    assert made.smallest is not None
    assert made.smallest > 32


def spot(num_workers: int | list[int] = 16, grace_seconds: int = 110) -> LaunchSpec:
    """The shipped profile of nodes that may be taken away."""
    overrides = [f"num_workers={num_workers}", f"kuberay.grace_seconds={grace_seconds}"]
    return load_spec(LaunchSpec, CONFIGS / "launch" / "spot.yaml", overrides)


def test_advice_on_memory_counts_the_time_that_a_save_has() -> None:
    made = planned(LARGE, spot())
    memory, grace, way_out = made.reasons
    assert "On 16 workers training takes" in memory
    assert "kuberay.grace_seconds is 110, and a full checkpoint may take 242 s here" in grace
    assert "set it to 272 or more" in grace
    offload = "engine.offload_optimizer=cpu"
    assert f"--set {offload} fits it on as many workers, with kuberay.grace_seconds 272" in way_out
    assert "as it is, it fits on 56 workers (7 nodes)" in way_out
    [remedy] = [one for one in made.remedies if one.setting == offload]
    assert (remedy.lacks, remedy.fits) == (("time to save",), False)
    # What is said holds if it is followed.
    alone = planned(LARGE, spot(), offload)
    assert not alone.fits
    assert "fits it on as many workers" not in " ".join(alone.reasons)
    assert planned(LARGE, spot(grace_seconds=272), offload).fits
    assert planned(LARGE, spot(56)).fits
    assert not planned(LARGE, spot(48)).fits
    slow = gpus(16, {"like": "h100-8", "storage_gbit": 1}).node
    [*_, grace, way_out] = planned(LARGE, spot().model_copy(update={"node": slow})).reasons
    assert "it may be 3600 at most: give the run faster storage or more nodes" in grace
    assert "grace_seconds" not in way_out, "it cannot be set so high"


@pytest.mark.parametrize("place", ["local", "ray"])
def test_a_save_on_cancelling_must_have_the_time_it_takes(place: str) -> None:
    fields: dict[str, Any] = {"place": place, "address": "auto" if place == "ray" else None}
    cut, enough = (gpus(8, **fields, resize_save_seconds=one) for one in (120, 225))
    offloaded = ("qwen2.5-32b", "engine.offload_optimizer=cpu")
    made = planned(offloaded[0], cut, offloaded[1])
    assert not made.fits
    assert "resize_save_seconds is 120, and a full checkpoint may take 225 s" in made.reasons[0]
    assert "a run that is cancelled would be ended while it saves; set it to 225" in made.reasons[0]
    assert planned(offloaded[0], enough, offloaded[1]).fits
    both = planned(offloaded[0], cut).reasons[-1]
    assert "fits it on as many workers, with resize_save_seconds 225" in both
    assert (made.smallest is None) == (place == "local"), "one machine has one storage"


def test_what_is_compared_with_a_peak_holds_cudas_own_no_more_than_that_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from gpu_records import planned_bytes

    def most(made: Plan, *without: str) -> int:
        moments = [dict(made.device[name].parts()) for name in ("training", "update")]
        return max(sum(size for part, size in m.items() if part not in without) for m in moments)

    on_gpus = planned("qwen2.5-1.5b", gpus(8))
    assert planned_bytes(on_gpus, on_gpu=True) == most(on_gpus, "system")
    assert most(on_gpus) - most(on_gpus, "system") > 2 << 30
    here = planned("smollm2-135m-demo", cpus(2))
    assert here.device["update"].system > 0
    assert planned_bytes(here, on_gpu=False) == most(here)


def test_what_never_fits_says_so() -> None:
    made = planned(LARGE, cpus(2))
    assert made.smallest is None
    assert "Nothing helps on this machine: plan for a cluster" in made.reasons[-1]
    single = gpus(1, {"like": "l4-8", "gpus_per_node": 1, "gpu_memory_gib": 4})
    assert "name larger ones (node)" in planned(LARGE, single).reasons[-1]


def test_one_machine_has_no_more_gpus_than_it_has() -> None:
    launch = gpus(16).model_copy(update={"place": "local", "address": None})
    made = planned("qwen2.5-1.5b", launch)
    assert not made.fits
    assert "16 workers want 16 GPUs, and place: local is one machine" in made.reasons[0]
    assert made.smallest == 1


def test_elastic_workers_must_fit_at_their_least() -> None:
    elastic = planned(LARGE, gpus([16, 32]))
    assert (elastic.workers, elastic.num_workers) == ((16, 32), 16)
    assert not elastic.fits
    both = planned(LARGE, gpus([24, 32]))
    assert both.fits
    for alone in (planned(LARGE, gpus(24)), planned(LARGE, gpus(32))):
        assert both.total_seconds.low <= alone.total_seconds.low
        assert both.total_seconds.high >= alone.total_seconds.high


def test_elastic_workers_of_one_machine_must_fit_at_their_most() -> None:
    launch = cpus(1, host_memory_gib=9).model_copy(update={"num_workers": (1, 2)})
    assert planned("smollm2-135m-demo", cpus(1, host_memory_gib=9)).fits
    made = planned("smollm2-135m-demo", launch)
    assert not made.fits
    assert made.num_workers == 2


def test_the_reference_engine_runs_on_one_worker() -> None:
    made = planned("micro", cpus(2), "engine.kind=eager")
    assert made.workers == (1, 1)
    assert made.fits
    assert made.smallest == 1


def test_notes_tell_what_a_person_would_want_to_know() -> None:
    idle, moving, *_ = planned(LARGE, gpus(32), "phases.0.global_batch=8").notes
    assert "a batch has an example for 8 of 32 workers; the other 24 compute nothing" in idle
    assert "steps mostly move weights" in moving
    notes = "\n".join(planned(LARGE, gpus(32)).notes)
    assert "so training waits. checkpoints.every_steps=" in notes
    offloaded = "\n".join(planned(LARGE, gpus(32), "engine.offload_optimizer=nvme").notes)
    assert "nvme takes 211.7 GB of each node's own disk, below ROTESCALE_LOCAL" in offloaded
    alone = "\n".join(planned("qwen2.5-1.5b", gpus(1)).notes)
    assert "44,205 questions, 3 times" in alone
    bf16 = planned("micro", cpus(2), "engine.precision=bf16").notes
    assert any("bf16 on a CPU" in note for note in bf16)


def test_cores_bound_the_workers_of_a_node() -> None:
    greedy = planned("qwen2.5-7b", gpus(16, cpus_per_worker=16))
    assert greedy.num_nodes == 3, "6 workers of 16 cores each on 96"
    assert any("cores for 6 of its 8 GPUs" in note for note in greedy.notes)
    assert planned("qwen2.5-7b", gpus(16)).num_nodes == 2


def test_saves_that_are_rare_enough_are_not_noted() -> None:
    rare = planned(LARGE, gpus(32), "checkpoints.every_steps=1000").notes
    assert not any("training waits" in note for note in rare)


def test_lora_learns_little_and_saves_little() -> None:
    made = planned("qwen2.5-7b", gpus(8), "model.lora={r: 8, train_embeddings: false}")
    assert made.sizes.total > made.sizes.published > 100 * made.sizes.trainable
    assert made.sizes.checkpoint == 12 * made.sizes.trainable
    assert made.smallest == 1


def test_a_plan_is_numbers_that_json_knows_and_always_the_same() -> None:
    one = planned("qwen2.5-7b", gpus(8, {"like": "h100-8", "price_per_hour": 40}))
    again = planned("qwen2.5-7b", gpus(8, {"like": "h100-8", "price_per_hour": 40}))
    assert one == again
    found = json.loads(json.dumps(one.as_dict()))
    assert found["sizes"]["published"] == 7_615_616_512
    assert found["device"]["training"]["total"] <= found["device_peak"] == one.device_peak
    assert found["total_seconds"] == {
        "low": one.total_seconds.low,
        "high": one.total_seconds.high,
    }
    assert found["phases"][0]["step"]["total"]["low"] > 0
    assert found["cost"]["high"] > found["cost"]["low"] > 0


def test_a_checkpoint_counts_what_a_placement_trains() -> None:
    made, placed = planned("phi-4", gpus(8)), place("phi-4", gpus(8))
    assert made.sizes.checkpoint == 12 * placed.count.trainable
    assert made.sizes.weights_checkpoint == 4 * placed.count.trainable


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (Range(1.25, 3), "1.2 to 3.0 s"),
        (Range(30, 90), "30 to 90 s"),
        (Range(60, 1800), "1.0 to 30 min"),
        (Range(3600, 36000), "1.0 to 10 h"),
    ],
)
def test_durations_are_said_in_the_unit_that_suits(seconds: Range, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize(
    ("size", "said"), [(1e6, "1.0 MB"), (35.28e9, "35.3 GB"), (1.129e12, "1.13 TB")]
)
def test_sizes_are_said_in_decimal_units(size: float, said: str) -> None:
    assert gigabytes(size) == said


def test_what_only_costs_time_is_noted_where_it_is_not_needed() -> None:
    again = "model.activation_checkpointing=true"

    def noted(*overrides: str, node: Any = "h100-8") -> list[str]:
        notes = planned("qwen2.5-7b", gpus(8, node), *overrides).notes
        return [note for note in notes if "activation_checkpointing" in note]

    [note] = noted(again)
    assert "on, and not needed: it costs about a third more computing" in note
    assert "40.1 GB at most without, and the H100 has 84.9 GB" in note
    assert noted() == []
    assert noted(*LONG_ROWS, again, node=SMALL) == []


LONG_ROWS = ("phases.0.global_batch=4096", "engine.row_tokens=4096")
SMALL = {"like": "h100-8", "gpu_memory_gib": 30}
"""A node on which 8 workers have no room for what Qwen2.5-7B keeps of such rows."""


def test_activations_are_computed_again_only_where_memory_needs_it() -> None:
    def made(*overrides: str, num_workers: int | list[int] = 8, node: Any = SMALL) -> Plan:
        launch = gpus(num_workers, node)
        return planned("qwen2.5-7b", launch, *LONG_ROWS, *overrides)

    kept = made("model.activation_checkpointing=false")
    again = made("model.activation_checkpointing=true")
    assert (kept.fits, again.fits) == (False, True)
    [way_out] = [reason for reason in kept.reasons if "What helps" in reason]
    assert "--set model.activation_checkpointing=true fits it on as many workers" in way_out
    chosen = made()
    assert chosen.checkpoints_activations
    assert chosen.device == again.device
    assert chosen.seconds == again.seconds
    [note] = [note for note in chosen.notes if "activation_checkpointing" in note]
    assert f"A worker would hold {gigabytes(kept.device_peak)} at most without" in note
    # With room nothing is computed twice; a run that may shrink decides for the least workers.
    assert not made(node="h100-8").checkpoints_activations
    assert not made(num_workers=64).checkpoints_activations
    assert made(num_workers=[8, 64]).checkpoints_activations
    # A copy of the model for each evaluation takes more than training: nothing would be gained.
    copies = planned("qwen2.5-7b", gpus(64, {"like": "h100-8", "gpu_memory_gib": 16}), COPIES)
    assert (copies.fits, copies.checkpoints_activations) == (False, False)
    assert copies.device_peak == copies.device["measuring"].total


COPIES = "engine.evaluation_mode=replicated"


def test_parameters_that_are_kept_whole_are_told_with_their_remedy() -> None:
    made = planned("qwen2.5-7b", gpus(16, "l4-8"), "engine.persistence_threshold=1000000000000")
    assert not made.fits
    assert "is gathered: parameters that each worker holds whole" in made.reasons[0]
    setting = "engine.persistence_threshold=100000"
    assert [remedy.fits for remedy in made.remedies if remedy.setting == setting] == [True]
    assert f"--set {setting} fits it on as many workers" in made.reasons[-1]
