"""The harness's tasks: what is refused, and the harness's own model as the reference."""

from __future__ import annotations

import json
import random
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from harness_helpers import DOCUMENTS, TASKS, asker_of, skip_without_harness, write_tasks
from known_models import KnownModel
from shipped_tasks import paragraphs, shipped_files
from test_evaluation_scoring import TOKENIZERS, micro_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rotescale.errors import DataError, SpecError
from rotescale.evaluation.harness.benchmarks import Benchmarks
from rotescale.evaluation.harness.results import Measured, rows_of
from rotescale.evaluation.harness.tasks import SHIPPED, check_tasks
from rotescale.evaluation.metrics import Outcome, ResultRow, paired_difference
from rotescale.spec import EvaluationSpec

SHIPPED_TASKS = ("rotescale_continuation", "rotescale_last_word")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"))


def spec_of(*names: str, folder: Path | None = None, limit: int | None = None) -> EvaluationSpec:
    place = None if folder is None else str(folder)
    return EvaluationSpec(harness_tasks=names, harness_folder=place, harness_limit=limit)


def rows(found: Measured) -> dict[tuple[str, str], ResultRow]:
    made = rows_of(found, stage="base", epoch=None, seed=0, bootstrap_samples=200)
    return {(row.relation, row.metric): row for row in made}


def test_shipped_documents_are_made_of_the_shipped_texts() -> None:
    for path, text in shipped_files().items():
        assert path.read_text(encoding="utf-8") == text
        for line in text.splitlines():
            document = json.loads(line)
            whole = [" ".join(words) for words in paragraphs(document["text"])]
            if "word" in document:
                assert any(
                    one.endswith(f"{document['context']} {document['word']}.") for one in whole
                )
                continue
            assert len(set(document["choices"])) == 4
            follow = [
                any(one.startswith(f"{document['context']} {choice}") for one in whole)
                for choice in document["choices"]
            ]
            assert [place for place, is_true in enumerate(follow) if is_true] == [document["gold"]]


def test_without_the_package_its_tasks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rotescale.evaluation.harness.tasks.find_spec", lambda name: None)
    with pytest.raises(SpecError, match=r"arc_easy .* lm-eval is not installed; pip install"):
        check_tasks(spec_of("arc_easy"), allow_code=True)
    check_tasks(spec_of(), allow_code=False)


def code_in(folder: Path) -> tuple[Path, dict[str, Path]]:
    """A folder whose tasks run code in three ways, and the file that each of them would write."""
    marks = {name: folder / f"{name}-was-run" for name in ("python", "template", "metric")}
    place = folder / "tasks"
    place.mkdir()
    for name in ("python", "metric"):
        (place / f"own_{name}.py").write_text(
            f"open({str(marks[name])!r}, 'w').close()\ndef load(**_): return {{}}\n"
        )
    (place / "python.yaml").write_text(
        "task: python\ncustom_dataset: !function own_python.load\ntest_split: test\n"
    )
    (place / "metric.yaml").write_text(
        "task: metric\nmetric_list:\n  - {metric: !function own_metric.load}\n"
    )
    opens = "cycler.__init__.__globals__.os.mknod"
    write_tasks(
        place,
        template=TASKS["own_word"] | {"doc_to_text": f"{{{{{opens}('{marks['template']}')}}}}"},
    )
    return place, marks


@pytest.mark.parametrize("name", ["python", "template", "metric"])
def test_no_code_of_a_folder_is_run_unless_it_is_allowed(name: str, tmp_path: Path) -> None:
    skip_without_harness()
    place, marks = code_in(tmp_path)
    spec = spec_of(name, folder=place)
    for ask in (check_tasks, partial(Benchmarks.load, rank=0)):
        with pytest.raises(SpecError, match="allow_task_code: true in the launch spec"):
            ask(spec, allow_code=False)
    assert not [mark for mark in marks.values() if mark.exists()]
    # Allowed, it does run: what was refused above was no harmless file.
    with suppress(DataError):
        check_tasks(spec, allow_code=True)
    assert marks[name].exists()


def test_what_is_shipped_needs_no_leave() -> None:
    skip_without_harness()
    check_tasks(spec_of(*SHIPPED_TASKS), allow_code=False)


