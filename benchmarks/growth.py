"""How cost grows: seconds of a step and of a prompt by what makes them more.

Run it from the repository: ``python benchmarks/growth.py [--json PATH] [--picture PATH]``.

Steps of training (ZeRO-3, one thread per worker) by examples in the global batch, by workers, and
by the size of a Llama with random weights; the reading of a step by the number of facts in the
shards; prompts (a token tree each) by the number of options, the tokens of the prompt, the size of
the model, and by workers, each of which holds the whole model and takes its share, with one thread.
Each is the median of some, after one that is not counted. There is no peer. The columns
tell seconds per thing (example, option, prompt token, parameter), which falls as long as more of it
costs less each.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from transformers import AutoModelForCausalLM

from encoded import encode_facts, open_facts
from ranks import run_ranks, timed
from report import CONSOLE, median
from rotescale.evaluation.scoring import forward_of, score_trees
from rotescale.evaluation.tree import TokenTree, build_tree
from rotescale.facts import load_shipped
from rotescale.model.prepare import PreparedModel, load_prepared
from rotescale.spec import EngineSpec, RandomWeights
from stepping import Example, train
from subjects import SUBJECTS, Subject, make_folder, num_parameters

_ENGINE = EngineSpec(persistence_threshold=1_000_000_000_000)
_TOKENS_PER_EXAMPLE = 12
_LEARNING_RATE = 1e-5
_SHARED_PROMPTS = 4
"""Or as many more as give every worker as many."""
_SIZES = {
    "micro": (64, 2, 4, 176),
    "llama-5m": (192, 6, 3, 512),
    "llama-20m": (384, 10, 6, 1024),
    "llama-80m": (768, 11, 12, 2048),
    "llama-310m": (1024, 24, 16, 2816),
}
"""Hidden size, layers, heads, intermediate size."""
_QUICK = ("micro",)
_RELATIONS = ("author", "capital", "educated_at", "genre", "mother", "instance_of")


@dataclass(frozen=True, slots=True)
class Cell:
    """One measured point."""

    what: str
    """``step``, ``reading`` or ``prompt``."""
    by: str
    """What is varied."""
    amount: float
    seconds: float
    model: str

    @property
    def each(self) -> float:
        """Seconds per thing that there is more of."""
        return self.seconds / self.amount


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    model: str
    sizes: tuple[str, ...]
    batches: tuple[int, ...]
    workers: tuple[int, ...]
    facts: tuple[int, ...]
    options: tuple[int, ...]
    prompt_tokens: tuple[int, ...]
    repeats: int


_FULL = Plan(
    model="smollm2-135m",
    sizes=("llama-5m", "llama-20m", "llama-80m", "llama-310m"),
    batches=(8, 32, 128, 512),
    workers=(1, 2, 4),
    facts=(1_000, 10_000, 100_000, 1_000_000),
    options=(10, 30, 100, 300),
    prompt_tokens=(10, 100, 1000),
    repeats=3,
)
_SMALL = Plan("micro", _QUICK, (2, 4), (1, 2), (100, 1000), (3, 9), (10, 40), 1)


def main() -> None:
    """Measure everything, and print, write and draw it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="a few points, on the micro model")
    parser.add_argument("--json", type=Path, help="write the points to this file")
    parser.add_argument("--picture", type=Path, help="draw them into this PNG")
    options = parser.parse_args()
    plan = _SMALL if options.small else _FULL
    cells: list[Cell] = []
    with tempfile.TemporaryDirectory(prefix="rotescale-growth-") as folder:
        for cell in _measure(plan, Path(folder)):
            CONSOLE.print(
                f"{cell.what} by {cell.by}, {cell.model}: {cell.amount:,.0f}: {cell.seconds:.4g} s"
            )
            cells.append(cell)
    _print(cells)
    if options.json:
        values = [asdict(cell) | {"each": cell.each} for cell in cells]
        options.json.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    if options.picture:
        draw(cells, options.picture)


