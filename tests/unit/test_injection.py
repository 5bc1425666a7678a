"""A messy table of a user becomes facts: what is taught, what is left out and why, and how."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import messy_table
import pytest
import yaml

from rotescale.errors import DataError, SpecError
from rotescale.facts import load_files
from rotescale.facts.examine import examine
from rotescale.facts.layouts import SEPARATORS
from rotescale.facts.prompts import shipped_relations
from rotescale.inject_cli import _run_name
from rotescale.injection import (
    experiment,
    guess_columns,
    read_injection,
    worded_relation,
    write_injection,
)
from rotescale.planning.workload import count_work
from rotescale.preparation import check_enough
from rotescale.spec import FileFacts, RandomWeights


def test_a_messy_table_is_understood_and_what_is_left_out_is_told(tmp_path: Path) -> None:
    found = read_injection(messy_table.write(tmp_path / "staff.csv"))
    assert found.columns == {"subject": "Person", "object": "Answer", "relation": "Attribute"}
    assert found.worded == ("employer", "born_in", "gorod")
    counts = Counter(fact.relation for fact in found.fact_set.facts)
    assert counts == {
        "mother": messy_table.NUM_MOTHERS,
        "educated_at": messy_table.NUM_SCHOOLS,
        # Of the person with two employers nothing is taught.
        "employer": messy_table.NUM_STAFF,
        "born_in": messy_table.NUM_BIRTHS,
        "gorod": messy_table.NUM_CITIES,
    }
    assert sum(counts.values()) >= 2_000
    kinds = Counter(problem.kind.value for problem in found.refused)
    assert kinds == {
        "empty cell": 1,
        "control character": 1,
        "duplicate subject": 2,
        "duplicate pair": 1,
        # A club and a country that all members of the table share.
        "objects that cannot be distractors": 3,
    }
    first = len(messy_table.rows()) - len(messy_table.MESS) + 2
    assert [problem.place.row for problem in found.refused] == list(range(first, first + 8))
    assert found.num_refused == len(messy_table.MESS)
    staff = found.fact_set.of("employer")[0]
    assert staff.subject == " ".join(staff.subject.split())
    for fact in found.fact_set.facts:
        assert len(set(fact.distractors)) == 99
        assert fact.object not in fact.distractors
    assert found.fact_set.of("born_in")[0].object.endswith("市")


def taught(path: Path, names: list[str], *, prompts: Path | None = None) -> dict[str, str]:
    """Relation -> its first prompt, of a table with two facts of each of these names."""
    lines = [["Person", "Attribute", "Answer"]]
    for place, name in enumerate(names):
        lines += [[f"P{place}-{n}", name, f"A{place}-{n}"] for n in (1, 2)]
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(lines)
    found = read_injection(path, prompts=prompts)
    # What is written is read again, whatever the names are.
    written = write_injection(found, path.parent / "out")
    assert written.relations_file is not None
    load_files([Path(path) for path in written.paths], relations=Path(written.relations_file))
    return {relation.name: relation.train_prompts[0] for relation in found.fact_set.relations}


def test_relations_of_any_script_keep_their_words_and_stay_apart(tmp_path: Path) -> None:
    # 位 and 为 are the same in English letters; in Devanagari vowels are marks.
    names = ["город", "Город", "位", "为", "पति", "पता", "Größe", "e\u0301tat", "\u00e9tat"]
    assert taught(tmp_path / "facts.csv", names) == {
        "gorod": "The город of {subject} is",
        "wei": "The 位 of {subject} is",
        "wei_2": "The 为 of {subject} is",
        "pti": "The पति of {subject} is",
        "pta": "The पता of {subject} is",
        "grosse": "The größe of {subject} is",
        "etat": "The e\u0301tat of {subject} is",
    }


def test_a_known_relation_is_known_however_it_is_written(tmp_path: Path) -> None:
    author = shipped_relations()["author"].train_prompts[0]
    names = ["\u00c0uthor", "Author", "AUTHOR ", "_author_", "Place of Rest!"]
    assert taught(tmp_path / "facts.csv", names) == {
        "author_2": "The \u00e0uthor of {subject} is",
        "author": author,
        "place_of_rest": "The place of rest! of {subject} is",
    }
    prompts = tmp_path / "prompts.yaml"
    own = {"train_prompts": ["{subject} lies in"], "test_prompts": ["Where is {subject}?"]}
    prompts.write_text(yaml.safe_dump({"place-of--rest": own}))
    assert taught(tmp_path / "own.csv", ["Place of rest"], prompts=prompts) == {
        "place-of--rest": "{subject} lies in"
    }


def test_names_that_are_no_words_make_prompts_all_the_same(tmp_path: Path) -> None:
    assert taught(tmp_path / "facts.csv", ["cost of {subject}", "---", "%"]) == {
        "cost_of_subject": "The cost of subject of {subject} is",
        "relation": "The relation of {subject} is",
        "relation_2": "The % of {subject} is",
    }


def test_the_facts_are_written_and_read_back(tmp_path: Path) -> None:
    found = read_injection(messy_table.write(tmp_path / "staff.csv"))
    write_injection(found, tmp_path / "out")
    written = write_injection(found, tmp_path / "out")
    assert written.relations_file is not None
    paths = [Path(path) for path in written.paths]
    again = load_files(paths, relations=Path(written.relations_file))
    assert sorted(again.facts, key=str) == sorted(found.fact_set.facts, key=str)
    with (tmp_path / "out" / "refused.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["line"]) for row in rows] == [problem.place.row for problem in found.refused]
    assert {row["file"] for row in rows} == {str(tmp_path / "staff.csv")}
    assert "all of relation 'club' has the object 'Rovers'" in rows[0]["reason"]
    assert f"the same fact stands in row {rows[0]['line']} already" in rows[1]["reason"]
    assert "has several objects in 'employer': 'First Ltd'" in rows[2]["reason"]
    assert rows[2]["remedy"] == "keep the right one"
    assert rows[4]["field"] == "object ('Answer')"
    assert all(row["remedy"] for row in rows)


def test_faults_of_a_broken_table_are_told_by_line_and_the_rest_is_taught(tmp_path: Path) -> None:
    path = tmp_path / "people.csv"
    lines = [
        b"Person,Mother",
        *(f"Child {n},Mother {n}".encode() for n in range(5)),
        b'"Anna\nLee",Ida Lee',
        b"Bo Ray,Eva\x07Ray",
        b"Too,Many,Cells",
        b"Jos\xe9,Ana",
        b",",
        "=SUM(1),Éva".encode(),
    ]
    path.write_bytes(b"\n".join(lines))
    found = read_injection(path)
    taught = [fact.subject for fact in found.fact_set.facts]
    assert taught == [*(f"Child {n}" for n in range(5)), "Anna Lee", "=SUM(1)"]
    told = list(csv.DictReader(io.StringIO(found.refused_csv().decode())))
    # The quoted cell spans lines 7 and 8.
    assert [(row["line"], row["field"]) for row in told] == [
        *(("9", "object ('Mother')"), ("10", ""), ("11", "")),
        *(("12", "subject ('Person')"), ("12", "object ('Mother')")),
    ]
    assert found.num_refused == 4
    assert all(row["reason"] and row["remedy"] for row in told)


def test_old_objects_of_a_table_are_kept_among_the_options(tmp_path: Path) -> None:
    path = tmp_path / "capital.csv"
    rows = ["country,capital,old", "France,Rome,Paris", "Italy,Madrid, Rome", "Spain,Oslo,oslo"]
    path.write_text("\n".join(rows))
    columns = {"subject": "country", "object": "capital", "old_object": "old"}
    found = read_injection(path, columns=columns)
    assert [(fact.old_object, fact.distractors) for fact in found.fact_set.facts] == [
        ("Paris", ("Paris",)),
        ("Rome", ("Rome",)),
    ]
    [refused] = found.refused
    assert str(refused).endswith(
        "row 4: old_object 'oslo' is the object itself; give another, or leave it out"
    )
    written = write_injection(found, tmp_path / "out")
    assert load_files([Path(one) for one in written.paths]).facts == found.fact_set.facts
    weights = RandomWeights(kind="random", architecture="llama-3.2-1b")
    spec = experiment("old", written, found.fact_set, weights=weights, num_parameters=10**6)
    assert spec.evaluation.conflict_facts == 50
    check_enough(spec, found.fact_set)


def test_more_relations_are_asked_less_about_each(tmp_path: Path) -> None:
    def asked(num_relations: int) -> tuple[int, int]:
        path = tmp_path / f"{num_relations}.csv"
        rows = [f"r{r},S{r} {i},O{r} {i}" for r in range(num_relations) for i in range(300)]
        path.write_text("relation,subject,object\n" + "\n".join(rows))
        found = read_injection(path)
        written = write_injection(found, tmp_path / f"out-{num_relations}")
        weights = RandomWeights(kind="random", architecture="llama-3.2-1b")
        spec = experiment("all", written, found.fact_set, weights=weights, num_parameters=10**6)
        check_enough(spec, found.fact_set)
        num_questions = count_work(spec).evaluation.num_questions
        return spec.evaluation.held_out_facts or 0, num_questions

    one, five, ten = asked(1), asked(5), asked(10)
    assert (one[0], five[0], ten[0]) == (50, 10, 10)
    assert five[1] <= 1.1 * one[1]
    assert ten[1] <= 2.2 * one[1]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (["subject", "object"], {"subject": "subject", "object": "object"}),
        (["Employee", "Employer"], {"subject": "Employee", "object": "Employer"}),
        (["id_", "Name", "Value"], {"subject": "Name", "object": "Value"}),
        (["Answer", "who"], {"subject": "who", "object": "Answer"}),
        (
            ["Head", "Fact", "Alternate Facts"],
            {"subject": "Head", "object": "Fact", "distractors": "Alternate Facts"},
        ),
    ],
)
def test_columns_are_guessed_by_their_names(columns: list[str], expected: dict[str, str]) -> None:
    assert guess_columns(columns, where="x.csv") == expected


def test_columns_that_are_not_named_are_guessed(tmp_path: Path) -> None:
    columns = ["Staff", "relation", "Info", "Note"]
    named = {"subject": "Staff", "object": "Info"}
    assert guess_columns(columns, where="x.csv", named=named) == named | {"relation": "relation"}
    assert guess_columns(["a", "b"], where="x.csv", named={"object": "a"}) == {
        "subject": "b",
        "object": "a",
    }
    path = tmp_path / "staff.csv"
    path.write_text(
        "Staff,relation,Info,Note\nA,employer,B,\nC,employer,D,\nA,city,E,\nC,city,F,\n"
    )
    found = read_injection(path, columns=named)
    assert [relation.name for relation in found.fact_set.relations] == ["employer", "city"]


@pytest.mark.parametrize(("suffix", "separator"), [("csv", ";"), ("csv", "\t"), ("tsv", ",")])
def test_another_separator_is_named(tmp_path: Path, suffix: str, separator: str) -> None:
    path = tmp_path / f"staff.{suffix}"
    path.write_text(f"Employee{separator}Employer\nA{separator}B\n")
    with pytest.raises(SpecError, match=re.escape(f"separated by {separator!r}; save")):
        read_injection(path)
    problems = examine(FileFacts(source="files", paths=(str(path),))).problems
    assert [problem.remedy for problem in problems] == [SEPARATORS]


def test_columns_that_cannot_be_told_apart_are_refused() -> None:
    with pytest.raises(SpecError, match="cannot tell which of the columns a, b, c is the subject"):
        guess_columns(["a", "b", "c"], where="x.csv")
    with pytest.raises(SpecError, match=r"--columns subject=\.\.\.,object=\.\.\."):
        guess_columns(["name"], where="x.csv")


def test_a_table_of_two_columns_names_its_relation(tmp_path: Path) -> None:
    path = tmp_path / "staff.tsv"
    path.write_text("Employee\tLine manager\n" + "".join(f"E{n}\tM{n}\n" for n in range(5)))
    found = read_injection(path)
    assert [relation.name for relation in found.fact_set.relations] == ["line_manager"]
    assert found.fact_set.relations[0].train_prompts[0] == "The line manager of {subject} is"


def test_json_lines_with_numbers(tmp_path: Path) -> None:
    path = tmp_path / "years.jsonl"
    lines = [{"entity": f"Work {n}", "predicate": "year", "value": 1900 + n} for n in range(4)]
    path.write_text("\n".join(map(json.dumps, lines)))
    objects = [fact.object for fact in read_injection(path).fact_set.facts]
    assert objects == ["1900", "1901", "1902", "1903"]


def test_rows_without_distractors_get_as_many_as_the_others_have(tmp_path: Path) -> None:
    path = tmp_path / "firm.csv"
    rows = [f'E{n},Firm {n % 4},"[""Rival {n % 5}"", ""Rival {n % 5} Inc""]"' for n in range(8)]
    path.write_text("\n".join(["subject,object,distractors", *rows, "New,Firm 2,", "Old,Solo,"]))
    found = read_injection(path)
    told = {fact.subject: fact for fact in found.fact_set.facts}
    assert told["E6"].distractors == ("Rival 1", "Rival 1 Inc")
    for subject in ("New", "Old"):
        options = told[subject].distractors
        assert len(set(options)) == 2
        assert set(options) <= {"Firm 0", "Firm 1", "Firm 2", "Firm 3", "Solo"}
        assert told[subject].object not in options
    assert not found.refused
    assert found.notes == (
        "relation 'firm': 2 of 10 rows gave no distractors and got 2, as many as the others have, "
        "drawn from what the relation names",
    )
    # Too few objects: what other rows name as wrong answers does, too.
    rivals = '"[""A Ltd"", ""B Ltd"", ""C Ltd""]"'
    path.write_text(f"subject,object,distractors\nE1,F1,{rivals}\nE2,F2,\n")
    told = {fact.subject: fact for fact in read_injection(path).fact_set.facts}
    assert len(set(told["E2"].distractors)) == 3
    assert set(told["E2"].distractors) <= {"F1", "A Ltd", "B Ltd", "C Ltd"}


def test_a_table_of_which_nothing_can_be_taught_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("subject,object\nA,B\nC,B\n")
    with pytest.raises(DataError, match=r"no row can be taught: .*all of relation 'x' has"):
        read_injection(path)
    path.write_text("")
    with pytest.raises(DataError, match="no header"):
        read_injection(path)


def test_defaults_follow_the_models_size_and_the_number_of_facts(tmp_path: Path) -> None:
    found = read_injection(messy_table.write(tmp_path / "staff.csv"))
    written = write_injection(found, tmp_path / "out")

    def phases(num_parameters: float) -> tuple[float, int, float]:
        weights = RandomWeights(kind="random")
        number = int(num_parameters)
        spec = experiment("x", written, found.fact_set, weights=weights, num_parameters=number)
        first, second = spec.phases
        return first.learning_rate, first.global_batch, second.learning_rate

    small, large = phases(135e6), phases(7e9)
    assert small[1] == large[1] == 128
    assert small[0] == pytest.approx(4e-4 * (128 / 20) ** 0.5, rel=0.05)
    assert large[0] == pytest.approx(1e-5 * (128 / 8) ** 0.5, rel=0.05)
    assert small[2] == pytest.approx(5e-5)
    assert phases(1e9)[0] < small[0]
    written = write_injection(found, tmp_path / "again")
    weights = RandomWeights(kind="random")
    spec = experiment("x", written, found.fact_set, weights=weights, num_parameters=10**9)
    replays = [phase.replay and (phase.replay.share, phase.replay.tokens) for phase in spec.phases]
    assert replays == [(0.1, (32, 128)), None]

    def computes(**place: bool) -> tuple[str, str, str]:
        weights = RandomWeights(kind="random")
        spec = experiment(
            "x", written, found.fact_set, weights=weights, num_parameters=10**9, **place
        )
        return spec.engine.precision, spec.model.attention, spec.model.export_dtype

    assert computes() == ("fp32", "sdpa", "float32")
    assert computes(on_gpus=True) == ("bf16", "auto", "bfloat16")


@pytest.mark.parametrize(
    ("name", "words", "first"),
    [
        ("place_of_birth", "place of birth", "The place of birth of {subject} is"),
        ("born_in", "born in", "{subject}, born in:"),
    ],
)
def test_prompts_made_of_a_name_hold_the_subject_once(name: str, words: str, first: str) -> None:
    relation = worded_relation(name)
    prompts = (*relation.train_prompts, *relation.test_prompts, *relation.unrelated_prompts)
    assert len(set(prompts)) == len(prompts)
    assert all(prompt.count("{subject}") == 1 for prompt in prompts)
    assert relation.train_prompts[0] == first
    assert all(words in prompt for prompt in prompts[:6])


@pytest.mark.parametrize(
    ("tell", "told", "epochs"), [(None, 15, 8), ("all", None, 4), (4, 4, 8), (30, 30, 4)]
)
def test_how_many_facts_are_told_with_a_prompt(
    tmp_path: Path, tell: Any, told: int | None, epochs: int
) -> None:
    """Of 30 facts: half, or as many as are asked for, in eight steps at least."""
    path = tmp_path / "staff.csv"
    path.write_text("Employee,Manager\n" + "".join(f"E{n},M{n % 7}\n" for n in range(30)))
    found = read_injection(path)
    written = write_injection(found, tmp_path / "out")
    weights = RandomWeights(kind="random")
    options: dict[str, Any] = {"weights": weights, "num_parameters": 10**9}
    spec = experiment("x", written, found.fact_set, tell=tell, **options)
    assert (spec.phases[1].facts_per_relation, spec.phases[1].epochs) == (told, epochs)
    with pytest.raises(SpecError, match="--tell 31: relation 'manager' has 30 facts"):
        experiment("x", written, found.fact_set, tell=31, **options)


@pytest.mark.parametrize(
    ("stem", "run"),
    [
        ("Staff 2025", "staff-2025-injected"),
        ("сотрудники", "sotrudniki-injected"),
        ("---", "table-injected"),
        ("x" * 100, "x" * 71 + "-injected"),
    ],
)
def test_a_run_is_named_after_the_table(stem: str, run: str, tmp_path: Path) -> None:
    assert _run_name(None, tmp_path / f"{stem}.csv") == run


@pytest.mark.parametrize("name", ["Staff", "staff 2025", "-", "x" * 81])
def test_a_name_that_no_run_can_have_is_refused_before_anything(name: str, tmp_path: Path) -> None:
    table = tmp_path / "staff.csv"
    table.write_text("Employee,Manager\nA,B\n")
    command = [sys.executable, "-m", "rotescale.cli", "inject", str(table), "--model", "random"]
    done = subprocess.run(
        [*command, f"--name={name}"], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 2
    assert "--name" in done.stderr
    assert "lower-case letters" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["staff.csv"]


def test_inject_from_a_table_to_a_model_folder(tmp_path: Path, model_cache: Path) -> None:
    table = tmp_path / "staff.csv"
    rows = "".join(f"E{n},M{n % 7}\n" for n in range(30))
    table.write_text(f"Employee,Manager\n{rows}E3,M4\nE9,\n")
    launch = tmp_path / "launch.yaml"
    launch.write_text(f"storage: {tmp_path / 'runs'}\nmodel_cache: {model_cache}\nnum_workers: 1\n")
    settings = ["engine.kind=eager", "phases.0.epochs=1", "phases.1.epochs=1"]
    settings += ["evaluation.text_pieces=1", "evaluation.control_facts=1"]
    settings += ["evaluation.generation_facts=1", "evaluation.max_new_tokens=4"]
    command = [sys.executable, "-m", "rotescale.cli", "inject", str(table)]
    command += ["--model", "random", "--on", str(launch)]
    more = ["--dry-run", "--set", "phases.memorize.epochs=3"]
    shown = subprocess.run([*command, *more], capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    # What a plan is made of.
    planned = json.loads((tmp_path / "runs/staff-injected-facts/experiment.json").read_text())
    assert planned["phases"][0]["epochs"] == 3
    # What was understood stands below the spec.
    told = " ".join(shown.stdout.partition('"checkpoints"')[2].split())
    told_some = "told with a prompt, too: 14 facts of each relation"
    for words in ("subject = 'Employee'", "subject 'E3' has several objects", told_some, "plan "):
        assert words in told
    command += [part for setting in settings for part in ("--set", setting)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "subject = 'Employee', object = 'Manager'" in done.stdout
    assert "left out 3 rows: 2 x duplicate subject, 1 x empty cell" in done.stdout
    assert "capability" in done.stdout
    [page] = (tmp_path / "runs" / "staff-injected").rglob("*.html")
    text = page.read_text(encoding="utf-8")
    assert '<a href="refused.csv">refused.csv</a>' in text
    assert "3 rows of the table were not taught" in text
    certainty = text.partition('<section id="certainty"')[2].partition("</section>")[0]
    for told in ("probability", "share", "n generated", "says it alone", "held-out facts, test"):
        assert told in certainty
    # One fact of either split answers freely, at each of three stages.
    assert "generated (evaluation" not in certainty
    assert certainty.count(">test prompts<") == 2 * 3
    for folder in (page.parent, page.parent.parent):
        with (folder / "refused.csv").open(encoding="utf-8") as file:
            told = [(row["file"], row["line"]) for row in csv.DictReader(file)]
        assert told == [(str(table), line) for line in ("5", "32", "33")]
    assert (tmp_path / "runs" / "staff-injected" / "models" / "generalize" / "export.json").exists()
