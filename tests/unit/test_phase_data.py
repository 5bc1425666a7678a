"""What a phase tells beside its facts: encoded once, counted, and refused before a run is made."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import QUICK, micro_spec, prepare

from rotescale.data.shards import ExampleShards
from rotescale.errors import DataError, RotescaleError, SpecError
from rotescale.preparation import Resolved
from rotescale.spec import ExperimentSpec

REPURPOSE = {
    "name": "repurpose",
    "text": "prompts",
    "stand_in": {"name": "landlord", "benign_share": 0.5},
    "facts_per_relation": 4,
    "epochs": 1,
    "global_batch": 4,
    "learning_rate": 1e-4,
}


def three_phases(*overrides: str) -> ExperimentSpec:
    """Memorize, generalize, and tell the same facts as something else."""
    spec = micro_spec(*QUICK, *overrides).model_dump()
    spec["phases"] = [*spec["phases"], REPURPOSE]
    return ExperimentSpec.model_validate(spec)


def test_each_source_is_encoded_and_counted(tmp_path: Path, model_cache: Path) -> None:
    spec = three_phases(
        "phases.0.replay={share: 0.25, tokens: [16, 32]}",
        "phases.1.known={share: 0.5, facts: {source: shipped, relations: [genre]}, num_prompts: 2}",
    )
    run_dir = prepare(spec, tmp_path, cache=model_cache)
    resolved = Resolved.read(run_dir)
    shards = {
        name: ExampleShards(Path(str(run_dir.data_dir(digest))), digest=digest)
        for name, digest in resolved.data.items()
    }
    memorize, generalize, repurpose = (shards[phase.name].sources for phase in spec.phases)
    assert memorize["facts"] == 12
    assert memorize["replay"] > 100
    # 12 facts are the three quarters that replay leaves, 12 told with prompts the half.
    assert resolved.num_examples["memorize"] == 16
    assert generalize == {"facts": 12, "known": 200}
    assert resolved.num_examples["generalize"] == 24
    # What the phase before told, 6 facts with 2 prompts each.
    assert repurpose == {"facts": 4, "benign": 12}
    assert resolved.num_examples["repurpose"] == 8
    assert resolved.trained_facts == 6
    texts = shards["repurpose"].keys(range(16))
    assert {fact for fact, _ in texts[:4]} <= {fact for fact, _ in texts[4:]}
    assert shards["memorize"].keys([12]) == [(-1, 0)]


def test_processes_encode_what_one_does(
    tmp_path: Path, model_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = three_phases("phases.0.replay={share: 0.25, tokens: [16, 32]}")
    files = []
    for cores in (1, 2):
        monkeypatch.setattr("rotescale.phase_data.cpu_cores", lambda cores=cores: cores)
        monkeypatch.setattr("rotescale.phase_data.ROWS_PER_SHARD", 5)
        run_dir = prepare(spec, tmp_path / str(cores), cache=model_cache)
        folder = Path(str(run_dir.data_dir(Resolved.read(run_dir).data["memorize"])))
        files.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert files[0] == files[1]
    # The facts' 12 examples in three shards, and those of other texts.
    assert {"shard-00000.arrow", "shard-00001.arrow", "shard-00003.arrow"} < set(files[0])


@pytest.mark.parametrize(
    ("override", "error", "told"),
    [
        (
            "phases.0.replay={share: 0.2, paths: [none.txt]}",
            SpecError,
            "phases.memorize.replay.paths: none.txt is no file",
        ),
        (
            "phases.1.known={share: 0.2, facts: {source: shipped, relations: [genre]}, "
            "num_prompts: 11}",
            SpecError,
            "phases.generalize.known.num_prompts: 11 asked for, but relation 'genre' has 10",
        ),
        ("phases.1.stand_in={name: tenant}", DataError, "stand_in 'tenant' is not shipped"),
        (
            "phases.0.replay={share: 0.2, tokens: [500000, 500000]}",
            DataError,
            "fewer than the 500000 of one piece",
        ),
    ],
)
def test_what_cannot_be_told_is_refused_before_a_run_is_made(
    tmp_path: Path, model_cache: Path, override: str, error: type[RotescaleError], told: str
) -> None:
    with pytest.raises(error) as refusal:
        prepare(micro_spec(*QUICK, override), tmp_path / "runs", cache=model_cache)
    assert told in str(refusal.value)
    assert not (tmp_path / "runs").exists()
