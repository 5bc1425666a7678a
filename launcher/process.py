"""Tells whether a process, or any of its group, is still the one that was started. Linux only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_PROC = Path("/proc")
_STATE, _GROUP, _SESSION, _START_TIME = 0, 2, 3, 19
_GONE: tuple[str, ...] = ()
_ENDED = "ZX"
"""A process that has ended stays listed until its parent asks how."""


def identity(pid: int) -> str | None:
    """What tells this process from any other that ever has its pid; None where it is gone."""
    fields = _fields(pid)
    if fields == _GONE:
        return None
    return f"{_boot()}:{fields[_START_TIME]}"


def is_alive(pid: int, expected: str | None) -> bool:
    """Whether the process of that pid is at work, and has the identity that it had before."""
    fields = _fields(pid)
    return fields != _GONE and fields[_STATE] not in _ENDED and identity(pid) == expected


def group_is_alive(group: int) -> bool:
    """Whether any process of the group is at work."""
    return any(True for _ in _members(group))


def is_survived(leader: int, expected: str | None) -> bool:
    """Whether the leader of a session has ended, and others of its group are at work.

    A pid is not given anew while it is the number of a group.
    """
    fields = _fields(leader)
    has_ended = fields == _GONE or (fields[_STATE] in _ENDED and identity(leader) == expected)
    if not has_ended or expected is None or expected.partition(":")[0] != _boot():
        return False
    return any(fields[_SESSION] == str(leader) for fields in _members(leader))


def _members(group: int) -> Iterator[tuple[str, ...]]:
    """What ``_fields`` gives of each process of the group that is at work."""
    for path in _PROC.glob("[0-9]*"):
        fields = _fields(path.name)
        if fields != _GONE and fields[_GROUP] == str(group) and fields[_STATE] not in _ENDED:
            yield fields


def _boot() -> str:
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def _fields(pid: int | str) -> tuple[str, ...]:
    """State, parent, group and so on of ``/proc/PID/stat``, from its third field on."""
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, PermissionError, ProcessLookupError):
        # Some machines hide what belongs to others (hidepid).
        return _GONE
    # The second field is the program's name in parentheses, and may hold any character.
    return tuple(text.rpartition(")")[2].split())
