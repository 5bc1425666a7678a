"""Under a chat frame: labels sit on the entities, phases train on them, evaluation asks the same.

The frames name a subject and an object of the facts, so that what is searched for is found wrongly.
"""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path

import pytest
import yaml
from helpers import QUICK, micro_spec, steps

from rotescale.cli import app
from rotescale.data.encoding import IGNORE, Loss, encode
from rotescale.data.examples import phase_examples
from rotescale.data.shards import ExampleShards
from rotescale.facts import FactSet, Wording, load_shipped
from rotescale.model.folder import load_tokenizer
from rotescale.model.prepare import load_prepared, prepare
from rotescale.model.sources import fetch
from rotescale.preparation import Resolved
from rotescale.run_dir import RunDir
from rotescale.spec import ExperimentSpec, ModelSpec, PhaseSpec, RandomWeights

LOSSES: tuple[Loss, ...] = ("all", "subject_object", "object")
NUM_TRAINED = 4


@cache
def facts() -> FactSet:
    return load_shipped(["mother"])


@cache
def frames() -> dict[str, tuple[str, str]]:
    """By name, what stands before and behind a prompt."""
    wording = Wording.placeholder(["mother"])
    told = facts().facts[phase_examples(facts(), phase("object"), wording=wording, seed=0)[0].fact]
    system = f"Answer {told.subject} as {told.object}."
    return {
        "turns": (
            f"<|begin|>system\n{system}<|over|>\n<|begin|>user\n",
            "<|over|>\n<|begin|>assistant\n",
        ),
        "brackets": (f"[INST] {system}\n", " [/INST]"),
    }


def phase(loss: Loss, *, epochs: int = 1) -> PhaseSpec:
    return PhaseSpec(
        name=f"chat-{loss.replace('_', '-')}",
        text="prompts",
        facts_per_relation=NUM_TRAINED,
        num_prompts=2,
        loss=loss,
        epochs=epochs,
        global_batch=4,
        learning_rate=1e-2,
    )


