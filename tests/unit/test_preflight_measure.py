"""Products are timed without a trace in what training draws."""

from __future__ import annotations

import torch

from rotescale.preflight.measure import Sizes, glance_seconds


def test_a_glance_takes_milliseconds_and_no_random_numbers() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    # A core does 33 million operations in less than a second, whatever else it does.
    assert 0 < glance_seconds(torch.device("cpu")) < 1
    assert torch.equal(torch.get_rng_state(), before)


def test_a_gpu_is_measured_in_what_it_trains_in_and_by_more() -> None:
    gpu, cpu = (Sizes.of(torch.device(kind)) for kind in ("cuda", "cpu"))
    assert (gpu.dtype, cpu.dtype) == (torch.bfloat16, torch.float32)
    assert gpu.reduced_bytes > cpu.reduced_bytes
    # Of a GPU that has 10^14 operations per second, 23 products take less than a second.
    assert 23 * 2 * gpu.product**3 / 1e14 < 1
    # 6 of a core that has 10^10, as long.
    assert 7 * 2 * cpu.product**3 / 1e10 < 1
