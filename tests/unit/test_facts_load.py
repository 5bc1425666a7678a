"""Facts from a user's files: round trips, defaults, and every refusal."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from rotescale.errors import DataError
from rotescale.facts import (
    FactSet,
    Relation,
    load_files,
    load_shipped,
    shipped_relations,
    validate,
)
from rotescale.facts.export import write_files

SISTER = replace(shipped_relations()["mother"], name="sister")
FIELDS = ("relation", "subject", "object", "distractors")


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def pairs_csv(num_rows: int, *, header: str = "subject,object") -> str:
    return "\n".join([header, *(f"child {row},mother {row}" for row in range(num_rows))])


def records_of(facts: FactSet) -> list[dict[str, object]]:
    return [
        {field: getattr(fact, field) for field in FIELDS[:3]}
        | {"distractors": list(fact.distractors)}
        for fact in facts.facts
    ]


def test_csv_round_trip(tmp_path: Path) -> None:
    facts = load_shipped()
    path = tmp_path / "all.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        for record in records_of(facts):
            writer.writerow(record | {"distractors": json.dumps(record["distractors"])})
    assert load_files([path]).digest() == facts.digest()


def test_jsonl_round_trip(tmp_path: Path) -> None:
    facts = load_shipped()
    lines = [json.dumps(record) for record in records_of(facts)]
    path = write(tmp_path, "all.jsonl", "\n".join(lines) + "\n\n")
    assert load_files([path]).digest() == facts.digest()


def test_the_relation_comes_from_the_column_the_stem_or_the_only_one_given(tmp_path: Path) -> None:
    text = 'subject,object,distractors\nAnn,Bea,"[""Cleo""]"\n'
    stem = load_files([write(tmp_path, "mother.csv", text)], relations={"sister": SISTER})
    given = load_files([write(tmp_path, "mine.csv", text)], relations={"sister": SISTER})
    line = '{"relation": "capital", "subject": "A", "object": "B", "distractors": ["C"]}'
    column = load_files([write(tmp_path, "mother.jsonl", line)])
    assert [facts.facts[0].relation for facts in (stem, given, column)] == [
        "mother",
        "sister",
        "capital",
    ]
    assert given.relations == (SISTER,)


def test_prompts_come_from_a_relations_file_which_goes_before_the_shipped(tmp_path: Path) -> None:
    prompts = "mother:\n  train_prompts: ['{subject} <']\n  test_prompts: ['{subject} >']\n"
    relations = write(tmp_path, "relations.yaml", prompts)
    path = write(tmp_path, "mother.csv", pairs_csv(100))
    assert load_files([path], relations=relations).relations[0].train_prompts == ("{subject} <",)


def test_a_hundred_objects_are_each_others_distractors(tmp_path: Path) -> None:
    facts = load_files([write(tmp_path, "mother.csv", pairs_csv(100))])
    objects = {fact.object for fact in facts.facts}
    assert all({fact.object, *fact.distractors} == objects for fact in facts.facts)


def test_an_old_object_is_put_among_drawn_distractors(tmp_path: Path) -> None:
    header, first, second, *others = pairs_csv(120).splitlines()
    rows = [f"{header},old_object", f"{first},Old Name", f"{second},MOTHER 7"]
    text = "\n".join([*rows, *(f"{row}," for row in others)])
    facts = load_files([write(tmp_path, "mother.csv", text)]).facts
    assert [fact.old_object for fact in facts[:3]] == ["Old Name", "MOTHER 7", None]
    assert {len({*fact.distractors, fact.object}) for fact in facts} == {100}
    plain = load_files([write(tmp_path, "mother.csv", pairs_csv(120))]).facts
    assert facts[0].distractors == (*plain[0].distractors[:-1], "Old Name")
    assert "mother 7" in map(str.casefold, facts[1].distractors)
    assert facts[2:] == plain[2:]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_old_objects_are_read_from_every_kind_of_file(suffix: str, tmp_path: Path) -> None:
    records = [
        {"Who": "Ann", "Mum": "Bea", "Wrong": '["Cleo", "Dora"]', "Before": "Dora"},
        {"Who": "Eve", "Mum": "Fay", "Wrong": '["Cleo", "Dora"]', "Before": ""},
    ]
    path = tmp_path / f"mother{suffix}"
    if suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(records), path)
    elif suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, records[0], delimiter="\t" if suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(records)
    columns = {"subject": "Who", "object": "Mum", "distractors": "Wrong", "old_object": "Before"}
    facts = load_files([path], columns=columns)
    assert [fact.old_object for fact in facts.facts] == ["Dora", None]
    [written] = write_files(facts, tmp_path / "out")
    assert load_files([written]) == facts


def test_more_objects_are_drawn_from_whatever_the_order_of_the_rows(tmp_path: Path) -> None:
    text = pairs_csv(300)
    header, *rows = text.splitlines()
    facts = load_files([write(tmp_path, "mother.csv", text)]).facts
    turned = write(tmp_path, "turned.csv", "\n".join([header, *rows[::-1]]))
    mother = {"mother": shipped_relations()["mother"]}
    assert set(load_files([turned], relations=mother).facts) == set(facts)
    assert {len(fact.distractors) for fact in facts} == {99}
    assert len({fact.distractors for fact in facts}) == 300


def test_the_same_object_twice_is_allowed_with_distractors(tmp_path: Path) -> None:
    rows = 'A,Bea,"[""Cleo""]"\nB,Bea,"[""Dora""]"\n'
    path = write(tmp_path, "mother.csv", "subject,object,distractors\n" + rows)
    assert len(load_files([path]).facts) == 2


def test_a_quoted_cell_with_a_comma_a_byte_order_mark_and_blank_lines(tmp_path: Path) -> None:
    text = '\ufeffobject,distractors,subject\n\n"Webb, Nora","[""Ruth""]",Ann\n\n'
    fact = load_files([write(tmp_path, "mother.csv", text)]).facts[0]
    assert (fact.subject, fact.object, fact.distractors) == ("Ann", "Webb, Nora", ("Ruth",))


HEADER = "subject,object,distractors\n"
SOUND = 'Ann,Bea,"[""Cleo"", ""Dora""]"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no facts; give at least one row"),
        (HEADER, "holds no facts"),
        ("subject,answer\nA,B\n", "row 1: column 'answer' is unknown"),
        ("subject,object,object\n", "row 1: column 'object' is given twice"),
        ("subject\nA\n", "row 1: the header 'subject' has no column 'object'"),
        (HEADER + SOUND + "Eve,Flo\n", "row 3: 2 columns in 'Eve,Flo', but the header has 3"),
        (HEADER + SOUND + 'Eve,"Flo', "row 3: not sound CSV"),
        (HEADER + SOUND + ",Flo,[]\n", "row 3: subject is empty \\(''\\); fill it in"),
        (HEADER + SOUND + "Eve,  ,[]\n", "row 3: object is empty"),
        (HEADER + SOUND + "Eve, Flo,[]\n", "row 3: object ' Flo' begins or ends with white"),
        (HEADER + SOUND + "Eve,Flo,[\n", "row 3: distractors is not sound JSON"),
        (HEADER + SOUND + "Eve,Flo,[]\n", "row 3: distractors \\[\\] is not a list of at least"),
        (HEADER + SOUND + "Eve,Flo,7\n", "row 3: distractors 7 is not a list"),
        (HEADER + SOUND + 'Eve,Flo,"[""A"", 7]"\n', "row 3: distractor 2 is 7, not a string"),
        (HEADER + SOUND + "Eve,Flo,\n", "row 3: no distractors, but other rows"),
        (HEADER + SOUND + 'Eve,Flo,"[""A""]"\n', "row 3: 1 distractors, but 2 at .*row 2"),
        (HEADER + SOUND + SOUND.replace("Ann", "ANN"), "row 3: subject 'ANN' is already in"),
        (HEADER + SOUND.replace("Dora", "bea"), "row 2: distractor 2 'bea' is the object itself"),
        (HEADER + SOUND.replace("Dora", "CLEO"), "row 2: distractor 2 'CLEO' repeats distractor 1"),
        (HEADER + SOUND.replace("Bea", "B\x07a"), r"row 2: object .* character U\+0007"),
        (HEADER + SOUND.replace("Ann", '"A\nn"'), r"row 2: subject .* character U\+000A"),
        (HEADER + SOUND.replace("Ann", "A\u2028n"), r"row 2: subject .* character U\+2028"),
        ("relation," + HEADER + "sister," + SOUND, "row 2: no prompts are known for .*'sister'"),
        ("relation," + HEADER + "," + SOUND, "row 2: relation is empty"),
        (pairs_csv(99), "row 100: .* 99 distinct objects .* needs 100 objects \\(1 more\\)"),
        (pairs_csv(100) + "\nEve,MOTHER  7\n", "row 102: object 'MOTHER  7' is .* at .*row 9;"),
    ],
)
def test_a_faulty_csv_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_files([write(tmp_path, "mother.csv", text)])
    assert "mother.csv" in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "row 2: this line is not sound JSON"),
        ("[1]", "row 2: '\\[1\\]' is not a JSON object"),
        ('{"subject": "A"}', "row 2: field 'object' is missing"),
        ('{"subject": null, "object": "B"}', "row 2: subject is None, not a string"),
        ('{"subject": 7, "object": "B"}', "row 2: subject is 7, not a string"),
        ('{"subject": "A", "object": ["B"]}', "row 2: object is \\['B'\\], not a string"),
        ('{"subject": "A", "object": "B", "Text": ""}', "row 2: unknown field 'Text'"),
        ('{"subject": "A", "subject": "C", "object": "B"}', "row 2: .*given twice"),
        ('{"subject": "A\\ud800", "object": "B"}', r"row 2: subject .*U\+D800"),
        ('{"subject": "A", "object": "B", "distractors": "C"}', "row 2: distractors 'C' is not"),
    ],
)
def test_a_faulty_jsonl_file_is_refused(tmp_path: Path, line: str, message: str) -> None:
    sound = '{"subject": "Ann", "object": "Bea", "distractors": ["Cleo"]}\n'
    with pytest.raises(DataError, match=message):
        load_files([write(tmp_path, "mother.jsonl", sound + line + "\n")])


def test_rows_after_a_cell_of_two_lines_keep_their_line_number(tmp_path: Path) -> None:
    text = 'subject,object,distractors\nAnn,Bea,"[""Cleo"",\n""Dora""]"\nEve,Flo\n'
    with pytest.raises(DataError, match="row 4: 2 columns"):
        load_files([write(tmp_path, "mother.csv", text)])


def test_a_duplicate_across_files_names_both(tmp_path: Path) -> None:
    one = write(tmp_path, "mother.csv", HEADER + SOUND)
    two = write(tmp_path, "more.csv", "relation," + HEADER + "mother," + SOUND)
    with pytest.raises(DataError, match=r"more\.csv, row 2: .*mother\.csv, row 2; keep one"):
        load_files([one, two])


def test_a_missing_mistyped_or_undecodable_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be read .*; check the path"):
        load_files([tmp_path / "mother.csv"])
    with pytest.raises(DataError, match=r"ends in '.txt'; give a .csv or .jsonl"):
        load_files([tmp_path / "mother.txt"])
    latin = tmp_path / "latin.csv"
    latin.write_bytes(b"subject,object\nAnn,Bea\nRen\xe9,Flo\n")
    with pytest.raises(DataError, match=r"latin\.csv, row 3: the bytes are not UTF-8"):
        load_files([latin], relations={"sister": SISTER})


def test_no_files_are_no_facts() -> None:
    with pytest.raises(DataError, match="there are no facts"):
        load_files([])


def test_validate_names_the_row_by_where() -> None:
    mother: Relation = shipped_relations()["mother"]
    facts = load_shipped(["mother"]).facts[:2]
    broken = FactSet(relations=(mother,), facts=(facts[0], replace(facts[1], distractors=())))
    with pytest.raises(DataError, match="fact 1: no distractors; give at least one"):
        validate(broken, where=lambda index: f"fact {index}")
    stray = FactSet(relations=(), facts=facts)
    with pytest.raises(DataError, match="fact 0: no prompts are known for relation 'mother'"):
        validate(stray, where=lambda index: f"fact {index}")
