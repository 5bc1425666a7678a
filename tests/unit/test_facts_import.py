"""Facts from other people's files: folders like T-REx-Fiction, columns of any name, parquet."""

from __future__ import annotations

import csv
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from pydantic import ValidationError

from rotescale.errors import DataError
from rotescale.facts import load_files, load_relations, load_source
from rotescale.facts.export import write_files
from rotescale.facts.trex import legal_name
from rotescale.spec import Columns, FileFacts, TrexFacts

NAMES = ("Bea", "Cleo", "Dora", "Elke")
HEAD = ("Head", "Fact", "Alternate Facts", "Text")


def write_table(path: Path, rows: Sequence[Sequence[str]], **options: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, **options).writerows(rows)  # type: ignore[arg-type]
    return path


def write_prompts(folder: Path, relation: str, **prompts: Sequence[str]) -> None:
    for kind, texts in prompts.items():
        path = folder / "prompt_template" / relation / f"{kind}.csv"
        write_table(path, [("question",), *((text,) for text in texts)])


def trex(folder: Path, *rows: tuple[str, str, str], relation: str = "sister") -> Path:
    """A folder of one relation, with those rows, or two sound ones."""
    sound = [
        ("Ann", "Bea", "['Cleo', \"D'Ora\"]"),
        ("Eve", "Cleo", "['Bea', 'Dora']"),
    ]
    table = [HEAD, *((*row, "a text, with a comma") for row in rows or sound)]
    write_table(folder / f"{relation}.csv", table)
    train, test = ["Who is {head}'s sister?", "{head} {x} {}"], ["The sister of {head} is"]
    write_prompts(folder, relation, train=train, test=test)
    return folder


def facts_of(folder: Path, **values: object) -> TrexFacts:
    return TrexFacts.model_validate({"source": "trex", "path": str(folder), **values})


def test_a_folder_like_trex_fiction(tmp_path: Path) -> None:
    trex(tmp_path)
    write_prompts(tmp_path, "sister", unrelated=["Where does {head} live?"])
    fact_set = load_source(facts_of(tmp_path))
    assert [fact.distractors for fact in fact_set.facts] == [("Cleo", "D'Ora"), ("Bea", "Dora")]
    (sister,) = fact_set.relations
    assert sister.name == "sister"
    assert sister.train_prompts == ("Who is {subject}'s sister?", "{subject} {x} {}")
    assert sister.test_prompts == ("The sister of {subject} is",)
    assert sister.unrelated_prompts == ("Where does {subject} live?",)


def test_prompts_of_a_folder_may_come_from_a_file_that_has_translations(tmp_path: Path) -> None:
    shutil.rmtree(trex(tmp_path) / "prompt_template")
    trex(tmp_path, relation="aunt")
    path = tmp_path / "prompts.yaml"
    path.write_text(
        "sister:\n"
        "  train_prompts: ['Who is {subject}s sister?']\n"
        "  test_prompts: ['The sister of {subject} is']\n"
        "  translations:\n"
        "    de:\n"
        "      train_prompts: ['Wer ist die Schwester von {subject}?']\n"
        "      test_prompts: ['Die Schwester von {subject} ist']\n"
    )
    aunt, sister = load_source(facts_of(tmp_path, relations_file=str(path))).relations
    assert sister.train_prompts == ("Who is {subject}s sister?",)
    assert sister.languages == ("en", "de")
    assert aunt.languages == ("en",)
    assert aunt.train_prompts == ("Who is {subject}'s sister?", "{subject} {x} {}")


