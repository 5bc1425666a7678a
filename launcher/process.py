"""Tells whether a process, or any of its group, is still the one that was started. Linux only."""

from __future__ import annotations

from pathlib import Path

_PROC = Path("/proc")
_STATE, _GROUP, _START_TIME = 0, 2, 19
_GONE: tuple[str, ...] = ()
_ENDED = "ZX"
"""A process that has ended stays listed until its parent asks how."""


def identity(pid: int) -> str | None:
    """What tells this process from any other that ever has its pid; None where it is gone."""
    fields = _fields(pid)
    if fields == _GONE:
        return None
    boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}:{fields[_START_TIME]}"


def is_alive(pid: int, expected: str | None) -> bool:
    """Whether the process of that pid is at work, and has the identity that it had before."""
    fields = _fields(pid)
    return fields != _GONE and fields[_STATE] not in _ENDED and identity(pid) == expected


def group_is_alive(group: int) -> bool:
    """Whether any process of the group is at work."""
    found = (_fields(path.name) for path in _PROC.glob("[0-9]*"))
    return any(
        fields[_GROUP] == str(group) and fields[_STATE] not in _ENDED
        for fields in found
        if fields != _GONE
    )


def _fields(pid: int | str) -> tuple[str, ...]:
    """State, parent, group and so on of ``/proc/PID/stat``, from its third field on."""
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return _GONE
    # The second field is the program's name in parentheses, and may hold any character.
    return tuple(text.rpartition(")")[2].split())
