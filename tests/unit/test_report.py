"""The page of a run and of a study: what is in it, what is refused, and that texts are texts."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import report_helpers
from report_browser import PHONE, WIDE, browser, column, needs_browser, show
from report_helpers import BELIEVED, HOSTILE, rotescale

from rotescale.analysis import paper
from rotescale.analysis.report.build import write_report
from rotescale.analysis.report.editing import editing_section
from rotescale.analysis.report.estimates import What, difference, estimate
from rotescale.analysis.report.header import opening
from rotescale.analysis.report.material import load_material
from rotescale.analysis.report.paired import paired_section
from rotescale.errors import DataError, SpecError
from rotescale.evaluation.metrics import mean_over_seeds
from rotescale.evaluation.outcome_file import read_outcomes
from rotescale.facts.easyedit import edit_requests
from rotescale.facts.saved import load_saved
from rotescale.object_store import RemotePath
from rotescale.records import read_records
from rotescale.run_dir import RunDir
from rotescale.storage import write_atomic
from rotescale.study.runner import StudyDir

_WITHOUT = shutil.ignore_patterns("checkpoints", "data", "models", "prepared-model", "report")
SUITES = ("conflict", "conflict_believed")
ROLE = ("suite", "relation", "split", "prompts", "language", "metric")
DOCS = Path(__file__).resolve().parents[2] / "docs" / "protocol.md"


@pytest.fixture(scope="module")
def reported_run(tmp_path_factory: pytest.TempPathFactory, model_cache: Path) -> RunDir:
    """A run whose page lies in its folder ``report``."""
    run = report_helpers.micro_run(tmp_path_factory.mktemp("report-run"), model_cache)
    write_report(load_material(run.root), run.node_dir / "report")
    return run


@pytest.fixture(scope="module")
def reported_study(tmp_path_factory: pytest.TempPathFactory, model_cache: Path) -> StudyDir:
    """A study whose page lies in its folder ``report``."""
    study = report_helpers.micro_study(tmp_path_factory.mktemp("report-study"), model_cache)
    write_report(load_material(study.root), study.root / "report")
    return study


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A browser for all pages."""
    with browser(tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.fixture(params=["run", "study"])
def shown_page(request: pytest.FixtureRequest) -> Path:
    """The page of a run, whose facts' names are made to break it, and of a study."""
    if request.param == "run":
        run: RunDir = request.getfixturevalue("reported_run")
        return run.node_dir / "report" / "index.html"
    study: StudyDir = request.getfixturevalue("reported_study")
    return study.root / "report" / "index.html"


class Page(HTMLParser):
    """The ids, links, cells and images of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.alts: list[str] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        self.ids += [values["id"] or ""] if "id" in values else []
        self.links += [values["href"] or ""] if "href" in values else []
        self.sources += [v or "" for k, v in attrs if k in ("src", "srcset")]
        self.alts += [values.get("alt") or ""] if tag == "img" else []

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def page_of(folder: Path) -> Page:
    return Page((folder / "report" / "index.html").read_text(encoding="utf-8"))


def test_a_runs_page_has_a_section_for_what_was_measured(reported_run: RunDir) -> None:
    page = page_of(Path(str(reported_run.root)))
    sections = [link.removeprefix("#") for link in page.links if link.startswith("#")]
    assert sections == [
        *("in-short", "paper", "stages", "certainty", "epochs", "languages", "controls"),
        *("in-context", "capability"),
        *("conflict", "representations", "cost", "time", "answers", "missing"),
    ]
    assert set(sections) <= set(page.ids)
    told = " ".join(page.text)
    assert "1 x CPU on 1 node" in told
    assert "GPUs: no GPU was used" in told
    assert "4 held-out facts, 1 seed, 95 % intervals over facts" in told
    assert "evaluation.reversal_facts" in told
    assert "at the first train prompt: 4 of 8 facts." in told
    assert "140,608" in told or "Parameters" in told


def test_a_page_needs_no_other_file(reported_run: RunDir) -> None:
    page = page_of(Path(str(reported_run.root)))
    assert page.sources
    assert all(source.startswith("data:image/svg+xml;base64,") for source in page.sources)
    assert all(link.startswith("#") or link == "data:," for link in page.links)
    assert len(page.alts) == page.tags.count("picture") == page.tags.count("source")
    assert all(len(alt) > 40 for alt in page.alts)


def test_names_of_facts_are_text(reported_run: RunDir) -> None:
    page = page_of(Path(str(reported_run.root)))
    assert page.tags.count("script") == 1
    assert page.tags.count("img") == page.tags.count("picture")
    assert any(text.startswith(f"{HOSTILE} child") for text in page.text)


def test_figures_lie_beside_the_page_light_and_dark(reported_run: RunDir) -> None:
    folder = Path(str(reported_run.root)) / "report" / "figures"
    names = sorted(path.name for path in folder.iterdir())
    stems = {name.removesuffix(".svg") for name in names if name.endswith(".svg")}
    assert {f"{stem}{end}" for stem in stems for end in (".svg", ".png")} == set(names)
    assert {"stages-1", "stages-1-dark", "epochs-1", "capability-1"} <= stems
    assert {"conflict-1", "conflict-1-dark"} <= stems
    # The untrained model and the ends of both phases; the epoch on the way is in the other figure.
    assert {stem for stem in stems if stem.startswith("components") and "dark" not in stem} == {
        *("components-1", "components-2", "components-3")
    }
    alts = page_of(Path(str(reported_run.root))).alts
    [along] = [alt for alt in alts if "cosine to the key token, last layer, along" in alt]
    assert re.search(
        r"train prompts: base .*, memorize, epoch 1 .*, memorize .*, generalize", along
    )
    [components] = [alt for alt in alts if alt.startswith("Principal components: generalize")]
    assert "mean places: mother, key token: " in components
    assert (folder / "stages-1.png").read_bytes().startswith(b"\x89PNG")


def test_believed_facts_are_followed_from_stage_to_stage(reported_run: RunDir) -> None:
    facts = load_saved(reported_run.facts_json).facts
    contradicting = {place for place, fact in enumerate(facts) if fact.old_object is not None}
    believed = {place for place, fact in enumerate(facts) if fact.old_object == BELIEVED}
    assert (len(contradicting), len(believed)) == (8, 4)
    for stage, epoch in (("base", None), ("memorize", 1), ("memorize", None), ("generalize", None)):
        outcomes = read_outcomes(reported_run.evaluation(stage, epoch))
        about = {suite: {o.fact for o in outcomes if o.suite == suite} for suite in SUITES}
        assert about == dict(zip(SUITES, (contradicting, believed), strict=True))
        first, copied = (
            [o.values for o in outcomes if o.suite == suite and o.fact in believed]
            for suite in SUITES
        )
        assert first == copied
    rows = {
        (row.stage, row.epoch, row.prompts, row.metric): row
        for row in read_records(reported_run).evaluations
        if (row.suite, row.split) == ("conflict_believed", "held_out")
    }
    assert rows["base", None, "train", "prefers_old"].value == 1.0
    assert rows["base", None, "train", "multiple_choice"].value == 0.0
    expected = [
        outcome.values["old_probability"]
        for outcome in outcomes
        if (outcome.suite, outcome.split, outcome.prompts) == ("conflict", "held_out", "train")
        and outcome.fact in believed
    ]
    end = rows["generalize", None, "train", "old_probability"]
    assert (end.value, end.count) == (pytest.approx(sum(expected) / len(expected)), len(expected))


def test_a_run_that_goes_on_and_its_folder_of_weights_give_the_same_conflicts(
    reported_run: RunDir, model_cache: Path, tmp_path: Path
) -> None:
    root = tmp_path / "runs" / "micro"
    shutil.copytree(Path(str(reported_run.root)), root)
    (root / "outcome.json").unlink()
    (root / "evaluations" / "generalize.jsonl").unlink()
    launch = report_helpers.launch_file(tmp_path, model_cache)
    rotescale("run", root / "spec.json", "--on", launch)
    results = Path(str(reported_run.results_json)).read_text()
    assert (root / "results.json").read_text() == results
    rotescale("evaluate", root / "models" / "generalize", "--json", tmp_path / "rows.json")
    ended = [row for row in json.loads(results) if row["stage"] == "generalize"]
    rows = json.loads((tmp_path / "rows.json").read_text())
    about = [row for row in rows if row["suite"] in SUITES]
    assert {row["suite"] for row in about} == set(SUITES)
    for row in about:
        [same] = [one for one in ended if all(one[name] == row[name] for name in ROLE)]
        assert row["value"] == pytest.approx(same["value"], rel=1e-3, abs=1e-9)
        assert row["count"] == same["count"]


def test_branches_take_over_what_the_untrained_model_believes(reported_study: StudyDir) -> None:
    branch = load_material(reported_study.root).groups[0].first
    root, end = branch.places["base"], branch.places["generalize"]
    assert root == branch.places["memorize"] != end
    beliefs = root.evaluation("base", None).read_bytes()
    assert end.evaluation("base", None).read_bytes() == beliefs
    assert not any(row.stage == "base" for row in read_records(end).evaluations)
    believed = {
        stage: {o.fact for o in branch.outcomes((stage, None)) if o.suite == "conflict_believed"}
        for stage in ("base", "memorize", "generalize")
    }
    facts = load_saved(end.facts_json).facts
    expected = {place for place, fact in enumerate(facts) if fact.old_object == BELIEVED}
    assert believed == dict.fromkeys(believed, expected)


def test_equal_results_give_equal_bytes(reported_study: StudyDir, tmp_path: Path) -> None:
    paths = write_report(load_material(reported_study.root), tmp_path)
    for path in paths:
        earlier = reported_study.root / "report" / path.relative_to(tmp_path)
        assert path.read_bytes() == earlier.read_bytes(), path


def test_a_studys_page_has_seeds_methods_and_runs(reported_study: StudyDir) -> None:
    page = page_of(reported_study.root)
    wanted = {"paper", "stages", "certainty", "heat", "controls", "cost", "time", "paired"}
    wanted |= {"answers", "runs"}
    assert wanted <= set(page.ids)
    told = " ".join(page.text)
    assert "2 seeds, 95 % intervals over facts and seeds" in told
    assert "rote, k 2" in told
    assert "shared by several" in told


def test_the_header_names_devices_and_nodes_of_every_set_of_workers(
    reported_study: StudyDir,
) -> None:
    material = load_material(reported_study.root)
    assert "<dd>1 x CPU on 1 node</dd>" in "".join(map(str, opening(material)))
    run = material.runs[0]
    seen = material.records[run]
    [event] = [event for event in seen.events if event.name == "attempt"]
    [device] = [event for event in seen.events if event.name == "device"]
    gpu = {**device.details, "device": "NVIDIA H100 80GB HBM3", "num_devices": 3}
    events = (
        event.model_copy(update={"details": {"nodes": ["a", "a", "b"]}}),
        device.model_copy(update={"details": gpu}),
        # A second set, of an attempt that did not come to name its devices.
        event.model_copy(update={"attempt": event.attempt + 1, "details": {"nodes": ["b"]}}),
    )
    records = {**material.records, run: replace(seen, events=events)}
    of = len(material.runs)
    told = "".join(map(str, opening(replace(material, records=records))))
    assert (
        f"1 x CPU on 1 node (in {of} of {of} runs); "
        f"3 x NVIDIA H100 80GB HBM3 on 2 nodes (in 1 of {of} runs)"
    ) in told
    nothing = {**material.records, run: replace(seen, events=(device,))}
    told = "".join(map(str, opening(replace(material, records=nothing))))
    assert f"CPU was asked for, and nothing recorded (in 1 of {of} runs)" in told


def test_settings_are_means_over_seeds_of_what_was_stored(reported_study: StudyDir) -> None:
    material = load_material(reported_study.root)
    names = [group.name for group in material.groups]
    assert names == ["rote, k 2", "rote, k 4", "sft", "sft_all"]
    group = material.groups[0]
    assert [cell.spec.seed for cell in group.cells] == [0, 1]
    assert group.stages() == [("base", None), ("memorize", None), ("generalize", None)]
    what = What("mother", "key_token", metric="object_share")
    found = estimate(group, group.first.end, what)
    outcomes = {cell.spec.seed: what.among(cell.outcomes(cell.end)) for cell in group.cells}
    value, low, high = mean_over_seeds(
        outcomes, metric="object_share", seed=0, bootstrap_samples=200
    )
    assert found is not None
    assert (found.value, found.low, found.high) == (value, low, high)
    assert found.count == sum(map(len, outcomes.values()))
    # A shared run has trained the first phase, once for both settings.
    assert (
        material.groups[0].first.places["memorize"] == material.groups[1].first.places["memorize"]
    )


def test_differences_pair_what_both_were_asked(reported_study: StudyDir) -> None:
    rote, _, sft, _ = load_material(reported_study.root).groups
    what = What("mother", "test", metric="object_share")
    found = difference((sft, sft.first.end), (rote, rote.first.end), what)
    assert found is not None
    assert found.seeds == (0, 1)
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.value <= found.high
    assert difference((rote, rote.first.end), (rote, rote.first.end), what).value == 0
    nothing = What("mother", "two_hop", suite="two_hop")
    assert difference((sft, sft.first.end), (rote, rote.first.end), nothing) is None


def test_a_method_that_tells_every_fact_is_paired_on_those_the_other_held_out(
    reported_study: StudyDir,
) -> None:
    material = load_material(reported_study.root)
    rote, _, _, told = material.groups
    what = What("mother", "test")
    assert estimate(told, told.first.end, what) is None
    ends = (told, told.first.end), (rote, rote.first.end)
    assert difference(*ends, what) is None
    share = replace(what, metric="object_share")
    found = difference(*ends, share, splits=("trained", "held_out"))
    assert found is not None
    differences, facts = [], set()
    for one, two in zip(rote.cells, told.cells, strict=True):
        held = {outcome.fact: outcome for outcome in share.among(one.outcomes(one.end))}
        of_told = replace(share, split="trained").among(two.outcomes(two.end))
        both = [o for o in of_told if o.fact in held]
        assert len(both) == len(held) == 4
        facts |= held.keys()
        differences += [
            held[o.fact].values["object_share"] - o.values["object_share"] for o in both
        ]
    assert found.value == pytest.approx(sum(differences) / len(differences))
    assert (found.num_facts, found.count, found.seeds) == (len(facts), 8, (0, 1))
    section = paired_section(material)
    assert not isinstance(section, str)
    rows = re.findall("<tr>(.*?)</tr>", str(section.parts[0]))
    [row] = [
        re.findall("<t[dh][^>]*>(.*?)</t[dh]>", row)
        for row in rows
        if all(told in row for told in (">rote, k 2<", ">sft_all<", ">test prompts<"))
    ]
    assert row[3] == "held out in the first, told to the second"
    assert [row[4], row[5]] == [str(len(facts)), "2"]
    assert int(row[-1].replace(",", "")) >= 500
    # It was never told a key token, so it is not asked with one.
    assert "told to the second" not in "".join(row for row in rows if ">key token<" in row)


def test_the_command_says_where_the_page_is(
    reported_run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rotescale("report", str(reported_run.root), "--out", tmp_path / "page")
    shown = capsys.readouterr().out
    assert str(tmp_path / "page" / "index.html") in shown
    assert (tmp_path / "page" / "index.html").exists()


def edits(run: RunDir) -> list[dict[str, Any]]:
    """What EasyEdit might say of the run's first facts."""
    requests = edit_requests(load_saved(run.facts_json), range(3))
    post: dict[str, Any] = {"rewrite_acc": [1.0], "rephrase_acc": [0.5]}
    post["locality"] = {"wrong_relation_acc": [1.0]}
    return [{"requested_rewrite": request, "post": post} for request in requests]


def test_what_an_editor_reached_stands_beside_a_run(
    reported_run: RunDir, reported_study: StudyDir, tmp_path: Path
) -> None:
    results = tmp_path / "results.json"
    entries = edits(load_material(reported_study.root).runs[0])
    results.write_text(json.dumps(entries))
    of_study = editing_section(load_material(reported_study.root, editings={"ROME": results}))
    assert not isinstance(of_study, str)
    assert "ROME" in str(of_study.parts[0])
    results.write_text(json.dumps(edits(reported_run)))
    given = ("--easyedit", f"ROME={results}")
    rotescale("report", str(reported_run.root), "--out", tmp_path / "page", *given)
    page = Page((tmp_path / "page" / "index.html").read_text(encoding="utf-8"))
    assert "editing" in page.ids
    start = page.text.index("ROME")
    cells = [text for text in page.text[start:] if text.strip()]
    assert cells[:3] == ["ROME", "mother", "train prompts"]
    assert "wrong relation" in cells[:30]
    assert "1.00" in cells[3:6]
    with pytest.raises(SpecError, match="write it as METHOD=FILE"):
        rotescale("report", str(reported_run.root), "--easyedit", "results.json")
    entries[0]["requested_rewrite"] = {"subject": "Nobody", "target_new": "Nothing"}
    results.write_text(json.dumps(entries))
    with pytest.raises(DataError, match="'Nobody' -> 'Nothing' is not among these facts"):
        load_material(reported_run.root, editings={"ROME": results})


def test_rows_that_were_not_taught_are_shown_and_lie_beside_the_page(
    reported_run: RunDir, tmp_path: Path
) -> None:
    root = shutil.copytree(Path(str(reported_run.root)), tmp_path / "run", ignore=_WITHOUT)
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["file", "line", "field", "reason", "remedy"])
    writer.writerows(
        ["t.csv", line, "subject", f"{HOSTILE} {line}", "mend it"] for line in range(50)
    )
    RunDir(root).refused_csv.write_bytes(text.getvalue().encode())
    write_report(load_material(root), root / "report")
    page = page_of(root)
    assert "refused" in page.ids
    assert "paper" not in page.ids, "whoever injects a table asks about that table"
    assert "refused.csv" in page.links
    assert page.tags.count("script") == 1
    reasons = [text for text in page.text if text.startswith(HOSTILE) and "child" not in text]
    assert [told for told in reasons if "mother" not in told] == [
        f"{HOSTILE} {line}" for line in range(20)
    ]
    assert "50 rows of the table were not taught, for the reasons given." in page.text
    assert (root / "report" / "refused.csv").read_bytes() == text.getvalue().encode()


