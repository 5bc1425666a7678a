"""A rank that is slow in what it does alone is found, and finding it changes no result."""

from __future__ import annotations

import json
from collections.abc import Callable

from helpers import run_workers
from recovery_helpers import assert_equal_runs, events

from rotescale.faults import VARIABLE
from rotescale.pace import newest_paces, paces_of, stragglers
from rotescale.records import read_records
from rotescale.run_dir import RunDir


def test_the_rank_that_the_others_wait_for_is_found(
    start: Callable[..., RunDir], undisturbed: RunDir
) -> None:
    run_dir = start()
    # 0.2 s in each step of one rank.
    fault = {"point": "step", "rank": 1, "action": "delay"}
    assert run_workers(run_dir, world_size=2, environment={VARIABLE: json.dumps(fault)}) == [0, 0]
    told = events(run_dir, "ranks")
    ends = [(one.details["phase"], one.details["step"]) for one in told]
    assert ends == [("memorize", 6), ("generalize", 12)]
    for one in told:
        rows = paces_of(one)
        assert [row.rank for row in rows] == [0, 1]
        assert rows[1].wait_seconds == 0
        assert 0.1 < rows[0].wait_seconds < rows[0].step_seconds
        assert [found.rank for found in stragglers(rows)] == [1]
        assert one.message.startswith("rank 1 on ")
    assert newest_paces(read_records(run_dir)) == paces_of(told[-1])
    assert len(events(undisturbed, "ranks")) == 2
    assert_equal_runs(run_dir, undisturbed)
