"""What is done once, before any worker starts: facts, model, key tokens, encoded data."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from rotescale import __version__
from rotescale.data.encoding import encode
from rotescale.data.examples import phase_examples, trained_facts
from rotescale.data.order import Batches
from rotescale.data.replay import replay_paths, replay_pieces
from rotescale.data.stream import Stream
from rotescale.devices import (
    FLASH_ATTENTION,
    check_devices,
    chosen_attention,
    evaluation_mode,
    installed,
    name_accelerator,
    recomputes_activations,
    with_cores,
)
from rotescale.errors import SpecError
from rotescale.evaluation.harness.tasks import check_tasks
from rotescale.evaluation.items import check_languages
from rotescale.evaluation.suites import check_suites
from rotescale.facts import HELD_FACTS, FactSet, Wording, load_source
from rotescale.facts.saved import save_fact_set
from rotescale.launch_spec import LaunchSpec
from rotescale.local_copy import local_copy
from rotescale.object_store import RemotePath
from rotescale.phase_data import check_beside, check_lengths, count_examples, encode_phase
from rotescale.run_dir import RunDir, open_run
from rotescale.spec import (
    EvaluationMode,
    ExperimentSpec,
    ModelSpec,
)
from rotescale.spec_file import dump_json
from rotescale.storage import write_atomic

OUTCOME_RESERVE_BYTES = 64 << 10
CHOSEN = ("attention", "activation_checkpointing")
"""Fields of a model that preparation sets where the spec says ``auto``."""
PACKAGES = ("torch", "deepspeed", "transformers", "ray", "datasets", "safetensors", "peft")


class Resolved(BaseModel):
    """What preparation decided, saved in the run: all that workers need beside spec and launch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelSpec
    """The model with what may move pinned: the hub's commit, an absolute path, the attention,
    whether activations are computed again."""
    num_parameters: int
    """Of the model that is trained, adapters included."""
    evaluation_mode: EvaluationMode
    harness_folder: str | None = None
    """The evaluation's, as an absolute path: workers may stand elsewhere."""
    data: dict[str, str]
    """Phase -> digest of its encoded examples."""
    num_examples: dict[str, int]
    """Phase -> examples in one epoch."""
    trained_facts: int
    held_out_facts: int
    facts_digest: str
    versions: dict[str, str]

    def applied_to(self, spec: ExperimentSpec) -> ExperimentSpec:
        """The spec that workers go by, with what was chosen in place of ``auto``."""
        chosen = {name: getattr(self.model, name) for name in CHOSEN}
        model = spec.model.model_copy(update=chosen)
        return spec.model_copy(update={"model": model})

    @classmethod
    def read(cls, run_dir: RunDir) -> Resolved:
        """What preparation saved in the run."""
        return cls.model_validate_json(run_dir.resolved_json.read_bytes())


def load_facts(spec: ExperimentSpec, *, note: Callable[[str], object] = lambda _: None) -> FactSet:
    """The facts of the spec, checked, and enough for every phase.

    ``note`` is told what a source repaired, if the spec lets it.
    Raises DataError for bad facts and SpecError where a phase or the evaluation asks for more than
    there is.
    """
    fact_set = load_source(spec.facts, note=note)
    check_enough(spec, fact_set)
    return fact_set


def check_enough(spec: ExperimentSpec, fact_set: FactSet) -> None:
    """Raise SpecError or DataError where a phase or the evaluation asks for more than there is."""
    wording = Wording.placeholder(relation.name for relation in fact_set.relations)
    for phase in spec.phases:
        check_beside(phase)
        for relation in fact_set.relations:
            alone = fact_set.only([relation.name])
            examples = phase_examples(alone, phase, wording=wording, seed=spec.seed)
            assert examples, f"{relation.name}: a phase tells nothing"
    check_languages(fact_set, spec.evaluation)
    check_suites(fact_set, spec.evaluation, spec.phases)


def check_beliefs(spec: ExperimentSpec, run_dir: RunDir | None = None) -> None:
    """Raise SpecError where conflicts are asked about and nothing measures the untrained model.

    A run that began as a branch may hold, in ``run_dir``, what another one measured.
    """
    number = spec.evaluation.conflict_facts
    if not number or spec.evaluation.base:
        return
    if run_dir is None or not run_dir.evaluation("base", None).exists():
        raise SpecError(
            f"evaluation.base is false, but evaluation.conflict_facts ({number}) is about what the "
            "untrained model believes; set evaluation.base to true, or begin where a run that "
            "measured it ended a phase (--branch-from)"
        )


