"""How a run tells its state where its folder cannot be seen: lines in its job's own output.

The supervisor prints one now and then. Whoever has the output, as a place keeps it, finds the
newest; who shows the output to a person leaves them out.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from pydantic import ValidationError

from launcher.account import Account, read_account
from rotescale.errors import RotescaleError
from rotescale.records import RecordReader
from rotescale.run_dir import RunDir

MARK = "rotescale-status: "
"""What such a line begins with; an ``Account`` as JSON follows."""
TELL_SECONDS = 30.0
_NUM_LINES = (100, 2000)
"""In how many of an output's last lines one is looked for, and in how many where there is none."""
_END_SECONDS = 30.0
"""How long the end of a run waits for the last line."""
_NUM_ENDINGS = 3
_MAX_WORDS = 300


def line_of(account: Account) -> str:
    """The account as a line, without its end, of a few KB at most: what is long is cut short."""
    endings = account.endings[-_NUM_ENDINGS:]
    short = account.model_copy(
        update={
            "endings": tuple(
                one.model_copy(update={"reason": _cut(one.reason)}) for one in endings
            ),
            "events": tuple(
                one.model_copy(update={"message": _cut(one.message), "details": {}})
                for one in account.events
            ),
            "stragglers": account.stragglers[:_NUM_ENDINGS],
        }
    )
    if short.outcome is not None:
        outcome = short.outcome.model_copy(update={"message": _cut(short.outcome.message)})
        short = short.model_copy(update={"outcome": outcome})
    # ASCII, so that no log's encoding matters; JSON has no line ends of its own.
    return MARK + short.model_dump_json(exclude_defaults=True, ensure_ascii=True)


def is_status(line: str) -> bool:
    """Whether it is one of these lines, and not the driver's."""
    return line.startswith(MARK)


def newest_of(tail: Callable[[int], list[str]]) -> Account | None:
    """What an output says last of the run; ``tail`` gives so many of its last lines."""
    for num_lines in _NUM_LINES:
        lines = tail(num_lines)
        found = newest(lines)
        if found is not None or len(lines) < num_lines:
            return found
    return None


def newest(lines: Sequence[str]) -> Account | None:
    """What the last of these lines says that can be read; None where there is none."""
    for line in reversed(lines):
        if is_status(line):
            with suppress(ValidationError):
                return Account.model_validate_json(line.removeprefix(MARK))
    return None


@contextmanager
def telling(
    run_dir: RunDir,
    *,
    every_seconds: float = TELL_SECONDS,
    write: Callable[[str], None] | None = None,
) -> Iterator[None]:
    """Print the run's state at once, every ``every_seconds`` and at the end.

    It never holds up what is done within, and the end for half a minute at most; where the folder
    does not answer, that line is left out. ``write`` takes a line in place of standard output.
    """
    done = threading.Event()

    def tell() -> None:
        reader = RecordReader(run_dir)
        is_last = False
        while True:
            with suppress(RotescaleError, OSError):
                account = read_account(run_dir, reader)
                if account is not None:
                    (write or _print)(line_of(account))
            if is_last:
                return
            is_last = done.wait(every_seconds)

    thread = threading.Thread(target=tell, name="status-line", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(_END_SECONDS)


def _print(line: str) -> None:
    # In one piece: another thread passes the driver's lines on.
    sys.stdout.buffer.write(f"{line}\n".encode())
    sys.stdout.flush()


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_WORDS else text[: _MAX_WORDS - 1] + "…"
