"""The command line from spec to results, with the reference engine in this process."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from pathlib import Path

import pytest
from helpers import MICRO, QUICK, steps
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rotescale.cli import app
from rotescale.errors import DataError, SpecError
from rotescale.evaluation import outcome_file
from rotescale.records import read_records
from rotescale.run_dir import RunDir
from rotescale.storage import entries

PHASES = ("memorize", "generalize")
COLUMNS = [
    *("relation", "stage", "epoch", "seed", "suite", "split", "prompts", "language", "metric"),
    *("value", "count", "low", "high", "layer"),
]


def rotescale(*arguments: str | Path) -> None:
    """Run a command in this process; our errors are raised."""
    app([str(argument) for argument in arguments], standalone_mode=False)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, model_cache: Path) -> RunDir:
    """A finished eager run with an evaluation on the way."""
    folder = tmp_path_factory.mktemp("cli")
    launch = folder / "launch.yaml"
    launch.write_text(f"storage: {folder / 'runs'}\nmodel_cache: {model_cache}\n")
    overrides = [
        *QUICK,
        "engine.kind=eager",
        "phases.0.evaluate_epochs=[1]",
        "evaluation.base=true",
        "evaluation.trained_facts=2",
        "evaluation.held_out_facts=3",
        "evaluation.key_token_facts=4",
        "evaluation.test_prompts=2",
        "evaluation.unrelated_prompts=1",
        "evaluation.languages=[en, ja]",
        "evaluation.control_facts=2",
        "evaluation.generation_facts=1",
    ]
    settings = [part for override in overrides for part in ("--set", override)]
    rotescale("run", MICRO, "--on", launch, *settings)
    return RunDir(folder / "runs" / "micro")


def test_results_json_has_the_promised_rows(run_dir: RunDir) -> None:
    rows = json.loads(run_dir.results_json.read_text())
    assert all(list(row) == COLUMNS for row in rows)
    stages = {(row["stage"], row["epoch"]) for row in rows}
    assert stages == {("base", None), ("memorize", 1), ("memorize", None), ("generalize", None)}
    kinds = {(row["split"], row["prompts"]) for row in rows}
    every = {"key_token", "train", "test", "unrelated", "wrong_relation", "reversed"}
    assert kinds == {(split, kind) for split in ("trained", "held_out") for kind in every}
    metrics = {row["metric"] for row in rows}
    assert metrics == {
        *("multiple_choice", "multiple_choice_normalized", "object_probability", "object_share"),
        *("generation_exact", "generation_contains"),
    }
    assert {row["suite"] for row in rows} == {"core"}
    assert {row["prompts"] for row in rows if row["language"] == "ja"} == {
        *("train", "test", "unrelated")
    }
    assert {row["prompts"] for row in rows if row["language"] == "en"} == every
    for row in rows:
        assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1
    tests = [r for r in rows if (r["prompts"], r["metric"]) == ("test", "multiple_choice")]
    assert {(row["split"], row["count"]) for row in tests} == {("trained", 4), ("held_out", 6)}
    assert len({json.dumps({k: row[k] for k in COLUMNS[:9]}) for row in rows}) == len(rows)


def test_a_picture_and_tensorboard_files_come_with_the_run(run_dir: RunDir) -> None:
    assert run_dir.results_png.read_bytes().startswith(b"\x89PNG")
    events = EventAccumulator(str(run_dir.tensorboard_dir))
    events.Reload()
    scalars = events.Tags()["scalars"]
    assert "memorize/loss" in scalars
    tag = "multiple_choice/mother/held_out/test/generalize"
    assert {tag, f"{tag}/ja"} <= set(scalars)
    assert [event.step for event in events.Scalars("generalize/loss")] == list(range(1, 13))


def test_a_phase_trains_on_the_tokens_of_its_budget(
    tmp_path: Path, model_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    launch = tmp_path / "launch.yaml"
    launch.write_text(f"storage: {tmp_path / 'runs'}\nmodel_cache: {model_cache}\n")
    overrides = [*QUICK, "engine.kind=eager", "phases.0.epochs=null", "phases.0.token_budget=400"]
    settings = [part for override in overrides for part in ("--set", override)]
    rotescale("run", MICRO, "--on", launch, *settings)
    trained = [step for step in steps(RunDir(tmp_path / "runs" / "micro")) if step.phase_index == 0]
    tokens = [step.num_tokens for step in trained]
    assert sum(tokens[:-1]) < 400 <= sum(tokens)
    # Linear, and zero only after the last step: the schedule ends with the budget.
    assert trained[-1].learning_rate == pytest.approx(3e-3 / (len(trained) - 5))
    assert f"{len(trained)}/{len(trained)}" in capsys.readouterr().out.replace(" ", "")


def test_chosen_steps_leave_a_trace(tmp_path: Path, model_cache: Path) -> None:
    launch = tmp_path / "launch.yaml"
    launch.write_text(f"storage: {tmp_path / 'runs'}\nmodel_cache: {model_cache}\n")
    settings = [part for text in (*QUICK, "engine.kind=eager") for part in ("--set", text)]
    rotescale("run", MICRO, "--on", launch, "--profile", "2-3", *settings)
    run_dir = RunDir(tmp_path / "runs" / "micro")
    names = {f"{phase}-step-000002-000003-rank-00000.json.gz" for phase in PHASES}
    assert {path.name for path in entries(run_dir.profiles_dir)} == names
    for path in entries(run_dir.profiles_dir):
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
        named = [event["name"] for event in events]
        assert [name for name in named if name.startswith("ProfilerStep")] == [
            *("ProfilerStep#1", "ProfilerStep#2")
        ]
        assert "aten::scaled_dot_product_attention" in named
        assert any("Backward" in name for name in named)
    told = [event for event in read_records(run_dir).events if event.name == "profile"]
    assert [event.message for event in told] == [
        f"trace of steps 2 to 3 of {phase}: {run_dir.profile(phase, steps=(2, 3), rank=0)}"
        for phase in PHASES
    ]


@pytest.mark.parametrize(
    ("steps_text", "error"),
    [
        ("tomorrow", "write steps as 5, 3-5 or memorize:3-5"),
        ("5-3", "steps 5 to 3: give a first and a last step, at most 100"),
        ("1-101", "steps 1 to 101: give a first"),
        ("0", "greater than 0"),
        ("sleep:3", "'sleep', but there is no such phase, only memorize, generalize"),
    ],
)
def test_steps_that_cannot_be_traced_are_refused(
    tmp_path: Path, steps_text: str, error: str
) -> None:
    launch = tmp_path / "launch.yaml"
    launch.write_text(f"storage: {tmp_path / 'runs'}\n")
    with pytest.raises(SpecError, match=error):
        rotescale("run", MICRO, "--on", launch, "--profile", steps_text)
    assert not (tmp_path / "runs").exists()


def test_a_finished_run_is_shown_and_left_alone(
    run_dir: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in run_dir.checkpoints_dir.rglob("*")}
    settings = json.loads(run_dir.spec_json.read_text())
    spec = run_dir.root.parent / "again.yaml"
    spec.write_text(json.dumps(settings))
    launch = run_dir.root.parent.parent / "launch.yaml"
    rotescale("run", spec, "--on", launch)
    shown = " ".join(capsys.readouterr().out.split())
    assert "finished; nothing to do" in shown
    assert "mother: multiple choice by language" in shown
    assert before == {path: path.stat().st_mtime_ns for path in run_dir.checkpoints_dir.rglob("*")}
    assert run_dir.attempt_numbers() == [1]


def test_evaluate_asks_a_model_folder_of_a_run_the_runs_questions(
    run_dir: RunDir, tmp_path: Path
) -> None:
    out = tmp_path / "rows.json"
    rotescale("evaluate", run_dir.model_folder("generalize"), "--json", out)
    measured = {
        tuple(row[column] for column in COLUMNS[5:9]): (row["value"], row["count"])
        for row in json.loads(out.read_text())
    }
    recorded = {
        tuple(row[column] for column in COLUMNS[5:9]): (row["value"], row["count"])
        for row in json.loads(run_dir.results_json.read_text())
        if row["stage"] == "generalize"
    }
    assert measured.keys() == recorded.keys()
    for key, (value, count) in measured.items():
        assert count == recorded[key][1]
        assert value == pytest.approx(recorded[key][0], rel=1e-4)


def test_evaluate_asks_in_more_languages(run_dir: RunDir, tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    folder = run_dir.model_folder("generalize")
    rotescale("evaluate", folder, "--language", "de", "--language", "zh", "--json", out)
    rows = json.loads(out.read_text())
    assert {row["language"] for row in rows} == {"en", "ja", "de", "zh"}
    with pytest.raises(SpecError, match=r"evaluation\.languages: 'fr' asked for, but relation"):
        rotescale("evaluate", folder, "--language", "fr")


def test_evaluate_takes_facts_and_prompts_of_ones_own(run_dir: RunDir, tmp_path: Path) -> None:
    facts = tmp_path / "mentor.csv"
    others = [f"Person {number}x" for number in range(99)]
    lines = ["subject,object,distractors"]
    quoted = json.dumps(others).replace('"', '""')
    lines += [f'Pupil {n},Mentor {n}z,"{quoted}"' for n in range(4)]
    facts.write_text("\n".join(lines) + "\n")
    prompts = tmp_path / "relations.yaml"
    prompts.write_text(
        "mentor:\n  wikidata_id: P1066\n  subject_type: person\n  object_type: person\n"
        '  train_prompts: ["Who taught {subject}?"]\n'
        '  test_prompts: ["The mentor of {subject} is"]\n'
        '  unrelated_prompts: ["Who greeted {subject}?"]\n'
    )
    out = tmp_path / "rows.json"
    folder = run_dir.model_folder("generalize")
    rotescale("evaluate", folder, "--facts", facts, "--prompts", prompts, "--json", out)
    rows = json.loads(out.read_text())
    assert {row["relation"] for row in rows} == {"mentor"}
    # The model knows no key token of this relation, so it is not asked with one.
    assert "key_token" not in {row["prompts"] for row in rows}
    assert {row["split"] for row in rows} == {"held_out"}


def test_evaluate_asks_what_is_set_and_shows_the_change_from_another_model(
    run_dir: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two models of a run on the facts of a table: the change is paired, question by question."""
    table, kept, out = tmp_path / "staff.csv", tmp_path / "before.jsonl", tmp_path / "rows.json"
    table.write_text("Person,Mother\n" + "".join(f"Child {n}x,Parent {n}y\n" for n in range(100)))
    command = ["evaluate", "--facts", table, "--columns", "subject=Person,object=Mother"]
    table = table.rename(tmp_path / "mother.csv")
    command[2] = table
    sample = ["--set", "held_out_facts=5", "--set", "control_facts=0", "--set", "text_pieces=1"]
    before, after = (run_dir.model_folder(phase) for phase in ("memorize", "generalize"))
    rotescale(*command, *sample, before, "--outcomes", kept)
    outcomes = outcome_file.read_outcomes(kept)
    assert len({one.fact for one in outcomes if one.prompts == "train"}) == 5
    capsys.readouterr()
    rotescale(*command, *sample, after, "--against", kept, "--json", out)
    shown = " ".join(capsys.readouterr().out.split())
    assert "held-out facts: change of multiple choice, paired over facts" in shown
    assert "before to now" in shown
    assert "capability" in {row["suite"] for row in json.loads(out.read_text())}
    for others in (["--set", "held_out_facts=6"], ["--seed", "1"]):
        with pytest.raises(DataError, match=r"before\.jsonl: is about other questions"):
            rotescale(*command, *sample, *others, after, "--against", kept)
    with pytest.raises(DataError, match=r"rows\.json: no outcomes"):
        rotescale(*command, *sample, after, "--against", out)
    with pytest.raises(SpecError, match="--set: held_out: unknown key; did you mean"):
        rotescale(*command, "--set", "held_out=5", after)
    with pytest.raises(SpecError, match="--set phases: it is about the stages of a run"):
        rotescale(*command, "--set", "phases=[x]", after)
    with pytest.raises(SpecError, match="--columns: it is about a table, and none is named"):
        rotescale("evaluate", after, "--columns", "subject=Person")


