"""Measures any Hugging Face model folder on facts, without training."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM

from rotescale.data.examples import memorized_facts, trained_facts
from rotescale.errors import DataError, SpecError
from rotescale.evaluation.budget import pass_budget
from rotescale.evaluation.conflict import beliefs, with_believed
from rotescale.evaluation.harness.benchmarks import Benchmarks
from rotescale.evaluation.harness.requests import Asker
from rotescale.evaluation.harness.results import rows_of
from rotescale.evaluation.items import CORE, Item
from rotescale.evaluation.metrics import Outcome, summarise
from rotescale.evaluation.outcome_file import read_outcomes
from rotescale.evaluation.runner import Share, evaluate
from rotescale.evaluation.scoring import forward_of
from rotescale.evaluation.suites import all_items
from rotescale.facts import FactSet, Wording, load_shipped
from rotescale.facts.saved import load_saved
from rotescale.local_copy import local_model
from rotescale.model.folder import check_folder, load_tokenizer
from rotescale.model.key_tokens import key_prompt, key_token_texts
from rotescale.model.prepare import EXPORT_FILE, exported_wording
from rotescale.records import EvaluationRow
from rotescale.run_dir import RunDir
from rotescale.spec import (
    EngineSpec,
    EvaluationSpec,
    ExperimentSpec,
    KeyTokenSpec,
    PhaseSpec,
    full_sample,
)
from rotescale.spec_file import load_spec, overridden_spec, parse_spec
from rotescale.storage import StoragePath

_OF_RUNS = ("base", "phases", "representation_facts", "representation_dtype")
STAGE = "model"
"""The stage's name in the rows: the folder as it is."""


def folder_wording(folder: Path, fact_set: FactSet, *, key_token: str | None) -> Wording:
    """What the folder's own export says, unless ``key_token``, a template, is given.

    With a template, or where rotescale has not written the folder, relations whose key token the
    tokenizer knows as one token have a key prompt.
    """
    recorded = exported_wording(folder)
    if recorded is not None and key_token is None:
        return recorded
    vocabulary = load_tokenizer(folder).get_added_vocab()
    spec = KeyTokenSpec() if key_token is None else KeyTokenSpec(template=key_token)
    texts = key_token_texts([relation.name for relation in fact_set.relations], spec)
    return Wording(
        {
            name: key_prompt(own, place=spec.place)
            for name, own in texts.items()
            if all(text in vocabulary for text in own)
        }
    )


@dataclass(frozen=True)
class Questions:
    """What a model folder is asked about: facts, those told in training, and the sample."""

    fact_set: FactSet
    trained: Collection[int]
    """Places of the facts that the folder's run told with prompts."""
    asked: Collection[int] | None
    """Places of the facts to ask about; None: all."""
    spec: EvaluationSpec
    seed: int
    key_token: str | None
    """A template of the relations' key tokens; None: what the folder's export says."""
    phases: tuple[PhaseSpec, ...] = ()
    """Of the folder's run, where its own questions are asked."""
    believed: Mapping[int, bool] | None = None
    """Which facts the run found its untrained model to hold, by place; None: not known."""


