"""The check of facts: everything that is wrong in one go, as a table and as JSON."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rotescale import cli, facts_cli
from rotescale.facts import iter_pairs, load_files, load_relations
from rotescale.facts.examine import Examination, check_tokens, examine
from rotescale.facts.problems import Place, Problem
from rotescale.facts.rows import Row
from rotescale.spec import FileFacts, GeneratedFacts, TrexFacts

MICRO = Path(__file__).parents[2] / "configs" / "experiments" / "micro.yaml"
DISTRACTORS = [f"Wrong {number}" for number in range(99)]
SOUND = {"subject": "Ann", "object": "Bea", "distractors": DISTRACTORS}


def write_lines(path: Path, *records: object) -> Path:
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return path


def found_in(*paths: Path, **values: object) -> Examination:
    facts = {"source": "files", "paths": [str(path) for path in paths], **values}
    return examine(FileFacts.model_validate(facts))


def kinds_of(found: Examination) -> list[tuple[int | None, str]]:
    return [(problem.place.row, problem.kind.value) for problem in found.problems]


def test_all_problems_are_found_in_one_go(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "mother.jsonl",
        SOUND,
        SOUND,
        SOUND | {"object": "Cleo"},
        {"subject": "Eve", "object": "wrong 7", "distractors": DISTRACTORS},
        {"subject": "Fay", "object": "Bea", "distractors": DISTRACTORS[:98]},
        {"subject": "Gil", "object": "Bea", "distractors": [*DISTRACTORS[:98], "Wrong 3"]},
        {"subject": "", "object": "Bea", "distractors": DISTRACTORS},
        {"subject": "H\u0007al ", "object": None},
        {"subject": "Ivo", "object": "Bea", "distractors": "['Cleo']"},
        {"subject": "Jo", "object": "Bea"},
        ["Kim", "Bea"],
        {"subject": "Lou", "object": "Bea ", "distractors": DISTRACTORS, "note": "x"},
        {"subject": "Moe", "object": "Bea", "distractors": DISTRACTORS, "relation": "sister"},
    )
    assert kinds_of(found_in(path)) == [
        (2, "duplicate pair"),
        (3, "duplicate subject"),
        (4, "gold among the distractors"),
        (5, "uneven distractors"),
        (6, "repeated distractor"),
        (7, "empty cell"),
        (8, "control character"),
        (8, "empty cell"),
        (9, "bad list"),
        (10, "no distractors"),
        (11, "unreadable row"),
        (12, "bad column"),
        (12, "outer white space"),
        (13, "unknown relation"),
    ]


def test_old_objects_are_options_and_not_the_object(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "mother.jsonl",
        SOUND | {"old_object": "wrong  7"},
        SOUND | {"subject": "Eve", "old_object": None},
        SOUND | {"subject": "Fay", "old_object": "BEA"},
        SOUND | {"subject": "Gil", "old_object": "Cleo"},
        SOUND | {"subject": "Hal", "old_object": 7},
        SOUND | {"subject": "Ivo", "old_object": " Wrong 7"},
    )
    found = found_in(path)
    assert kinds_of(found) == [
        (3, "bad old object"),
        (4, "bad old object"),
        (5, "not a string"),
        (6, "outer white space"),
    ]
    told = [str(problem).removeprefix(f"{path}, ") for problem in found.problems]
    assert told[0] == "row 3: old_object 'BEA' is the object itself; give another, or leave it out"
    assert told[1].endswith("'Cleo' is not among the distractors; add it to them, or leave it out")


def test_all_problems_of_a_table_are_found_and_rows_keep_their_line(tmp_path: Path) -> None:
    path = tmp_path / "mother.csv"
    rows = [
        b"\xef\xbb\xbfsubject,object,distractors\r\n",
        b'Ann,Bea,"[""Cleo"",\r\n""Dora""]"\r\n',
        b"Eve,Bea\r\n",
        b"Ren\xe9,Bea,[]\r\n",
        b'Fay,"B"ea,[]\r\n',
        b"Gil,Bea,[Cleo]\r\n",
        b"Hal,,x,y\r\n",
    ]
    path.write_bytes(b"".join(rows))
    found = found_in(path)
    assert kinds_of(found) == [
        (2, "not 99 distractors"),
        (4, "row of another width"),
        (5, "not UTF-8"),
        (5, "bad list"),
        (6, "unreadable row"),
        (7, "bad list"),
        (8, "row of another width"),
    ]
    assert "2 distractors in relation 'mother', not 99" in str(found.problems[0])
    assert "chance at 33.3%, not 1 %; give 99" in str(found.problems[0])


def test_the_loader_raises_the_first_problem_in_the_words_of_the_check(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "mother.jsonl", SOUND, SOUND | {"subject": "Eve", "object": ""})
    (problem,) = found_in(path).problems
    with pytest.raises(Exception, match="row 2: object is empty") as caught:
        load_files([path])
    assert str(caught.value) == str(problem)


def test_all_that_is_wrong_with_facts_of_a_relation_without_prompts_is_told(
    tmp_path: Path,
) -> None:
    rows = [
        {"subject": "Ann", "object": "Bea", "distractors": ["bea", "Cleo", "Cleo"]},
        {"subject": "ann", "object": "Bea", "distractors": ["Cleo"]},
    ]
    expected = [
        (1, "gold among the distractors"),
        (1, "repeated distractor"),
        (1, "not 99 distractors"),
        (2, "duplicate pair"),
        (2, "uneven distractors"),
    ]
    known = found_in(write_lines(tmp_path / "mother.jsonl", *rows))
    assert kinds_of(known) == expected
    unknown = found_in(write_lines(tmp_path / "employer.jsonl", *rows))
    assert kinds_of(unknown) == [(1, "unknown relation"), *expected]


def test_relations_without_prompts_and_shared_objects_are_told_once(tmp_path: Path) -> None:
    sister = write_lines(
        tmp_path / "sister.jsonl", *({"subject": f"{n}", "object": "B"} for n in "ab")
    )
    mother = write_lines(tmp_path / "mother.jsonl", *({"subject": n, "object": n} for n in "aAb"))
    assert kinds_of(found_in(sister, mother)) == [
        (1, "unknown relation"),
        (2, "objects that cannot be distractors"),
        (2, "objects that cannot be distractors"),
        (2, "objects that cannot be distractors"),
        (2, "duplicate pair"),
        (3, "objects that cannot be distractors"),
    ]


def test_names_are_the_same_however_they_are_written(tmp_path: Path) -> None:
    """A letter with its accent apart, and quotes of another shape, as two systems write them."""
    apart, quoted = unicodedata.normalize("NFD", "Beyoncé"), "O\u2019Brien"
    path = write_lines(
        tmp_path / "mother.jsonl",
        SOUND | {"object": "Beyoncé", "distractors": [*DISTRACTORS[:98], apart]},
        SOUND | {"subject": "Zoë", "distractors": ["O'Brien", *DISTRACTORS[:97], quoted]},
        SOUND | {"subject": unicodedata.normalize("NFD", "Zoë"), "object": "Cleo"},
    )
    assert kinds_of(found_in(path)) == [
        (1, "gold among the distractors"),
        (2, "repeated distractor"),
        (3, "duplicate subject"),
    ]


def test_objects_that_a_shorter_option_always_beats_are_told(tmp_path: Path) -> None:
    given = write_lines(
        tmp_path / "mother.jsonl",
        SOUND | {"object": "New York City", "distractors": ["New York", *DISTRACTORS[:98]]},
        SOUND | {"subject": "Eve", "object": "Newer", "distractors": ["New", *DISTRACTORS[:98]]},
    )
    assert kinds_of(found_in(given)) == [(1, "object that begins with another option")]
    names = [*(f"M{n}" for n in range(99)), "M7 Jr.", "M7 Jr. Smith"]
    (tmp_path / "drawn").mkdir()
    drawn = write_lines(
        tmp_path / "drawn" / "mother.jsonl", *({"subject": f"s{n}", "object": n} for n in names)
    )
    kind = "object that begins with another option"
    assert kinds_of(found_in(drawn)) == [(100, kind), (101, kind)]


def test_a_folder_is_checked_with_its_prompts(tmp_path: Path) -> None:
    (tmp_path / "sister.csv").write_text("Head,Fact,Alternate Facts\nAnn,Bea,\"['Bea', 'bea']\"\n")
    train = tmp_path / "prompt_template" / "sister" / "train.csv"
    train.parent.mkdir(parents=True)
    train.write_text("question\nWho?\n{head} is\n{HEAD} is\n")
    found = examine(TrexFacts(source="trex", path=str(tmp_path)))
    assert [(Path(p.place.file).name, p.place.row, p.kind.value) for p in found.problems] == [
        ("train.csv", 2, "bad prompt"),
        ("train.csv", 4, "bad prompt"),
        ("test.csv", None, "bad prompt"),
        ("sister.csv", 2, "gold among the distractors"),
        ("sister.csv", 2, "gold among the distractors"),
        ("sister.csv", 2, "not 99 distractors"),
    ]


def test_twenty_thousand_rows_are_checked_to_the_last(tmp_path: Path) -> None:
    path = tmp_path / "mother.csv"
    pairs = list(iter_pairs("mother", num_facts=20_000, seed=1))
    lines = [f"{subject},{object_name}" for subject, object_name in pairs]
    path.write_text("\n".join(["subject,object", *lines]) + "\n")
    found = found_in(path)
    assert (found.problems, found.num_rows) == ((), 20_000)
    path.write_text("\n".join(["subject,object", *lines, lines[0]]) + "\n")
    assert [row for row, _ in kinds_of(found_in(path))] == [20_002, 20_002]


def test_twenty_thousand_rows_with_distractors(tmp_path: Path) -> None:
    records = [
        {"subject": f"S {n}", "object": f"O {n}", "distractors": DISTRACTORS} for n in range(20_000)
    ]
    records[-1]["object"] = "WRONG 98"
    found = found_in(write_lines(tmp_path / "mother.jsonl", *records))
    assert kinds_of(found) == [(20_000, "gold among the distractors")]


def test_generated_facts_have_no_problems() -> None:
    facts = GeneratedFacts(source="generated", relations=("mother",), num_facts=150)
    assert examine(facts) == Examination((), num_rows=150)


class Letters:
    """A tokenizer of letters and blanks that folds case, as some do."""

    unk_token_id: int | None = 0

    def __call__(self, text: Sequence[str], *, add_special_tokens: bool) -> dict[str, Any]:
        assert not add_special_tokens
        return {"input_ids": [[self._number(letter) for letter in one] for one in text]}

    def _number(self, letter: str) -> int:
        return ord(letter.lower()) if letter.isascii() else 0

    def batch_decode(
        self, sequences: Sequence[Sequence[int]], *, clean_up_tokenization_spaces: bool
    ) -> list[str]:
        assert not clean_up_tokenization_spaces
        return ["".join(map(chr, sequence)) for sequence in sequences]


def test_names_that_a_tokenizer_does_not_give_back() -> None:
    rows = [
        Row(Place("f", 1), "mother", "ann", "Bea", ("zoë", "bea")),
        Row(Place("f", 2), "mother", "eve", "zoë", ("Bea", "fay")),
    ]
    problems: list[Problem] = []
    check_tokens(rows, Letters(), report=problems.append)
    assert [str(problem) for problem in problems] == [
        "f, row 1: object 'Bea' comes back from the tokenizer as 'bea'; spell it otherwise, or "
        "use a model whose tokenizer keeps it",
        "f, row 1: distractor 1 'zoë' has characters that the tokenizer does not know; spell it "
        "otherwise, or use a model whose tokenizer keeps it",
    ]


# The commands


@dataclass(frozen=True)
class Done:
    """What a command came to."""

    code: int
    out: str
    err: str


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """``rotescale facts`` in this process."""

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["rotescale", "facts", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        printed = capfd.readouterr()
        return Done(int(stopped.value.code or 0), printed.out, printed.err)

    return run


def test_check_prints_a_table_and_counts(command: Callable[..., Done], tmp_path: Path) -> None:
    path = write_lines(tmp_path / "mother.jsonl", SOUND, SOUND, SOUND | {"subject": "[red]\t"})
    done = command("check", path)
    assert done.code == 1
    text = " ".join(done.out.split())
    for word in ("file", "rows", "field", "problem", "remedy"):
        assert word in text
    assert "1 duplicate pair" in text
    assert "1 control character" in text
    assert "2 problems; 3 rows could be read" in text


def test_check_shows_some_of_each_kind_and_counts_all(
    command: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts_cli, "console", Console(width=300))
    names = [SOUND | {"subject": f"Ann {number}"} for number in range(150)]
    strange = SOUND | {"subject": "[red]\t"}
    done = command("check", write_lines(tmp_path / "mother.jsonl", *names, *names, strange))
    assert done.out.count("is already in") == facts_cli.MOST_ALIKE
    assert "and 140 more lines of these kinds; --json lists every problem" in done.out
    assert "150 duplicate pair" in done.out
    # Though it stands behind them all.
    assert "1 control character" in done.out
    assert done.out.count("301") == 2, "in its own line, and in the number of rows"


def test_check_fills_no_terminal(
    command: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts_cli, "console", Console(width=300))
    monkeypatch.setattr(facts_cli, "MOST_SHOWN", 2)
    files = []
    for number in range(3):
        (folder := tmp_path / str(number)).mkdir()
        files.append(write_lines(folder / "mother.jsonl", SOUND, SOUND))
    done = command("check", *files)
    assert done.out.count("is already in") == 2
    assert "and 1 more lines of these kinds" in done.out


def test_equal_faults_share_a_line(
    command: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts_cli, "console", Console(width=300))
    path = write_lines(tmp_path / "mother.jsonl", *([SOUND] * 151))
    done = command("check", path)
    assert "2, 3, 4, 5, 6 and 145 more" in done.out
    assert done.out.count("is already in") == 1
    assert "150 duplicate pair" in done.out
    done = command("check", path, "--json")
    assert done.code == 1
    printed = json.loads(done.out)
    assert len(printed["problems"]) == 150
    assert printed["counts"] == {"duplicate pair": 150}
    assert printed["rows"] == 151
    assert printed["problems"][0] == {
        "file": str(path),
        "row": 2,
        "field": "subject",
        "kind": "duplicate pair",
        "problem": f"subject 'Ann' is already in relation 'mother' at {path}, row 1",
        "remedy": "keep one fact per subject",
    }


def test_check_of_what_is_clean(command: Callable[..., Done], tmp_path: Path) -> None:
    assert command("generate", "mother", tmp_path / "mother.csv", "--num", 100).code == 0
    done = command("check", tmp_path / "mother.csv", MICRO)
    assert done.code == 0
    assert "rows: no problems" in done.out
    done = command("check", MICRO, "--json")
    assert (done.code, json.loads(done.out)["problems"]) == (0, [])


def test_check_of_named_columns_and_of_other_prompts(
    command: Callable[..., Done], tmp_path: Path
) -> None:
    path = tmp_path / "sister.csv"
    rows = [f"{number},S {number},O {number}" for number in range(100)]
    path.write_text("\n".join(["id,Person,Sister", *rows]) + "\n")
    prompts = tmp_path / "prompts.yaml"
    prompts.write_text(
        "sister: {train_prompts: ['Sister of {subject}?'], test_prompts: ['{subject}:']}"
    )
    options = ["--columns", "subject=Person,object=Sister", "--prompts", prompts]
    assert command("check", path, *options).code == 0
    done = command("check", path, "--prompts", prompts, "--json")
    assert done.code == 1
    assert json.loads(done.out)["counts"] == {"bad column": 5}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.csv"], "none.csv: no such file or folder; check the path"),
        ([MICRO, "--columns", "subject=S"], "--columns: no file is given"),
        (["facts.csv", "--columns", "subject"], "'subject' is no pair; write it as subject="),
        (["facts.csv", "--columns", "subject=a,subject=b"], "'subject' is twice"),
        (["facts.csv", "--columns", "subjekt=a"], "did you mean 'subject'?"),
        (["facts.csv", "--columns", "subject=a,object=a"], "column 'a' is named twice"),
        (["facts.txt"], "ends in '.txt'; give a .csv"),
    ],
)
def test_what_cannot_be_checked(
    arguments: list[str],
    words: str,
    command: Callable[..., Done],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("facts.csv", "facts.txt"):
        Path(name).write_text("subject,object\n")
    done = command("check", *arguments)
    assert done.code == 2
    assert words in done.err
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1


def test_import_writes_files_that_load_again(command: Callable[..., Done], tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    prompts = source / "prompt_template" / "sister"
    prompts.mkdir(parents=True)
    for kind in ("train", "test"):
        (prompts / f"{kind}.csv").write_text(f"question\n{kind} {{head}}\n")
    table = "Head,Fact,Alternate Facts\nAnn,Bea,\"['Cleo', 'Bea']\"\nEve,Cleo,\"['Bea']\"\n"
    (source / "sister.csv").write_text(table)
    done = command("import", source, out)
    assert done.code == 2
    assert "row 2: distractor 2 'Bea' is the object itself" in done.err
    assert not out.exists()
    done = command("import", source, out, "--repair")
    assert done.code == 0, done
    assert "dropped 1 objects among their distractors; 1 distractors are left" in done.out
    facts = load_files([out / "sister.csv"], relations=out / "relations.yaml").facts
    assert [fact.distractors for fact in facts] == [("Cleo",), ("Bea",)]
    assert load_relations(out / "relations.yaml")["sister"].train_prompts == ("train {subject}",)
    done = command("import", out / "sister.csv", tmp_path / "again", "--repair")
    assert (done.code, "--repair: " in done.err) == (2, True)
