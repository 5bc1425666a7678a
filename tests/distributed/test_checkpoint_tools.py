"""The checkpoint commands, on a run that real workers have made."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import QUICK, micro_spec, phase_end_weights, prepare, run_workers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from rotescale.cli import app
from rotescale.errors import CheckpointError, SpecError
from rotescale.run_dir import RunDir


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, model_cache: Path) -> RunDir:
    spec = micro_spec(*QUICK, "checkpoints.every_steps=2", "engine.kind=eager")
    made = prepare(spec, tmp_path_factory.mktemp("run"), cache=model_cache, num_workers=1)
    assert run_workers(made, world_size=1) == [0]
    return made


def call(*arguments: object) -> str:
    result = CliRunner().invoke(
        app, ["checkpoint", *map(str, arguments)], catch_exceptions=False, env={"COLUMNS": "160"}
    )
    assert result.exit_code == 0, result.output
    return result.output


def test_list_names_every_checkpoint_and_its_state(run_dir: RunDir) -> None:
    [newest] = [line for line in call("list", run_dir.root).splitlines() if "newest" in line]
    assert "02-generalize-step-" in newest
    assert "weights" in newest
    assert "end of phase" in newest


def test_list_shows_a_damaged_manifest_and_all_others(run_dir: RunDir) -> None:
    manifest = next(run_dir.checkpoints_dir.glob("*/02-*-weights/manifest.json"))
    sound = manifest.read_bytes()
    manifest.write_bytes(sound.replace(b'"step":', b'"stop":', 1))
    shown = call("list", run_dir.root)
    manifest.write_bytes(sound)
    [row] = [line for line in shown.splitlines() if "damaged manifest" in line]
    assert manifest.parent.name in row
    assert "01-memorize" in shown


def test_verify_finds_a_flipped_byte_and_names_the_file(run_dir: RunDir) -> None:
    assert call("verify", run_dir.root).count("whole: checkpoints/attempt-0001/") >= 3
    file = next(run_dir.checkpoints_dir.rglob("*-full/rank-*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=rf"{file}: digest .*bytes have changed"):
        call("verify", run_dir.root)
    data[-1] ^= 1
    file.write_bytes(data)
    call("verify", run_dir.root, "--checkpoint", file.parent.name)


def test_export_gives_the_model_of_any_checkpoint(run_dir: RunDir, tmp_path: Path) -> None:
    call("export", run_dir.root, tmp_path / "newest")
    made = load_file(run_dir.model_folder("generalize") / "model.safetensors")
    ours = load_file(tmp_path / "newest" / "model.safetensors")
    assert made.keys() == ours.keys()
    assert all(torch.equal(made[name], ours[name]) for name in made)
    AutoTokenizer.from_pretrained(tmp_path / "newest")

    folder = next(
        path.name for path in run_dir.checkpoints_dir.glob("*/01-*-weights") if path.is_dir()
    )
    call("export", run_dir.root, tmp_path / "half", "--checkpoint", folder, "--dtype", "bfloat16")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "half")
    assert model.dtype == torch.bfloat16
    masters = phase_end_weights(run_dir, "memorize")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.flatten(), masters[name].flatten().bfloat16())


def test_export_refuses_what_it_cannot_do(run_dir: RunDir, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="exists already"):
        call("export", run_dir.root, tmp_path)
    with pytest.raises(CheckpointError, match="--checkpoint nowhere: not among 01-memorize"):
        call("export", run_dir.root, tmp_path / "new", "--checkpoint", "nowhere")
    with pytest.raises(SpecError, match="not the folder of a run"):
        call("list", tmp_path)
    assert list(tmp_path.iterdir()) == []
