"""``rotescale-launch plan``: on a machine without torch, for people and programs, by exit code."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from kuberay_helpers import PROFILES
from planning_helpers import CONFIGS, gpus, planned
from rich.console import Console
from typer.testing import CliRunner

from launcher.cli import app
from launcher.plan_cli import page
from rotescale.planning.advice import duration
from rotescale.planning.plan import Plan
from rotescale.spec_file import read_fields

LARGE = CONFIGS / "experiments" / "llama-3.1-70b.yaml"
MICRO = CONFIGS / "experiments" / "micro.yaml"
ON = CONFIGS / "launch" / "ray-4x8-h100.yaml"

# Importing any of these fails, as where only the bare package is installed.
WITHOUT = (
    *("torch", "transformers", "ray", "deepspeed", "datasets", "safetensors", "tokenizers"),
    *("accelerate", "peft", "pyarrow", "matplotlib", "huggingface_hub", "gguf", "kubernetes"),
)
BARE = f"""
import sys
for name in {WITHOUT!r}:
    sys.modules[name] = None
from launcher.cli import main
main()
"""


def bare(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BARE, "plan", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def shown(*arguments: str) -> str:
    return CliRunner().invoke(app, ["plan", *arguments]).stdout


def text_of(made: Plan, width: int = 110) -> str:
    shown = io.StringIO()
    Console(width=width, file=shown, highlight=False).print(page(made))
    return shown.getvalue()


def test_a_laptop_without_torch_plans_and_the_exit_code_says_that_it_fits() -> None:
    done = bare(str(LARGE), "--on", str(ON))
    assert done.returncode == 0, done.stderr
    assert "70,553,706,496 parameters" in done.stdout
    assert "It fits." in done.stdout


def test_the_exit_code_says_that_it_does_not_fit_and_words_say_why() -> None:
    done = bare(str(LARGE), "--on", str(ON), "--workers", "16")
    assert done.returncode == 1, done.stderr
    said = " ".join(done.stdout.split())
    assert "It does not fit." in said
    assert "On 16 workers training takes" in said
    assert "What helps: --set engine.offload_optimizer=cpu" in said
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere.yaml"], "nowhere.yaml"),
        ([str(MICRO), "--set", "engine.kind=fast"], "engine.kind"),
        ([str(MICRO), "--config", "nowhere.json"], "nowhere.json: cannot be read"),
    ],
)
def test_bad_input_is_two(arguments: list[str], told: str) -> None:
    done = bare(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert told in done.stderr


def test_a_profile_without_a_node_is_asked_for_one(tmp_path: Path) -> None:
    profile = tmp_path / "gpus.yaml"
    profile.write_text("{name: gpus, place: local, num_workers: 2, gpus_per_worker: 1}")
    done = bare(str(MICRO), "--on", str(profile))
    assert done.returncode == 2
    assert "node: profile 'gpus' names none" in done.stderr


def test_json_is_the_plan() -> None:
    found = json.loads(shown(str(LARGE), "--on", str(ON), "--json"))
    assert found["fits"] is True
    assert found["num_nodes"] == 4
    assert found["sizes"]["checkpoint"] == pytest.approx(12 * 70_553_706_496, rel=0.01)
    assert found["node"]["gpu"] == "H100"


def test_the_page_says_what_the_hand_calculation_gives() -> None:
    said = text_of(planned("llama-3.1-70b", gpus(32)))
    assert "18 B/parameter: 1.27 TB ÷ 32 = 39.7 GB per worker" in said
    assert "16 B/parameter with bf16 gradients: 1.13 TB ÷ 32 = 35.3 GB" in said
    assert "846.7 GB full (12 B/parameter)" in said
    assert "4 × h100-8 (8 × H100)" in said


def test_the_page_says_how_long_a_checkpoint_is_written() -> None:
    made = planned("llama-3.1-70b", gpus(32))
    longest = max((phase.full_save for phase in made.phases), key=lambda save: save.high)
    said = " ".join(text_of(made).split())
    assert f"(12 B/parameter), written in {duration(longest)};" in said
    assert longest.low > 847e9 / (4 * 40e9 / 8), "no faster than the storage of all nodes"


def test_the_page_has_every_part_of_memory_and_of_time() -> None:
    made = planned("llama-3.1-70b", gpus(32, {"like": "h100-8", "price_per_hour": 40}))
    said = text_of(made)
    for part in ("weights", "gradients", "optimizer", "gathered", "activations", "logits"):
        assert f"\n {part} " in said
    for part in made.seconds:
        assert f"\n {part} " in said
    assert made.cost is not None
    assert f"{made.cost.low:,.0f} to {made.cost.high:,.0f}" in said
    assert "none has been compared with a GPU" in said


def test_the_page_fits_two_screens_of_eighty_columns() -> None:
    for name in ("llama-3.1-70b", "smollm2-135m-demo"):
        lines = text_of(planned(name, gpus(32)), width=80).splitlines()
        assert len(lines) <= 80
        assert max(len(line.rstrip()) for line in lines) <= 80


def test_a_bar_ends_where_memory_does() -> None:
    over = text_of(planned("llama-3.1-70b", gpus(8)))
    assert "▶" in over
    assert "▶" not in text_of(planned("llama-3.1-70b", gpus(32)))


RENTED = [path for path in PROFILES if read_fields(path).get("gpus_per_worker")]


@pytest.mark.parametrize("path", RENTED, ids=lambda path: path.stem)
def test_what_is_rented_has_a_price_that_is_called_an_example(path: Path) -> None:
    assert "# The price is an example in dollars" in path.read_text()
    experiment = str(CONFIGS / "experiments" / "qwen2.5-7b.yaml")
    assert re.search(r"\n cost +[\d,.]+ to [\d,.]+", shown(experiment, "--on", str(path)))


def test_without_a_price_it_says_how_to_get_a_cost() -> None:
    assert "node.price_per_hour" in text_of(planned("qwen2.5-7b", gpus(8)))
