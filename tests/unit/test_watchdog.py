"""A process that hangs is ended, with the stacks of all its threads in the run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rotescale.launch_spec import StageLimits
from rotescale.watchdog import EXIT_CODE, Watchdog

PROGRAM = """
import sys, threading, time
from pathlib import Path
from rotescale.launch_spec import StageLimits
from rotescale.watchdog import Watchdog

def waiting_for_a_peer():
    time.sleep(600)

watchdog = Watchdog(Path(sys.argv[1]), StageLimits(evaluation_seconds=500, step_seconds=2))
watchdog.on_hang = lambda message: {on_hang}
threading.Thread(target=waiting_for_a_peer, daemon=True).start()
watchdog.arm("evaluation")
watchdog.arm("step")
waiting_for_a_peer()
"""


@pytest.mark.parametrize(
    "on_hang", ["Path(sys.argv[1] + '.told').write_text(message)", "1 / 0"], ids=["well", "fails"]
)
def test_a_stage_that_takes_too_long_ends_the_process(tmp_path: Path, on_hang: str) -> None:
    log = tmp_path / "logs" / "rank.log"
    program = PROGRAM.format(on_hang=on_hang)
    done = subprocess.run([sys.executable, "-c", program, str(log)], timeout=120, check=False)
    assert done.returncode == EXIT_CODE
    text = log.read_text()
    message = "step took longer than 2 s (limits.step_seconds)"
    assert text.startswith(f"hang: {message}; the stacks of all threads:")
    assert text.count("in waiting_for_a_peer") == 2
    if on_hang != "1 / 0":
        assert log.with_name("rank.log.told").read_text() == message


def test_a_stage_within_its_limit_is_left_alone(tmp_path: Path) -> None:
    watchdog = Watchdog(tmp_path / "rank.log", StageLimits(step_seconds=300))
    for _ in range(1000):
        watchdog.arm("step")
    watchdog.close()
    assert (tmp_path / "rank.log").read_text() == ""


EVALUATES = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
from rotescale.composition import _progress
from rotescale.launch_spec import StageLimits
from rotescale.watchdog import Watchdog

watchdog = Watchdog(Path(sys.argv[1]), StageLimits(evaluation_seconds=1))
team = SimpleNamespace(event=lambda *_, **details: None)
progress = _progress(team, watchdog, "questions")
watchdog.arm("evaluation")
for done in range(50):
    time.sleep(0.1)
    if sys.argv[2] == "comes further":
        progress("base", done, 50)
"""


@pytest.mark.parametrize(("what", "code"), [("comes further", 0), ("hangs", EXIT_CODE)])
def test_an_evaluation_that_comes_further_may_take_as_long_as_it_does(
    tmp_path: Path, what: str, code: int
) -> None:
    command = [sys.executable, "-c", EVALUATES, str(tmp_path / "rank.log"), what]
    assert subprocess.run(command, timeout=120, check=False).returncode == code