def test_a_run_in_a_bucket_is_read_where_it_is(reported_run: RunDir, remote: RemotePath) -> None:
    root = Path(str(reported_run.root))
    for path in root.rglob("*.json*"):
        name = path.relative_to(root).as_posix()
        if not name.startswith(("models/", "prepared-model/", "data/", "checkpoints/")):
            write_atomic(remote / name, path.read_bytes())
    here, there = load_material(root), load_material(remote)
    what = What("mother", "key_token")
    end = here.groups[0].first.end
    assert estimate(here.groups[0], end, what) == estimate(there.groups[0], end, what)
    assert estimate(there.groups[0], end, what).num_facts > 0


def test_a_study_goes_on_without_runs_that_were_not_begun(
    reported_study: StudyDir, tmp_path: Path
) -> None:
    copied = tmp_path / "runs"
    shutil.copytree(reported_study.root.parent, copied, ignore=_WITHOUT)
    shutil.rmtree(copied / "grid-k2-seed0")
    shutil.rmtree(copied / "grid-k2-seed1")
    material = load_material(copied / "grid")
    write_report(material, tmp_path / "page")
    assert (
        estimate(material.groups[0], material.groups[0].first.end, What("mother", "test")) is None
    )
    assert "rote, k 4" in (tmp_path / "page" / "index.html").read_text()


