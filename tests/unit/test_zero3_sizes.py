"""ZeRO-3's buffers follow the model where the spec leaves them to it."""

from __future__ import annotations

from typing import Any

import pytest

from rotescale.planning.architecture import architecture_of, layer_parameters
from rotescale.spec import EngineSpec, RandomWeights
from rotescale.zero3_sizes import Zero3Sizes, zero3_sizes


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        # SmolLM2-135M, 7B, and 70B: a layer of each.
        (3_540_000, Zero3Sizes(30_000_000, 30_000_000, 1_000_000_000, 100_000, overlaps=True)),
        (202_000_000, Zero3Sizes(200_000_000, 202_000_000, 1_000_000_000, 100_000, overlaps=True)),
        (
            855_654_400,
            Zero3Sizes(200_000_000, 855_654_400, 1_711_308_800, 100_000, overlaps=True),
        ),
    ],
)
def test_buffers_follow_the_layer_within_bounds(layer: int, expected: Zero3Sizes) -> None:
    assert zero3_sizes(EngineSpec(), layer_parameters=layer, on_gpu=True) == expected


def test_on_cpus_a_model_that_is_whole_in_backward_anyway_stays_so() -> None:
    def kept(model: int | None, *, on_gpu: bool = False, **fields: Any) -> int:
        return zero3_sizes(EngineSpec(**fields), model_parameters=model, on_gpu=on_gpu).kept

    assert kept(500_000_000) >= 500_000_000
    assert kept(500_000_001) == kept(None) == 100_000
    assert kept(134_515_008, gathered_parameters=100_000_000) == 100_000
    assert kept(134_515_008, on_gpu=True) == 100_000
    assert kept(134_515_008, persistence_threshold=7) == 7


def test_what_the_spec_says_holds() -> None:
    spec = EngineSpec(
        bucket_size=7,
        prefetch_size=8,
        gathered_parameters=9,
        persistence_threshold=6,
        overlap_communication=True,
    )
    assert zero3_sizes(spec, layer_parameters=10**9) == Zero3Sizes(7, 8, 9, 6, overlaps=True)


def test_on_cpus_nothing_travels_beside_computing() -> None:
    found = zero3_sizes(EngineSpec(), layer_parameters=202_000_000)
    assert (found.prefetch, found.overlaps) == (0, False)
    assert zero3_sizes(EngineSpec(prefetch_size=5)).prefetch == 5


def test_a_layer_is_counted_without_torch() -> None:
    """Llama 3.1 70B's, by hand: attention 2 d² and 2 d · d/8, MLP 3 d · 3.5 d, two norms."""
    d = 8192
    by_hand = 2 * d * d + 2 * d * (d // 8) + 3 * d * 28_672 + 2 * d
    llama = RandomWeights(
        kind="random",
        hidden_size=d,
        num_heads=64,
        num_key_value_heads=8,
        intermediate_size=28_672,
        num_layers=2,
    )
    assert layer_parameters(architecture_of(llama)) == by_hand == 855_654_400