def choose_questions(
    folder: StoragePath,
    *,
    facts: FactSet | None,
    relations: tuple[str, ...],
    key_token: str | None,
    seed: int,
    full: bool,
) -> Questions:
    """The given facts, or the named shipped relations', or those of the folder's own run.

    A folder inside a run keeps the run's split into trained and held-out facts in all three cases;
    elsewhere every fact counts as held out. Raises SpecError where nothing says which facts.
    """
    run_dir = RunDir(folder.absolute().parent.parent)
    of_run = run_dir.facts_json.exists()
    spec = EvaluationSpec()
    asked: Collection[int] | None = None
    phases: tuple[PhaseSpec, ...] = ()
    believed: Mapping[int, bool] | None = None
    if facts is not None:
        fact_set = facts.only(list(relations)) if relations else facts
    elif relations:
        fact_set = load_shipped(list(relations))
    elif of_run:
        run_spec = load_spec(ExperimentSpec, run_dir.spec_json)
        fact_set = load_saved(run_dir.facts_json)
        asked = memorized_facts(fact_set, run_spec.phases, seed=run_spec.seed)
        seed, spec, phases = run_spec.seed, run_spec.evaluation, run_spec.phases
        believed = _beliefs_in(run_dir) if spec.conflict_facts else None
    elif isinstance(folder, Path) and not folder.exists():
        raise SpecError(f"{folder}: no such folder; give one that holds a Hugging Face model")
    else:
        raise SpecError(f"{folder}: of no run; say --facts FILE or --relation NAME")
    return Questions(
        fact_set=fact_set,
        trained=_trained_in(run_dir, fact_set) if of_run else frozenset(),
        asked=asked,
        spec=full_sample(spec) if full else spec,
        seed=seed,
        key_token=key_token,
        phases=phases,
        believed=believed,
    )


def with_languages(questions: Questions, languages: Sequence[str]) -> Questions:
    """The same questions in more languages; SpecError for what is no language code."""
    return _with_more(questions, "languages", languages, where="--language")


def with_tasks(questions: Questions, tasks: Sequence[str]) -> Questions:
    """The same questions and tasks of the lm-evaluation-harness; SpecError for bad names."""
    return _with_more(questions, "harness_tasks", tasks, where="--task")


def with_overrides(questions: Questions, overrides: Sequence[str]) -> Questions:
    """The same questions with fields of the evaluation set.

    Raises SpecError for what it does not have, what is for runs alone, and for conflicts about more
    facts than are known of the untrained model.
    """
    for override in overrides:
        field = override.partition("=")[0].strip()
        if field in _OF_RUNS:
            raise SpecError(f"--set {field}: it is about the stages of a run, not a folder")
        if field == "conflict_facts" and questions.believed is not None:
            raise SpecError(
                "--set conflict_facts: what the run's untrained model believes was measured for "
                "its own conflict_facts; leave it as it is, or give the facts with --facts"
            )
    raw = questions.spec.model_dump()
    return replace(questions, spec=overridden_spec(EvaluationSpec, raw, overrides, where="--set"))


def _with_more(questions: Questions, field: str, more: Sequence[str], *, where: str) -> Questions:
    """The questions with a field of their spec made longer, by what it does not have yet."""
    raw = questions.spec.model_dump()
    raw[field] = list(dict.fromkeys([*raw[field], *more]))
    return replace(questions, spec=parse_spec(EvaluationSpec, raw, where=where))


def _beliefs_in(run_dir: RunDir) -> dict[int, bool] | None:
    """What the run found its untrained model to hold; None where it has not measured it."""
    try:
        return beliefs(read_outcomes(run_dir.evaluation("base", None)))
    except FileNotFoundError:
        return None


def _trained_in(run_dir: RunDir, fact_set: FactSet) -> Collection[int]:
    """The places of those facts that the run told with prompts, whatever set they come in."""
    spec = load_spec(ExperimentSpec, run_dir.spec_json)
    of_run = load_saved(run_dir.facts_json)
    if fact_set == of_run:
        return trained_facts(of_run, spec.phases, seed=spec.seed)
    trained = trained_facts(of_run, spec.phases, seed=spec.seed)
    told = {
        relation.name: {
            of_run.pair(place)[0] for place in of_run.places(relation.name) if place in trained
        }
        for relation in of_run.relations
    }
    return frozenset(
        place
        for relation in fact_set.relations
        for place in fact_set.places(relation.name)
        if fact_set.pair(place)[0] in told.get(relation.name, ())
    )


def exported_folder(place: StoragePath) -> Path:
    """The model folder at ``place`` on this machine; DataError where no whole one lies there."""
    try:
        return local_model(place, complete=EXPORT_FILE)
    except FileNotFoundError:
        raise DataError(
            f"{place}: no {EXPORT_FILE}, so no whole model that rotescale has exported; wait for "
            "its export to end, or copy another model to a folder of this machine"
        ) from None


