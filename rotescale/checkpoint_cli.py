"""The commands about a run's checkpoints: list them, verify them, export a model out of one."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from rotescale.checkpoint.attempts import Checkpoint, newest, open_checkpoint, visible
from rotescale.checkpoint.manifest import (
    DamagedManifestError,
    check_alpha,
    check_base,
    is_published,
)
from rotescale.checkpoint.store import DAMAGED
from rotescale.errors import CheckpointError, SpecError
from rotescale.object_store import RemotePath
from rotescale.run_dir import CheckpointName, RunDir
from rotescale.spec import ExperimentSpec
from rotescale.spec_file import load_spec
from rotescale.storage import StoragePath, build_folder, entries, relative

checkpoint_app = typer.Typer(
    help="Checkpoints of a run: list, verify, export as a model.", no_args_is_help=True
)
console = Console()

_DEEPSPEED_FILES = ("zero_to_fp32.py", "latest", "zero_pp_rank_", "bf16_zero_pp_rank_")

RunFolder = Annotated[str, typer.Argument(metavar="RUN", help="The folder or URL of a run.")]
Chosen = Annotated[
    str | None,
    typer.Option(
        "--checkpoint", metavar="FOLDER", help="Its folder's name, as in list; default: the newest."
    ),
]


@checkpoint_app.command("list")
def checkpoint_list(run_folder: RunFolder) -> None:
    """Every checkpoint: whose attempt, which step, how large, and whether the run builds on it."""
    run_dir = _open(run_folder)
    latest = run_dir.newest_attempt()
    seen = set(visible(run_dir, latest)) if latest is not None else set()
    resume: Checkpoint | None = None
    with suppress(CheckpointError):
        # A damaged manifest is shown as such in its row.
        resume = newest(run_dir, latest) if latest is not None else None
    table = Table("attempt", "checkpoint", "workers", "size", "state", title=str(run_dir.root))
    for name in _folders(run_dir):
        directory = run_dir.checkpoint(name)
        if not is_published(directory):
            state = "damaged" if (directory / DAMAGED).exists() else "incomplete"
            table.add_row(str(name.attempt), directory.name, "", "", state)
            continue
        try:
            manifest = open_checkpoint(run_dir, name).manifest
        except CheckpointError as error:
            is_damaged = isinstance(error, DamagedManifestError)
            state = "damaged manifest" if is_damaged else "of another format"
            table.add_row(str(name.attempt), directory.name, "", "", state)
            continue
        size = sum(file.num_bytes for file in manifest.files)
        states = ["end of phase"] if manifest.phase_end else []
        if name not in seen:
            states.append("superseded")
        elif resume is not None and resume.directory == directory:
            states.append("newest")
        table.add_row(
            str(name.attempt),
            directory.name,
            str(manifest.world_size),
            f"{size / 1e6:,.1f} MB",
            ", ".join(states),
        )
    if not table.row_count:
        console.print(f"{run_dir.root}: no checkpoints yet")
        return
    console.print(table)


@checkpoint_app.command("verify")
def checkpoint_verify(run_folder: RunFolder, chosen: Chosen = None) -> None:
    """Read every published checkpoint, or one, whole, and compare sizes and digests."""
    from rotescale.checkpoint.slices import CheckpointReader

    run_dir = _open(run_folder)
    published = [n for n in _folders(run_dir) if is_published(run_dir.checkpoint(n))]
    names = published if chosen is None else [_find(run_dir, chosen)]
    if not names:
        raise CheckpointError(f"{run_dir.root}: no published checkpoint; nothing to verify")
    damaged: list[str] = []
    with Progress(console=console) as bar:
        for name in bar.track(names, description="verifying"):
            try:
                found = open_checkpoint(run_dir, name)
                with CheckpointReader(found.directory, found.manifest) as reader:
                    reader.verify()
            except (CheckpointError, FileNotFoundError) as error:
                if not is_published(run_dir.checkpoint(name)):
                    # A run that goes on has removed it meanwhile.
                    continue
                damaged.append(str(error))
                continue
            bar.console.print(f"whole: {relative(found.directory, run_dir.root)}")
    if damaged:
        raise CheckpointError("\n".join(damaged))


@checkpoint_app.command("export")
def checkpoint_export(
    run_folder: RunFolder,
    out: Annotated[str, typer.Argument(help="The folder or URL to write; it must not exist.")],
    chosen: Chosen = None,
    dtype: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="The dtype of the weights.")
    ] = "float32",
) -> None:
    """Write a Hugging Face folder out of a checkpoint, verifying what is read."""
    from rotescale.checkpoint.slices import CheckpointReader
    from rotescale.model.export import MAX_SHARD_BYTES, finish_export, plan_shards, write_shard
    from rotescale.model.prepare import load_prepared
    from rotescale.model.trained import whole_reader

    run_dir = _open(run_folder)
    target = RunDir.at(out).root
    if target.exists() or (isinstance(target, RemotePath) and target.below()):
        raise SpecError(f"{out}: exists already; name a folder that does not")
    found = _chosen_or_newest(run_dir, chosen)
    model = load_spec(ExperimentSpec, run_dir.spec_json).model
    prepared = load_prepared(run_dir.prepared_model)
    check_base(found.directory, found.manifest, digest=prepared.digest, prepared=prepared.folder)
    check_alpha(found.directory, found.manifest, alpha=model.lora_alpha)

    source = relative(found.directory, run_dir.root)

    def build(folder: StoragePath) -> None:
        trained = CheckpointReader(found.directory, found.manifest)
        with (
            whole_reader(trained, model, prepared) as reader,
            Progress(console=console) as bar,
        ):
            shards = plan_shards(reader.shapes, dtype=dtype, max_shard_bytes=MAX_SHARD_BYTES)
            for shard in bar.track(shards, description="exporting"):
                write_shard(shard, reader=reader, out=folder, dtype=dtype)
        finish_export(prepared, shards, out=folder, dtype=dtype, checkpoint=source)

    if isinstance(target, RemotePath):
        # No folder can be moved into place there: it is whole when its last file lies in it.
        build(target)
    else:
        build_folder(target, build)
    console.print(f"{source}, {dtype}: {out}")


def _open(run_folder: str) -> RunDir:
    run_dir = RunDir.at(run_folder)
    if run_dir.spec_json.exists():
        return run_dir
    if any(path.name.startswith(_DEEPSPEED_FILES) for path in entries(run_dir.root)):
        raise CheckpointError(
            f"{run_folder}: saved by DeepSpeed's own engine, in a format of its own; make a "
            "Hugging Face folder of it with the zero_to_fp32.py that DeepSpeed has put there, add "
            "config and tokenizer, and begin a run from that (model.weights: {kind: folder, "
            "path: ...})"
        )
    raise SpecError(f"{run_folder}: not the folder of a run; name one such as runs/NAME")


def _folders(run_dir: RunDir) -> list[CheckpointName]:
    return [
        name
        for attempt in run_dir.checkpoint_attempts()
        for name in run_dir.checkpoint_folders(attempt)
    ]


def _find(run_dir: RunDir, folder: str) -> CheckpointName:
    """The published checkpoint of that folder name; of several attempts', the last one's."""
    published = {
        run_dir.checkpoint(name).name: name
        for name in _folders(run_dir)
        if is_published(run_dir.checkpoint(name))
    }
    if folder not in published:
        raise CheckpointError(
            f"--checkpoint {folder}: not among {', '.join(published) or 'no checkpoints'}"
        )
    return published[folder]


def _chosen_or_newest(run_dir: RunDir, chosen: str | None) -> Checkpoint:
    if chosen is not None:
        return open_checkpoint(run_dir, _find(run_dir, chosen))
    latest = run_dir.newest_attempt()
    found = newest(run_dir, latest) if latest is not None else None
    if found is None:
        raise CheckpointError(f"{run_dir.root}: no checkpoint yet; run it first")
    return found