def test_unknown_names_are_refused(folder: Path) -> None:
    skip_without_harness()
    with pytest.raises(SpecError, match=r"'arc_eesy' is no task.* did you mean arc_easy"):
        check_tasks(spec_of("own_choice", "arc_eesy", folder=folder), allow_code=True)
    with pytest.raises(SpecError, match=r"no-such-folder is no folder"):
        check_tasks(spec_of("own_choice", folder=folder / "no-such-folder"), allow_code=True)
    with pytest.raises(ValueError, match=r"names a task twice"):
        spec_of("own_choice", "own_choice")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"dataset_kwargs": {"data_files": "/nowhere.jsonl"}},
            r"own_bad cannot be loaded \(Fi.*HF",
        ),
        ({"doc_to_text": "{{question | no_such_filter}}"}, "tasks: own_bad cannot be loaded"),
        ({"generation_kwargs": {"do_sample": True, "temperature": 1.0}}, "generation is greedy"),
        ({"generation_kwargs": {"num_beams": 4}}, "num_beams.*generation is greedy"),
        ({"unsafe_code": True}, "runs generated code"),
    ],
)
def test_tasks_that_cannot_be_asked_are_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    skip_without_harness()
    place = write_tasks(tmp_path, own_bad=TASKS["own_answer"] | change)
    with pytest.raises(DataError, match=message):
        check_tasks(spec_of("own_choice", "own_bad", folder=place), allow_code=True)


def test_what_can_be_asked_is_accepted(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    skip_without_harness()
    check_tasks(spec_of(*TASKS, *SHIPPED_TASKS, folder=folder), allow_code=True)
    assert "it/s" not in capfd.readouterr().err


@pytest.mark.parametrize("name", ["byte_level", "sentencepiece"])
def test_values_are_those_of_the_harness_with_its_own_model(name: str, folder: Path) -> None:
    skip_without_harness()
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    tokenizer = TOKENIZERS[name]
    # No rows that are no token: the harness counts them in.
    model = micro_model("llama").eval()
    model.resize_token_embeddings(len(tokenizer))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    tokenizer.pad_token = tokenizer.eos_token
    names = [*TASKS, *SHIPPED_TASKS]
    benchmarks = Benchmarks.load(spec_of(*names, folder=folder, limit=6), rank=0, allow_code=True)
    found = benchmarks.measure(asker_of(model, tokenizer), stage="base")
    assert found is not None
    reference = simple_evaluate(
        HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2, max_length=256),
        tasks=names,
        limit=6,
        task_manager=TaskManager(include_path=[SHIPPED, folder], include_defaults=False),
        bootstrap_iters=0,
    )
    ours = rows(found)
    assert {task for task, _ in ours} == set(names)
    for (task, metric), row in ours.items():
        assert row.value == pytest.approx(reference["results"][task][f"{metric},none"], rel=1e-4)
        assert row.count == 6
        assert row.low is not None
        assert row.low <= row.value <= row.high
    for one in found.scored:
        if one.metric == "perplexity":
            # Of each document its log-likelihood.
            theirs = [sample["perplexity"] for sample in reference["samples"][one.task]]
            assert one.parts == pytest.approx(theirs, abs=1e-4)
    said = [one.generated for one in found.outcomes() if one.relation == "own_answer"]
    assert said == [sample["filtered_resps"][0] for sample in reference["samples"]["own_answer"]]
    assert len(set(said)) > 1


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    """One token per word of the documents."""
    texts = [" ".join([d["question"], *d["options"]]) for d in DOCUMENTS]
    known = sorted({word for text in texts for word in text.split()})
    vocabulary = {"<end>": 0} | {word: place for place, word in enumerate(known, start=1)}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<end>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>")


class Knowing(KnownModel):
    """Knows the right option of some documents; of the others every token is as good."""

    config = SimpleNamespace(max_position_embeddings=64)

    def __init__(self, known: list[dict[str, Any]], tokenizer: Any) -> None:
        super().__init__(tokenizer)
        self._next: dict[tuple[int, ...], int] = {}
        for document in known:
            prompt = tokenizer(document["question"])["input_ids"]
            answer = tokenizer(document["options"][document["gold"]])["input_ids"]
            for place, token in enumerate(answer):
                self._next[(*prompt, *answer[:place])] = token

    def following(self, seen: tuple[int, ...]) -> int | None:
        return self._next.get(seen)


