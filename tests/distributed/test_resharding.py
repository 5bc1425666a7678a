"""A checkpoint of any number of workers is resumed by any other: same examples, losses, bits."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from helpers import (
    QUICK,
    assert_key_tokens_frozen,
    micro_spec,
    prepare,
    run_ranks,
    run_workers,
    steps,
)
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from rotescale.checkpoint.attempts import Checkpoint, open_checkpoint
from rotescale.checkpoint.manifest import DIGEST_BYTES, MANIFEST, ManifestHeader, load_manifest
from rotescale.checkpoint.slices import CheckpointReader
from rotescale.checkpoint.writer import publish, write_rank_file
from rotescale.cli import app
from rotescale.composition import make_engine
from rotescale.faults import VARIABLE
from rotescale.model.prepare import load_prepared
from rotescale.model.trained import whole_reader
from rotescale.records import read_records
from rotescale.run_dir import Outcome, RunDir
from rotescale.spec import ExperimentSpec
from rotescale.spec_file import load_spec
from rotescale.tensors import PARTS, partition

PAIRS = [(1, 2), (2, 1), (2, 3), (3, 2), (4, 1)]
QUICK_PAIRS = [(1, 2), (3, 2)]
PHASES = ("memorize", "generalize")
STEPS = 6
"""Of each phase; checkpoints after steps 2 and 4, and at the end."""
RESUME_AFTER = {"memorize": 4, "generalize": 2}
TOLERANCE = 1e-5
"""Of losses, relative. Another world size adds fp32 gradients in another order; over these steps
that comes to 2e-6 at most, although the learning rate of 3e-3 is 300 times the protocol's."""
BASIC = (
    *QUICK,
    "phases.1.epochs=1",
    "phases.0.weight_decay=0.1",
    "phases.1.weight_decay=0.1",
    "phases.1.freeze_key_tokens=true",
    "phases.0.max_grad_norm=0.5",
    "engine.row_tokens=40",
    "checkpoints.every_steps=2",
    "checkpoints.keep_last=9",
)
# What could go wrong together. No width divides by 3 or 4, so partitions are padded; the wide
# matrices are more than one block of digests. Optimizer state in host memory, many sub-groups,
# nothing gathered between passes.
HARD = (
    *BASIC,
    "model.weights={kind: random, hidden_size: 50, num_heads: 5, num_key_value_heads: 1, "
    "intermediate_size: 5301}",
    "model.frozen=[model.layers.0.mlp.*, '*.1.input_layernorm.*']",
    "engine.sub_group_size=5000",
    "engine.persistence_threshold=0",
    "engine.offload_optimizer=cpu",
)
LORA = (
    *(override for override in HARD if "frozen" not in override and "offload" not in override),
    "engine.offload_optimizer=nvme",
    "model.lora={r: 3, target_modules: [q_proj, down_proj]}",
)

Whole = Callable[[Sequence[str], int], RunDir]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, model_cache: Path) -> Whole:
    """An undisturbed run of those overrides on that many workers, made once."""
    made: dict[tuple[tuple[str, ...], int], RunDir] = {}

    def whole(overrides: Sequence[str], world_size: int) -> RunDir:
        key = (tuple(overrides), world_size)
        if key not in made:
            storage = tmp_path_factory.mktemp("run")
            made[key] = prepare(micro_spec(*overrides), storage, cache=model_cache)
            assert run_workers(made[key], world_size=world_size) == [0] * world_size
            outcome = Outcome.read(made[key])
            assert outcome is not None
            assert outcome.status == "finished", outcome.message
        return made[key]

    return whole


def saved_after(run_dir: RunDir, phase: str, step: int) -> Checkpoint:
    [name] = [
        name
        for name in run_dir.checkpoint_folders(1)
        if (name.phase, name.step, name.kind) == (phase, step, "full")
    ]
    return open_checkpoint(run_dir, name)


def died_after(run_dir: RunDir, phase: str, step: int, copy: Path) -> RunDir:
    """What a finished run's workers would have left, had they died after that save."""
    shutil.copytree(run_dir.root, copy)
    left = RunDir(copy)
    left.outcome_json.unlink()
    for unfinished in PHASES[PHASES.index(phase) :]:
        shutil.rmtree(left.model_folder(unfinished))
        left.evaluation(unfinished, None).unlink()
    point = (PHASES.index(phase), step)
    for name in left.checkpoint_folders(1):
        if (name.phase_index, name.step) > point:
            shutil.rmtree(left.checkpoint(name))
    return left