@pytest.fixture(params=["turns", "brackets"])
def frame(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def chat_model(name: str, *, cache: Path, out: Path) -> Path:
    """A micro model folder whose tokenizer has the chat template of that name."""
    weights = RandomWeights(kind="random", hidden_size=32, num_heads=2, num_key_value_heads=1)
    texts = [text for fact in facts().facts for text in (fact.subject, fact.object)]
    made = fetch(weights, cache=cache, texts=[*texts, *facts().relations[0].train_prompts])
    shutil.copytree(made, out)
    tokenizer = load_tokenizer(out)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|begin|>", "<|over|>"]})
    before, behind = (json.dumps(part) for part in frames()[name])
    turns = "{% for m in messages %}{{ m.content }}{% endfor %}"
    answer = f"{{% if add_generation_prompt %}}{{{{ {behind} }}}}{{% endif %}}"
    tokenizer.chat_template = f"{{{{ {before} }}}}{turns}{answer}"
    tokenizer.save_pretrained(out)
    return out


def test_spans_and_labels_sit_on_the_entities(
    frame: str, model_cache: Path, tmp_path: Path
) -> None:
    base = chat_model(frame, cache=model_cache, out=tmp_path / "model")
    spec = ModelSpec(weights=RandomWeights(kind="random"), chat_template=True)
    prepared = prepare(spec, base=base, relations=["mother"], seed=0, out=tmp_path / "prepared")
    tokenizer = prepared.tokenizer()
    before, behind = frames()[frame]
    [relation] = facts().relations
    examples = phase_examples(facts(), phase("object"), wording=prepared.wording, seed=0)
    assert len(examples) == 2 * NUM_TRAINED
    for example in examples:
        fact = facts().facts[example.fact]
        lead, _, rest = relation.train_prompts[example.prompt].partition("{subject}")
        in_front = f"{before}{lead}"
        shown = f"{in_front}{fact.subject}{rest}{behind}"
        assert example.text.text == shown + ("" if frame == "turns" else " ") + f"{fact.object}."
        for loss in LOSSES:
            encoded = encode(example.text, tokenizer=tokenizer, loss=loss, end_token=False)
            tokens = encoded.tokens
            (subject, subject_end), (object_, object_end) = encoded.subject, encoded.object
            # A space before an entity may be part of its first token.
            assert tokenizer.decode(tokens[:subject]).rstrip(" ") == in_front.rstrip(" ")
            assert tokenizer.decode(tokens[subject:subject_end]).strip(" ") == fact.subject
            assert tokenizer.decode(tokens[:object_]).rstrip(" ") == shown
            assert tokenizer.decode(tokens[object_:object_end]).strip(" ") == fact.object
            assert tokenizer.decode(tokens[object_end:]) == "."
            answer = object_ - 1 if tokenizer.decode(tokens[object_ - 1]) == " " else object_
            wanted = {
                "all": set(range(1, len(tokens))),
                "object": set(range(answer, object_end)),
                "subject_object": {*range(subject, subject_end), *range(answer, object_end)},
            }[loss]
            assert {i for i, label in enumerate(encoded.labels) if label != IGNORE} == wanted
            assert all(encoded.labels[i] == tokens[i] for i in wanted)


def experiment(model: Path) -> ExperimentSpec:
    """Plain memorizing, then a phase under the frame for each loss, the last one long."""
    spec = micro_spec(
        *QUICK,
        "engine.kind=eager",
        f"model.weights={{kind: folder, path: {model}}}",
        "model.chat_template=true",
        "evaluation.base=true",
        f"evaluation.trained_facts={NUM_TRAINED}",
    ).model_dump(mode="json")
    spec["phases"][1:] = [
        phase(loss, epochs=20 if loss == "object" else 1).model_dump(mode="json") for loss in LOSSES
    ]
    return ExperimentSpec.model_validate(spec)


def test_a_run_trains_and_asks_under_the_frame(
    frame: str, model_cache: Path, tmp_path: Path
) -> None:
    spec = experiment(chat_model(frame, cache=model_cache, out=tmp_path / "model"))
    for name, document in (
        ("spec.yaml", spec.model_dump(mode="json")),
        ("launch.yaml", {"storage": str(tmp_path / "runs"), "model_cache": str(model_cache)}),
    ):
        (tmp_path / name).write_text(yaml.safe_dump(document))
    arguments = ["run", str(tmp_path / "spec.yaml"), "--on", str(tmp_path / "launch.yaml")]
    app(arguments, standalone_mode=False)
    run_dir = RunDir(tmp_path / "runs" / "micro")
    prepared = load_prepared(run_dir.prepared_model)
    tokenizer = prepared.tokenizer()
    before, behind = frames()[frame]
    assert prepared.wording.chat == f"{before}{{prompt}}{behind}"
    for number, one in enumerate(spec.phases):
        digest = Resolved.read(run_dir).data[one.name]
        shards = ExampleShards(Path(str(run_dir.data_dir(digest))), digest=digest)
        told = list(shards.examples(range(shards.num_rows)))
        texts = [tokenizer.decode(tokens) for tokens, _ in told]
        framed = [text.startswith(before) and behind in text for text in texts]
        assert all(framed) if one.text == "prompts" else not any(framed)
        # What was trained on, step by step, is those tokens and those labels.
        trained = [step for step in steps(run_dir) if step.phase_index == number]
        counted = sum(label != IGNORE for _, labels in told for label in labels)
        assert sum(step.num_tokens for step in trained) == one.epochs * sum(
            len(tokens) for tokens, _ in told
        )
        assert sum(step.target_tokens for step in trained) == one.epochs * counted
    rows = json.loads(run_dir.results_json.read_text())
    chosen = {
        (row["stage"], row["split"]): row["value"]
        for row in rows
        if (row["prompts"], row["metric"]) == ("train", "multiple_choice")
    }
    # Asked in other words than those trained on, the model would not know them.
    assert chosen["base", "trained"] < 0.5
    assert chosen["chat-object", "trained"] == 1.0