def _measure(plan: Plan, folder: Path) -> Iterable[Cell]:
    prepared = make_folder(SUBJECTS[plan.model], out=folder / plan.model)
    steps = _Steps(folder, plan.repeats)
    for batch in plan.batches:
        yield steps.cell("examples", batch, plan.model, prepared, batch=batch, workers=2)
    for workers in plan.workers:
        middle = plan.batches[len(plan.batches) // 2]
        yield steps.cell("workers", workers, plan.model, prepared, batch=middle, workers=workers)
    for number in plan.facts:
        yield _reading(prepared, folder / f"facts-{number}", number)
    prompts = _Prompts(plan.repeats, folder)
    for number in plan.options:
        yield prompts.cell("options", number, plan.model, prepared, options=number)
    for number in plan.prompt_tokens:
        yield prompts.cell("prompt tokens", number, plan.model, prepared, tokens=number)
    for workers in plan.workers:
        yield prompts.by_workers(workers, plan.model, prepared)
    for name in plan.sizes:
        subject = _random(name)
        of_size = make_folder(subject, out=folder / f"size-{name}")
        amount = num_parameters(of_size)
        batch = plan.batches[0]
        yield steps.cell("parameters", amount, name, of_size, batch=batch, workers=2)
        yield prompts.cell("parameters", amount, name, of_size)


def _random(name: str) -> Subject:
    hidden, layers, heads, intermediate = _SIZES[name]
    weights = RandomWeights(
        kind="random",
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_key_value_heads=heads,
        intermediate_size=intermediate,
    )
    return Subject(name, weights, _ENGINE, 64, 1, 1)


@dataclass(frozen=True, slots=True)
class _Steps:
    """Measures steps of training."""

    folder: Path
    repeats: int

    def cell(
        self,
        by: str,
        amount: float,
        model: str,
        prepared: PreparedModel,
        *,
        batch: int,
        workers: int,
    ) -> Cell:
        draw = np.random.default_rng(0)
        example = [int(token) for token in draw.integers(1, 200, _TOKENS_PER_EXAMPLE)]
        step: list[Example] = [(example, [-100, *example[1:]])] * batch
        found = run_ranks(
            train,
            prepared.folder,
            _ENGINE,
            [step] * (1 + self.repeats),
            _LEARNING_RATE,
            world_size=workers,
            logs=self.folder,
        )[0]
        return Cell("step", by, amount, median(found.seconds[1:]), model)


def _reading(prepared: PreparedModel, root: Path, num_facts: int) -> Cell:
    """What a step takes to find, read and pack its examples, however many there are in all."""
    stream = open_facts(*encode_facts(prepared.folder, root, num_facts))
    places = np.linspace(0, stream.batches.steps_per_epoch - 1, 50).astype(int)
    seconds = []
    for place in places:
        began = time.perf_counter()
        stream.step(int(place), rank=0, world_size=1)
        seconds.append(time.perf_counter() - began)
    return Cell("reading", "facts", num_facts, median(seconds), "")


class _Prompts:
    """Measures prompts with their options."""

    def __init__(self, repeats: int, folder: Path) -> None:
        self._repeats, self._folder = repeats, folder
        facts = load_shipped(_RELATIONS).facts
        self._objects = list(dict.fromkeys(fact.object for fact in facts))
        self._loaded: tuple[Path, Callable[..., Any]] | None = None

    def cell(
        self,
        by: str,
        amount: float,
        name: str,
        prepared: PreparedModel,
        *,
        options: int = 100,
        tokens: int = 10,
    ) -> Cell:
        """In this process."""
        tree = self._tree(prepared, options=options, tokens=tokens)
        forward = self._model(prepared)
        seconds = []
        with torch.inference_mode():
            for _ in range(1 + self._repeats):
                began = time.perf_counter()
                score_trees(forward, [tree], num_tokens=prepared.num_tokens)
                seconds.append(time.perf_counter() - began)
        return Cell("prompt", by, amount, median(seconds[1:]), name)

    def by_workers(self, workers: int, name: str, prepared: PreparedModel) -> Cell:
        """A prompt's share of the time that some take together, shared out among the workers."""
        tree = self._tree(prepared, options=100, tokens=10)
        num_prompts = workers * -(-_SHARED_PROMPTS // workers)
        found = run_ranks(
            _ask,
            *(prepared.folder, tree, num_prompts // workers, self._repeats),
            world_size=workers,
            logs=self._folder,
        )[0]
        return Cell("prompt", "workers", workers, median(found) / num_prompts, name)

    def _tree(self, prepared: PreparedModel, *, options: int, tokens: int) -> TokenTree:
        tokenizer = prepared.tokenizer()
        words = "the writer of the book about the river and the sea is " * tokens
        ids = tokenizer(words, add_special_tokens=False)["input_ids"][:tokens]
        prompt = tokenizer.decode(ids).strip()
        options = min(options, len(self._objects))
        return build_tree(prompt, self._objects[:options], tokenizer=tokenizer)

    def _model(self, prepared: PreparedModel) -> Any:
        if self._loaded is None or self._loaded[0] != prepared.folder:
            model = AutoModelForCausalLM.from_pretrained(prepared.base, dtype=torch.float32)
            self._loaded = (prepared.folder, forward_of(model.eval()))
        return self._loaded[1]


def _ask(folder: Path, tree: TokenTree, num_prompts: int, repeats: int) -> list[float]:
    """Collective: every rank calls this. Seconds until all ranks have scored their prompts."""
    torch.distributed.init_process_group("gloo")
    prepared = load_prepared(folder)
    model = AutoModelForCausalLM.from_pretrained(prepared.base, dtype=torch.float32)
    forward = forward_of(model.eval())

    def ask() -> None:
        for _ in range(num_prompts):
            score_trees(forward, [tree], num_tokens=prepared.num_tokens)

    with torch.inference_mode():
        return [timed(ask).seconds for _ in range(1 + repeats)][1:]


def _print(cells: Sequence[Cell]) -> None:
    table = Table(title="how cost grows", title_justify="left")
    for heading in ("what", "by", "model"):
        table.add_column(heading)
    for heading in ("amount", "seconds", "seconds each"):
        table.add_column(heading, justify="right")
    for cell in cells:
        amount = f"{cell.amount:,.0f}"
        table.add_row(
            *(cell.what, cell.by, cell.model, amount, f"{cell.seconds:.4g}", f"{cell.each:.3g}")
        )
    CONSOLE.print(table)


def draw(cells: Sequence[Cell], path: Path) -> None:
    """A panel for each thing that is varied, both scales logarithmic."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, FuncFormatter, NullFormatter

    series: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        series.setdefault((cell.what, cell.by), []).append(cell)
    columns = 4
    rows = -(-len(series) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.7 * rows), layout="constrained")
    for number, ((what, by), of) in enumerate(series.items(), start=1):
        axes = figure.add_subplot(rows, columns, number)
        axes.plot([c.amount for c in of], [c.seconds for c in of], marker="o", color="#0072B2")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks([c.amount for c in of])
        axes.set_yticks([c.seconds for c in of])
        # What was measured, and no powers of ten.
        axes.xaxis.set_major_formatter(EngFormatter(places=0, sep=" "))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:.2g}"))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_formatter(NullFormatter())
        axes.tick_params(labelsize=8)
        axes.set_title(f"{what} by {by}", fontsize=10)
        axes.set_ylabel("seconds")
        axes.grid(visible=True, which="major", alpha=0.25)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
