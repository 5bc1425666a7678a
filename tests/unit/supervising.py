"""A supervisor of a shell script, for the tests of what it does next."""

from __future__ import annotations

from collections.abc import Callable

from launcher.supervisor import Supervisor
from rotescale.launch_spec import Restarts
from rotescale.run_dir import RunDir

BUDGETS = Restarts(infrastructure=2, hang=1, preempted=None)


def supervise(
    run_dir: RunDir,
    script: str,
    budgets: Restarts | None = BUDGETS,
    *,
    sleep: Callable[[float], object] = lambda _: None,
) -> tuple[int, str]:
    """Exit code of a supervisor of that shell script, and what it said."""
    said: list[str] = []
    supervisor = Supervisor(
        run_dir,
        ("sh", "-c", script),
        place="local",
        launch="laptop",
        budgets=budgets,
        grace_seconds=0,
        say=said.append,
        sleep=sleep,
    )
    return supervisor.run(), "\n".join(said)
