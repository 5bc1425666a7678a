"""What went wrong on which node is kept, and whoever has failed twice gets no more workers."""

from __future__ import annotations

from typing import Any

import pytest

from rotescale.errors import CheckpointError
from rotescale.nodes import (
    HOST_VARIABLE,
    NAME_VARIABLE,
    RAY_VARIABLE,
    Node,
    NodeFault,
    describe_left_out,
    is_hardware_error,
    left_out,
    node_name,
    read_faults,
    record_fault,
)
from rotescale.run_dir import RunDir
from rotescale.storage import StoragePath, write_atomic


def fault(attempt: int, node: str, *, num_nodes: int = 4) -> NodeFault:
    return NodeFault(
        attempt=attempt, node=node, reason="hang", message="", num_nodes=num_nodes, time=""
    )


def test_a_fault_is_noted_once_per_attempt_and_node(folder: StoragePath) -> None:
    run_dir = RunDir(folder / "run")
    assert read_faults(run_dir) == ()
    node, note = Node("gpu-7@10.0.0.7", "ab" * 28), {"reason": "preflight", "num_nodes": 4}
    first: dict[str, Any] = {**note, "message": "too slow"}
    assert record_fault(run_dir, node, attempt=2, **first)
    assert not record_fault(run_dir, node, attempt=2, **{**first, "message": "still too slow"})
    assert record_fault(run_dir, node, attempt=1, **first)
    assert record_fault(run_dir, Node("gpu-8"), attempt=2, **first)
    found = read_faults(run_dir)
    assert [(one.attempt, one.node) for one in found] == [
        (1, "gpu-7@10.0.0.7"),
        (2, "gpu-7@10.0.0.7"),
        (2, "gpu-8"),
    ]
    assert {one.message for one in found} == {"too slow"}
    assert (found[0].ray_id, found[2].ray_id) == ("ab" * 28, None)
    assert run_dir.node_fault(1, "gpu-7_10.0.0.7").exists()


def test_a_damaged_file_is_named(folder: StoragePath) -> None:
    run_dir = RunDir(folder / "run")
    record_fault(run_dir, Node("a"), attempt=1, reason="hang", message="", num_nodes=2)
    write_atomic(run_dir.node_fault(1, "a"), b'{"attempt": 1')
    with pytest.raises(CheckpointError, match=r"attempt-0001-a\.json: damaged .* delete it"):
        read_faults(run_dir)


@pytest.mark.parametrize(
    ("faults", "expected"),
    [
        pytest.param([], [], id="none"),
        pytest.param([fault(1, "a"), fault(2, "b")], [], id="each once"),
        pytest.param([fault(1, "a"), fault(3, "a"), fault(2, "b")], ["a"], id="one twice"),
        pytest.param([fault(n, x) for n in (1, 2) for x in "ab"], ["a", "b"], id="half of them"),
        pytest.param([fault(n, x) for n in (1, 2) for x in "abc"], [], id="more than half"),
        pytest.param([fault(n, "a", num_nodes=1) for n in (1, 2, 3)], [], id="the only node"),
        pytest.param([fault(n, "a", num_nodes=2) for n in (1, 2)], ["a"], id="one of two"),
        pytest.param(
            [fault(1, "a"), *(fault(2, x) for x in "abcd"), fault(3, "a")], ["a"], id="mixed"
        ),
    ],
)
def test_who_gets_no_more_workers(faults: list[NodeFault], expected: list[str]) -> None:
    assert list(left_out(faults)) == expected


def test_why_a_node_is_left_out_is_told(folder: StoragePath) -> None:
    run_dir = RunDir(folder)
    [(node, faults)] = left_out([fault(1, "a"), fault(4, "a")]).items()
    text = describe_left_out(run_dir, node, faults)
    assert text.startswith("node a gets no more workers")
    assert "attempt 1, hang" in text
    assert "attempt 4, hang" in text
    assert str(run_dir.node_faults) in text


def test_a_node_is_called_as_its_owner_calls_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (HOST_VARIABLE, NAME_VARIABLE, RAY_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    assert Node.here() == Node(node_name(), None)
    assert node_name("10.0.0.7") == f"{node_name()}@10.0.0.7"
    monkeypatch.setenv(HOST_VARIABLE, "ip-10-0-0-7.ec2.internal")
    assert node_name("10.0.0.7") == "ip-10-0-0-7.ec2.internal"
    monkeypatch.setenv(NAME_VARIABLE, "gpu-7")
    monkeypatch.setenv(RAY_VARIABLE, "abc")
    assert Node.here() == Node("gpu-7", "abc")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("CUDA error: uncorrectable ECC error encountered", True),
        ("CUDA error: Uncorrectable NVLink error detected during the execution", True),
        ("CUDA error: out of memory", False),
        ("CUDA error: device-side assert triggered", False),
        ("NCCL error: remote process exited or there was a network error", False),
    ],
)
def test_which_errors_are_the_hardware_s(text: str, expected: bool) -> None:
    assert is_hardware_error(RuntimeError(text)) is expected
