"""Bad input ends in one short error with its remedy and exit code 2, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rotescale import cli, driver
from rotescale.errors import RotescaleError
from rotescale.launch_spec import LaunchSpec
from rotescale.model.sources import fetch
from rotescale.preparation import Resolved, prepare_run
from rotescale.run_dir import RunDir
from rotescale.spec import ExperimentSpec, RandomWeights
from rotescale.spec_file import load_spec

MICRO = Path(__file__).parents[2] / "configs" / "experiments" / "micro.yaml"
USER_ERROR = 2
PREPARED = 99
"""The exit code of a run that got as far as training, which these tests leave out."""


@dataclass(frozen=True)
class Done:
    """What a command came to."""

    code: int
    out: str
    err: str


class PreparedError(RotescaleError):
    """Raised in place of training."""

    exit_code = PREPARED


class CommandLine:
    """``rotescale`` in this process, on a launch spec whose storage is watched."""

    def __init__(self, folder: Path, cache: Path, *, run: Callable[[list[str]], Done]) -> None:
        self.storage = folder / "runs"
        self.place = folder / "place.yaml"
        self._cache = cache
        self._run = run
        self.write_place()

    def write_place(self, **changes: Any) -> None:
        values = {"storage": str(self.storage), "model_cache": str(self._cache), "num_workers": 1}
        self.place.write_text(json.dumps(values | changes))

    def run(self, *overrides: str, spec: Path = MICRO, flags: tuple[str, ...] = ()) -> Done:
        changes = [part for override in overrides for part in ("--set", override)]
        return self._run(["run", str(spec), "--on", str(self.place), *changes, *flags])

    def refused(self, *overrides: str, words: tuple[str, ...], spec: Path = MICRO) -> str:
        """The error, after checking its form, and that the storage is as it was."""
        before = contents(self.storage)
        message = error_of(self.run(*overrides, spec=spec))
        for word in words:
            assert word in message, message
        assert contents(self.storage) == before, "something was left behind"
        return message


def error_of(done: Done) -> str:
    """The one error that the command ended with."""
    assert done.code == USER_ERROR, done
    assert "Traceback" not in done.err
    message = done.err[done.err.index("error: ") :]
    assert message.endswith("\n")
    assert message.count("\n") == 1, message
    assert len(message) < 700, message
    return message


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder``, hidden ones included."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def command(
    tmp_path: Path,
    model_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> CommandLine:
    def no_training(*_: object, **__: object) -> None:
        raise PreparedError("prepared")

    def run(arguments: list[str]) -> Done:
        monkeypatch.setattr(sys, "argv", ["rotescale", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        printed = capfd.readouterr()
        return Done(int(stopped.value.code or 0), printed.out, printed.err)

    monkeypatch.setattr(driver, "train", no_training)
    return CommandLine(tmp_path, model_cache, run=run)


@pytest.fixture
def model(tmp_path: Path, model_cache: Path) -> Path:
    """A micro model folder of the test's own."""
    weights = RandomWeights(kind="random", hidden_size=16, num_heads=2, num_key_value_heads=1)
    made = fetch(weights, cache=model_cache, texts=["Who is the mother of Gene Finley?"])
    return Path(shutil.copytree(made, tmp_path / "model"))


def of(model: Path) -> str:
    return f"model.weights={{kind: folder, path: {model}}}"


def facts_from(path: Path) -> str:
    return f"facts={{source: files, paths: [{path}]}}"


