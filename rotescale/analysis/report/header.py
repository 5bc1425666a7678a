"""The top of the page: what was run, on what, when, and with which versions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from rotescale.analysis.report.material import Material
from rotescale.analysis.report.page import (
    Content,
    Html,
    Number,
    Section,
    definitions,
    element,
    paragraph,
    table,
)
from rotescale.analysis.study_table import Cost
from rotescale.launch_spec import LaunchSpec
from rotescale.preparation import Resolved
from rotescale.records import EventRow
from rotescale.run_dir import Outcome, RunDir
from rotescale.spec import ExperimentSpec, FolderWeights, HubWeights, Weights, WheelWeights
from rotescale.spec_file import load_spec
from rotescale.utilisation import device_of


def opening(material: Material) -> list[Html]:
    """The title and a table of what stands behind all that follows."""
    kind = "study" if material.is_study else "run"
    resolved = [Resolved.read(run) for run in material.runs]
    specs = [cell.spec for cell in material.cells]
    lead = f"What this {kind} of rotescale measured"
    pairs: list[tuple[str, str | Html]] = [
        ("Model", _joined(_weights(spec.model.weights) for spec in specs)),
        ("Parameters", _joined(f"{one.num_parameters:,}" for one in resolved)),
        ("Trained", _joined(_trained(spec) for spec in specs)),
        ("Facts", _facts(material)),
        ("Phases", _joined(_phases(spec) for spec in specs[:1]) + (
            f" (first of {len(specs)} cells)" if len(specs) > 1 else "")),
        ("Seeds", _joined(str(seed) for seed in sorted({spec.seed for spec in specs}))),
        ("Workers", _joined(_workers(run, spec) for run, spec in _run_specs(material))),
        ("Devices", _devices(material)),
        ("Dates", _dates(material)),
        ("Training", _training(material)),
        ("Versions", _joined(_versions(one) for one in resolved)),
    ]  # fmt: skip
    if not material.is_study:
        pairs.append(("Spec's digest", element("code", specs[0].digest())))
    return [
        element("h1", material.title),
        paragraph(f"{lead}, with 95 % intervals.", class_="lead"),
        definitions(pairs),
    ]


def runs_section(material: Material) -> Section | str:
    """Every run of a study: its digest, how far it came, what it took."""
    if not material.is_study:
        return ""
    rows: list[list[Content]] = []
    ends = {cell.name for cell in material.cells}
    for run, spec in _run_specs(material):
        outcome = Outcome.read(run)
        cost = Cost()
        for step in material.records[run].steps:
            cost += Cost(step.num_tokens, step.target_tokens, step.seconds)
        status = "not finished" if outcome is None else outcome.status
        rows.append(
            [
                *(spec.name, "" if spec.name in ends else "shared by several", spec.seed, status),
                *(cost.num_tokens, Number(cost.seconds, f"{cost.seconds:,.1f}")),
                element("code", spec.digest()),
            ]
        )
    headings = ["run", "part", "seed", "status", "own tokens", "seconds", "spec's digest"]
    unfinished = sum(row[3] != "finished" for row in rows)
    told = f"of which {unfinished} have not finished" if unfinished else "all of them finished"
    return Section(
        "runs",
        "Runs",
        f"{len(material.cells)} cells in {len(material.groups)} settings, by {len(rows)} runs, "
        f"{told}. What several cells share was trained once.",
        (table("Runs of the study", headings, rows),),
    )


def missing_section(material: Material, missing: Iterable[str]) -> Section:
    """What was not measured, and which field would have asked for it."""
    seeds = {cell.spec.seed for cell in material.cells}
    told = [text for text in missing if text]
    if len(seeds) == 1:
        told.insert(0, "Other seeds: one seed was run, and intervals are over facts alone.")
    if not any(_gpus(run) for run in material.runs):
        told.insert(0, "GPUs: no GPU was used; CUDA, NCCL and speed on GPUs are not in here.")
    items = element("ul", (element("li", text) for text in told))
    return Section(
        "missing", "Not measured", "What this page would show and has no data for.", (items,)
    )


def _joined(texts: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(texts))


def _run_specs(material: Material) -> list[tuple[RunDir, ExperimentSpec]]:
    return [(run, load_spec(ExperimentSpec, run.spec_json)) for run in material.runs]


def _weights(weights: Weights) -> str:
    match weights:
        case WheelWeights():
            return weights.name
        case HubWeights():
            return f"{weights.repository} at {weights.revision}"
        case FolderWeights():
            return weights.path
    return (
        f"random weights, {weights.architecture} reduced to {weights.num_layers} layers of "
        f"{weights.hidden_size}"
    )


def _trained(spec: ExperimentSpec) -> str:
    if spec.model.lora is not None:
        return f"adapters (LoRA) of rank {spec.model.lora.r}"
    frozen = spec.model.frozen
    return f"all but {', '.join(frozen)}" if frozen else "all of them"


def _facts(material: Material) -> str:
    started = [cell for cell in material.cells if cell.end[0] in cell.places]
    resolved = [Resolved.read(cell.places[cell.end[0]]) for cell in started]
    specs = [cell.spec for cell in material.cells]
    numbers = dict.fromkeys(one.trained_facts + one.held_out_facts for one in resolved)
    sources = dict.fromkeys(spec.facts.source for spec in specs)
    memorized = dict.fromkeys(_memorized(spec) for spec in specs)
    told = dict.fromkeys(one.trained_facts for one in resolved)
    return (
        f"{_either(numbers)} ({_either(sources)}); told with key tokens: {_either(memorized)}; "
        f"told with prompts: {_either(told)}"
    )


def _memorized(spec: ExperimentSpec) -> str:
    told = [p.facts_per_relation for p in spec.phases if p.text == "key_token"]
    if not told:
        return "none"
    return "all" if None in told else f"{max(filter(None, told))} of each relation"


def _either(values: Iterable[object]) -> str:
    return " or ".join(map(str, values))


def _phases(spec: ExperimentSpec) -> str:
    return ", then ".join(
        f"{phase.name} ({phase.length}, batch {phase.global_batch}, rate {phase.learning_rate:g})"
        for phase in spec.phases
    )


def _workers(run: RunDir, spec: ExperimentSpec) -> str:
    launch = load_spec(LaunchSpec, run.launch_json)
    least, most = launch.num_workers
    number = str(most) if least == most else f"{least} to {most}"
    return f"{number} ({spec.engine.kind}, {spec.engine.precision})"


def _gpus(run: RunDir) -> int:
    return load_spec(LaunchSpec, run.launch_json).gpus_per_worker


def _devices(material: Material) -> str:
    """What computed, such as ``8 x NVIDIA H100 80GB HBM3 on 2 nodes``, of every set of workers.

    Where these differ, with the number of runs.
    """
    found: Counter[str] = Counter()
    for run in material.runs:
        found.update(_computed_on(run, material.records[run].events))
    if len(found) == 1:
        return next(iter(found))
    number = len(material.runs)
    return "; ".join(f"{what} (in {of} of {number} runs)" for what, of in sorted(found.items()))


def _computed_on(run: RunDir, events: Sequence[EventRow]) -> set[str]:
    """Each set of workers that the run has had; what was asked for where none was recorded."""
    asked_for = "GPU" if _gpus(run) else "CPU"
    found = set()
    for event in events:
        if event.name == "attempt" and (ranks := event.details.get("nodes")):
            device = device_of(events, event.attempt)
            name = asked_for if device is None else device.device
            found.add(f"{len(ranks)} x {name} on {_counted(len(set(ranks)), 'node')}")
    return found or {f"{asked_for} was asked for, and nothing recorded"}


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _dates(material: Material) -> str:
    times = sorted(e.time for run in material.runs for e in material.records[run].events)
    if not times:
        return "not recorded"
    first, last = (time[:16].replace("T", " ") for time in (times[0], times[-1]))
    return f"{first} to {last} UTC"


def _training(material: Material) -> str:
    steps = [step for run in material.runs for step in material.records[run].steps]
    seconds = sum(step.seconds for step in steps)
    tokens = sum(step.num_tokens for step in steps)
    return f"{len(steps):,} steps, {tokens:,} tokens, {seconds:,.1f} seconds in steps"


def _versions(resolved: Resolved) -> str:
    return ", ".join(f"{name} {version}" for name, version in resolved.versions.items())