def folder_items(folder: Path, questions: Questions) -> tuple[Item, ...]:
    """The questions for a model folder; those with a key token only where it is known."""
    fact_set = questions.fact_set
    return all_items(
        fact_set,
        trained=questions.trained,
        asked=questions.asked,
        wording=folder_wording(folder, fact_set, key_token=questions.key_token),
        spec=questions.spec,
        seed=questions.seed,
        phases=questions.phases,
        tokenizer=load_tokenizer(folder),
    )


class Measured(NamedTuple):
    """What a model folder answered."""

    rows: tuple[EvaluationRow, ...]
    outcomes: tuple[Outcome, ...]
    """Of each question, a document of a benchmark included."""


def earlier_outcomes(path: Path, items: Sequence[Item]) -> list[Outcome]:
    """What another model answered to the same questions, from the file that was kept of it.

    Raises DataError where there is no such file, or it is about other questions.
    """
    try:
        found = read_outcomes(path)
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"{path}: no outcomes ({error}); give a file that `rotescale evaluate --outcomes` "
            "wrote, or a run's evaluations/STAGE.jsonl"
        ) from error
    asked = {item.key: item.options[item.gold] for item in items if item.suite == CORE}
    told = {outcome.key: outcome.gold for outcome in found if outcome.suite == CORE}
    # With the key token only models are asked that know it, so that kind may be missing.
    both = {key[3] for key in asked} & {key[3] for key in told}
    sides = [{key: gold for key, gold in one.items() if key[3] in both} for one in (asked, told)]
    if not both or sides[0] != sides[1]:
        raise DataError(
            f"{path}: is about other questions; ask both models with the same facts, seed and "
            "evaluation (a folder inside a run knows which facts were told, and splits them; copy "
            "it out of the run where the other one is in none)"
        )
    return [outcome for outcome in found if outcome.key in asked]


def evaluate_folder(
    folder: Path,
    items: tuple[Item, ...],
    *,
    spec: EvaluationSpec,
    seed: int,
    believed: Mapping[int, bool] | None = None,
    allow_code: bool = False,
    progress: Callable[[int], None],
) -> Measured:
    """Rows and outcomes of all items, asked of the model in ``folder`` in this process.

    ``believed`` says which facts an untrained model held, where that is known. ``allow_code`` lets
    tasks of ``spec.harness_folder`` be loaded. Raises DataError where the folder is no whole model,
    and SpecError as ``harness.tasks.load_tasks``.
    """
    check_folder(folder)
    benchmarks = None
    if spec.harness_tasks:
        benchmarks = Benchmarks.load(spec, rank=0, allow_code=allow_code)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = load_tokenizer(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").to(device)
    asked: dict[str, Any] = {
        "tokenizer": tokenizer,
        "num_tokens": max(tokenizer.get_vocab().values()) + 1,
        "gather": lambda answers: [answers],
        "all_done": bool,
        "token_budget": pass_budget(
            EngineSpec().row_tokens, on_gpu=device.type == "cuda", collective=False
        ),
    }
    with torch.inference_mode():
        forward = forward_of(model)
        outcomes = evaluate(
            forward,
            model,
            items,
            rank=0,
            world_size=1,
            collective=False,
            progress=progress,
            max_new_tokens=spec.max_new_tokens,
            **asked,
        )
        asker = Asker(forward, model, share=Share(0, 1, False), **asked)
        found = None if benchmarks is None else benchmarks.measure(asker, stage=STAGE)
    if believed is not None:
        outcomes = with_believed(outcomes, believed)
    how: dict[str, Any] = {
        "stage": STAGE,
        "epoch": None,
        "seed": seed,
        "bootstrap_samples": spec.bootstrap_samples,
    }
    rows = [*summarise(outcomes, **how), *(rows_of(found, **how) if found else ())]
    kept = (*outcomes, *(found.outcomes() if found else ()))
    return Measured(tuple(EvaluationRow(attempt=0, **asdict(row)) for row in rows), kept)
