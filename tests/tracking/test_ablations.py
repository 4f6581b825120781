"""Ablations in a real MLflow store, on SQLite and behind a real server."""

import json
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

from assay.project import Project
from assay.records import BASELINE, AblationPlan, AblationRecord, Trial, Variant, VariantSummary, Verdict
from assay.tracking.ablations import AblationRuns, OpenAblation, compare_page
from tests.tracking.parts import default_params, make_data, make_epoch, make_key, make_splits

VARIANTS = (Variant(BASELINE), Variant("l2=0.1", {"train.l2": "0.1"}))
LEVELS = {BASELINE: {"train.l2": "0.0"}, "l2=0.1": {"train.l2": "0.1"}}
PLAN = AblationPlan("one-at-a-time", "f1_macro", VARIANTS, (0, 1), 4, 0, 12, None, None, 0.8, 0.005, True)


@pytest.fixture(params=["sqlite", "server"])
def runs(request: pytest.FixtureRequest, project: Project, monkeypatch: pytest.MonkeyPatch) -> AblationRuns:
    if request.param == "server":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", request.getfixturevalue("server_uri"))
    return AblationRuns(project, f"unit {request.node.name}")


def open_ablation(runs: AblationRuns, digest: str = "a" * 64) -> OpenAblation:
    root = runs.project.root
    return runs.open(make_key(digest), default_params(), make_data(root), make_splits(root), PLAN, name="first")


def trial(folder: Path, variant: str, seed: int, state: str = "finished") -> Trial:
    path = folder / f"{variant}-{seed}.npz"
    np.savez(path, answers=np.arange(seed + 3))
    history = (make_epoch(1), make_epoch(2))
    values = {"f1_macro": 0.8 + seed / 100, "accuracy": 0.9, "log_loss": 0.3}
    return Trial(
        variant, seed, f"{variant}/{seed}", state, 2, values, values, history, str(path), seconds=1.5
    )  # fmt: skip


def log_all(runs: AblationRuns, opened: OpenAblation, folder: Path) -> list[Trial]:
    return [
        runs.log_trial(opened, trial(folder, variant.name, seed), variant, LEVELS[variant.name])
        for variant in VARIANTS
        for seed in (0, 1)
    ]


def record_of(opened: OpenAblation, trials: list[Trial]) -> AblationRecord:
    summaries = tuple(
        VariantSummary(v, 2, 2, "finished", 0.8, 0.01, 0.7, 0.9, 0.85, 1.5, run_id=opened.variants[v.name])
        for v in VARIANTS
    )
    verdict = Verdict("l2=0.1", "level", ("train.l2",), "hurts", "It does.", 2, -0.1, -0.2, -0.05, 0.01, 0.01)
    return AblationRecord(
        opened.run_id, opened.experiment_id, "a" * 64, False, "d" * 32, PLAN, 10, 0.95, summaries, (verdict,),
        tuple(trials), {}, "", 3.0, 4,
    )  # fmt: skip


def finish(runs: AblationRuns, opened: OpenAblation, trials: list[Trial], folder: Path) -> AblationRecord:
    record = record_of(opened, trials)
    (folder / "report.html").write_text("report")
    (folder / "forest.png").write_bytes(b"png")
    runs.finish(opened, record, {"forest": str(folder / "forest.png")}, folder / "report.html")
    return record


def test_trials_are_found_again_by_their_keys(runs: AblationRuns, tmp_path: Path) -> None:
    logged = log_all(runs, open_ablation(runs), tmp_path)
    found = runs.find_trials({"baseline/0", "l2=0.1/1", "nobody"})
    assert set(found) == {"baseline/0", "l2=0.1/1"}
    for key, kept in found.items():
        before = next(item for item in logged if item.key == key)
        assert replace(kept, outcomes_path="") == replace(before, outcomes_path="")
        assert Path(kept.outcomes_path).read_bytes() == Path(before.outcomes_path).read_bytes()


def test_what_is_logged_again_is_there_once(runs: AblationRuns, tmp_path: Path) -> None:
    first = open_ablation(runs)
    runs.log_trial(first, trial(tmp_path, BASELINE, 0), VARIANTS[0], LEVELS[BASELINE])
    again = open_ablation(runs)  # as after a kill
    assert again.run_id == first.run_id
    trials = log_all(runs, again, tmp_path)
    log_all(runs, again, tmp_path)
    client, experiment = runs.tracker.client, first.experiment_id
    everything = client.search_runs([experiment])
    assert len(everything) == 1 + 2 + 4
    parents = {run.info.run_id: run.data.tags.get("mlflow.parentRunId") for run in everything}
    assert [parents[item.run_id] for item in trials[:2]] == [again.variants[BASELINE]] * 2
    assert set(parents[run_id] for run_id in again.variants.values()) == {again.run_id}
    curve = client.get_metric_history(trials[0].run_id, "val_loss")
    assert [point.step for point in curve] == [1, 2]
    params = client.get_run(trials[3].run_id).data.params
    assert params == {"train.l2": "0.1", "seed": "1"}


def test_a_finished_ablation_is_found_and_is_not_opened_again(runs: AblationRuns, tmp_path: Path) -> None:
    opened = open_ablation(runs)
    assert runs.find_finished(make_key()) is None
    record = finish(runs, opened, log_all(runs, opened, tmp_path), tmp_path)
    assert runs.find_finished(make_key()) == record
    assert runs.find_finished(make_key("b" * 64)) is None
    nearest = runs.nearest(make_key("b" * 64))
    assert nearest is not None
    assert nearest.digest == "a" * 64
    assert open_ablation(runs).run_id != opened.run_id

    client = runs.tracker.client
    variant = client.get_run(opened.variants["l2=0.1"])
    assert variant.data.tags["assay.verdict"] == "hurts"
    assert variant.data.tags["mlflow.note.content"] == "It does."
    assert variant.data.metrics["val_f1_macro"] == 0.8
    assert variant.data.metrics["difference"] == -0.1
    parent = client.get_run(opened.run_id)
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["num_hurts"] == 1
    names = {item.path for item in client.list_artifacts(opened.run_id)}
    assert {"ablation.json", "verdicts.json", "lineage.json", "plan.json", "report.html", "figures"} <= names


def test_a_trial_that_failed_is_not_found(runs: AblationRuns, tmp_path: Path) -> None:
    opened = open_ablation(runs)
    failed = replace(trial(tmp_path, BASELINE, 0, "failed"), outcomes_path="", message="no memory")
    kept = runs.log_trial(opened, failed, VARIANTS[0], LEVELS[BASELINE])
    run = runs.tracker.client.get_run(kept.run_id)
    assert (run.info.status, run.data.tags["assay.failure"]) == ("FAILED", "no memory")
    assert runs.find_trials({"baseline/0"}) == {}


def test_a_new_store_is_not_made_for_a_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    project = Project(tmp_path, tmp_path / ".assay")
    runs = AblationRuns(project, "unit")
    assert runs.find_trials({"a"}) == {}
    assert runs.find_finished(make_key()) is None
    assert runs.nearest(make_key()) is None
    assert not project.home.exists()


def test_the_compare_page_selects_exactly_these_runs() -> None:
    link = urlsplit(compare_page("http://127.0.0.1:5000", "3", ["b", "a"]))
    assert link.fragment.startswith("/compare-runs?")
    query = parse_qs(link.fragment.partition("?")[2])
    assert json.loads(query["runs"][0]) == ["b", "a"]
    assert json.loads(query["experiments"][0]) == ["3"]
