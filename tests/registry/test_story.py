"""What is told of a version is what the registry, its run and the ledger hold."""

import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from assay.errors import AssayError, ModelFileError
from assay.records import KEPT, ModelRef
from assay.registry.contest import TestBench
from assay.registry.ledger import Ledger
from assay.registry.load import list_versions
from assay.registry.promote import meet_gate
from assay.registry.promotions import Promotions
from assay.registry.story import Story, VersionList, list_lines, tell
from assay.tracking.ablations import AblationRuns
from assay.tracking.lineage import ABLATION_TAG
from assay.tracking.runs import PAGE_TAG, Tracker
from tests.registry.gated import MODEL, add_version, make_bench, make_params, make_pictures
from tests.tracking.parts import make_project
from tests.tracking.test_ablations import finish, log_all, open_ablation


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, template_home: Path) -> TestBench:
    project = make_project(tmp_path_factory.mktemp("story") / "project")
    shutil.copytree(template_home, project.home)
    return make_bench(Tracker.open(project, "unit"), make_pictures(300), make_params())


@pytest.fixture(scope="module")
def refs(bench: TestBench) -> tuple[ModelRef, ModelRef]:
    return add_version(bench, "first"), add_version(bench, "same")


@pytest.fixture
def promotions(bench: TestBench, tmp_path: Path) -> Iterator[Promotions]:
    with closing(Ledger(make_project(tmp_path / "ledger"))) as ledger:
        yield Promotions(ledger, bench.tracker.store.shown_uri)


def test_before_the_gate_was_asked(bench: TestBench, refs: tuple[ModelRef, ModelRef], promotions: Promotions) -> None:
    story = tell(bench.tracker, promotions, MODEL, refs[0].version)
    assert (story.is_champion, story.champion, story.decisions, story.promotions) == (False, None, (), ())
    assert story.run == bench.tracker.load_record(refs[0].run_id)
    assert story.origin["data.md5"] == bench.dataset.ref.md5
    assert story.origin["MLflow run"] == refs[0].run_id
    assert story.params["split.test_fraction"] == "0.5"
    assert (story.ablation, story.page) == (None, "")
    assert story.created_ms > 1_600_000_000_000


def test_after_a_promotion_a_no_and_a_rollback(
    bench: TestBench, refs: tuple[ModelRef, ModelRef], promotions: Promotions
) -> None:
    first, second = refs
    meet_gate(bench, promotions, MODEL, first.version)
    kept = meet_gate(bench, promotions, MODEL, second.version)
    forced = meet_gate(bench, promotions, MODEL, second.version, forced_reason="a demo")
    assert tell(bench.tracker, promotions, MODEL, second.version).is_champion
    promotions.rollback(MODEL, reason="the demo is over")
    told = {ref.version: tell(bench.tracker, promotions, MODEL, ref.version) for ref in refs}
    assert told[second.version].decisions == (forced, kept), "the latest first"
    assert [line.action for line in told[second.version].promotions] == ["forced", "rolled back"]
    assert [line.action for line in told[first.version].promotions] == ["first champion", "forced", "rolled back"]
    assert [told[ref.version].is_champion for ref in refs] == [True, False]
    assert {story.champion for story in told.values()} == {first.version}
    assert Story.from_json(told[second.version].to_json()) == told[second.version]


def test_a_story_names_the_ablation_and_the_flow_run_of_its_run(
    bench: TestBench, promotions: Promotions, tmp_path: Path
) -> None:
    tracker = bench.tracker
    runs = AblationRuns(tracker.project, tracker.experiment)
    opened = open_ablation(runs)
    record = finish(runs, opened, log_all(runs, opened, tmp_path), tmp_path)
    ref = add_version(bench, "better")
    tracker.set_tag(ref.run_id, ABLATION_TAG, record.run_id)
    tracker.set_tag(ref.run_id, PAGE_TAG, "http://127.0.0.1:4200/runs/flow-run/7")
    story = tell(tracker, promotions, MODEL, ref.version)
    assert story.ablation is not None and story.ablation.verdicts == record.verdicts
    assert story.page == "http://127.0.0.1:4200/runs/flow-run/7"
    tracker.set_tag(ref.run_id, ABLATION_TAG, "f" * 32)
    assert tell(tracker, promotions, MODEL, ref.version).ablation is None, "somebody deleted it"


def test_a_version_that_is_not_there_is_named(bench: TestBench, promotions: Promotions) -> None:
    with pytest.raises(ModelFileError, match=rf"models:/{MODEL}/99: not registered"):
        tell(bench.tracker, promotions, MODEL, 99)


def test_a_version_whose_run_was_killed_before_its_end_is_said(bench: TestBench, promotions: Promotions) -> None:
    ref = add_version(bench, "worse")
    with bench.tracker.artifact(ref.run_id, "record.json") as path:
        path.unlink()
    with pytest.raises(
        AssayError, match=rf"models:/{MODEL}/{ref.version}: its run {ref.run_id} did not come to an end"
    ):
        tell(bench.tracker, promotions, MODEL, ref.version)


def test_lines_of_all_versions(bench: TestBench, refs: tuple[ModelRef, ModelRef], promotions: Promotions) -> None:
    first, second = refs
    meet_gate(bench, promotions, MODEL, first.version)
    kept = meet_gate(bench, promotions, MODEL, second.version)
    found = list_lines(list_versions(bench.tracker, MODEL), promotions)
    lines = {line.version: line for line in found.versions}
    assert [line.version for line in found.versions] == sorted(lines, reverse=True)
    assert (lines[second.version].outcome, lines[second.version].reason) == (KEPT, kept.reason)
    assert lines[first.version].outcome == "first champion"
    assert "champion" in lines[first.version].aliases
    assert lines[first.version].description.startswith("Test (150 examples, 95% intervals): accuracy ")
    assert lines[first.version].data_md5 == bench.dataset.ref.md5
    assert found.history == promotions.history(MODEL)
    meet_gate(bench, promotions, MODEL, second.version, forced_reason="a demo")
    line = next(
        line
        for line in list_lines(list_versions(bench.tracker, MODEL), promotions).versions
        if line.version == second.version
    )
    assert (line.outcome, line.reason) == ("forced", "a demo")


def test_no_versions_give_no_lines(promotions: Promotions) -> None:
    assert list_lines((), promotions) == VersionList(())