def test_a_folder_that_is_neither_run_nor_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="neither the folder of a run nor of a study; name one"):
        rotescale("report", tmp_path)


def test_the_bare_package_says_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rotescale.report_cli.find_spec", lambda _: None)
    with pytest.raises(SpecError, match=r"matplotlib, pyarrow, torch not installed.*\[train\]"):
        rotescale("report", tmp_path)


def test_a_run_that_was_never_evaluated_is_refused(reported_run: RunDir, tmp_path: Path) -> None:
    root = tmp_path / "micro"
    root.mkdir()
    for name in ("spec.json", "launch.json", "resolved.json", "facts.json"):
        shutil.copy(Path(str(reported_run.root)) / name, root / name)
    with pytest.raises(DataError, match="nothing was measured in this run yet; run it to its end"):
        rotescale("report", root)


def test_a_study_that_was_not_collected_is_refused(
    reported_study: StudyDir, tmp_path: Path
) -> None:
    shutil.copytree(reported_study.root / "specs", tmp_path / "grid" / "specs")
    with pytest.raises(DataError, match="missing; run `rotescale study` first"):
        rotescale("report", tmp_path / "grid")


def test_results_about_two_sets_of_facts_are_refused(
    reported_study: StudyDir, tmp_path: Path
) -> None:
    copied = tmp_path / "runs"
    shutil.copytree(reported_study.root.parent, copied, ignore=_WITHOUT)
    path = copied / "grid-k2-seed0" / "facts.json"
    path.write_text(path.read_text().replace('The child 1"', 'The child 1b"'))
    with pytest.raises(DataError, match="runs about different facts of mother"):
        rotescale("report", copied / "grid")