def test_relations_of_a_folder_are_chosen_and_named_after_their_files(tmp_path: Path) -> None:
    trex(tmp_path, relation="half sister (P1)")
    trex(tmp_path, ("Ann", "Bea", "not a list"), relation="mother")
    fact_set = load_source(facts_of(tmp_path, relations=["half_sister_P1"]))
    assert [relation.name for relation in fact_set.relations] == ["half_sister_P1"]
    with pytest.raises(
        DataError, match="no relation 'father'; name one of: half_sister_P1, mother"
    ):
        load_source(facts_of(tmp_path, relations=["father"]))
    write_table(tmp_path / "half sister [P1].csv", [HEAD])
    with pytest.raises(DataError, match=r"names the same relation as .*'half_sister_P1'; rename"):
        load_source(facts_of(tmp_path))


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("mother", "mother"),
        ("P25", "P25"),
        ("a b/c", "a_b_c"),
        ("25-é", "r_25-e"),
        ("город", "gorod"),
    ],
)
def test_a_legal_name(stem: str, name: str) -> None:
    assert legal_name(stem) == name


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("Eve", "Cleo", "['Bea', 'CLEO']"), r"row 3: distractor 2 'CLEO' is the object itself"),
        (("Eve", "Cleo", "['Bea', 'bea']"), "row 3: distractor 2 'bea' repeats distractor 1"),
        (("ANN", "Cleo", "['Bea', 'Dora']"), "row 3: subject 'ANN' is already in .*row 2; keep"),
        (("Eve", "Cleo", "['Bea']"), "row 3: 1 distractors, but 2 at .*row 2; give every"),
        (("Eve", "", "['Bea', 'Dora']"), r"row 3: object \('Fact'\) is empty \(''\); fill it in"),
        (("Eve", "Cleo", ""), "row 3: no distractors, but other rows"),
        (("Eve", "Cleo", "Bea"), r"row 3: distractors \('Alternate Facts'\) is not sound Python"),
        (("Eve", "Cleo", "['Bea', 7]"), "row 3: distractor 2 is 7, not a string"),
        (("Eve", "Cleo", "('Bea',)"), "is not a list of at least one name"),
        (("Eve", "Cleo", "{'Bea': 1}"), "is not a list of at least one name"),
        (("Eve", "Cleo", "[" * 5_000), r"row 3: .*not sound Python \(too many nested"),
        (("Eve", "Cleo", "-" * 100_000 + "1"), r"row 3: .*not sound Python \(not a list of"),
        (("Eve", "Cleo", "['Bea' + 'Dora']"), r"row 3: .*not sound Python \(not a list of"),
        (("Eve", "Cleo", "['" + "B" * 200_000 + "']"), "row 3: not sound CSV .*field larger"),
    ],
)
def test_a_faulty_row_of_a_folder(row: tuple[str, str, str], message: str, tmp_path: Path) -> None:
    trex(tmp_path, ("Ann", "Bea", "['Cleo', 'Dora']"), row)
    with pytest.raises(DataError, match=message) as caught:
        load_source(facts_of(tmp_path))
    assert "sister.csv, row" in str(caught.value)
    assert len(str(caught.value)) < 1_000


@pytest.mark.parametrize(
    "attack",
    [
        "__import__('os').system('touch {path}')",
        "[__import__('os').system('touch {path}')]",
        "[open('{path}', 'w').write('x')]",
        "['Bea', *map(open, ['{path}'], 'w')]",
        '[f\'{{open("{path}", "w")}}\']',
    ],
)
@pytest.mark.parametrize("named", [False, True])
def test_code_in_a_list_is_refused_and_not_run(attack: str, named: bool, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    trex(tmp_path, ("Ann", "Bea", attack.format(path=trap)))
    columns = Columns(subject="Head", object="Fact", distractors="Alternate Facts")
    table = FileFacts(source="files", paths=(str(tmp_path / "sister.csv"),), columns=columns)
    with pytest.raises(DataError, match=r"sister\.csv, row 2: .* is not sound .*mend it"):
        load_source(table if named else facts_of(tmp_path))
    assert not trap.exists()


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({"train": ["Who?"]}, r"train\.csv, row 2: question 'Who\?' holds \{head\} 0 times; write"),
        ({"train": ["{head} {head}"]}, r"train\.csv, row 2: .* holds \{head\} 2 times"),
        ({"test": ["{head} {subject}"]}, r"test\.csv, row 2: .* holds \{subject\}, which would"),
        (
            {"test": ["who is {head}'s  sister?"]},
            r"test\.csv, row 2: .* same as .*train\.csv, row 2",
        ),
        ({"test": [" {head}"]}, r"test\.csv, row 2: question ' \{head\}' begins or ends with"),
        ({"unrelated": []}, r"unrelated\.csv: holds no prompts; give at least one"),
    ],
)
def test_faulty_prompts_of_a_folder(
    prompts: dict[str, list[str]], message: str, tmp_path: Path
) -> None:
    write_prompts(trex(tmp_path), "sister", **prompts)
    with pytest.raises(DataError, match=message):
        load_source(facts_of(tmp_path))


