"""A study's file becomes cells, the cells a graph of runs, and what they measure one table."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet
import pytest
import yaml
from helpers import MICRO, QUICK, ROOT
from launcher_shell import drivers
from rich.console import Console

from rotescale.analysis.study_progress import study_progress
from rotescale.analysis.study_table import study_rows
from rotescale.checkpoint.store import CheckpointStore
from rotescale.errors import DataError, SpecError
from rotescale.faults import VARIABLE
from rotescale.launch_spec import LaunchSpec
from rotescale.records import EvaluationRow, RecordWriter, read_records
from rotescale.run_dir import RunDir
from rotescale.spec import ShippedFacts
from rotescale.spec_file import load_spec
from rotescale.storage import remove_folder
from rotescale.study.earlier_runs import check_earlier_runs
from rotescale.study.plan import Plan, make_plan
from rotescale.study.runner import Status, StudyDir, StudyRunner, failures
from rotescale.study.spec import Cell, StudySpec, load_study

GRID: dict[str, Any] = {
    "name": "grid",
    "experiment": str(MICRO),
    "axes": [
        {"name": "epochs", "field": "phases.memorize.epochs", "values": [1, 2]},
        {
            "name": "k",
            "values": {
                "1": {
                    "phases.generalize.facts_per_relation": 1,
                    "phases.generalize.epochs": 4,
                },
                "10": {"phases.generalize.facts_per_relation": 10},
            },
        },
        {"name": "seed", "field": "seed", "values": [0, 1]},
    ],
    "exclude": [{"epochs": "1", "k": "10"}],
    "baselines": [
        {
            "name": "sft",
            "over": ["seed"],
            "overrides": {
                "phases": [
                    {
                        "name": "sft",
                        "text": "prompts",
                        "facts_per_relation": 10,
                        "epochs": 1,
                        "global_batch": 5,
                        "learning_rate": 1e-3,
                    }
                ]
            },
        }
    ],
}


def load(tmp_path: Path, **changes: Any) -> tuple[StudySpec, tuple[Cell, ...]]:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({**GRID, **changes}))
    return load_study(path)


def test_cells_are_every_combination_but_those_excluded_and_the_baselines(tmp_path: Path) -> None:
    _, cells = load(tmp_path)
    assert [cell.spec.name for cell in cells] == [
        *(f"grid-epochs1-k1-seed{seed}" for seed in (0, 1)),
        *(f"grid-epochs2-k{k}-seed{seed}" for k in (1, 10) for seed in (0, 1)),
        *(f"grid-sft-seed{seed}" for seed in (0, 1)),
    ]
    assert cells[0].labels == {"method": "rote", "epochs": "1", "k": "1", "seed": "0"}
    assert cells[-1].labels == {"method": "sft", "seed": "1"}
    one = cells[2].spec
    assert [phase.epochs for phase in one.phases] == [2, 4]
    assert one.phases[1].facts_per_relation == 1


def test_an_axis_that_sets_a_section_leaves_nothing_of_what_came_before(tmp_path: Path) -> None:
    whole = {"trained_facts": 1, "held_out_facts": 2}
    study = {
        "name": "sections",
        "experiment": str(MICRO),
        "overrides": {"evaluation.held_out_facts": 7, "evaluation.test_prompts": 1},
        "axes": [
            {"name": "asked", "values": {"few": {"evaluation": whole}, "same": {}}},
            {"name": "test_prompts", "field": "evaluation.test_prompts", "values": [2, 3]},
        ],
    }
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study))
    found = [cell.spec.evaluation for cell in load_study(path)[1]]
    # Later axes come on top.
    assert [(one.held_out_facts, one.test_prompts) for one in found] == [
        *((2, 2), (2, 3), (7, 2), (7, 3))
    ]


def test_a_first_phase_is_trained_once_for_all_that_go_on_from_it(tmp_path: Path) -> None:
    study, cells = load(tmp_path)
    plan = make_plan(study.name, cells)
    shared = [node for node in plan.nodes if node.name not in plan.ends]
    # Two numbers of epochs by two seeds; a phase of 1 epoch is no part of one of 2.
    assert len(shared) == 4
    assert all(len(node.spec.phases) == 1 for node in shared)
    parents = {name: plan.node(name).parent for name in plan.ends}
    assert parents["grid-epochs2-k1-seed0"] == parents["grid-epochs2-k10-seed0"]
    assert len({parents[f"grid-epochs{e}-k1-seed{s}"] for e in (1, 2) for s in (0, 1)}) == 4
    assert parents["grid-sft-seed0"] is None
    # The untrained model is measured once per seed, and each phase by the run that trains it.
    assert sum(node.spec.evaluation.base for node in plan.nodes) == 2
    assert all(node.spec.evaluation.phases == (node.spec.phases[-1].name,) for node in plan.nodes)


def test_a_run_that_repurposes_measures_where_it_begins_too(tmp_path: Path) -> None:
    phase = {"text": "prompts", "epochs": 1, "global_batch": 5, "learning_rate": 1e-3}
    phases = [
        {**phase, "name": "memorize", "text": "key_token"},
        {**phase, "name": "generalize", "facts_per_relation": 10},
        {**phase, "name": "repurpose", "stand_in": {}, "facts_per_relation": 10},
    ]
    baseline = {"name": "repurposed", "overrides": {"phases": phases}}
    study, cells = load(tmp_path, axes=[], exclude=[], baselines=[baseline])
    plan = make_plan(study.name, cells)
    *shared, own = plan.lineage("grid-repurposed")
    assert plan.node(own).spec.evaluation.phases == ("generalize", "repurpose")
    measured = [plan.node(name).spec.evaluation.phases for name in shared]
    assert measured == [("memorize",), ("generalize",)]


def test_a_cell_that_asks_something_else_asks_it_where_it_begins_too(tmp_path: Path) -> None:
    """What the grid asks is asked once of what cells share; other questions by who has them."""
    asking: dict[str, Any] = {"name": "asking", "over": ["k"]}
    asking["overrides"] = {"evaluation.in_context": [2], "phases.memorize.epochs": 1}
    study, cells = load(tmp_path, exclude=[], baselines=[asking])
    plan = make_plan(study.name, cells)
    own = [node for node in plan.nodes if "asking" in node.name]
    assert len(own) == 2
    # Each sees its parent's answers alone; the untrained model's are seen from wherever they are.
    assert {node.spec.evaluation.phases for node in own} == {("memorize", "generalize")}
    assert [node.spec.evaluation.base for node in own] == [True, False]
    assert {node.parent for node in own} == {plan.node("grid-epochs1-k1-seed0").parent}
    others = [node for node in plan.nodes if node not in own]
    assert sum(node.spec.evaluation.base for node in others) == 2
    assert all(len(node.spec.evaluation.phases or ()) == 1 for node in others)
    folder = StudyDir(str(tmp_path / "runs"), study.name)
    for node in (node for node in plan.nodes if node.spec.evaluation.base):
        writer = RecordWriter(folder.run(node.name), attempt=1, rank=0)
        writer.append(base_row(node.spec.seed, value=0.9 if node in own else 0.1))
        writer.close()
    values = {row["run"]: row["value"] for row in study_rows(study, plan, folder)}
    assert values == {name: 0.9 if "asking" in name else 0.1 for name in plan.ends}


def test_conflicts_that_a_parent_does_not_ask_about_are_measured_by_each_run(
    tmp_path: Path,
) -> None:
    asking: dict[str, Any] = {"name": "asking", "over": ["k"]}
    asking["overrides"] = {"evaluation.conflict_facts": 3, "phases.memorize.epochs": 1}
    study, cells = load(tmp_path, exclude=[], baselines=[asking])
    own = [node for node in make_plan(study.name, cells).nodes if "asking" in node.name]
    assert [node.spec.evaluation.base for node in own] == [True, True]


def test_conflicts_are_about_what_each_root_finds_the_untrained_model_to_believe(
    tmp_path: Path,
) -> None:
    study, cells = load(tmp_path, overrides={"evaluation.conflict_facts": 3})
    plan = make_plan(study.name, cells)
    roots = [node.name for node in plan.nodes if node.parent is None]
    assert [node.name for node in plan.nodes if node.spec.evaluation.base] == roots
    # Four shared first phases, and a baseline for each seed.
    assert len(roots) == 6
    folder = StudyDir(str(tmp_path / "runs"), study.name)
    for number, name in enumerate(roots):
        writer = RecordWriter(folder.run(name), attempt=1, rank=0)
        writer.append(base_row(plan.node(name).spec.seed, value=number / 10))
        writer.close()
    rows = study_rows(study, plan, folder)
    values = {row["run"]: row["value"] for row in rows}
    assert len(rows) == len(values) == len(plan.ends)
    # Each cell's own lineage has measured it, whoever else has.
    assert values == {name: roots.index(plan.lineage(name)[0]) / 10 for name in plan.ends}


def base_row(seed: int, *, value: float) -> EvaluationRow:
    return EvaluationRow(
        **{"attempt": 1, "relation": "mother", "stage": "base", "epoch": None, "seed": seed},
        **{"suite": "conflict", "split": "held_out", "prompts": "train", "language": "en"},
        **{"metric": "prefers_old", "value": value, "count": 3, "low": None, "high": None},
    )


def test_what_three_phases_share_is_shared_phase_by_phase(tmp_path: Path) -> None:
    third = {"name": "again", "text": "prompts", "epochs": 1, "global_batch": 5}
    experiment = yaml.safe_load(MICRO.read_text())
    experiment["phases"].append({**third, "learning_rate": 1e-3, "facts_per_relation": 5})
    (tmp_path / "three.yaml").write_text(yaml.safe_dump(experiment))
    axis = {"name": "rate", "field": "phases.again.learning_rate", "values": [1e-3, 1e-4]}
    study, cells = load(tmp_path, experiment="three.yaml", axes=[axis], exclude=[], baselines=[])
    plan = make_plan(study.name, cells)
    assert [len(node.spec.phases) for node in plan.nodes] == [1, 2, 3, 3]
    assert len(plan.lineage(cells[1].spec.name)) == 3


@pytest.mark.parametrize(("told", "held_out", "asked"), [(3, 4, 14), (None, 4, None), (0, 4, 8)])
def test_a_shared_run_asks_about_twice_as_many_facts_as_its_cells(
    told: int | None, held_out: int, asked: int | None, tmp_path: Path
) -> None:
    sample = {"evaluation.trained_facts": told, "evaluation.held_out_facts": held_out}
    study, cells = load(tmp_path, overrides=sample, baselines=[])
    plan = make_plan(study.name, cells)
    shared = [node for node in plan.nodes if node.name not in plan.ends]
    assert shared
    assert {node.spec.evaluation.held_out_facts for node in shared} == {asked}
    assert {plan.node(name).spec.evaluation.held_out_facts for name in plan.ends} == {held_out}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"exclude": [{"epochs": "1"}, {"epochs": "2"}], "baselines": []}, "no runs: every"),
        ({"exclude": [{"k": "5"}]}, "exclude {'k': '5'}: axis 'k' has no value '5'"),
        (
            {"axes": [{"name": "seed", "values": {"a": {"seed": 0}, "A": {"seed": 1}}}]},
            "are both called 'grid-a'",
        ),
        ({"axes": [{"name": "k", "values": [1]}]}, "axis 'k': with a field, values is a list"),
        (
            {"axes": [{"name": "method", "field": "seed", "values": [0, 1]}]},
            "axis 'method': that tells the grid from its baselines; rename the axis",
        ),
        (
            {"axes": [{"name": "seed", "field": "seed", "values": [0, 1, "1", 0]}]},
            "axis 'seed': more than one value is called 0, 1; name each value once",
        ),
        ({"axes": [GRID["axes"][0]] * 2}, "two axes share a name"),
        ({"baselines": [{**GRID["baselines"][0], "over": ["lr"]}]}, "over ['lr'], no axis"),
        (
            {"axes": [{"name": "k", "field": "phases.memorise.epochs", "values": [1]}]},
            "no entry 'memorise'",
        ),
        (
            {"axes": [{"name": "k", "field": "phases.memorize.epochs", "values": [0]}]},
            "study 'grid', run 'grid-k0'",
        ),
    ],
)
def test_a_study_that_makes_no_sense_is_refused(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    without = {"exclude": [], "baselines": []} if "axes" in changes else {}
    with pytest.raises(SpecError) as refusal:
        load(tmp_path, **{**without, **changes})
    assert told in str(refusal.value)


def quick(
    tmp_path: Path, model_cache: Path, *, engine: str = "eager", k: tuple[int, ...] = (2, 6)
) -> tuple[StudySpec, Plan, LaunchSpec, Path]:
    """A study of runs of seconds each: one shared phase, and those that branch from it."""
    overrides = dict(override.split("=", 1) for override in QUICK)
    values = {field: yaml.safe_load(text) for field, text in overrides.items()}
    values |= {"engine.kind": engine, "evaluation.base": True, "evaluation.trained_facts": 1}
    study, cells = load(
        tmp_path,
        overrides=values,
        axes=[{"name": "k", "field": "phases.generalize.facts_per_relation", "values": list(k)}],
        exclude=[],
        baselines=[],
        keep="results",
    )
    launch = LaunchSpec(
        storage=str(tmp_path / "runs"), model_cache=str(model_cache), num_workers=(1, 1)
    )
    launch_file = tmp_path / "launch.yaml"
    launch_file.write_text(launch.model_dump_json())
    return study, make_plan(study.name, cells), launch, launch_file


def test_a_study_runs_goes_on_and_is_collected(tmp_path: Path, model_cache: Path) -> None:
    from rotescale.analysis.study_table import shared_cost, study_rows, write_table

    study, plan, launch, launch_file = quick(tmp_path, model_cache)
    told: list[tuple[str, Status]] = []

    def runner() -> StudyRunner:
        return StudyRunner(
            study, plan, launch, launch_file, 2, lambda name, status: told.append((name, status))
        )

    assert runner().run(), (tmp_path / "runs" / "grid").rglob("*.log")
    parent, *cells = [node.name for node in plan.nodes]
    assert told[:2] == [(parent, "running"), (parent, "finished")]
    assert sorted(told[2:]) == sorted(
        (name, status) for name in cells for status in ("running", "finished")
    )
    # Nothing is done twice, and nothing is left of what only training needs.
    told.clear()
    assert runner().run()
    assert told == []
    folder = StudyDir(launch.storage, study.name)
    assert CheckpointStore(folder.run(cells[0]), 1).newest() is None
    rows = study_rows(study, plan, folder)
    assert {(row["axis_k"], row["stage"]) for row in rows} == {
        (k, stage) for k in ("2", "6") for stage in ("base", "memorize", "generalize")
    }
    assert {row["method"] for row in rows} == {"rote"}
    trained, alone = shared_cost(plan, folder)
    assert trained.num_tokens < alone.num_tokens
    write_table(rows, folder.table)
    assert pyarrow.parquet.read_table(folder.table).num_rows == len(rows)

    # A cell more needs what was removed.
    _, plan, *_ = quick(tmp_path, model_cache, k=(2, 6, 4))
    with pytest.raises(SpecError, match="weights were removed"):
        check_earlier_runs(plan, folder, finished=[parent, *cells])
    remove_folder(folder.run(parent).root)
    check_earlier_runs(plan, folder, finished=cells)


@pytest.mark.slow
def test_a_study_that_is_told_to_end_saves_and_leaves_nothing_running(
    tmp_path: Path, model_cache: Path
) -> None:
    _, plan, launch, launch_file = quick(tmp_path, model_cache, engine="zero3")
    command = [sys.executable, "-m", "rotescale.cli", "study", str(tmp_path / "study.yaml")]
    slow = {"point": "step", "action": "delay", "seconds": 2}
    study = subprocess.Popen(
        [*command, "--on", str(launch_file)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, VARIABLE: json.dumps(slow)},
        process_group=0,
        # As a shell starts what goes on in the background.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    try:
        first = RunDir.of(launch.storage, plan.nodes[0].name)
        deadline = time.monotonic() + 300
        while not read_records(first).steps:
            assert time.monotonic() < deadline
            assert study.poll() is None
            time.sleep(0.1)
        started = psutil.Process(study.pid).children(recursive=True)
        # The driver, Ray, and what Ray has started: in a session of its own, but its children.
        assert len(started) > 3
        # As from a terminal: to all of the group. Once to each run, or it would not save.
        os.killpg(study.pid, signal.SIGINT)
        printed, _ = study.communicate(timeout=300)
    finally:
        study.kill()
        study.wait()
    assert study.returncode == 130
    assert f"stopped, with 0 of {len(plan.nodes)} runs finished; the same command goes on" in (
        " ".join(printed.split())
    )
    assert drivers(plan.nodes[0].name) == []
    records = read_records(first)
    reasons = [event.message for event in records.events if event.name == "save_request"]
    assert reasons == ["the run is interrupted"]
    saved = CheckpointStore(first, 1).newest()
    assert saved is not None
    assert saved.manifest.step > 0
    _, alive = psutil.wait_procs(started, timeout=30)
    assert [process.cmdline() for process in alive] == []


def test_runs_that_will_not_end_are_killed_by_a_third_signal(
    tmp_path: Path, model_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, plan, launch, launch_file = quick(tmp_path, model_cache)
    deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print(flush=True)"
    monkeypatch.setattr(
        StudyRunner, "command", lambda *_: [sys.executable, "-c", f"{deaf}; time.sleep(60)"]
    )
    runner = StudyRunner(study, plan, launch, launch_file, 1, lambda *_: None)
    name = plan.nodes[0].name

    def signals() -> None:
        log = runner.folder.log(name)
        while not (log.exists() and log.read_text()):
            time.sleep(0.05)
        for pause in (0.0, 1.0, 1.0):
            time.sleep(pause)
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=signals, daemon=True).start()
    before = signal.getsignal(signal.SIGTERM)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        runner.run()
    assert time.monotonic() - began < 20
    assert runner.status[name] == "waiting"
    assert signal.getsignal(signal.SIGTERM) == before


def test_runs_at_once_share_the_cores(
    tmp_path: Path, model_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, plan, launch, launch_file = quick(tmp_path, model_cache)
    monkeypatch.setattr("rotescale.study.runner.cpu_cores", lambda: 12)
    monkeypatch.setattr(StudyRunner, "_run_all", lambda _: None)
    for parallel, fixed, told in ((1, {}, "auto"), (3, {}, 4.0), (3, {"cpus_per_worker": 2.0}, 2)):
        place = launch.model_copy(update=fixed)
        launch_file.write_text(place.model_dump_json())
        runner = StudyRunner(study, plan, place, launch_file, parallel, lambda *_: None)
        runner.run()
        command = runner.command(plan.nodes[0])
        used = load_spec(LaunchSpec, Path(command[command.index("--on") + 1]))
        assert used.cpus_per_worker == told
        assert used.storage == launch.storage


def test_runs_at_once_have_gpus_of_their_own(
    tmp_path: Path, model_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GPUs are made up: what each process is told of them is not."""
    study, plan, launch, launch_file = quick(tmp_path, model_cache)
    place = launch.model_copy(update={"gpus_per_worker": 1, "num_workers": (2, 2)})
    for number in range(5):
        (tmp_path / f"nvidia{number}").touch()
    monkeypatch.setattr("rotescale.study.runner.DEVICES", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    told = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"
    monkeypatch.setattr(StudyRunner, "command", lambda *_: [sys.executable, "-c", told])

    alone = Plan(tuple(replace(node, parent=None) for node in plan.nodes), plan.ends)

    def runner(parallel: int) -> StudyRunner:
        return StudyRunner(study, alone, place, launch_file, parallel, lambda *_: None)

    with pytest.raises(SpecError, match=r"each run takes 2 GPUs .* has 5; at most 2 runs"):
        runner(3).run()
    two = runner(2)
    assert not two.run()
    printed = [two.folder.log(node.name).read_text().splitlines()[0] for node in plan.nodes[:2]]
    assert sorted(printed) == ["0,1", "2,3"]
    # What they had was free again for the others.
    assert sorted(two._gpus) == [("0", "1"), ("2", "3")]


def test_a_terminal_shows_how_many_runs_are_done_and_what_goes_on(
    tmp_path: Path, model_cache: Path
) -> None:
    study, plan, launch, launch_file = quick(tmp_path, model_cache)
    runner = StudyRunner(study, plan, launch, launch_file, 1, lambda *_: None)
    first, second = plan.nodes[0].name, plan.nodes[1].name
    runner.status |= {first: "finished", second: "running"}
    text = io.StringIO()
    with study_progress(runner, console=Console(file=text, force_terminal=True, width=160)):
        pass
    assert "eta" in text.getvalue()
    assert "1/3 runs" in text.getvalue()
    assert f"{second.removeprefix('grid-')}: starting" in text.getvalue()
    quiet = io.StringIO()
    with study_progress(runner, console=Console(file=quiet)):
        pass
    assert quiet.getvalue() == ""


def test_what_goes_on_from_a_failed_run_is_not_started(tmp_path: Path) -> None:
    # A file where the cache of models must go.
    cache = tmp_path / "cache"
    cache.write_text("")
    study, plan, launch, launch_file = quick(tmp_path, cache)
    runner = StudyRunner(study, plan, launch, launch_file, 1, lambda *_: None)
    assert not runner.run()
    assert list(runner.status.values()) == ["failed", "blocked", "blocked"]
    [line] = failures(runner)
    assert line.startswith(f"{plan.nodes[0].name}: ")
    assert str(cache) in line
    assert not runner.folder.run(plan.nodes[1].name).attempts_dir.exists()


def test_a_table_without_results_is_refused(tmp_path: Path) -> None:
    from rotescale.analysis.study_table import write_table

    with pytest.raises(DataError, match="no run of the study was measured yet"):
        write_table([], tmp_path / "results.parquet")


@pytest.mark.parametrize(
    "path",
    sorted((ROOT / "configs" / "studies").glob("*.yaml")),
    ids=lambda path: path.stem,
)
def test_every_shipped_study_is_a_graph_of_runs(path: Path) -> None:
    study, cells = load_study(path)
    plan = make_plan(study.name, cells)
    assert path.stem == study.name
    assert len(plan.ends) == len(cells)
    assert len(plan.nodes) <= sum(len(cell.spec.phases) for cell in cells)
    for cell in cells:
        assert plan.lineage(cell.spec.name)[-1] == cell.spec.name


def test_the_study_that_the_documentation_shows_is_one(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"## A study's file.*?```yaml\n(.*?)```", text, flags=re.DOTALL)
    folder = tmp_path / "studies"
    folder.mkdir()
    (tmp_path / "experiments").symlink_to(ROOT / "configs" / "experiments")
    (folder / "my-study.yaml").write_text(shown, encoding="utf-8")
    study, cells = load_study(folder / "my-study.yaml")
    names = [cell.spec.name for cell in cells]
    assert len(names) == 8
    assert {"my-study-epochs10-k50-seed0", "my-study-sft-seed1"} <= set(names)
    assert not any("epochs3-k1-" in name for name in names)
    assert any("-shared-" in node.name for node in make_plan(study.name, cells).nodes)


def test_every_study_of_the_paper_says_what_it_is_for() -> None:
    documented = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8").splitlines()
    lines = {line.split("`")[1]: line for line in documented if line.startswith("| `paper-")}
    paths = {path.stem: path for path in (ROOT / "configs" / "studies").glob("paper-*.yaml")}
    assert lines.keys() == paths.keys()
    for name, path in paths.items():
        comment = path.read_text(encoding="utf-8").partition("\nname: ")[0]
        assert "paper" in comment.lower(), path
        _, cells = load_study(path)
        assert lines[name].endswith(f"| {len(cells)} |"), f"{name}: {len(cells)} cells"


def test_the_studies_of_the_paper_ask_for_its_variants() -> None:
    def cells(name: str) -> list[Cell]:
        return list(load_study(ROOT / "configs" / "studies" / f"{name}.yaml")[1])

    keys = [cell.spec.model.key_tokens for cell in cells("paper-key-token")]
    assert {key.kind for key in keys} == {"token", "word", "none"}
    assert {key.start for key in keys} == {"mean", "relation", "zero"}
    assert max(key.count for key in keys) > 1
    losses = {cell.spec.phases[0].loss for cell in cells("paper-loss")}
    assert losses == {"all", "subject_object", "object"}
    rates = {cell.spec.phases[0].learning_rate for cell in cells("paper-learning-rate")}
    assert (min(rates), max(rates)) == (5e-7, 1e-4)
    assert all(50 in cell.spec.evaluation.in_context for cell in cells("paper-in-context"))
    assert {cell.spec.seed for cell in cells("paper-facts-prompts")} == {0, 1, 2}


def test_the_small_study_can_measure_what_its_cells_are_for() -> None:
    _, cells = load_study(ROOT / "configs" / "studies" / "smollm2-paper.yaml")
    by_method = {cell.labels["method"]: cell.spec for cell in cells}
    facts = by_method["watched"].facts
    # ΔCosSim compares facts of one relation with those of two.
    assert isinstance(facts, ShippedFacts)
    assert len(facts.relations) > 1
    for name in ("repurposed", "repurposed_replay", "repurposed_slow", "repurposed_frozen"):
        one, fifty = (by_method[method].phases for method in (f"{name}_1", name))
        assert [one[2].facts_per_relation, fifty[2].facts_per_relation] == [1, 50]
        changed = {"facts_per_relation": 50, "epochs": 3}
        assert (*one[:2], one[2].model_copy(update=changed)) == fifty
