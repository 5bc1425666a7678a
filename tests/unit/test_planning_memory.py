"""What fits into memory, and how much memory there is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rotescale.planning.memory import evaluation_mode, host_memory

PHYSICAL = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, PHYSICAL),
        ({"memory.max": "max\n"}, PHYSICAL),
        ({"memory.max": "1048576\n"}, 1048576),
        ({"memory/memory.limit_in_bytes": "2097152\n"}, 2097152),
        # What cgroup v1 says where nothing is limited.
        ({"memory/memory.limit_in_bytes": "9223372036854771712\n"}, PHYSICAL),
    ],
)
def test_a_containers_limit_counts(files: dict[str, str], expected: int, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert host_memory(tmp_path) == expected


@pytest.mark.parametrize(
    ("gigabytes", "workers_per_memory", "expected"),
    # A billion parameters in fp32 on two workers: 10 GB of shard and 4 of copy for each.
    [(41, 2, "replicated"), (39, 2, "sharded"), (21, 1, "replicated"), (19, 1, "sharded")],
)
def test_a_copy_for_each_worker_must_fit_beside_the_shards(
    gigabytes: int, workers_per_memory: int, expected: str
) -> None:
    mode = evaluation_mode(
        num_parameters=10**9,
        num_trainable=10**9,
        precision="fp32",
        num_workers=2,
        workers_per_memory=workers_per_memory,
        memory=gigabytes * 10**9,
    )
    assert mode == expected


@pytest.mark.parametrize(
    ("gigabytes", "trainable", "offloaded", "expected"),
    # 2 GB of weights and 4 of copy; 2 more of gradients for what is trained, 6 of optimizer state.
    [
        (9, 0, False, "replicated"),
        (12, 10**9, True, "replicated"),
        (11, 10**9, True, "sharded"),
        (12, 10**9, False, "sharded"),
    ],
)
def test_what_is_frozen_or_offloaded_needs_no_room(
    gigabytes: int, trainable: int, offloaded: bool, expected: str
) -> None:
    mode = evaluation_mode(
        num_parameters=10**9,
        num_trainable=trainable,
        precision="fp32",
        num_workers=2,
        workers_per_memory=1,
        memory=gigabytes * 10**9,
        offloaded=offloaded,
    )
    assert mode == expected
