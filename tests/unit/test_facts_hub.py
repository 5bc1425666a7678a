"""Facts from Hugging Face datasets, read from folders and files: no test reaches the hub."""

from __future__ import annotations

from pathlib import Path

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from rotescale.errors import DataError
from rotescale.facts import load_source
from rotescale.facts.examine import examine
from rotescale.spec import DatasetFacts

COLUMNS = {"subject": "Person", "object": "Mother", "distractors": "Others"}


def facts_of(dataset: Path | str, **values: object) -> DatasetFacts:
    return DatasetFacts.model_validate({"source": "dataset", "dataset": str(dataset), **values})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of two splits, as a repository of the hub has them."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    data = tmp_path / "people"
    data.mkdir()
    table = {"id": [1, 2], "Person": ["Ann", "Eve"], "Mother": ["Bea", "Flo"]}
    train = table | {"Others": [["Cleo", "Dora"], ["Bea", "Gil"]]}
    test = table | {"Others": [["Cleo"], ["Bea"]]}
    parquet.write_table(pyarrow.table(train), data / "train-00000-of-00001.parquet")
    parquet.write_table(pyarrow.table(test), data / "test-00000-of-00001.parquet")
    return data


def test_a_split_of_a_folder(folder: Path) -> None:
    fact_set = load_source(facts_of(folder, columns=COLUMNS, relation="mother"))
    assert [(f.relation, f.subject, f.object, f.distractors) for f in fact_set.facts] == [
        ("mother", "Ann", "Bea", ("Cleo", "Dora")),
        ("mother", "Eve", "Flo", ("Bea", "Gil")),
    ]
    facts = facts_of(folder, columns=COLUMNS, relation="mother", split="test")
    assert load_source(facts).facts[0].distractors == ("Cleo",)


def test_one_file_and_a_column_of_relations(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "all.csv"
    path.write_text('subject,object,relation,distractors\nAnn,Bea,mother,"[""Cleo""]"\n')
    assert load_source(facts_of(path)).facts[0].distractors == ("Cleo",)
    train = folder / "train-00000-of-00001.parquet"
    fact_set = load_source(facts_of(train, columns=COLUMNS, relation="mother"))
    assert len(fact_set.facts) == 2


def test_the_only_relation_of_a_relations_file_is_that_of_all_rows(
    folder: Path, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.yaml"
    prompts.write_text("mum: {train_prompts: ['Of {subject}?'], test_prompts: ['{subject}:']}")
    fact_set = load_source(facts_of(folder, columns=COLUMNS, relations_file=str(prompts)))
    assert {fact.relation for fact in fact_set.facts} == {"mum"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"columns": COLUMNS}, "no column holds the relation; name the one relation"),
        ({"columns": COLUMNS, "relation": "sister"}, "row 1: no prompts are known .*'sister'"),
        (
            {"columns": COLUMNS | {"object": "Mum"}, "relation": "mother"},
            "people, split train: .* no column 'Mum'; name the column that holds the object: 'id,",
        ),
        ({"relation": "mother"}, "column 'id' is unknown; .*say which is which"),
        ({"split": "none"}, "split none: cannot be read .*none.*check dataset, config, split"),
        ({"config": "none"}, "cannot be read .*check dataset, config, split"),
    ],
)
def test_what_a_folder_does_not_hold(values: dict[str, object], message: str, folder: Path) -> None:
    with pytest.raises(DataError, match=message):
        load_source(facts_of(folder, **values))


def test_faulty_rows_are_named_by_dataset_split_and_number(folder: Path) -> None:
    table = {"Person": ["Ann", None, "Ann"], "Mother": ["Bea", "Flo", "Gil"]}
    table |= {"Others": ["['Cleo']", "['Cleo']", "__import__('os').getcwd()"]}
    parquet.write_table(pyarrow.table(table), folder / "train-00000-of-00001.parquet")
    facts = facts_of(folder, columns=COLUMNS, relation="mother")
    place = f"dataset {folder}, split train"
    with pytest.raises(DataError, match=rf"{place}, row 2: subject \('Person'\) is None"):
        load_source(facts)
    found = [(p.place.row, p.kind.value) for p in examine(facts).problems]
    assert found == [(1, "not 99 distractors"), (2, "empty cell"), (3, "bad list")]


def test_a_split_of_other_types_than_the_first(folder: Path) -> None:
    table = {"id": [1], "Person": ["Ann"], "Mother": ["Bea"], "Others": ["['Cleo']"]}
    parquet.write_table(pyarrow.table(table), folder / "test-00000-of-00001.parquet")
    facts = facts_of(folder, columns=COLUMNS, relation="mother", split="test")
    with pytest.raises(DataError, match=r"split test: cannot be read .*cast array of type"):
        load_source(facts)


def test_without_a_network_the_error_says_so(folder: Path) -> None:
    with pytest.raises(
        DataError, match=r"nobody/nothing, .*the hub cannot be reached .*connect to"
    ):
        load_source(facts_of("nobody/nothing"))


def test_what_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be read .*find any data file.*check dataset"):
        load_source(facts_of(tmp_path / "none" / "there"))
    notes = tmp_path / "notes.txt"
    notes.write_text("no table")
    with pytest.raises(DataError, match=r"'.txt' is none of .parquet, .csv, .jsonl"):
        load_source(facts_of(notes))
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"broken\.parquet, split train: cannot be read"):
        load_source(facts_of(broken))
