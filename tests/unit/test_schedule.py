"""The learning rate is a pure function of the step."""

from __future__ import annotations

import math

import pytest

from rotescale.schedule import LearningRate


@pytest.mark.parametrize("shape", ["cosine", "linear", "constant"])
def test_warm_up_is_linear_and_reaches_the_peak(shape: str) -> None:
    rate = LearningRate(shape, 1e-3, warmup_steps=4, total_steps=20)  # type: ignore[arg-type]
    assert [rate.at(step) for step in range(4)] == pytest.approx([2.5e-4, 5e-4, 7.5e-4, 1e-3])
    assert rate.at(4) == pytest.approx(1e-3)


def test_decay_is_of_the_shape_that_was_asked_for() -> None:
    cosine, linear, constant = (
        LearningRate(shape, 1.0, warmup_steps=0, total_steps=8)  # type: ignore[arg-type]
        for shape in ("cosine", "linear", "constant")
    )
    assert cosine.at(4) == pytest.approx(0.5)
    assert cosine.at(2) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert linear.at(2) == pytest.approx(0.75)
    assert {constant.at(step) for step in range(8)} == {1.0}
    assert cosine.at(8) == pytest.approx(0.0)
    assert linear.at(100) == 0.0


def test_every_step_of_a_phase_learns() -> None:
    for warmup in (0, 5, 50):
        rate = LearningRate("linear", 1.0, warmup_steps=warmup, total_steps=10)
        assert all(rate.at(step) > 0 for step in range(10))
