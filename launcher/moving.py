"""Whether a run may go on at a place: what has it now is asked, as far as it can be."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.patience import LOOK_SECONDS
from launcher.report import last_start_elsewhere
from launcher.target import Target
from rotescale.errors import RotescaleError, SpecError


def require_free(run: str, before: Target, target: Target, *, is_lost: bool) -> list[str]:
    """What could not be asked, in words, where it goes on all the same.

    ``before`` is where this machine knows the run to be, ``target`` where it is to go on.
    Raises SpecError where it is at work at ``before``; and, unless ``is_lost``, where nobody can
    tell.
    """
    doubts = list(_doubts(run, before, target))
    if doubts and not is_lost:
        raise SpecError(
            f"{run}: {'; '.join(doubts)}. Look and cancel it there first; or, where that place is "
            "gone, add --lost: the run then goes on here, and what comes back there leaves it"
        )
    return doubts


def _doubts(run: str, before: Target, target: Target) -> Iterator[str]:
    if target.launch != before.launch:
        try:
            is_alive = before.launcher(patience_seconds=LOOK_SECONDS).look().is_alive
        except (RotescaleError, OSError) as error:
            is_alive = False
            yield f"{before.place}, where it was, does not say whether it is at work: {error}"
        if is_alive:
            raise SpecError(
                f"{run}: it is at work at {before.place}; end it there first: rotescale-launch "
                f"cancel {before.name}"
            )
    # Whoever has moved it from another machine is known to the run's folder alone.
    last = last_start_elsewhere(target.run_dir, before.launch)
    if last is not None and last.ending is None and not last.start.was_at(target.launch):
        yield f"{last.words}, and that place cannot be asked from here"
