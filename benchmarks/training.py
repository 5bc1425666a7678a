"""Training on short texts: ours beside transformers' Trainer, on two ZeRO-3 workers.

Run it from the repository: ``python benchmarks/training.py [--json PATH] [--models LIST]``.

Both train the same weights on the same examples in the same steps, with the same DeepSpeed
configuration; their losses must agree. Ours has one thread for each worker, and trains before the
peer and after it; its steps of both times count. The Trainer pads each of its batches to its
longest text; the best of three batch sizes counts, with gradients accumulated to the same global
batch, and the better of one thread and two at that size. ``mixed`` steps have 20 % pieces of other
text, of 64 to 512 tokens, beside facts.

The peer of ``memorize_64_vs_sft_packed`` is TRL's SFTTrainer, which flattens a batch's texts into
one row as ours does, in the same trials; where TRL is not installed (``make .venv/.peers``) it is
left out.

``matmul_share_512`` has no peer but the machine: what share of a step its matrix products would
take, each measured as a kernel by itself, on all ranks at once. What the rest is, one more step
under torch's profiler tells, operator by operator.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain, count
from pathlib import Path

from products import product_seconds
from ranks import run_ranks
from report import CONSOLE, Detail, Row, median, print_details, print_rows, write_rows
from rotescale.data.encoding import Loss, encode, prompt_text
from rotescale.data.packing import assign
from rotescale.data.replay import SHIPPED_TEXT, replay_pieces
from rotescale.facts import load_shipped
from rotescale.model.prepare import PreparedModel
from rotescale.step_clock import shares
from stepping import Example, Trained, train
from subjects import SETTINGS, SUBJECTS, make_folder
from trainers import train_with_sft, train_with_trainer

_WORLD_SIZE = 2
_MORE_THREADS = 2
"""For each of the peer's workers, beside one."""
_WARM_UP_STEPS = 2
_LEARNING_RATE = 1e-5
_REPLAY_SHARE = 0.2
_REPLAY_TOKENS = (64, 512)


_DOES = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"),
    "attention": (
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_flash_attention_for_cpu_backward",
    ),
}
"""What is told of torch's operators, by name; the rest are norms, activations, the loss, copies,
collectives and the update. Seconds are those of all threads, so that they may add up to more than
the step."""
_TOLD_OPERATORS = 8

_SHARE_BATCHES = (8, 64, 512)
MATMUL_SHARE = "matmul_share_512"


@dataclass(frozen=True, slots=True)
class Trial:
    """How the peer was set up."""

    each: int
    """Examples at once on each worker."""
    threads: int

    def __str__(self) -> str:
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{self.each} at once, {threads} each"