def test_the_papers_numbers_are_those_of_the_docs() -> None:
    text = DOCS.read_text(encoding="utf-8").partition("## The paper's figures")[2]
    rows = re.findall(
        r"^\| (\d+) \| (\d+) \| (\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", text, re.M
    )
    found = [(*map(int, row[:3]), *map(float, row[3:])) for row in rows]
    ours = [
        (r.memorize_epochs, r.facts_per_relation, r.generalize_epochs, r.key_token, r.train, r.test)
        for r in paper.MAIN_TABLE
    ]
    assert found == ours
    told = {"-": None}
    states = re.findall(
        r"^\| (ΔCosSim|cosine)[^|]*\| (\S+) \| (\S+) \| (\S+) \| (\S+) \|$", text, re.M
    )
    assert [(name, *(told.get(v, v) and float(v) for v in values)) for name, *values in states] == [
        (
            {"delta_cosine": "ΔCosSim"}.get(one.metric, one.metric),
            *(one.first, one.after_2_epochs, one.after_20_epochs, one.last),
        )
        for one in paper.COSINES
    ]
    kinds = re.findall(r"^\| cosine to the key token, (\w+) prompts", text, re.M)
    assert kinds == [one.prompts for one in paper.COSINES[1:]]
    words = " ".join(text.split())
    assert f"Languages, the best answered first: {', '.join(paper.LANGUAGES)}." in words
    assert (
        f"with {paper.SFT_PROMPTS} prompts of each fact, fine-tuning on prompts alone takes about "
        f"{paper.SFT_TIMES_TOKENS} times the tokens" in words
    )
    for suite, values in {"reversal": ("0.26", "0.01"), "two_hop": ("0.14", "0.36")}.items():
        assert re.findall(r"0\.\d\d", paper.SUITES[suite]) == list(values)
        assert all(value in words.partition("- Reversal:")[2] for value in values)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, WIDE])