# Specs


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seeed=1", ("seeed: unknown key", "did you mean 'seed'?")),
        ("phases.0.epochs=-3", ("phases.0.epochs", "greater than 0", "-3")),
        (
            "phases.generalize.facts_per_relation=101",
            ("facts_per_relation", "101", "'mother' has 100", "ask for at most that many"),
        ),
        ("phases.1.num_prompts=99", ("phases.generalize.num_prompts", "99", "at most that many")),
        ("facts.relations=[father]", ("'father'", "name one of: ", "mother")),
        (
            "facts={source: generated, relations: [father]}",
            ("'father'", "only of: ", "mother", "name one of them"),
        ),
        ("seed", ("--set 'seed'", "write it as field=value")),
        ("phases.finetune.epochs=1", ("'finetune'", "by index or by an entry's name")),
        (
            "facts={source: files, paths: [a.csv], columns: {subjekt: Person}}",
            ("facts.files.columns.subjekt: unknown key", "did you mean 'subject'?"),
        ),
        (
            "facts={source: trex, path: none}",
            ("none: is no folder", "give one that holds a CSV per relation"),
        ),
        (
            "facts={source: dataset, dataset: none/of/these, relation: mother}",
            ("dataset none/of/these, split train", "check dataset, config, split"),
        ),
        ("facts={source: dataset}", ("facts.dataset.dataset", "Field required")),
        ("model.key_tokens.template=KEY", ("model.key_tokens.template", "'KEY'", "plain word")),
        ("model.key_tokens.template={relation}", ("model.key_tokens.template",)),
        ("model.key_tokens.template=K{relation}", ("'Kmother'", "use a template such as")),
        ("model.weights.num_heads=3", ("hidden_size: 64", "num_heads=3", "use an even multiple")),
    ],
)
def test_a_bad_value(override: str, words: tuple[str, ...], command: CommandLine) -> None:
    command.refused(override, words=words)


def test_a_spec_that_is_missing(command: CommandLine, tmp_path: Path) -> None:
    missing = tmp_path / "none.yaml"
    command.refused(spec=missing, words=(str(missing), "No such file", "give the path"))


def test_a_file_of_facts_that_is_missing(command: CommandLine, tmp_path: Path) -> None:
    missing = tmp_path / "none.csv"
    command.refused(facts_from(missing), words=(str(missing), "No such file", "check the path"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: [micro\n", ("not valid YAML", "line 2")),
        ("seed: 1\nseed: 2\n", ("'seed' stands twice", "line 2")),
    ],
)
def test_bad_yaml(text: str, words: tuple[str, ...], command: CommandLine, tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(text)
    command.refused(spec=spec, words=(str(spec), *words))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_workers": [3, 1]}, ("num_workers", "the least (3) is above the most (1)")),
        ({"num_worker": 1}, ("num_worker: unknown key", "did you mean 'num_workers'?")),
        ({"gpus_per_worker": 2}, ("gpus_per_worker", "less than or equal to 1", "2")),
    ],
)
def test_a_bad_launch_spec(
    changes: dict[str, Any], words: tuple[str, ...], command: CommandLine
) -> None:
    command.write_place(**changes)
    command.refused(words=(str(command.place), *words))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the GPU that is asked for")
def test_a_gpu_that_is_not_there(command: CommandLine) -> None:
    command.write_place(gpus_per_worker=1)
    command.refused(words=("gpus_per_worker: 1", "sees no GPU", "gpus_per_worker: 0"))