def test_a_folder_that_lacks_something(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none: is no folder; give one"):
        load_source(facts_of(tmp_path / "none"))
    with pytest.raises(DataError, match=r"holds no \.csv file; .*Head, Fact, Alternate Facts"):
        load_source(facts_of(tmp_path))
    prompts = trex(tmp_path) / "prompt_template" / "sister"
    write_table(prompts / "test.csv", [("prompt",), ("{head}",)])
    with pytest.raises(DataError, match=r"test\.csv, row 1: .* has no column 'question'; name"):
        load_source(facts_of(tmp_path))
    (prompts / "test.csv").unlink()
    with pytest.raises(DataError, match=r"test\.csv: there is no such file, .*its test prompts"):
        load_source(facts_of(tmp_path))
    write_table(tmp_path / "sister.csv", [("Head", "Alternate Facts")])
    with pytest.raises(DataError, match=r"row 1: .*no column 'Fact'; name the column .* object"):
        load_source(facts_of(tmp_path))


def test_a_repair_drops_what_is_twice_and_says_so(tmp_path: Path) -> None:
    trex(
        tmp_path,
        ("Ann", "Bea", "['Cleo', 'BEA', 'Dora', 'Elke']"),
        ("Eve", "Cleo", "['Bea', 'Dora', 'bea', 'Elke']"),
        ("Fay", "Dora", "['Bea', 'Cleo', 'Elke', 'Gil']"),
        ("ANN", "bea", "['Cleo', 'Dora', 'Elke', 'Gil']"),
    )
    notes: list[str] = []
    fact_set = load_source(facts_of(tmp_path, repair=True), note=notes.append)
    assert [(fact.subject, fact.distractors) for fact in fact_set.facts] == [
        ("Ann", ("Cleo", "Dora", "Elke")),
        ("Eve", ("Bea", "Dora", "Elke")),
        ("Fay", ("Bea", "Cleo", "Elke")),
    ]
    assert notes == [
        f"{tmp_path}, relation 'sister': dropped 1 objects among their distractors, "
        "1 repeated distractors, 1 repeated facts, 1 distractors beyond the least number; "
        "3 distractors are left for each fact"
    ]


def test_a_repair_of_sound_facts_changes_nothing(tmp_path: Path) -> None:
    notes: list[str] = []
    sound = load_source(facts_of(trex(tmp_path)))
    assert load_source(facts_of(tmp_path, repair=True), note=notes.append) == sound
    assert not notes


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("ANN", "Dora", "['Cleo', 'Elke']"), "row 3: subject 'ANN' is already in"),
        (("Eve", "Dora", "['dora']"), "row 3: no distractors; give at least one wrong answer"),
    ],
)
def test_a_repair_guesses_nothing(row: tuple[str, str, str], message: str, tmp_path: Path) -> None:
    trex(tmp_path, ("Ann", "Bea", "['Cleo', 'Dora']"), row)
    with pytest.raises(DataError, match=message):
        load_source(facts_of(tmp_path, repair=True))


# Columns of any name

PEOPLE = {"subject": "Person", "object": "Mother"}
TABLE = [("id", "Person", "Mother", "Others"), ("1", "Ann", "Bea", "['Cleo']")]


@pytest.mark.parametrize(
    ("suffix", "delimiter", "end"),
    [(".csv", ",", "\n"), (".csv", ",", "\r\n"), (".tsv", "\t", "\n"), (".tsv", "\t", "\r\n")],
)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_named_columns(suffix: str, delimiter: str, end: str, mark: str, tmp_path: Path) -> None:
    path = tmp_path / f"mother{suffix}"
    write_table(path, TABLE, delimiter=delimiter, lineterminator=end)
    path.write_bytes(mark.encode() + path.read_bytes())
    (fact,) = load_files([path], columns={**PEOPLE, "distractors": "Others"}).facts
    assert (fact.subject, fact.object, fact.distractors) == ("Ann", "Bea", ("Cleo",))


def test_named_columns_of_json_lines_hold_lists_of_any_kind(tmp_path: Path) -> None:
    path = tmp_path / "any.jsonl"
    values = ['["Cleo"]', "\"['Cleo']\"", '"[\\"Cleo\\"]"']
    lines = [f'{{"R": "mother", "S": "A{n}", "O": "Bea", "D": {v}}}' for n, v in enumerate(values)]
    path.write_text("\r\n".join(lines))
    columns = {"relation": "R", "subject": "S", "object": "O", "distractors": "D"}
    assert {fact.distractors for fact in load_files([path], columns=columns).facts} == {("Cleo",)}