@needs_browser
def test_a_page_opens_whole(chromium: Any, shown_page: Path, width: int, dark: bool) -> None:
    show(chromium, shown_page, width=width, dark=dark)
    assert chromium.get_log("browser") == []
    widths = chromium.execute_script(
        "return Array.from(document.images, (i) => [i.complete, i.naturalWidth, i.clientWidth])"
    )
    assert widths
    assert all(complete and natural > 0 and shown > 250 for complete, natural, shown in widths)
    over = chromium.execute_script(
        "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )
    assert over <= 0
    # The names of facts try to run scripts.
    assert chromium.execute_script("return window.hit === undefined")


@needs_browser
def test_colours_follow_the_readers_choice(chromium: Any, shown_page: Path) -> None:
    seen = []
    for dark in (False, True):
        show(chromium, shown_page, width=WIDE, dark=dark)
        ground = chromium.execute_script("return getComputedStyle(document.body).backgroundColor")
        seen.append((ground, chromium.execute_script("return document.images[0].currentSrc")))
    assert seen[0][0] == "rgb(255, 255, 255)"
    assert seen[0][0] != seen[1][0]
    assert seen[0][1] != seen[1][1]


@needs_browser
def test_a_click_or_a_key_on_a_heading_sorts(chromium: Any, shown_page: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    show(chromium, shown_page, width=WIDE)
    headings = chromium.find_elements("css selector", "#paper th button")
    epochs = column(chromium, 1)
    assert epochs == sorted(epochs, key=int)
    headings[1].click()
    headings[1].click()
    assert column(chromium, 1) == sorted(epochs, key=int, reverse=True)
    state = "return document.querySelectorAll('#paper th')[arguments[0]].getAttribute('aria-sort')"
    assert chromium.execute_script(state, 1) == "descending"
    headings[5].send_keys(Keys.ENTER)
    shown = [float(text.partition("[")[0]) for text in column(chromium, 5)]
    assert shown == sorted(shown)
    assert chromium.execute_script(state, 5) == "ascending"
    assert chromium.execute_script(state, 1) is None


@needs_browser
def test_every_column_of_every_table_sorts_both_ways(chromium: Any, shown_page: Path) -> None:
    show(chromium, shown_page, width=WIDE)
    # Of each column: the keys of its cells as numbers, "" for none, or their text.
    keys = """
      const [table, column] = arguments;
      return Array.from(document.querySelectorAll("table")[table].tBodies[0].rows, (row) => {
        const cell = row.cells[column];
        return cell.dataset.sort ?? cell.textContent.trim();
      });
    """
    click = """
      document.querySelectorAll("table")[arguments[0]]
        .querySelectorAll("th button")[arguments[1]].click();
    """
    widths = chromium.execute_script(
        "return Array.from(document.querySelectorAll('table'), (table) =>"
        " table.querySelectorAll('th button').length)"
    )
    assert len(widths) > 3
    assert all(widths)
    for table, num_columns in enumerate(widths):
        for column_index in range(num_columns):
            before = chromium.execute_script(keys, table, column_index)
            for downwards in (False, True):
                chromium.execute_script(click, table, column_index)
                shown = chromium.execute_script(keys, table, column_index)
                assert sorted(shown) == sorted(before)
                try:
                    numbers = [float(key) for key in shown if key]
                except ValueError:
                    continue
                assert numbers == sorted(numbers, reverse=downwards), (table, column_index)
                # Cells without a value come last, whichever way.
                assert all(shown[: len(numbers)]), (table, column_index)


@needs_browser
def test_wide_tables_scroll_inside_their_box(chromium: Any, shown_page: Path) -> None:
    show(chromium, shown_page, width=PHONE)
    boxes = chromium.execute_script(
        "return Array.from(document.querySelectorAll('.box'),"
        " (box) => [box.clientWidth, box.scrollWidth, box.tabIndex])"
    )
    assert any(inner > outer for outer, inner, _ in boxes)
    assert all(outer <= PHONE and index == 0 for outer, _, index in boxes)
