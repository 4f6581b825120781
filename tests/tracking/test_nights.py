"""A night is one MLflow run, whoever writes it down and however often."""

import dataclasses
import json

from assay.records import Drift, NightRecord
from assay.tracking.nights import RECORD_FILE, experiment_of, log_night
from assay.tracking.runs import Tracker

DRIFT = Drift("brightness", "inputs", "Kolmogorov-Smirnov", 0.4, 0.001, 0.01, 0.4, 0.1, True, "Brightness moved up.")
RECORD = NightRecord(
    due="2026-03-01T02:00:00+00:00",
    outcome="promoted",
    reason="changed since champion 3: data md5 1 -> 2",
    trained=True,
    model_name="digits-cnn",
    version=4,
    champion=3,
    data_md5="d" * 32,
    drifts=(DRIFT, dataclasses.replace(DRIFT, name="contrast", drifted=False)),
    seconds=12.5,
    device_minutes_used=3.25,
    flow_run_id="flow-7",
)


def runs_of(tracker: Tracker) -> list[str]:
    return [run.info.run_id for run in tracker.client.search_runs([tracker.experiment_id()])]


def kept(tracker: Tracker, run_id: str) -> NightRecord:
    with tracker.artifact(run_id, RECORD_FILE) as path:
        return NightRecord.from_json(json.loads(path.read_text()))


def test_a_night_is_kept_with_its_decision(tracker: Tracker) -> None:
    run_id = log_night(tracker, RECORD)
    run = tracker.client.get_run(run_id)
    tags = run.data.tags
    assert run.info.status == "FINISHED" and run.info.run_name == "2026-03-01 promoted"
    expected = {"due": RECORD.due, "outcome": "promoted", "reason": RECORD.reason, "champion": "3", "version": "4"}
    assert {name: tags[f"assay.night.{name}"] for name in expected} == expected
    assert tags["assay.data.md5"] == "d" * 32 and tags["mlflow.note.content"] == RECORD.describe()
    assert run.data.metrics == {
        "seconds": 12.5, "device_minutes_used": 3.25, "device_minutes_saved": 0.0, "num_drifted": 1.0
    }  # fmt: skip
    assert kept(tracker, run_id) == RECORD


def test_writing_a_night_down_twice_is_one_run(sqlite_tracker: Tracker) -> None:
    run_id = log_night(sqlite_tracker, RECORD)
    ended = sqlite_tracker.client.get_run(run_id).info.end_time
    assert log_night(sqlite_tracker, RECORD) == run_id
    assert runs_of(sqlite_tracker) == [run_id]
    assert sqlite_tracker.client.get_run(run_id).info.end_time == ended, "nothing was changed"


def test_a_night_that_was_cut_short_while_it_was_written_is_finished(sqlite_tracker: Tracker) -> None:
    run_id = log_night(sqlite_tracker, RECORD)
    sqlite_tracker.client.update_run(run_id, status="RUNNING")
    sqlite_tracker.client.set_tag(run_id, "assay.night.outcome", "half")
    assert log_night(sqlite_tracker, RECORD) == run_id
    run = sqlite_tracker.client.get_run(run_id)
    assert (run.info.status, run.data.tags["assay.night.outcome"]) == ("FINISHED", "promoted")


def test_a_failed_night_that_was_begun_again_says_what_it_came_to_in_the_end(sqlite_tracker: Tracker) -> None:
    failed = dataclasses.replace(RECORD, outcome="failed", reason="the disk is full", version=None, champion=None)
    run_id = log_night(sqlite_tracker, failed)
    assert sqlite_tracker.client.get_run(run_id).data.tags["assay.night.version"] == ""
    assert log_night(sqlite_tracker, RECORD) == run_id
    run = sqlite_tracker.client.get_run(run_id)
    assert (run.data.tags["assay.night.outcome"], run.info.run_name) == ("promoted", "2026-03-01 promoted")
    assert run.info.status == "FINISHED" and kept(sqlite_tracker, run_id) == RECORD


def test_two_projects_on_one_server_have_nights_of_their_own(sqlite_tracker: Tracker) -> None:
    other = dataclasses.replace(RECORD, flow_run_id="flow-8", model_name="pets-cnn")
    assert len({log_night(sqlite_tracker, RECORD), log_night(sqlite_tracker, other)}) == 2
    assert len(runs_of(sqlite_tracker)) == 2


def test_nights_have_an_experiment_beside_the_whole_runs() -> None:
    assert experiment_of("assay") == "assay-nights"