def measure(folder: Path, tokenizer: Any, *, known: int) -> Measured:
    benchmarks = Benchmarks.load(spec_of("own_choice", folder=folder), rank=0, allow_code=True)
    model = Knowing(list(DOCUMENTS[:known]), tokenizer)
    found = benchmarks.measure(asker_of(model, tokenizer), stage="base")
    assert found is not None
    assert model.training
    return found


def test_an_oracle_is_right_and_a_uniform_model_picks_the_first(folder: Path, words: Any) -> None:
    skip_without_harness()
    everything = rows(measure(folder, words, known=len(DOCUMENTS)))
    assert everything["own_choice", "acc"].value == 1.0
    assert everything["own_choice", "acc"].high == 1.0
    nothing = rows(measure(folder, words, known=0))
    # All options have two words, and the harness takes the first of equals.
    firsts = sum(document["gold"] == 0 for document in DOCUMENTS) / len(DOCUMENTS)
    assert nothing["own_choice", "acc"].value == pytest.approx(firsts)


def test_stages_are_paired_by_document(folder: Path, words: Any) -> None:
    skip_without_harness()
    before = measure(folder, words, known=0).outcomes()
    after = measure(folder, words, known=len(DOCUMENTS)).outcomes()
    assert [Outcome.from_json(json.loads(json.dumps(o.to_json()))) for o in after] == after
    value, low, high = paired_difference(before, after, metric="acc", seed=0)
    assert value == pytest.approx(4 / 7)
    assert low < value < high


def test_every_stage_gets_the_same_examples_and_draws_nothing(folder: Path, words: Any) -> None:
    skip_without_harness()
    state = random.getstate()
    spec = spec_of("own_choice_with_examples", folder=folder)
    benchmarks = Benchmarks.load(spec, rank=0, allow_code=True)
    asked = []
    for _ in range(2):
        benchmarks.measure(asker_of(Knowing([], words), words), stage="base")
        assert benchmarks.tasks is not None
        task = benchmarks.tasks["tasks"]["own_choice_with_examples"]
        asked.append([instance.args for instance in task.instances])
    assert asked[0] == asked[1]
    assert all(context.count("?") == 3 for context, _ in asked[0])
    assert random.getstate() == state


def test_errors_of_a_task_are_told_from_those_of_the_engine(tmp_path: Path, words: Any) -> None:
    skip_without_harness()
    place = write_tasks(tmp_path)
    (place / "failing.py").write_text("def score(document, results):\n    return 1 / 0\n")
    text = (place / "own_choice.yaml").read_text().replace("own_choice", "own_failing")
    (place / "own_failing.yaml").write_text(text + "process_results: !function failing.score\n")
    benchmarks = Benchmarks.load(spec_of("own_failing", folder=place), rank=0, allow_code=True)
    model = Knowing([], words)
    with pytest.raises(DataError, match=r"own_failing fails \(ZeroDivisionError"):
        benchmarks.measure(asker_of(model, words), stage="base")
    assert model.training

    def lost(mine: Any) -> list[Any]:
        raise RuntimeError("a peer is gone")

    with pytest.raises(RuntimeError, match="a peer is gone"):
        benchmarks.measure(asker_of(model, words, gather=lost), stage="base")


def test_groups_have_the_value_of_the_harness(tmp_path: Path, words: Any) -> None:
    skip_without_harness()
    place = write_tasks(tmp_path)
    (place / "own_group.yaml").write_text(
        "group: own_group\ntask: [own_choice, own_choice_with_examples]\n"
        "aggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
    )
    benchmarks = Benchmarks.load(spec_of("own_group", folder=place), rank=0, allow_code=True)
    found = benchmarks.measure(asker_of(Knowing([], words), words), stage="base")
    assert found is not None
    made = rows(found)
    group = made["own_group", "acc"]
    of_tasks = [made[task, "acc"].value for task in ("own_choice", "own_choice_with_examples")]
    assert group.value == pytest.approx(sum(of_tasks) / 2)
    assert (group.count, group.low, group.high) == (14, None, None)
