"""Workers die at random moments, again and again, and every run ends as if none had."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import pytest
from helpers import join_workers, run_workers, start_workers, steps
from recovery_helpers import PHASES, assert_equal_runs, made_of

from rotescale.checkpoint.attempts import newest
from rotescale.checkpoint.manifest import is_published
from rotescale.faults import VARIABLE
from rotescale.model.export import is_exported
from rotescale.run_dir import Outcome, RunDir

KILLS = int(os.environ.get("ROTESCALE_RANDOM_KILLS", "200"))
SEED = int(os.environ.get("ROTESCALE_RANDOM_SEED", "0"))
KILLS_PER_RUN = 12

# A run with all stages, some seconds long, so that moments fall into each of them.
STAGES = (
    "evaluation.base=true",
    "phases.0.epochs=12",
    "phases.0.evaluate_epochs=[4, 8]",
    "phases.1.epochs=6",
    "checkpoints.every_steps=3",
    "checkpoints.keep_last=2",
)
# Moments that are too short to be met by chance.
POINTS = ("start", "phase", "copy", "write", "save", "published", "prune", "export", "evaluation")


@dataclass(frozen=True)
class Moment:
    """When an attempt is to be killed."""

    ranks: tuple[int, ...]
    point: str | None
    """A fault point, at which one rank kills itself; None: from outside, at a moment."""
    after_start: bool
    """Whether the moment counts from the attempt's start; else from the processes' start."""
    seconds: float

    @classmethod
    def draw(cls, rng: random.Random, *, world_size: int, busy_seconds: float) -> Moment:
        """One in six at a fault point; of the others one in four while processes start up."""
        ranks = tuple(range(world_size))
        chosen = ranks if rng.random() < 0.3 else (rng.choice(ranks),)
        if rng.random() < 1 / 6:
            return cls((rng.choice(ranks),), rng.choice(POINTS), False, 0.0)
        if rng.random() < 1 / 4:
            return cls(chosen, None, False, rng.uniform(0.0, 3.0))
        return cls(chosen, None, True, rng.uniform(0.0, busy_seconds))


def strike(run_dir: RunDir, moment: Moment, *, world_size: int, marker: Path) -> str | None:
    """Start workers and kill at the moment; the stage it struck, or None where they had ended."""
    before = run_dir.newest_attempt() or 0
    marker.unlink(missing_ok=True)
    environment = {}
    if moment.point is not None:
        fault = {"point": moment.point, "rank": moment.ranks[0], "marker": str(marker)}
        environment[VARIABLE] = json.dumps(fault)
    workers = start_workers(run_dir, world_size=world_size, environment=environment)
    if moment.point is None:
        while moment.after_start and (run_dir.newest_attempt() or 0) == before:
            assert any(worker.is_alive() for worker in workers), "no attempt was started"
            time.sleep(0.01)
        time.sleep(moment.seconds)
        victims = [workers[rank] for rank in moment.ranks if workers[rank].is_alive()]
        for worker in victims:
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
        for worker in victims:
            worker.join()
        # A process that ended by itself between the look and the blow was not hit.
        hit = [worker for worker in victims if worker.exitcode == -signal.SIGKILL]
        struck = stage(run_dir, before) if hit else None
        codes = join_workers(run_dir, workers, grace_seconds=3.0)
    else:
        codes = join_workers(run_dir, workers, grace_seconds=3.0)
        struck = f"point {moment.point}" if marker.exists() else None
        if struck:
            assert codes[moment.ranks[0]] == -signal.SIGKILL
    if struck is None:
        assert codes == [0] * world_size, "workers that nobody killed have failed"
    return struck


def stage(run_dir: RunDir, before: int) -> str:
    """What the attempt after ``before`` was at when it died, as storage tells."""
    attempt = run_dir.newest_attempt() or 0
    if attempt == before:
        return "start-up"
    if not run_dir.evaluation("base", None).exists():
        return "evaluation"
    if not all(is_published(run_dir.checkpoint(n)) for n in run_dir.checkpoint_folders(attempt)):
        return "saving"
    found = newest(run_dir, attempt)
    if found is None or not found.manifest.phase_end:
        return "loading or training"
    phase, name = found.manifest.phase, found.directory.relative_to(run_dir.root).as_posix()
    if not is_exported(run_dir.model_folder(phase), name):
        return "export"
    return "evaluation" if not run_dir.evaluation(phase, None).exists() else "between stages"


def torment(
    run_dir: RunDir, rng: random.Random, *, kills: int, sizes: Iterator[int], busy_seconds: float
) -> list[str]:
    """Kill attempts of the run until ``kills`` have struck or it has ended, then let it end."""
    struck: list[str] = []
    while len(struck) < kills and Outcome.read(run_dir) is None:
        world_size = next(sizes)
        moment = Moment.draw(rng, world_size=world_size, busy_seconds=busy_seconds)
        hit = strike(run_dir, moment, world_size=world_size, marker=run_dir.root / "fired")
        struck += [hit] if hit else []
    if Outcome.read(run_dir) is None:
        world_size = next(sizes)
        assert run_workers(run_dir, world_size=world_size) == [0] * world_size
    outcome = Outcome.read(run_dir)
    assert outcome is not None
    assert outcome.status == "finished", outcome.message
    return struck


def assert_the_same_run(run_dir: RunDir, calm: RunDir) -> None:
    """Bit for bit, down to the exported files and what was answered to every question."""
    assert_equal_runs(run_dir, calm)
    for phase in PHASES:
        assert weights_file(run_dir, phase) == weights_file(calm, phase)
    for path in sorted((calm.root / "evaluations").iterdir()):
        answers = (run_dir.root / "evaluations" / path.name).read_text().splitlines()
        assert answers[1:] == path.read_text().splitlines()[1:]


def assert_the_same_up_to_rounding(run_dir: RunDir, calm: RunDir) -> None:
    """The same examples in the same steps, each once, and losses that differ by rounding only."""
    ours, theirs = steps(run_dir), steps(calm)
    assert [(s.phase, s.step, s.example_ids) for s in ours] == [
        (s.phase, s.step, s.example_ids) for s in theirs
    ]
    for one, other in zip(ours, theirs, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-5, abs=1e-7)


def weights_file(run_dir: RunDir, phase: str) -> bytes:
    assert made_of(run_dir, phase)
    return (run_dir.model_folder(phase) / "model.safetensors").read_bytes()


def seconds_between_start_and_end(run_dir: RunDir) -> float:
    return run_dir.outcome_json.stat().st_mtime - run_dir.attempt(1).stat().st_mtime


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    ("sizes", "share", "check"),
    [
        ((2,), 0.75, assert_the_same_run),
        ((2, 3, 1, 2), 0.25, assert_the_same_up_to_rounding),
    ],
    ids=["at the same size", "at other sizes"],
)
def test_kills_at_random_moments(
    sizes: Sequence[int],
    share: float,
    check: Callable[[RunDir, RunDir], None],
    start: Callable[..., RunDir],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of ROTESCALE_RANDOM_KILLS, by the seed ROTESCALE_RANDOM_SEED."""
    wanted = max(1, round(KILLS * share))
    rng = random.Random(f"{SEED} {sizes}")
    calm = start(*STAGES)
    assert run_workers(calm, world_size=2) == [0, 0]
    # A part of the whole, so that most moments come before the end.
    busy_seconds = 0.5 * seconds_between_start_and_end(calm)
    struck: Counter[str] = Counter()
    num_runs = 0
    while struck.total() < wanted:
        run_dir = start(*STAGES)
        kills = min(KILLS_PER_RUN, wanted - struck.total())
        found = torment(run_dir, rng, kills=kills, sizes=cycle(sizes), busy_seconds=busy_seconds)
        check(run_dir, calm)
        num_runs += 1
        struck.update(found)
        with capsys.disabled():
            print(
                f"\n{struck.total()} of {wanted} kills in {num_runs} runs, workers "
                f"{'-'.join(map(str, sizes))}, seed {SEED}: {dict(struck.most_common())}",
                flush=True,
            )
    assert struck.total() == wanted