def describe(spec: ExperimentSpec, launch: LaunchSpec, fact_set: FactSet) -> list[str]:
    """What a run would do, a line each; from facts and arithmetic alone."""
    lines = [
        f"run folder: {RunDir.of(launch.storage, spec.name).root}",
        f"facts: {len(fact_set.facts)} in {', '.join(r.name for r in fact_set.relations)}",
        f"workers: {launch.num_workers[0]} to {launch.num_workers[1]} ({spec.engine.kind}, "
        f"{spec.engine.precision})",
    ]
    for phase in spec.phases:
        examples = count_examples(fact_set, phase)
        batches = Batches(examples, phase.global_batch)
        told = f"phase {phase.name}: {examples} examples"
        size = f"in batches of {phase.global_batch}"
        if phase.epochs is None:
            lines.append(f"{told} {size} until {phase.length} are trained on")
        else:
            steps = phase.epochs * batches.steps_per_epoch
            lines.append(f"{told} x {phase.length} {size} = {steps} steps")
    return lines


def count_steps(spec: ExperimentSpec, run_dir: RunDir) -> dict[str, int]:
    """Optimizer steps of each phase of a prepared run."""
    resolved = Resolved.read(run_dir)
    steps = {}
    for phase in spec.phases:
        if phase.epochs is not None:
            batches = Batches(resolved.num_examples[phase.name], phase.global_batch)
            steps[phase.name] = phase.epochs * batches.steps_per_epoch
            continue
        digest = resolved.data[phase.name]
        folder = local_copy(run_dir.data_dir(digest))
        rows = spec.engine.row_tokens
        stream = Stream.open(folder, digest=digest, phase=phase, seed=spec.seed, row_tokens=rows)
        steps[phase.name] = stream.num_steps(phase)
    return steps