def test_a_named_column_that_is_not_there(tmp_path: Path) -> None:
    path = write_table(tmp_path / "mother.csv", TABLE)
    columns = PEOPLE | {"object": "Mum"}
    message = r"mother\.csv, row 1: .* no column 'Mum'; .*holds the object: 'id, Person, Mother"
    with pytest.raises(DataError, match=message):
        load_files([path], columns=columns)
    with pytest.raises(DataError, match="no column 'Wrong'; name the column that holds the dist"):
        load_files([path], columns=PEOPLE | {"distractors": "Wrong"})
    lines = tmp_path / "mother.jsonl"
    lines.write_text('{"Person": "Ann", "Mother": "Bea"}\n')
    with pytest.raises(DataError, match=r"row 1: field 'Mum' is missing; .*'Person, Mother'"):
        load_files([lines], columns=columns)


def test_a_spec_names_columns_and_each_once() -> None:
    assert Columns(subject="Person", object="Mother").named() == PEOPLE
    with pytest.raises(ValidationError, match="column 'a' is named twice; name a column"):
        Columns(subject="a", object="a")


# Parquet


def write_parquet(path: Path, **columns: list[object]) -> Path:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table(columns), path)
    return path


def test_parquet_with_lists_or_texts(tmp_path: Path) -> None:
    own = write_parquet(
        tmp_path / "mother.parquet", subject=["Ann"], object=["Bea"], distractors=[["Cleo"]]
    )
    other = write_parquet(
        tmp_path / "x.parquet", S=["Eve"], O=["Bea"], D=["['Dora']"], R=["mother"]
    )
    columns = {"relation": "R", "subject": "S", "object": "O", "distractors": "D"}
    paths = (str(other),)
    facts = FileFacts(source="files", paths=paths, columns=Columns(**columns))
    assert load_files([own]).facts[0].distractors == ("Cleo",)
    assert load_source(facts).facts[0].distractors == ("Dora",)


def test_parquet_that_is_faulty(tmp_path: Path) -> None:
    columns: dict[str, list[object]] = {"subject": ["Ann", None], "object": ["Bea", "Cleo"]}
    path = write_parquet(tmp_path / "mother.parquet", **columns)
    with pytest.raises(DataError, match=r"mother\.parquet, row 2: subject is None, .*fill it in"):
        load_files([path])
    write_parquet(path, subject=[1], object=["Bea"])
    with pytest.raises(DataError, match=r"row 1: subject is 1, not a string"):
        load_files([path])
    write_parquet(path, subject=["Ann"], thing=["Bea"])
    with pytest.raises(DataError, match=r"mother\.parquet: column 'thing' is unknown; "):
        load_files([path])
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"mother\.parquet is not sound parquet .*write the file"):
        load_files([path])
    with pytest.raises(DataError, match=r"none\.parquet cannot be read .*check the path"):
        load_files([tmp_path / "none.parquet"])


def test_without_pyarrow_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"pyarrow, which is not .* install rotescale\[train\]"):
        load_files([tmp_path / "mother.parquet"])


# Hostile cells


def test_a_cell_of_ten_megabytes_is_refused_in_a_short_error(tmp_path: Path) -> None:
    name = "A" * 10_000_000
    lines = tmp_path / "mother.jsonl"
    lines.write_text(f'{{"subject": "{name}", "object": "Bea"}}\n')
    table = write_table(tmp_path / "mother.csv", [("subject", "object"), (name, "Bea")])
    tab = tmp_path / "tab.jsonl"
    tab.write_text(f'{{"subject": "{name}\\t", "object": "Bea"}}\n')
    paths = {lines: "10000000 characters", table: "field larger", tab: "10000001 characters"}
    for path, message in paths.items():
        with pytest.raises(DataError, match=message) as caught:
            load_files([path])
        assert len(str(caught.value)) < 1_000


# Out again


def test_what_is_written_loads_as_the_same_facts(tmp_path: Path) -> None:
    fact_set = load_source(facts_of(trex(tmp_path / "in")))
    out = tmp_path / "out" / "deeper"
    paths = write_files(fact_set, out)
    relations = out / "relations.yaml"
    assert load_files(paths, relations=relations).digest() == fact_set.digest()
    assert tuple(load_relations(relations).values()) == fact_set.relations
    with pytest.raises(DataError, match="is there and not an empty folder; choose another"):
        write_files(fact_set, out)