@dataclass(frozen=True, slots=True)
class Work:
    """Steps of one kind."""

    name: str
    prompt: str
    loss: Loss
    batch: int
    floor: float | None
    replay_share: float = 0.0
    packs: bool = False
    """Whether the peer is TRL's SFTTrainer, which packs too."""

    @property
    def tried(self) -> list[int]:
        """Examples at once on each of the peer's workers: all of a step's, half, a quarter.

        Where it pads to texts of hundreds of tokens, an eighth of these: of 8 texts of 512 tokens
        two workers keep more for backward than 24 GB.
        """
        share = self.batch // _WORLD_SIZE // (8 if self.replay_share else 1)
        return sorted({share, max(1, share // 2), max(1, share // 4)})


_KEY_PROMPT, _PROMPT = "{subject} [X]", "The writer of {subject} is"
WORK = (
    Work("memorize_64_vs_trainer", _KEY_PROMPT, "all", 64, 1.15),
    Work("generalize_64_vs_trainer", _PROMPT, "object", 64, 1.3),
    Work("memorize_8_vs_trainer", _KEY_PROMPT, "all", 8, 1.15),
    Work("mixed_64_vs_trainer", _KEY_PROMPT, "all", 64, 2.0, _REPLAY_SHARE),
    Work("memorize_64_vs_sft_packed", _KEY_PROMPT, "all", 64, 1.0, packs=True),
)


def main() -> None:
    """Train with both, in turn, and print what they took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="smollm2-135m", help="comma-separated: %(default)s")
    parser.add_argument("--steps", type=int, default=6, help="measured ones: %(default)s")
    known = (*(one.name for one in WORK), MATMUL_SHARE)
    parser.add_argument("--work", default=",".join(known), help="%(default)s")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    rows: list[Row] = []
    for name in options.models.split(","):
        with tempfile.TemporaryDirectory(prefix="rotescale-training-") as folder:
            place = Path(folder)
            prepared = make_folder(SUBJECTS[name], out=place)
            for work in WORK:
                if work.name not in options.work.split(","):
                    continue
                if work.packs and find_spec("trl") is None:
                    CONSOLE.print(f"{work.name}: left out, trl is not installed: make .venv/.peers")
                else:
                    rows.append(_compare(work, name, prepared, steps=options.steps, logs=place))
            if MATMUL_SHARE in options.work.split(","):
                rows.append(_matmul_share(name, prepared, steps=options.steps, logs=place))
    print_rows(rows)
    if options.json:
        write_rows(rows, options.json)


def _compare(work: Work, model: str, prepared: PreparedModel, *, steps: int, logs: Path) -> Row:
    """Ours and the Trainer on the same steps."""
    examples = _steps(work, prepared, number=_WARM_UP_STEPS + steps)
    ours = _ours(model, prepared, examples, logs=logs)
    name = "SFTTrainer" if work.packs else "Trainer"
    peers: dict[Trial, Trained] = {}

    def best(trials: Iterable[Trial]) -> Trial:
        for trial in trials:
            peer = _peer(work, model, prepared, examples, trial=trial, logs=logs)
            CONSOLE.print(f"{name}, {trial}: {median(peer.seconds[_WARM_UP_STEPS:]):.2f} s a step")
            peers[trial] = peer
        return min(peers, key=lambda trial: median(peers[trial].seconds[_WARM_UP_STEPS:]))

    size = best(Trial(each, 1) for each in work.tried).each
    chosen = best([Trial(size, _MORE_THREADS)])
    peer = peers[chosen]
    after = _ours(model, prepared, examples, logs=logs)
    both = ours.seconds[_WARM_UP_STEPS:] + after.seconds[_WARM_UP_STEPS:]
    CONSOLE.print(f"{model}, {work.name}: {work.batch} examples in each step")
    CONSOLE.print(f"  ours: {ours.tokens:,} tokens; of a step's time " + _told(ours))
    CONSOLE.print(f"  {name}, {chosen}: {peer.tokens:,} tokens")
    details = [Detail("ours, before and after", both)]
    details += [
        Detail(f"{name}, {trial}", of.seconds[_WARM_UP_STEPS:]) for trial, of in peers.items()
    ]
    print_details(f"{model}, {work.name}: a step", details)
    return Row(
        work.name,
        model,
        ours=work.batch / median(both),
        peer=work.batch / median(peer.seconds[_WARM_UP_STEPS:]),
        agree=_close(ours.losses, peer.losses) and _close(after.losses, ours.losses),
        floor=work.floor,
        unit="examples/s",
    )


def _ours(
    model: str,
    prepared: PreparedModel,
    examples: Sequence[Sequence[Example]],
    *,
    logs: Path,
    operators: bool = False,
) -> Trained:
    trained: Trained = run_ranks(
        train,
        *(prepared.folder, SUBJECTS[model].engine, examples, _LEARNING_RATE, operators),
        world_size=_WORLD_SIZE,
        logs=logs,
    )[0]
    return trained


def _peer(
    work: Work,
    model: str,
    prepared: PreparedModel,
    examples: Sequence[Sequence[Example]],
    *,
    trial: Trial,
    logs: Path,
) -> Trained:
    seconds, losses, tokens = run_ranks(
        train_with_sft if work.packs else train_with_trainer,
        *(prepared.folder, SUBJECTS[model].engine, SETTINGS),
        *(examples, trial.each, _LEARNING_RATE),
        world_size=_WORLD_SIZE,
        logs=logs,
        threads=trial.threads,
    )[0]
    return Trained(tuple(seconds), tuple(losses), tokens, ())


def _matmul_share(model: str, prepared: PreparedModel, *, steps: int, logs: Path) -> Row:
    """How much of a step its matrix products would take at their own kernels' speed."""
    share = 0.0
    for batch in _SHARE_BATCHES:
        work = Work("", _KEY_PROMPT, "all", batch, None)
        examples = _steps(work, prepared, number=_WARM_UP_STEPS + steps)
        engine = SUBJECTS[model].engine
        ours = _ours(model, prepared, examples, logs=logs, operators=True)
        lengths = [len(tokens) for tokens, _ in examples[-1]]
        dealt = assign(lengths, row_tokens=engine.row_tokens, world_size=_WORLD_SIZE)
        fullest = max(dealt, key=lambda rows: sum(lengths[i] for row in rows for i in row))
        rows = [
            (sum(lengths[i] for i in row), sum(lengths[i] - 1 for i in row))
            for row in fullest
            if row
        ]
        # On all ranks at once, as they compute in a step.
        alone = max(
            run_ranks(product_seconds, prepared.folder, rows, world_size=_WORLD_SIZE, logs=logs)
        )
        seconds = median(ours.seconds[_WARM_UP_STEPS:])
        share = alone / seconds
        CONSOLE.print(
            f"{model}, {batch} examples: products {alone:.3f} s of a step's {seconds:.3f} s, "
            f"{share:.0%}; of a step's time {_told(ours)}"
        )
        CONSOLE.print(f"  in a step under torch's profiler: {_operators(ours)}")
    return Row(MATMUL_SHARE, model, ours=share, peer=1.0, agree=True, floor=0.5, unit="share")


def _close(ours: Sequence[float], peer: Sequence[float]) -> bool:
    return len(ours) == len(peer) and all(
        abs(one - other) <= 1e-3 * max(abs(other), 1.0)
        for one, other in zip(ours, peer, strict=True)
    )


def _operators(ours: Trained) -> str:
    """Seconds of rank 0 by what its operators do, and the ones that take most of the others."""
    seconds = dict.fromkeys((*_DOES, "others"), 0.0)
    others = {}
    for name, own in ours.operators.items():
        does = next((does for does, names in _DOES.items() if name in names), "others")
        seconds[does] += own
        if does == "others":
            others[name] = own
    most = sorted(others, key=lambda name: -others[name])[:_TOLD_OPERATORS]
    told = ", ".join(f"{does} {own:.3f} s" for does, own in seconds.items())
    return f"{told} (most of them {', '.join(f'{name} {others[name]:.3f}' for name in most)})"


def _told(ours: Trained) -> str:
    parts = shares(ours.parts[_WARM_UP_STEPS:])
    told = ", ".join(f"{name} {share:.0%}" for name, share in parts.items() if share >= 0.01)
    clock = ours.clock_seconds / median(ours.seconds[_WARM_UP_STEPS:])
    return f"{told}; to read the clock for these {clock:.2%}"


def _steps(work: Work, prepared: PreparedModel, *, number: int) -> list[list[Example]]:
    """The examples of each step, the same for both sides."""
    tokenizer, facts = prepared.tokenizer(), load_shipped(["author"]).facts
    told = [
        encode(
            prompt_text(fact.subject, fact.object, prompt=work.prompt),
            tokenizer=tokenizer,
            loss=work.loss,
            end_token=False,
        )
        for fact in facts
    ]
    # The text is short, so it is cut again, elsewhere, when it ends.
    pieces = chain.from_iterable(
        replay_pieces([SHIPPED_TEXT], tokenizer=tokenizer, lengths=_REPLAY_TOKENS, seed=seed)
        for seed in count()
    )
    draw = random.Random(0)
    num_replayed = round(work.replay_share * work.batch)
    steps = []
    for _ in range(number):
        step: list[Example] = [
            (one.tokens, one.labels) for one in draw.choices(told, k=work.batch - num_replayed)
        ]
        for _ in range(num_replayed):
            piece = next(pieces)
            step.append((tuple(piece.tokens), tuple(piece.labels)))
        draw.shuffle(step)
        steps.append(step)
    return steps


if __name__ == "__main__":
    main()