def prepare_run(
    spec: ExperimentSpec,
    launch: LaunchSpec,
    *,
    fact_set: FactSet | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> RunDir:
    """Make the run folder ready for workers; what is there already is used again.

    Everything that can be wrong with facts and model is found before the folder is created.
    ``fact_set`` is what ``load_facts`` gave for the spec, where the caller has it; ``report`` is
    told what is being done.
    """
    launch.require_runnable()
    # transformers imports DeepSpeed, which complains of a machine without a GPU unless told.
    name_accelerator(launch)
    # transformers takes seconds to import, and a refused spec should not wait for it.
    from rotescale.engine.fused_loss import check_fusable
    from rotescale.model.context import context_length
    from rotescale.model.folder import check_folder, load_config
    from rotescale.model.prepare import prepare
    from rotescale.model.sources import fetch, resolved
    from rotescale.model.trained import check_trainable, count_parameters

    fact_set = load_facts(spec) if fact_set is None else fact_set
    check_devices(spec, launch)
    root = RunDir.of(launch.storage, spec.name).root
    if isinstance(root, RemotePath):
        root.check()
    launch = with_cores(launch, RunDir(root))
    earlier = _earlier(RunDir(root), fact_set=fact_set)
    # What a first start resolved stays: a branch of the hub may have moved since.
    weights = spec.model.weights if earlier is None else earlier.model.weights
    attention = chosen_attention(
        spec, launch, earlier=None if earlier is None else earlier.model.attention
    )
    report("fetching the model")
    base = fetch(weights, cache=Path(launch.model_cache), texts=_texts(fact_set, spec))
    check_folder(base)
    config = load_config(base)
    check_trainable(spec.model, config)
    if spec.engine.fused_loss:
        check_fusable(config)
    _check_texts(fact_set, spec, base=base)
    if spec.evaluation.harness_tasks:
        report("loading the benchmarks")
    check_tasks(spec.evaluation, allow_code=launch.allow_task_code)
    run_dir = open_run(root, spec_json=dump_json(spec), digest=spec.digest())
    write_atomic(run_dir.launch_json, dump_json(launch).encode())
    save_fact_set(fact_set, run_dir.facts_json)
    report("adding key tokens")
    prepared = prepare(
        spec.model,
        base=base,
        relations=[relation.name for relation in fact_set.relations],
        seed=spec.seed,
        out=run_dir.prepared_model,
    )
    report("encoding the facts")
    data = {
        phase.name: encode_phase(
            fact_set,
            phase,
            phases=spec.phases,
            seed=spec.seed,
            prepared=prepared,
            run_dir=run_dir,
            progress=partial(_report_encoded, report, phase.name),
        )
        for phase in spec.phases
    }
    context = context_length(prepared.config())
    for phase in spec.phases:
        check_lengths(run_dir, phase, data[phase.name], context=context)
    num_parameters, num_trainable = count_parameters(spec.model, prepared.config())
    trained = trained_facts(fact_set, spec.phases, seed=spec.seed)
    found = Resolved(
        model=spec.model.model_copy(
            update={
                "weights": resolved(weights, folder=base),
                "attention": attention,
                "activation_checkpointing": recomputes_activations(
                    spec, launch, config=base / "config.json", fact_set=fact_set
                ),
            }
        ),
        num_parameters=num_parameters,
        evaluation_mode=evaluation_mode(
            spec, launch, num_parameters=num_parameters, num_trainable=num_trainable
        ),
        harness_folder=_harness_folder(spec),
        data=data,
        num_examples={p.name: count_examples(fact_set, p) for p in spec.phases},
        trained_facts=len(trained),
        held_out_facts=len(fact_set.facts) - len(trained),
        facts_digest=fact_set.digest(),
        versions=versions() | _harness_version(spec),
    )
    if isinstance(root, Path):
        write_atomic(run_dir.outcome_reserve, bytes(OUTCOME_RESERVE_BYTES))
    write_atomic(run_dir.resolved_json, (found.model_dump_json(indent=2) + "\n").encode())
    return run_dir


def _report_encoded(report: Callable[[str], None], phase: str, done: int, total: int) -> None:
    if done < total:
        report(f"encoding the facts: {done:,} of {total:,} examples of {phase}")


def _earlier(run_dir: RunDir, *, fact_set: FactSet) -> Resolved | None:
    """What an earlier start of the run resolved; None for a first start.

    Raises SpecError where the facts are not what they were: a run is about one set of facts.
    """
    if not run_dir.resolved_json.exists():
        return None
    earlier = Resolved.read(run_dir)
    if earlier.facts_digest != fact_set.digest():
        raise SpecError(
            f"{run_dir.root}: was begun with other facts (digest {earlier.facts_digest[:16]}, now "
            f"{fact_set.digest()[:16]}); restore the facts and prompts, or choose another name"
        )
    return earlier


def versions() -> dict[str, str]:
    """The versions that a run was made with."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    flash = installed(FLASH_ATTENTION)
    return {"rotescale": __version__, **found, **({FLASH_ATTENTION: flash} if flash else {})}


def _harness_version(spec: ExperimentSpec) -> dict[str, str]:
    if not spec.evaluation.harness_tasks:
        return {}
    return {"lm-eval": importlib.metadata.version("lm-eval")}


def _harness_folder(spec: ExperimentSpec) -> str | None:
    folder = spec.evaluation.harness_folder
    return None if folder is None else str(Path(folder).absolute())


def _texts(fact_set: FactSet, spec: ExperimentSpec) -> list[str]:
    """Texts that a micro model's tokenizer is trained on."""
    if spec.model.weights.kind != "random":
        return []
    prompts = [
        prompt
        for relation in fact_set.relations
        for language in spec.evaluation.languages
        for prompt in relation.in_language(language).prompts
    ]
    pairs = map(fact_set.pair, range(len(fact_set.facts))[:HELD_FACTS])
    return prompts + [f"{subject} {object_}." for subject, object_ in pairs]


def _check_texts(fact_set: FactSet, spec: ExperimentSpec, *, base: Path) -> None:
    """Try the key tokens and a text of each phase and relation, before a run folder is made."""
    from rotescale.model.prepare import worded_tokenizer

    relations = [relation.name for relation in fact_set.relations]
    tokenizer, wording = worded_tokenizer(spec.model, base=base, relations=relations)
    for phase in spec.phases:
        for relation in relations:
            alone = fact_set.only([relation])
            examples = phase_examples(alone, phase, wording=wording, seed=spec.seed)
            text = examples[0].text
            encode(text, tokenizer=tokenizer, loss=phase.loss, end_token=phase.end_token)
        if phase.replay is not None:
            paths, lengths = replay_paths(phase.replay.paths), phase.replay.tokens
            pieces = replay_pieces(paths, tokenizer=tokenizer, lengths=lengths, seed=spec.seed)
            next(pieces)
