"""Time and cost: 6ND, three times the parameters, storage that is too slow, and a measured demo."""

from __future__ import annotations

import pytest
from planning_helpers import EXPERIMENTS, HUB_EXPERIMENTS, cpus, gpus, place

from rotescale.hardware import SHAPES
from rotescale.planning.timing import Timing, disk_bytes, flops

LARGE = "llama-3.1-70b"


def test_floating_point_operations_are_six_per_parameter_and_token() -> None:
    one = place(LARGE, gpus(32))
    tokens = sum(phase.tokens for phase in one.work.phases)
    # The input embedding is looked up, and the output matrix multiplied at targets alone.
    assert flops(one) == pytest.approx(6 * 70.55e9 * tokens, rel=0.04)
    assert flops(one) < 6 * one.count.total * tokens


def test_a_step_moves_three_times_the_parameters() -> None:
    """In one node, at the rate of its links: 2 B gathered twice, gradients of 2 B reduced."""
    one = place(LARGE, gpus(8), "engine.gradient_dtype=bf16")
    step = Timing(one).phases[0].step
    moved = 3 * 2 * one.count.total * 7 / 8
    fastest = moved / (3600e9 / 8)
    assert fastest < step.communication.low < 1.5 * fastest


def test_between_nodes_a_step_waits_for_the_network() -> None:
    fast, slow = (
        Timing(place(LARGE, gpus(32, {"like": "h100-8", "interconnect_gbit": gbit})))
        for gbit in (3200, 800)
    )
    ratio = slow.phases[0].step.communication.low / fast.phases[0].step.communication.low
    assert 3 < ratio < 4.1
    assert slow.phases[0].step.communication_share > fast.phases[0].step.communication_share


def test_eight_short_facts_only_move_70b_weights() -> None:
    [memorize, _] = Timing(place(LARGE, gpus(32), "phases.0.global_batch=8")).phases
    assert memorize.idle_workers == 24
    assert memorize.step.communication_share > 0.75
    assert memorize.balanced_batch > 1000
    useful = Timing(place(LARGE, gpus(32), "phases.0.global_batch=500")).phases[0]
    assert useful.idle_workers == 0


def test_one_worker_talks_to_nobody() -> None:
    [memorize, _] = Timing(place("qwen2.5-1.5b", gpus(1))).phases
    assert memorize.step.communication.high == 0
    assert memorize.balanced_batch == 0


def test_overlap_hides_the_shorter_at_best() -> None:
    def step(value: str) -> float:
        one = place(LARGE, gpus(32), f"engine.overlap_communication={value}")
        return Timing(one).phases[0].step.total.low

    assert step("true") < step("false")


def test_training_waits_for_saves_that_outlast_the_steps_beside_them() -> None:
    def waits(gbit: float, *overrides: str) -> float:
        one = place(LARGE, gpus(32, {"like": "h100-8", "storage_gbit": gbit}), *overrides)
        return Timing(one).phases[0].saving.high

    assert waits(10) > 3 * waits(40) > 0
    rare = waits(40, "checkpoints.every_steps=1000")
    assert rare < waits(40) / 3, "only the phase's end is left"


def test_a_checkpoint_is_written_at_the_rate_of_all_nodes() -> None:
    one = place(LARGE, gpus(32))
    save = Timing(one).phases[0].full_save
    fastest = 12 * one.count.trainable / (4 * 40e9 / 8)
    assert fastest < save.low < save.high < 4 * fastest


@pytest.mark.parametrize("name", HUB_EXPERIMENTS)
def test_more_workers_ask_faster(name: str) -> None:
    seconds = [Timing(place(name, gpus(number))).one_evaluation().high for number in (8, 16, 32)]
    assert seconds == sorted(seconds, reverse=True)


@pytest.mark.parametrize("node", SHAPES)
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_part_is_a_range(name: str, node: str) -> None:
    launch = cpus(4) if node == "cpu" else gpus(SHAPES[node]["gpus_per_node"], node)
    timing = Timing(place(name, launch))
    for part, seconds in timing.parts.items():
        assert 0 <= seconds.low <= seconds.high, part
    assert timing.total.low == pytest.approx(sum(p.low for p in timing.parts.values()))
    assert timing.total.low > 0


def test_the_cost_is_the_price_of_all_nodes() -> None:
    priced = Timing(place(LARGE, gpus(32, {"like": "h100-8", "price_per_hour": 40})))
    cost = priced.cost()
    assert cost is not None
    assert cost.low == pytest.approx(4 * 40 * priced.total.low / 3600)
    assert cost.high == pytest.approx(4 * 40 * priced.total.high / 3600)
    assert Timing(place(LARGE, gpus(32))).cost() is None


def test_the_demo_takes_what_it_took() -> None:
    """On two cores with AVX-512 and little else to do: 8 minutes on 2026-11-28 (README)."""
    total = Timing(place("smollm2-135m-demo", cpus(2, cpus=2))).total
    assert total.low <= 8 * 60 <= total.high
    assert total.high < 3 * total.low


def test_offloading_costs_time() -> None:
    def update(*overrides: str) -> float:
        return Timing(place("qwen2.5-7b", gpus(8), *overrides)).phases[0].step.update.middle

    assert update("engine.offload_optimizer=cpu") > 3 * update()
    assert update("engine.offload_optimizer=nvme") > 2 * update("engine.offload_optimizer=cpu")


def test_storage_holds_what_is_kept_and_what_is_being_written() -> None:
    one = place("qwen2.5-7b", gpus(8))
    trained, total = one.count.trainable, one.count.total
    # keep_last: 1, and one in flight; two phases' ends; two folders in bfloat16.
    assert disk_bytes(one) == 2 * 12 * trained + 2 * 4 * trained + 2 * 2 * total
    none = place("qwen2.5-7b", gpus(8), "checkpoints.every_steps=100000", "checkpoints.export=none")
    assert disk_bytes(none) == 12 * trained + 2 * 4 * trained