def assert_same_course(one: RunDir, other: RunDir) -> None:
    """Every step once, with the same examples, and losses that differ by rounding only."""
    ours, theirs = steps(one), steps(other)
    assert [(s.phase, s.step) for s in ours] == list(itertools.product(PHASES, range(1, STEPS + 1)))
    for mine, its in zip(ours, theirs, strict=True):
        assert (mine.example_ids, mine.cursor) == (its.example_ids, its.cursor)
        assert mine.loss == pytest.approx(its.loss, rel=TOLERANCE)
        assert mine.grad_norm == pytest.approx(its.grad_norm, rel=10 * TOLERANCE)


def frozen_shapes(run_dir: RunDir, saved: Checkpoint) -> dict[str, tuple[int, ...]]:
    """The tensors of the model that the checkpoint does not hold."""
    trained = {entry.tensor for entry in saved.manifest.slices}
    with load_prepared(run_dir.prepared_model).reader() as base:
        return {name: shape for name, shape in base.shapes.items() if name not in trained}


def own_bytes(run_dir: RunDir, saved: Checkpoint, *, rank: int, world_size: int) -> int:
    """What a rank must read: the blocks around its elements, and its elements of what is frozen."""
    total = 0
    for entry in saved.manifest.slices:
        start, stop = partition(math.prod(entry.shape), rank=rank, world_size=world_size)
        low, high = max(start, entry.start), min(stop, entry.stop)
        if low < high:
            first = 4 * (low - entry.start) // DIGEST_BYTES
            last = -(-4 * (high - entry.start) // DIGEST_BYTES)
            total += min(last * DIGEST_BYTES, entry.end - entry.begin) - first * DIGEST_BYTES
    for shape in frozen_shapes(run_dir, saved).values():
        start, stop = partition(math.prod(shape), rank=rank, world_size=world_size)
        total += 4 * (stop - start)
    return total


def resumed_reads(run_dir: RunDir, *, world_size: int) -> list[int]:
    """Bytes that each rank of attempt 2 read at its first load."""
    events = [e for e in read_records(run_dir).events if e.name == "load" and e.attempt == 2]
    first = {e.message.split(" read ")[0]: e.details["num_bytes"] for e in reversed(events)}
    return [first[f"rank {rank}"] for rank in range(world_size)]


def check_resumed(
    whole: Whole, overrides: Sequence[str], *, pair: tuple[int, int], phase: str, copy: Path
) -> RunDir:
    """Resume the first world size's checkpoint at the second, and compare with an undisturbed run.

    Returns the resumed run.
    """
    before, after = pair
    undisturbed = whole(overrides, before)
    saved = saved_after(undisturbed, phase, RESUME_AFTER[phase])
    run_dir = died_after(undisturbed, phase, RESUME_AFTER[phase], copy)
    assert run_workers(run_dir, world_size=after) == [0] * after
    outcome = Outcome.read(run_dir)
    assert outcome is not None
    assert (outcome.status, outcome.attempt) == ("finished", 2), outcome.message
    redone = [row for row in steps(run_dir) if row.attempt == 2]
    index = PHASES.index(phase)
    assert len(redone) == STEPS * (len(PHASES) - index) - RESUME_AFTER[phase]
    assert_same_course(run_dir, undisturbed)
    assert_key_tokens_frozen(run_dir)
    assert resumed_reads(run_dir, world_size=after) == [
        own_bytes(run_dir, saved, rank=rank, world_size=after) for rank in range(after)
    ]
    return run_dir


@pytest.mark.parametrize("phase", [PHASES[0], pytest.param(PHASES[1], marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "pair",
    [
        *((1, 2), (2, 1)),
        *(pytest.param(pair, marks=pytest.mark.slow) for pair in [(2, 3), (3, 2), (4, 1)]),
    ],
    ids="{0[0]}-to-{0[1]}".format,
)
def test_any_number_of_workers_resumes_any_checkpoint(
    pair: tuple[int, int], phase: str, whole: Whole, tmp_path: Path
) -> None:
    run_dir = check_resumed(whole, HARD, pair=pair, phase=phase, copy=tmp_path / "run")
    [last] = [
        open_checkpoint(run_dir, name)
        for name in run_dir.checkpoint_folders(2)
        if (name.phase, name.kind) == (PHASES[-1], "weights")
    ]
    assert_export_is_whole(run_dir.model_folder(PHASES[-1]), run_dir, last)


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("pair", [*PAIRS, (1, 4), (4, 3)], ids="{0[0]}-to-{0[1]}".format)
def test_resuming_with_everything_on_the_device_and_nothing_frozen(
    pair: tuple[int, int], phase: str, whole: Whole, tmp_path: Path
) -> None:
    check_resumed(whole, BASIC, pair=pair, phase=phase, copy=tmp_path / "run")


def assert_export_is_whole(folder: Path, run_dir: RunDir, saved: Checkpoint) -> None:
    """The folder opens; frozen tensors are the base's, all others those of the checkpoint."""
    AutoModelForCausalLM.from_pretrained(folder)
    exported = load_file(folder / "model.safetensors")
    frozen = frozen_shapes(run_dir, saved)
    assert len(frozen) == 3 + 1
    with (
        load_prepared(run_dir.prepared_model).reader() as base,
        CheckpointReader(saved.directory, saved.manifest) as trained,
    ):
        assert exported.keys() == base.shapes.keys()
        for name, tensor in exported.items():
            values = base.read(name, "master", 0, tensor.numel())
            assert torch.equal(tensor.flatten(), values) == (name in frozen)
            if name not in frozen:
                values = trained.read(name, "master", 0, tensor.numel())
                assert torch.equal(tensor.flatten(), values)


def test_the_command_exports_a_checkpoint_with_what_is_frozen(whole: Whole, tmp_path: Path) -> None:
    run_dir = whole(HARD, 2)
    saved = saved_after(run_dir, "memorize", 4)
    arguments = ["checkpoint", "export", run_dir.root, tmp_path / "out", "--checkpoint"]
    done = CliRunner().invoke(app, [*map(str, arguments), saved.directory.name])
    assert done.exit_code == 0, done.output
    assert_export_is_whole(tmp_path / "out", run_dir, saved)


@pytest.mark.parametrize(
    "pair",
    [(2, 1), pytest.param((1, 2), marks=pytest.mark.slow)],
    ids="{0[0]}-to-{0[1]}".format,
)
def test_adapters_are_resumed_by_any_number_of_workers(
    pair: tuple[int, int], whole: Whole, tmp_path: Path
) -> None:
    check_resumed(whole, LORA, pair=pair, phase="memorize", copy=tmp_path / "run")


def test_the_command_exports_a_checkpoint_with_merged_adapters(
    whole: Whole, tmp_path: Path
) -> None:
    run_dir = whole(LORA, 2)
    [saved] = [
        open_checkpoint(run_dir, name)
        for name in run_dir.checkpoint_folders(1)
        if (name.phase, name.kind) == ("generalize", "weights")
    ]
    adapters = 2 * 2 * 2
    assert saved.manifest.lora_alpha == micro_spec(*LORA).model.lora_alpha
    assert len({entry.tensor for entry in saved.manifest.slices}) == adapters + 1
    arguments = ["checkpoint", "export", run_dir.root, tmp_path / "out", "--checkpoint"]
    done = CliRunner().invoke(app, [*map(str, arguments), saved.directory.name])
    assert done.exit_code == 0, done.output
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    exported = load_file(tmp_path / "out" / "model.safetensors")
    by_the_run = load_file(run_dir.model_folder("generalize") / "model.safetensors")
    assert exported.keys() == by_the_run.keys()
    with load_prepared(run_dir.prepared_model).reader() as base:
        assert exported.keys() == base.shapes.keys()
        for name, tensor in exported.items():
            assert torch.equal(tensor, by_the_run[name])
            values = base.read(name, "master", 0, tensor.numel())
            learns = any(part in name for part in ("embed", "q_proj", "down_proj"))
            assert torch.equal(tensor.flatten(), values) != learns


def restore_and_save(run_folder: Path, directories: Sequence[Path], out: Path) -> None:
    """Collective: load each checkpoint and save it again at once, without a step between."""
    run_dir = RunDir(run_folder)
    spec = load_spec(ExperimentSpec, run_dir.spec_json)
    prepared = load_prepared(run_dir.prepared_model)
    engine = make_engine(spec, prepared)
    for directory in directories:
        manifest = load_manifest(directory / MANIFEST)
        trained = CheckpointReader(directory, manifest)
        with whole_reader(trained, spec.model, prepared) as reader:
            engine.load(reader, optimizer_step=manifest.step)
        target = out / directory.name
        state = [(piece, part, tensor.cpu()) for piece, part, tensor in engine.state(PARTS)]
        write_rank_file(target, rank=engine.rank, world_size=engine.world_size, slices=state)
        engine.all_sum([0.0])
        if engine.rank == 0:
            fields = {name: getattr(manifest, name) for name in ManifestHeader.model_fields}
            header = ManifestHeader(**{**fields, "world_size": engine.world_size})
            publish(target, header=header, timeout_seconds=30)
    engine.close()


@pytest.mark.parametrize(
    "pair",
    [pytest.param(pair, marks=() if pair in QUICK_PAIRS else pytest.mark.slow) for pair in PAIRS],
    ids="{0[0]}-to-{0[1]}".format,
)
def test_the_restored_state_is_what_was_saved_bit_for_bit(
    pair: tuple[int, int], whole: Whole, tmp_path: Path
) -> None:
    before, after = pair
    run_dir = whole(HARD, before)
    found = [saved_after(run_dir, phase, RESUME_AFTER[phase]) for phase in PHASES]
    codes = run_ranks(
        restore_and_save,
        run_dir.root,
        [saved.directory for saved in found],
        tmp_path,
        world_size=after,
        logs=tmp_path / "logs",
    )
    assert codes == [0] * after
    for saved in found:
        directory = tmp_path / saved.directory.name
        manifest = load_manifest(directory / MANIFEST)
        assert (manifest.world_size, saved.manifest.world_size) == (after, before)
        with (
            CheckpointReader(saved.directory, saved.manifest) as ours,
            CheckpointReader(directory, manifest) as theirs,
        ):
            assert ours.shapes == theirs.shapes
            for (name, shape), part in itertools.product(ours.shapes.items(), PARTS):
                size = math.prod(shape)
                values = ours.read(name, part, 0, size)
                assert torch.equal(values, theirs.read(name, part, 0, size)), (part, name)
                assert values.any(), f"{part} of {name} is zero: this shows nothing"


def test_a_checkpoint_holds_twelve_bytes_per_trainable_parameter(whole: Whole) -> None:
    run_dir = whole(HARD, 2)
    saved = saved_after(run_dir, "memorize", 4)
    shapes = {entry.tensor: entry.shape for entry in saved.manifest.slices}
    frozen = frozen_shapes(run_dir, saved)
    assert {name.split(".")[2] for name in frozen} == {"0", "1"}
    trainable = sum(map(math.prod, shapes.values()))
    assert sum(map(math.prod, frozen.values())) > 0.3 * trainable
    written = sum(file.num_bytes for file in saved.manifest.files)
    # A header of at most 150 bytes per tensor, part and rank, filled up to a multiple of 4096.
    headers = 150 * len(saved.manifest.slices) + 4096 * len(saved.manifest.files)
    assert 0 <= written - 12 * trainable <= headers


@pytest.mark.slow
def test_workers_that_are_killed_are_replaced_by_more_and_then_by_fewer(
    whole: Whole, model_cache: Path, tmp_path: Path
) -> None:
    """Real deaths, in each phase, and three world sizes in one run."""
    run_dir = prepare(micro_spec(*HARD), tmp_path / "runs", cache=model_cache)
    for attempt, (world_size, phase) in enumerate([(2, "memorize"), (3, "generalize")], start=1):
        marker = tmp_path / f"fired-{attempt}"
        fault = {"point": "step", "phase": phase, "step": 5, "rank": 1, "attempt": attempt}
        variable = json.dumps({**fault, "marker": str(marker)})
        codes = run_workers(run_dir, world_size=world_size, environment={VARIABLE: variable})
        assert marker.exists(), "the fault did not fire"
        assert codes[1] == -9
    assert run_workers(run_dir, world_size=1) == [0]
    assert {row.attempt for row in steps(run_dir)} == {1, 2, 3}
    assert_same_course(run_dir, whole(HARD, 2))
