"""Checkpoints, resuming, loading and export: rotescale and its peers, in turn, on the same models.

Run it from the repository: ``python benchmarks/checkpoint.py [--json PATH] [--models LIST]``.
Models are smollm2-135m (fetched once from a package), llama-500m and micro (random weights).

Two ranks with gloo and one thread each train the model by DeepSpeed ZeRO-3 in float32. Every way of
saving works on the state of that one engine: the master weights and the two moments.

Stall. Wall time of N optimizer steps with a save in flight, from its start until the checkpoint is
published and all ranks know, less the mean of the N steps without a save before and after it; the
median over the pairs. DeepSpeed's ``save_checkpoint`` blocks, so its stall is its wall time. DCP's
``async_save`` is measured as ours is, with staging memory that is kept between saves: by a thread
that stages and writes, and by a process that writes out of shared memory; the better one counts.
DeepSpeed does not sync its files to the disk; rotescale and DCP do. The row
stall_vs_deepspeed_synced_save has its save with a sync behind it. A disk takes processor time too,
an emulated one most of all: stall_vs_bare_write has what training waits for where a thread of each
rank writes the same number of bytes directly from one buffer, and does nothing else.

Resume. Two ranks saved; one rank loads, into an engine that is there already. The peer is the
offline conversion to a universal checkpoint, with two workers, and ``load_checkpoint`` of that.

Load. From a folder of safetensors to a partitioned model, transformers' ZeRO-3 ``from_pretrained``
against ranged reads. What ``deepspeed.initialize`` takes, the same call for both, is left out; the
row load_to_engine_vs_transformers has it.

Export. A float32 model file for Hugging Face: ours out of a published ``weights`` checkpoint, the
peer ``save_16bit_model`` (which writes the engine's float32, here); ours is synced to the disk.

Before anything counts it is done once: files come from memory, no code is compiled (DeepSpeed's
shared-memory operator is off, AdamW is torch's) and imports are done. Everything that was restored
is compared bit by bit, by digest of each rank's slices. Timings on a machine with other work
scatter; all runs are printed.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import safe_open

from peers import convert_to_universal
from ranks import run_ranks
from report import CONSOLE, Detail, Row, median, print_details, print_rows, write_rows
from restoring import Restored, load_our_model, load_transformers_model, measure_restoring
from rotescale.model.prepare import PreparedModel
from saving import Saved, measure_saving
from subjects import SUBJECTS, Subject, make_folder, num_parameters


def main() -> None:
    """Measure the models one after the other, and print and write the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models",
        default="smollm2-135m,llama-500m",
        help=f"comma-separated, of {', '.join(SUBJECTS)} (default: %(default)s)",
    )
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--folder", type=Path, help="where to write (default: the system's)")
    parser.add_argument("--repeats", type=int, help="of each measurement (default: by model)")
    options = parser.parse_args()
    names = options.models.split(",")
    if unknown := set(names) - set(SUBJECTS):
        parser.error(f"--models: {', '.join(sorted(unknown))}: not among {', '.join(SUBJECTS)}")
    # So that what was written is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    rows: list[Row] = []
    for name in names:
        subject = SUBJECTS[name]
        if options.repeats:
            subject = replace(subject, repeats=options.repeats)
        with tempfile.TemporaryDirectory(prefix="rotescale-", dir=options.folder) as folder:
            rows += measure(subject, Path(folder))
        if options.json:
            write_rows(rows, options.json)
    print_rows(rows)


@dataclass(slots=True)
class Found:
    """Everything measured on one model."""

    subject: Subject
    num_parameters: int
    saved: Sequence[Saved]
    details: dict[str, Detail]
    restored: Mapping[str, Sequence[Restored]] = field(default_factory=dict)
    """By way of restoring; of each rank."""
    convert_seconds: float = 0.0
    exports_agree: bool = False

    def median(self, what: str) -> float:
        """The median of a measurement of that name, in seconds."""
        return median(self.details[what].seconds)

    def same(self, *ways: str) -> bool:
        """Whether these ways restored the same bits on every rank."""
        digests = [[rank.digest for rank in self.restored[way]] for way in ways]
        return all(found == digests[0] for found in digests)

    def restored_as_saved(self, way: str) -> bool:
        """Whether every rank got back the bits that it had in memory at the save."""
        restored = [rank.digest for rank in self.restored[way]]
        return restored == [rank.digest for rank in self.saved]


def measure(subject: Subject, folder: Path) -> list[Row]:
    """Measure one model, in ``folder``; prints every measurement and returns the rows."""
    CONSOLE.print(f"{subject.name}: making the model")
    if subject.compact_memory:
        # Read by glibc as the ranks start; without it, the threshold grows with what is freed.
        os.environ |= dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), "1048576")
    prepared = make_folder(subject, out=folder)
    saved = run_ranks(measure_saving, subject, prepared.folder, folder, world_size=2, logs=folder)
    details = {detail.what: _of_all_ranks(detail, saved) for detail in saved[0].details}
    found = Found(subject, num_parameters(prepared), saved, details)
    found.exports_agree = _equal_exports(folder / "export", folder / "16bit")
    _measure_restoring(found, prepared, folder)
    print_details(f"{subject.name}, {found.num_parameters:,} parameters", details.values())
    CONSOLE.print(
        f"{subject.name}: of a save's host memory, "
        f"{max(rank.left_bytes for rank in saved) / 1e6:.0f} MB per rank are left after it"
    )
    return [*_saving_rows(found), *_restoring_rows(found), *_memory_rows(found)]