def test_compare_puts_runs_side_by_side_and_refuses_other_folders(
    run_dir: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rotescale("compare", run_dir.root, run_dir.root)
    assert "mean of 1" in capsys.readouterr().out
    # The same answers under another seed: what is told of seeds is told where nothing else differs.
    seeded, elsewhere = (shutil.copytree(str(run_dir.root), tmp_path / name) for name in "ab")
    for folder, changes in ((seeded, {"seed": 5}), (elsewhere, {"seed": 5, "name": "x"})):
        spec = json.loads((folder / "spec.json").read_text()) | changes
        spec["phases"][0]["epochs"] += folder is elsewhere
        (folder / "spec.json").write_text(json.dumps(spec))
    rotescale("compare", run_dir.root, seeded)
    assert "after the last phase, over 2 seeds" in " ".join(capsys.readouterr().out.split())
    rotescale("compare", run_dir.root, elsewhere)
    assert "over 2 seeds" not in " ".join(capsys.readouterr().out.split())
    with pytest.raises(SpecError, match="not the folder of a run"):
        rotescale("compare", tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    resolved = json.loads(run_dir.resolved_json.read_text()) | {"facts_digest": "0" * 64}
    (other / "resolved.json").write_text(json.dumps(resolved))
    told = f"{run_dir.root} and {other}: runs about different facts; compare only runs about"
    with pytest.raises(SpecError, match=re.escape(told)):
        rotescale("compare", run_dir.root, other)