# Facts


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("mother.csv", "subject,object\nGene Finley\n", ("row 2: 1 columns", "header has 2")),
        ("mother.csv", 'subject,object\n"Gene,Cody\n', ("row 2: not sound CSV", "mend the quotes")),
        ("mother.jsonl", '{"subject": "Gene"\n', ("row 1", "not sound JSON", "mend it")),
        ("mother.jsonl", '{"subject": "Gene"}\n', ("row 1", "'object' is missing", "give subject")),
        (
            "mother.jsonl",
            '{"subject": "Gene", "object": "Cody", "distractors": ["Ruth", "Cody"]}\n',
            ("row 1: distractor 2 'Cody' is the object itself", "remove it"),
        ),
        (
            "mother.csv",
            'subject,object,distractors\nGene,Cody,"[""cody""]"\n',
            ("row 2: distractor 1 'cody' is the object itself", "remove it"),
        ),
        ("sister.csv", "subject,object\nGene,Cody\n", ("row 2", "'sister'", "correct the name")),
    ],
)
def test_bad_facts(
    name: str, text: str, words: tuple[str, ...], command: CommandLine, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_text(text)
    command.refused(facts_from(path), words=(str(path), *words))


# Models


def test_a_model_folder_that_is_missing(command: CommandLine, tmp_path: Path) -> None:
    missing = tmp_path / "none"
    command.refused(of(missing), words=(str(missing / "config.json"), "missing; give a"))


def test_safetensors_that_are_missing(command: CommandLine, model: Path) -> None:
    (model / "model.safetensors").unlink()
    command.refused(of(model), words=(str(model), "model.safetensors", "give a model in"))


@pytest.mark.parametrize("keep", [4, 100, -50])
def test_safetensors_that_are_cut_off(keep: int, command: CommandLine, model: Path) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    command.refused(of(model), words=(str(file), "truncated", "fetch it again"))


def test_weights_that_disagree_with_the_configuration(command: CommandLine, model: Path) -> None:
    file = model / "model.safetensors"
    name = "model.norm.weight"
    save_file(load_file(file) | {name: torch.zeros(12)}, file)
    words = (str(file), name, "[12]", "asks for [16]", "fetch the model again")
    command.refused(of(model), words=words)


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        ("[model.norm.*, '*.mpl.*']", ("model.frozen.1", "'*.mpl.*'", "matches none", "did you")),
        ("[lm_head.*]", ("model.frozen.0", "tied to model.embed_tokens.weight; name that one")),
        ("['*.weight']", ("model.frozen", "freezes all", "nothing is left to train; name fewer")),
    ],
)
def test_frozen_parameters_that_are_none_or_all(
    patterns: str, words: tuple[str, ...], command: CommandLine
) -> None:
    command.refused(f"model.frozen={patterns}", words=words)


def test_adapters_of_layers_that_are_none(command: CommandLine) -> None:
    words = ("model.lora.target_modules.0", "'q_prj' matches none", "did you mean 'q_proj'")
    command.refused("model.lora={target_modules: [q_prj]}", words=words)


def test_end_tokens_of_a_tokenizer_that_has_none(command: CommandLine, model: Path) -> None:
    change_json(model / "tokenizer_config.json", eos_token=None)
    command.refused(of(model), "phases.1.end_token=true", words=("end_token", "set it to false"))


def test_a_tokenizer_without_a_pad_token_works(
    model: Path, model_cache: Path, tmp_path: Path
) -> None:
    spec = load_spec(ExperimentSpec, MICRO, [of(model)])
    launch = LaunchSpec(storage=str(tmp_path / "runs"), model_cache=str(model_cache))
    run_dir = prepare_run(spec, launch)
    assert "pad_token" not in json.loads((model / "tokenizer_config.json").read_text())
    assert Resolved.read(run_dir).num_examples == {"memorize": 100, "generalize": 50}


