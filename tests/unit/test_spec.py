"""A spec is read, overridden, refused with a remedy, digested by what matters, and saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from rotescale.errors import SpecError
from rotescale.launch_spec import LaunchSpec
from rotescale.spec import (
    CheckpointSpec,
    EngineSpec,
    EvaluationSpec,
    ExperimentSpec,
    ModelSpec,
    Part,
    RandomWeights,
    full_sample,
    results_fields,
)
from rotescale.spec_file import dump_json, load_spec, parse_spec, read_fields
from rotescale.study.spec import StudySpec

CONFIGS = Path(__file__).parents[2] / "configs"
MICRO = CONFIGS / "experiments" / "micro.yaml"


def micro(*overrides: str) -> ExperimentSpec:
    return load_spec(ExperimentSpec, MICRO, overrides)


def refused(*overrides: str) -> str:
    with pytest.raises(SpecError) as caught:
        micro(*overrides)
    return str(caught.value)


@pytest.mark.parametrize("path", sorted((CONFIGS / "experiments").glob("*")), ids=lambda p: p.name)
def test_every_shipped_experiment_parses(path: Path) -> None:
    spec = load_spec(ExperimentSpec, path)
    assert spec.name == path.stem, "the file is named after its experiment"


@pytest.mark.parametrize("path", sorted((CONFIGS / "launch").glob("*")), ids=lambda p: p.name)
def test_every_shipped_launch_spec_parses(path: Path) -> None:
    assert load_spec(LaunchSpec, path).name == path.stem


@pytest.mark.parametrize("path", sorted((CONFIGS / "experiments").glob("*")), ids=lambda p: p.name)
def test_the_resolved_spec_reads_back_as_itself(path: Path, tmp_path: Path) -> None:
    spec = load_spec(ExperimentSpec, path)
    saved = tmp_path / "spec.json"
    saved.write_text(dump_json(spec), encoding="utf-8")
    again = load_spec(ExperimentSpec, saved)
    assert again == spec
    assert again.digest() == spec.digest()
    assert dump_json(again) == dump_json(spec)


OPERATIONAL = [
    "model.attention=eager",
    "model.attention=auto",
    "model.activation_checkpointing=true",
    "engine.kind=eager",
    "engine.row_tokens=64",
    "engine.sub_group_size=1000",
    "engine.persistence_threshold=0",
    "engine.bucket_size=1000",
    "engine.gathered_parameters=1000",
    "engine.prefetch_size=1000",
    "engine.overlap_communication=true",
    "engine.fused_loss=true",
    "engine.offload_optimizer=cpu",
    "engine.offload_optimizer=nvme",
    "engine.evaluation_mode=sharded",
    "checkpoints={every_steps: 3, keep_last: 9}",
]


@pytest.mark.parametrize("override", OPERATIONAL)
def test_the_digest_leaves_out_what_changes_no_result(override: str) -> None:
    assert micro(override) != micro()
    assert micro(override).digest() == micro().digest()


def test_exactly_these_fields_are_operational() -> None:
    def operational(kind: type[BaseModel]) -> set[str]:
        return set(kind.model_fields) - set(results_fields(kind.model_construct(**blank(kind))))

    def blank(kind: type[BaseModel]) -> dict[str, Any]:
        return dict.fromkeys(kind.model_fields)

    named = {override.partition("=")[0] for override in OPERATIONAL}
    assert {f"engine.{name}" for name in operational(EngineSpec)} <= named
    assert {f"model.{name}" for name in operational(ModelSpec)} <= named
    assert operational(ExperimentSpec) == {"checkpoints"}
    assert named == {
        *(f"engine.{name}" for name in operational(EngineSpec)),
        *(f"model.{name}" for name in operational(ModelSpec)),
        "checkpoints",
    }
    assert operational(EvaluationSpec) == operational(CheckpointSpec) == set()


@pytest.mark.parametrize(
    "override",
    [
        "name=other",
        "seed=1",
        "model.weights.seed=1",
        "model.weights.architecture=phi-4",
        "model.key_tokens.noise_scale=0.2",
        "model.export_dtype=bfloat16",
        "model.frozen=['*.mlp.*']",
        "model.lora={}",
        "facts.relations=[mother, capital]",
        "facts={source: generated, relations: [mother]}",
        "facts={source: files, paths: [mother.csv], columns: {subject: Person, object: Mother}}",
        "facts={source: trex, path: folder, repair: true}",
        "facts={source: dataset, dataset: owner/name, relation: mother}",
        "phases.0.epochs=4",
        "phases.0.schedule_epochs=9",
        "phases.0.learning_rate=1e-4",
        "phases.0.freeze_key_tokens=true",
        "phases.1.num_prompts=2",
        "phases.1.evaluate_epochs=[1]",
        "phases.1.end_token=true",
        "engine.precision=bf16",
        "engine.gradient_dtype=bf16",
        "evaluation.held_out_facts=11",
        "evaluation.languages=[en, de]",
    ],
)
def test_the_digest_covers_what_changes_results(override: str) -> None:
    assert micro(override).digest() != micro().digest()


def test_the_digest_does_not_know_the_launch_spec_or_the_order_of_keys() -> None:
    raw = micro().model_dump()
    backwards = dict(reversed(raw.items()))
    assert ExperimentSpec.model_validate(backwards).digest() == micro().digest()
    assert not set(LaunchSpec.model_fields) - {"name"} & set(ExperimentSpec.model_fields)


def test_lists_are_overridden_by_index_and_by_name() -> None:
    by_index = micro("phases.1.epochs=7")
    assert by_index == micro("phases.generalize.epochs=7")
    assert [phase.epochs for phase in by_index.phases] == [3, 7]
    assert micro("facts.relations.0=capital").facts.relations == ("capital",)


def test_overrides_are_yaml_and_the_last_one_counts() -> None:
    spec = micro("seed=1", "seed=2", "phases.0.learning_rate=1e-5", "model.weights.num_layers=3")
    assert spec.seed == 2
    assert spec.phases[0].learning_rate == 1e-5
    assert isinstance(spec.model.weights, RandomWeights)
    assert spec.model.weights.num_layers == 3
    assert micro("phases.0.facts_per_relation=null").phases[0].facts_per_relation is None
    assert micro("checkpoints.every_steps=5").checkpoints.every_steps == 5


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed", "write it as field=value"),
        ("=1", "write it as field=value"),
        ("a..b=1", "write it as field=value"),
        ("phases.finetune.epochs=1", "no entry 'finetune'; lists are addressed by index"),
        ("phases.2.epochs=1", "no entry '2'; lists are addressed by index"),
        ("phases.memorize=1", "phases.0: Input should be a valid dictionary"),
        ("seed.deep=1", "seed is a value, not a section"),
        ("seed.very.deep=1", "no entry 'very'"),
        ("seed={a: 1, a: 2}", "the key 'a' stands twice"),
        ("seed=[1", "the value is not valid YAML"),
    ],
)
def test_an_override_that_leads_nowhere(override: str, words: str) -> None:
    assert words in refused(override)


def test_full_evaluation_samples_nothing() -> None:
    full = micro().full_evaluation().evaluation
    assert full.trained_facts is full.held_out_facts is full.key_token_facts is None
    assert full.train_prompts is full.test_prompts is full.unrelated_prompts is None
    assert full.control_facts is full.generation_facts is None
    assert (full.base, full.max_new_tokens) == (True, 8), "they sample nothing"
    assert full.representation_facts == 0, "off is no sample"
    some = EvaluationSpec(representation_facts=5, harness_folder="tasks", harness_limit=3)
    assert full_sample(some).representation_facts is None
    assert (full_sample(some).harness_folder, full_sample(some).harness_limit) == ("tasks", None)
    assert parse_spec(EvaluationSpec, full.model_dump(), where="here") == full


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("seeed=1", "seeed: unknown key; did you mean 'seed'?"),
        ("phases.0.epoch=1", "phases.0.epoch: unknown key; did you mean 'epochs'?"),
        ("engine.presicion=bf16", "engine.presicion: unknown key; did you mean 'precision'?"),
        ("model.weights.num_layer=1", "num_layer: unknown key; did you mean 'num_layers'?"),
        ("facts.relation=[mother]", "relation: unknown key; did you mean 'relations'?"),
        ("model.key_tokens.templat=x", "templat: unknown key; did you mean 'template'?"),
        ("model.zzz=1", "model.zzz: unknown key; known keys: activation_checkpointing, attention"),
    ],
)
def test_an_unknown_key_gets_a_hint(override: str, told: str) -> None:
    assert told in refused(override)


@pytest.mark.parametrize("kind", [ExperimentSpec, LaunchSpec, StudySpec])
@pytest.mark.parametrize(
    ("file", "own", "told"),
    [
        ("experiments/micro.yaml", ExperimentSpec, "an experiment (configs/experiments"),
        ("launch/local-1.yaml", LaunchSpec, "a launch spec (configs/launch"),
        ("studies/smollm2-quick.yaml", StudySpec, "a study (configs/studies"),
    ],
)
def test_a_file_of_another_kind_is_named_as_such(
    file: str, own: type[Part], told: str, kind: type[Part]
) -> None:
    path = CONFIGS / file
    if kind is own:
        assert load_spec(kind, path)
        return
    with pytest.raises(SpecError) as caught:
        load_spec(kind, path, ["phases.memorize.epochs=3", "num_workers=1"])
    assert f"{path}: this is {told}" in str(caught.value)
    assert "known keys" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_a_table_is_no_spec(suffix: str) -> None:
    with pytest.raises(SpecError, match=rf"facts.{suffix}: .*`rotescale inject` teaches it"):
        load_spec(ExperimentSpec, Path(f"facts.{suffix}"))


def test_a_value_in_a_lists_place_is_told_with_brackets() -> None:
    told = refused("evaluation.harness_tasks=arc_easy")
    assert "harness_tasks: a list is wanted; write it in brackets, [...] (got 'arc_easy')" in told


def test_the_hint_in_a_union_names_keys_of_the_chosen_kind_only() -> None:
    told = refused("model.weights={kind: folder, paht: here}")
    assert "paht: unknown key; did you mean 'path'?" in told
    told = refused("model.weights={kind: folder, path: here, revisoin: main}")
    assert "revisoin: unknown key; known keys: kind, path" in told


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("name=Upper Case", "name: String should match pattern"),
        ("phases.0.epochs=-1", "phases.0.epochs: Input should be greater than 0 (got -1)"),
        ("phases.0.epochs=many", "unable to parse string as an integer (got 'many')"),
        ("phases.0.learning_rate=.nan", "phases.0.learning_rate: Input should be"),
        ("phases.0.schedule_epochs=1", "schedule_epochs (1) must be at least epochs (3)"),
        ("phases.0.num_prompts=2", "num_prompts is for text: prompts"),
        ("phases.0.evaluate_epochs=[3]", "evaluate_epochs [3] must be below epochs (3)"),
        ("phases.0.epochs=null", "neither epochs nor token_budget says how long the phase is"),
        ("phases.0.token_budget=900", "epochs beside token_budget (900): the budget says how long"),
        (
            "phases.0={name: m, text: key_token, token_budget: 9, schedule_epochs: 2, "
            "evaluate_epochs: [1], global_batch: 1, learning_rate: 1}",
            "schedule_epochs, evaluate_epochs beside token_budget (9)",
        ),
        ("phases.1.name=memorize", "two phases share a name"),
        ("phases.1.name=base", "'base' names the untrained model"),
        ("phases=[]", "phases: Tuple should have at least 1 item"),
        ("model.key_tokens.count=2", "put {number} into it, such as '[X{number}:{relation}]'"),
        ("model.key_tokens.kind=word", "a word without meaning, such as 'blicket'"),
        (
            "model.key_tokens={kind: word, template: 'dax{number}', count: 2}",
            "count 2 is for kind: token, not word",
        ),
        (
            "model.key_tokens={start: relation, template: '[X]'}",
            "template '[X]' is shared by all",
        ),
        ("phases.0.stand_in={}", "stand_in is for text: prompts"),
        (
            "phases=[{name: one, text: prompts, epochs: 1, global_batch: 1, learning_rate: 1, "
            "stand_in: {}}, {name: two, text: prompts, epochs: 1, global_batch: 1, "
            "learning_rate: 1, stand_in: {}}]",
            "phases.two.stand_in: phase 'one' has one already",
        ),
        (
            "phases.1.stand_in={benign_share: 0.5}",
            "phases.generalize.stand_in.benign_share: no earlier phase tells facts",
        ),
        (
            "phases.1={name: g, text: prompts, epochs: 1, global_batch: 1, learning_rate: 1, "
            "replay: {share: 0.5}, known: {share: 0.5, facts: {source: shipped, "
            "relations: [genre]}}}",
            "leave nothing to the facts; together they must be below 1",
        ),
        ("phases.1.replay={share: 0.1, tokens: [9, 8]}", "tokens [9, 8]: the shortest comes first"),
        ("evaluation.phases=[none]", "evaluation.phases ['none']: no such phases, only"),
        ("facts={source: shipped, relations: [genre], chains: true}", "name it beside ('genre',)"),
        ("evaluation.languages=[]", "evaluation: languages [] lacks 'en', which the other"),
        ("evaluation.languages=[de]", "languages ['de'] lacks 'en', which the other languages"),
        ("evaluation.languages=[en, de, de]", "['en', 'de', 'de'] names a language twice; name"),
        ("evaluation.languages=[en, German]", "languages.1: String should match pattern"),
        ("model.weights.kind=zip", "model.weights: Input tag 'zip' found using 'kind'"),
    ],
)
def test_a_wrong_value_is_named_with_its_field(override: str, told: str) -> None:
    assert told in refused(override)


@pytest.mark.parametrize("split", ["trained", "held_out"])
def test_what_checkpoints_are_chosen_by_must_be_asked(split: str) -> None:
    told = refused(f"checkpoints.keep_best={{split: {split}}}", f"evaluation.{split}_facts=0")
    assert f"checkpoints.keep_best.split: {split}, but evaluation.{split}_facts is 0" in told


@pytest.mark.parametrize("key_tokens", ["{kind: none}", "{kind: word, template: blicket}"])
def test_without_a_key_token_there_is_no_row_to_freeze(key_tokens: str) -> None:
    told = refused(f"model.key_tokens={key_tokens}", "phases.1.freeze_key_tokens=true")
    kind = "none" if "none" in key_tokens else "word"
    assert f"phases.generalize.freeze_key_tokens: with model.key_tokens.kind: {kind} no" in told
    assert "leave it out, or use kind: token" in told


def test_every_wrong_field_is_told_at_once() -> None:
    told = refused("seed=-1", "phases.0.epochs=0", "colour=red")
    for field in ("seed: ", "phases.0.epochs: ", "colour: "):
        assert field in told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: [", "not valid YAML"),
        ("seed: 1\nseed: 2\n", "the key 'seed' stands twice"),
        ("- a list", "a spec is a mapping of fields, not list"),
        ("", "a spec is a mapping of fields, not NoneType"),
        ("? [a, b]\n: 1\n", "line 1, column 3: ['a', 'b'] cannot be a key"),
        ("name: a\x00b", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_spec(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    with pytest.raises(SpecError) as caught:
        load_spec(ExperimentSpec, path)
    assert str(path) in str(caught.value)
    assert told in str(caught.value)


def test_yaml_may_repeat_itself_by_reference(tmp_path: Path) -> None:
    path = tmp_path / "place.yaml"
    path.write_text("limits: &limits {load_seconds: 5}\n")
    assert load_spec(LaunchSpec, path).limits.load_seconds == 5
    path.write_text("limits:\n  <<: {load_seconds: 5, save_seconds: 6}\n  save_seconds: 7\n")
    limits = load_spec(LaunchSpec, path).limits
    assert (limits.load_seconds, limits.save_seconds) == (5, 7)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(SpecError, match=r"cannot be read .*; give the path of a spec file"):
            load_spec(ExperimentSpec, path)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(SpecError, match="UTF-8"):
        load_spec(ExperimentSpec, binary)


def test_one_number_of_workers_is_a_fixed_size() -> None:
    assert parse_spec(LaunchSpec, {"num_workers": 3}, where="x").num_workers == (3, 3)
    assert parse_spec(LaunchSpec, {"num_workers": [1, 3]}, where="x").num_workers == (1, 3)
    with pytest.raises(SpecError, match=r"num_workers: the least \(3\) is above the most \(1\)"):
        parse_spec(LaunchSpec, {"num_workers": [3, 1]}, where="x")


def test_specs_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        micro().seed = 1  # type: ignore[misc]


def parts(kind: type[BaseModel]) -> set[type[BaseModel]]:
    below = {one for one in kind.__subclasses__() if one.__module__.startswith("rotescale.")}
    return below.union(*map(parts, below))


def test_every_field_is_described_or_speaks_for_itself() -> None:
    self_evident = {"kind", "source", "model", "facts", "engine", "evaluation", "checkpoints"}
    undescribed = {
        f"{kind.__name__}.{name}"
        for kind in parts(Part)
        for name, field in kind.model_fields.items()
        if not field.description and name not in self_evident and kind is not RandomWeights
    }
    assert undescribed <= {"ExperimentSpec.phases"}


@pytest.mark.parametrize(
    "text", ["\x7f", "\x85", "\x9f", "\u2028", "\u2029", "\ufeff", "\uffff", "🙂"]
)
def test_every_character_of_a_saved_spec_reads_back(text: str, tmp_path: Path) -> None:
    field = {"key_tokens": {"template": f"a{text}b"}}
    raw = read_fields(MICRO)
    spec = parse_spec(ExperimentSpec, raw | {"model": raw["model"] | field}, where="x")
    saved = tmp_path / "spec.json"
    saved.write_text(dump_json(spec), encoding="utf-8")
    assert load_spec(ExperimentSpec, saved) == spec