def _of_all_ranks(detail: Detail, saved: Sequence[Saved]) -> Detail:
    """The measurement with the memory and processor time of the rank that needed most."""
    same = [other for rank in saved for other in rank.details if other.what == detail.what]
    cpu = max((d.cpu_seconds for d in same if d.cpu_seconds is not None), default=None)
    peak = max((d.peak_bytes for d in same if d.peak_bytes is not None), default=None)
    extra = max((d.extra_bytes for d in same if d.extra_bytes is not None), default=None)
    return Detail(detail.what, detail.seconds, detail.num_bytes, peak, extra, cpu)


def _measure_restoring(found: Found, prepared: PreparedModel, folder: Path) -> None:
    subject, path = found.subject, prepared.folder
    restored: dict[str, Sequence[Restored]] = {}

    def restore(world_size: int, *ways: str) -> None:
        ranks = run_ranks(
            measure_restoring, subject, path, folder, ways, world_size=world_size, logs=folder
        )
        for way in ways:
            restored[f"{way} on {world_size}"] = [rank[way] for rank in ranks]
            seconds = max(rank[way].seconds for rank in ranks)
            CONSOLE.print(f"{subject.name}: restore: {way} on {world_size}: {seconds:.2f} s")

    restore(2, "ours", "dcp", "deepspeed")
    checkpoint = folder / "deepspeed"
    folders = checkpoint / "saved", checkpoint / "universal"
    [found.convert_seconds] = run_ranks(convert_to_universal, *folders, world_size=1, logs=folder)
    CONSOLE.print(f"{subject.name}: convert to universal: {found.convert_seconds:.2f} s")
    restore(1, "ours")
    restore(1, "universal")
    runs: dict[str, list[Sequence[Restored]]] = {"load ours": [], "load transformers": []}
    for repeat in range(subject.repeats + 1):
        for way, load in zip(runs, (load_our_model, load_transformers_model), strict=True):
            ranks = run_ranks(load, subject, path, world_size=2, logs=folder)
            CONSOLE.print(
                f"{subject.name}: {way}: {ranks[0].seconds:.2f} s, of which "
                f"deepspeed.initialize {ranks[0].initialize_seconds:.2f} s"
            )
            # The first time warms up.
            if repeat:
                runs[way].append(ranks)
    for way, repeats in runs.items():
        repeats.sort(key=lambda ranks: ranks[0].seconds - ranks[0].initialize_seconds)
        restored[way] = repeats[len(repeats) // 2]
        seconds = [ranks[0].seconds - ranks[0].initialize_seconds for ranks in repeats]
        found.details[way] = _restored_detail(way, restored[way], seconds)
    found.restored = restored
    for way, each in restored.items():
        if way not in runs:
            found.details[f"restore: {way}"] = _restored_detail(
                f"restore: {way}", each, [max(rank.seconds for rank in each)]
            )
    found.details["convert"] = Detail("restore: convert to universal", [found.convert_seconds])


def _restored_detail(what: str, ranks: Sequence[Restored], seconds: Sequence[float]) -> Detail:
    return Detail(
        what,
        seconds,
        peak_bytes=max(rank.peak_bytes for rank in ranks),
        extra_bytes=max(rank.extra_bytes for rank in ranks),
    )


def _saving_rows(found: Found) -> list[Row]:
    name = found.subject.name
    same = found.same("ours on 2", "dcp on 2", "deepspeed on 2")
    same = same and found.restored_as_saved("ours on 2")
    stall = found.median("ours: stall")
    dcp = min(found.median(f"dcp async_save ({kind}): stall") for kind in found.subject.dcp_kinds)
    theirs = "deepspeed", "deepspeed, synced"
    save = {way: found.median(f"save: {way}") for way in ("ours", "dcp", *theirs)}
    export = {way: found.median(f"export: {way}") for way in ("ours", "deepspeed")}
    with_checkpoint = export["ours"] + found.median("save: ours, weights only")
    equal = found.exports_agree
    return [
        Row("stall_vs_deepspeed_save", name, stall, save["deepspeed"], same, 0.15),
        Row("stall_vs_deepspeed_synced_save", name, stall, save["deepspeed, synced"], same),
        Row("stall_vs_bare_write", name, stall, found.median("bare write: stall"), same),
        Row("stall_vs_dcp_async_save", name, stall, dcp, same, 1.0),
        Row("save_vs_deepspeed_save", name, save["ours"], save["deepspeed"], same),
        Row("save_vs_dcp_save", name, save["ours"], save["dcp"], same),
        Row("export_vs_save_16bit_model", name, export["ours"], export["deepspeed"], equal, 0.7),
        Row(
            "checkpoint_and_export_vs_save_16bit_model",
            name,
            with_checkpoint,
            export["deepspeed"],
            equal,
        ),
    ]


def _restoring_rows(found: Found) -> list[Row]:
    name = found.subject.name
    seconds = {way: max(r.seconds for r in ranks) for way, ranks in found.restored.items()}
    universal = found.convert_seconds + seconds["universal on 1"]
    same = found.same("ours on 2", "dcp on 2", "deepspeed on 2")
    loads = "load ours", "load transformers"
    ours, theirs = (found.median(way) for way in loads)
    ours_whole, theirs_whole = (found.restored[way][0].seconds for way in loads)
    loaded = found.same(*loads)
    resharded = found.same("ours on 1", "universal on 1")
    ours_2 = seconds["ours on 2"]
    return [
        Row("resume_vs_universal", name, seconds["ours on 1"], universal, resharded, 0.35),
        Row("resume_vs_deepspeed_load", name, ours_2, seconds["deepspeed on 2"], same),
        Row("resume_vs_dcp_load", name, ours_2, seconds["dcp on 2"], same),
        Row("load_vs_transformers", name, ours, theirs, loaded, 0.4),
        Row("load_to_engine_vs_transformers", name, ours_whole, theirs_whole, loaded),
    ]


def _memory_rows(found: Found) -> list[Row]:
    """Bytes, not seconds: of memory per rank in MB, and of a checkpoint per parameter."""
    name, details = found.subject.name, found.details
    loaded = found.same("load ours", "load transformers")
    kept = found.restored_as_saved("ours on 2")
    peaks = [details[way].peak_bytes or 0 for way in ("load ours", "load transformers")]
    saved = details["save: ours"].num_bytes or 0
    snapshot = max(rank.snapshot_bytes for rank in found.saved)
    slices = max(rank.slice_bytes for rank in found.saved)
    return [
        Row("load_peak_mb_vs_transformers", name, peaks[0] / 1e6, peaks[1] / 1e6, loaded, 1.0),
        Row("snapshot_mb_vs_slices", name, snapshot / 1e6, slices / 1e6, kept, 1.05),
        Row("bytes_per_parameter_vs_limit", name, saved / found.num_parameters, 12.1, kept, 1.0),
    ]


def _equal_exports(ours: Path, theirs: Path) -> bool:
    """Whether our safetensors hold what DeepSpeed's pytorch_model.bin holds, bit for bit."""
    expected = torch.load(theirs / "pytorch_model.bin", mmap=True, weights_only=True)
    equal = True
    for file in sorted(ours.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118 (not a dict)
                equal = equal and torch.equal(stored.get_tensor(name), expected[name])
    return equal


if __name__ == "__main__":
    main()