def change_json(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


# Storage


def test_a_run_folder_of_another_spec_stays_as_it_is(command: CommandLine) -> None:
    assert command.run().code == PREPARED
    assert command.run().code == PREPARED, "the same spec goes on"
    assert command.run("engine.row_tokens=64").code == PREPARED, "and changes no result"
    command.refused(
        "seed=1", words=(str(command.storage / "micro"), "choose another run folder", "digest")
    )


@pytest.mark.parametrize("part", ["runs", "runs/micro"])
def test_storage_below_a_file(part: str, command: CommandLine) -> None:
    blocker = command.storage.parent / part
    blocker.parent.mkdir(exist_ok=True)
    blocker.write_text("mine")
    message = error_of(command.run())
    assert str(command.storage / "micro") in message
    assert "choose another" in message
    assert blocker.read_text() == "mine"


def test_a_model_cache_below_a_file(command: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    command.write_place(model_cache=str(tmp_path / "file" / "cache"))
    command.refused(words=(str(tmp_path / "file"), "choose another folder"))


@pytest.fixture
def mounted(command: CommandLine) -> Iterator[Callable[[str], None]]:
    """Mounts a small file system as the storage, with the given options."""
    if os.geteuid() != 0:
        pytest.skip("mounting a full disk needs root")
    command.storage.mkdir()

    def mount(options: str) -> None:
        arguments = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(command.storage)]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")

    yield mount
    subprocess.run(["umount", str(command.storage)], capture_output=True, check=False)


@pytest.mark.privileged
def test_storage_that_is_read_only(command: CommandLine, mounted: Callable[[str], None]) -> None:
    mounted("ro")
    command.refused(
        words=(str(command.storage / "micro"), "read-only", "choose a folder that can be written")
    )


# What is left, in KiB, when the disk gets full: in spec, facts, tokenizer, key rows, data.
@pytest.mark.privileged
@pytest.mark.parametrize("left_kib", [0, 8, 100, 250, 272, 300])
def test_a_full_disk(left_kib: int, command: CommandLine, mounted: Callable[[str], None]) -> None:
    mounted("size=1m")
    filler = command.storage / "filler"
    filler.write_bytes(bytes((1024 - left_kib) * 1024))
    message = error_of(command.run())
    assert str(command.storage / "micro") in message
    assert "the disk is full; free space or choose another storage folder" in message
    run_dir = RunDir(command.storage / "micro")
    assert not run_dir.resolved_json.exists(), "nothing takes the run for prepared"
    for path in run_dir.root.rglob("*.json"):
        json.loads(path.read_bytes())
    assert not [path for path in run_dir.root.rglob("*") if path.name.startswith(".")]

    filler.unlink()
    done = command.run()
    assert done.code == PREPARED, done
    assert Resolved.read(run_dir).num_examples == {"memorize": 100, "generalize": 50}


@pytest.mark.privileged
def test_a_model_cache_on_a_full_disk(
    command: CommandLine, mounted: Callable[[str], None], tmp_path: Path
) -> None:
    mounted("size=100k")
    command.write_place(model_cache=str(command.storage), storage=str(tmp_path / "elsewhere"))
    message = error_of(command.run())
    assert str(command.storage) in message
    assert "the disk is full" in message
    assert contents(command.storage) == {}
    assert not (tmp_path / "elsewhere").exists()


# Dry runs


def test_a_dry_run_prints_the_resolved_spec_and_creates_nothing(
    command: CommandLine, tmp_path: Path
) -> None:
    done = command.run("seed=7", "phases.0.learning_rate=1e-5", flags=("--dry-run",))
    assert done.code == 0
    printed, _, told = done.out.partition("\n}\n")
    saved = tmp_path / "resolved.json"
    saved.write_text(printed + "\n}\n")
    spec = load_spec(ExperimentSpec, saved)
    assert spec == load_spec(ExperimentSpec, MICRO, ["seed=7", "phases.0.learning_rate=1e-5"])
    assert "phase memorize: 100 examples x 3 epochs in batches of 20 = 15 steps" in told
    assert "phase generalize: 50 examples x 2 epochs in batches of 20 = 6 steps" in told
    assert not command.storage.exists()


def test_a_dry_run_tells_a_budget_of_tokens(command: CommandLine) -> None:
    done = command.run("phases.1.epochs=null", "phases.1.token_budget=9000", flags=("--dry-run",))
    assert done.code == 0
    told = "phase generalize: 50 examples in batches of 20 until 9,000 tokens are trained on"
    assert told in done.out


def test_a_dry_run_refuses_what_the_run_would_refuse(command: CommandLine) -> None:
    done = command.run("phases.1.facts_per_relation=101", flags=("--dry-run",))
    assert "ask for at most that many" in error_of(done)
    assert not command.storage.exists()


def test_a_dry_run_looks_for_the_model_folder(command: CommandLine, tmp_path: Path) -> None:
    done = command.run(of(tmp_path / "none"), flags=("--dry-run",))
    assert f"model.weights.path: {tmp_path / 'none'} holds no config.json" in error_of(done)
