import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mlflow.entities import Metric
from mlflow.types import Schema

from assay.errors import NonFiniteError, StorageError
from assay.project import Project
from assay.records import Interval
from assay.tracking import runs
from assay.tracking.runs import Tracker, service_errors
from assay.tracking.store import Store
from tests.tracking.parts import (
    REPOSITORY,
    default_params,
    make_data,
    make_epoch,
    make_evaluation,
    make_key,
    make_record,
    make_splits,
    make_steps,
)


def open_run(tracker: Tracker, key=None, **options):
    root = tracker.project.root
    return tracker.open_run(
        key or make_key(), default_params(), make_data(root), make_splits(root), name="first", **options
    )


def finish_with_version(tracker: Tracker, key, name: str = "digits-cnn") -> str:
    run = open_run(tracker, key)
    tracker.log_evaluation(run.run_id, make_evaluation(tracker.project.root / "evaluation"))
    model = f"{name}-{run.run_id[:8]}"
    tracker.client.create_registered_model(model)
    uri = tracker.client.get_run(run.run_id).info.artifact_uri
    tracker.client.create_model_version(model, f"{uri}/model", run.run_id, tags={"assay.manifest.sha256": "f" * 64})
    tracker.finish(run.run_id)
    return run.run_id


def test_a_run_says_what_it_was_made_from(tracker: Tracker) -> None:
    run = open_run(tracker)
    stored = tracker.client.get_run(run.run_id)
    assert stored.info.status == "RUNNING"
    assert stored.data.params["train.num_epochs"] == "10"
    assert stored.data.params["train.optimizer.kind"] == "adamw"
    assert stored.data.tags["assay.key"] == "a" * 64
    assert stored.data.tags["assay.key.data"] == "d" * 32 + ".dir"
    assert "not a git repository" in stored.data.tags["assay.git.commit"]
    by_context = {item.tags[0].value: item.dataset for item in stored.inputs.dataset_inputs}
    assert set(by_context) == {"train", "val", "test"}
    assert {dataset.digest for dataset in by_context.values()} == {"d" * 32 + ".dir"}
    assert json.loads(by_context["test"].profile)["num_rows"] == 20
    features = json.loads(by_context["train"].schema)["mlflow_tensorspec"]["features"]
    assert Schema.from_json(features).inputs[0].shape == (-1, 8, 8, 1)
    files = {file.path for file in tracker.client.list_artifacts(run.run_id)}
    assert files == {"lineage.json", "params.json", "splits.npz"}


def test_metrics_logged_twice_are_stored_once(tracker: Tracker) -> None:
    run = open_run(tracker)
    for _ in range(2):
        with tracker.metrics(run, system_metrics_seconds=0) as stream:
            for epoch in (1, 2, 3):
                stream.log_epoch(make_epoch(epoch))
            stream.log_steps(make_steps(1, 400))
    losses = tracker.client.get_metric_history(run.run_id, "val_loss")
    assert [(item.step, item.value, item.timestamp) for item in losses] == [
        (record.step, record.val_loss, record.timestamp_ms) for record in map(make_epoch, (1, 2, 3))
    ]
    steps = tracker.client.get_metric_history(run.run_id, "step/grad_norm")
    assert sorted(item.step for item in steps) == list(range(1, 401))


def test_mlflow_itself_stores_an_equal_metric_once(tracker: Tracker) -> None:
    run = open_run(tracker)
    for _ in range(2):
        tracker.client.log_batch(run.run_id, metrics=[Metric("m", 0.1, 1000 + step, step) for step in range(5)])
    assert len(tracker.client.get_metric_history(run.run_id, "m")) == 5


def test_a_killed_run_is_continued(tracker: Tracker) -> None:
    first = open_run(tracker)
    with tracker.metrics(first, system_metrics_seconds=0) as stream:
        stream.log_epoch(make_epoch(1))
    again = open_run(tracker)
    assert (again.run_id, again.continued, first.continued) == (first.run_id, True, False)
    assert again.start_time_ms == first.start_time_ms
    stored = tracker.client.get_run(again.run_id)
    assert len(stored.inputs.dataset_inputs) == 3
    assert len(tracker.client.get_metric_history(again.run_id, "val_loss")) == 1


def test_a_failed_run_says_why_and_is_continued_without_the_reason(tracker: Tracker) -> None:
    run = open_run(tracker)
    tracker.fail(run.run_id, "loss is nan at step 3")
    stored = tracker.client.get_run(run.run_id)
    assert stored.info.status == "FAILED"
    assert stored.data.tags["assay.failure"] == "loss is nan at step 3"
    assert open_run(tracker).run_id == run.run_id
    stored = tracker.client.get_run(run.run_id)
    assert stored.info.status == "RUNNING"
    assert "assay.failure" not in stored.data.tags
    tracker.finish(run.run_id)
    assert tracker.client.get_run(run.run_id).info.end_time is not None


KILLED = """
import os, signal, sys
from pathlib import Path
from assay.project import Project
from assay.tracking.runs import Tracker
from tests.tracking.parts import default_params, make_data, make_epoch, make_key, make_splits, make_steps
root = Path(sys.argv[1])
tracker = Tracker.open(Project(root, root / ".assay"), "unit")
run = tracker.open_run(make_key(), default_params(), make_data(root), make_splits(root), name="first")
with tracker.metrics(run, flush_seconds=0.01, system_metrics_seconds=0) as stream:
    stream.log_epoch(make_epoch(1))
    stream.log_steps(make_steps(1, 300))
    stream.training_done()
    while not tracker.client.get_metric_history(run.run_id, "val_loss"):
        pass
    print(run.run_id, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_after_a_real_kill_everything_is_there_once(sqlite_tracker: Tracker) -> None:
    reply = subprocess.run(
        [sys.executable, "-c", KILLED, str(sqlite_tracker.project.root)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    assert reply.returncode == -signal.SIGKILL, reply.stderr
    run = open_run(sqlite_tracker)
    assert (run.run_id, run.continued) == (reply.stdout.strip(), True)
    with sqlite_tracker.metrics(run, system_metrics_seconds=0) as stream:
        for epoch in (1, 2):
            stream.log_epoch(make_epoch(epoch))
        stream.log_steps(make_steps(1, 400))
    client = sqlite_tracker.client
    assert [item.step for item in client.get_metric_history(run.run_id, "val_loss")] == [10, 20]
    steps = sorted(item.step for item in client.get_metric_history(run.run_id, "step/loss"))
    assert steps == list(range(1, 401))
    assert len(client.search_runs([run.experiment_id])) == 1


def test_a_failing_body_is_noted_and_passes_on(sqlite_tracker: Tracker) -> None:
    run = open_run(sqlite_tracker)
    with pytest.raises(ZeroDivisionError), sqlite_tracker.failure_noted(run.run_id):
        raise ZeroDivisionError("by nought")
    stored = sqlite_tracker.client.get_run(run.run_id)
    assert (stored.info.status, stored.data.tags["assay.failure"]) == ("FAILED", "ZeroDivisionError: by nought")
    with pytest.raises(ZeroDivisionError), sqlite_tracker.failure_noted("0" * 32):
        raise ZeroDivisionError("although the store does not know this run")


def test_a_record_comes_back_as_it_was(tracker: Tracker) -> None:
    run = open_run(tracker)
    tracker.finish(run.run_id, make_record(run.run_id))
    assert tracker.load_record(run.run_id) == make_record(run.run_id)
    assert tracker.lineage(run.run_id)["key"] == "a" * 64


def test_a_run_without_its_checkpoint_gets_no_second_curve(sqlite_tracker: Tracker) -> None:
    first = open_run(sqlite_tracker)
    assert open_run(sqlite_tracker, resumable=False).run_id == first.run_id, "it has no curve yet"
    with sqlite_tracker.metrics(first, system_metrics_seconds=0) as stream:
        stream.log_epoch(make_epoch(1))
    second = open_run(sqlite_tracker, resumable=False)
    assert second.run_id != first.run_id
    assert sqlite_tracker.client.get_run(first.run_id).info.status == "KILLED"
    assert open_run(sqlite_tracker).run_id == second.run_id


def test_a_continued_run_keeps_params_that_no_longer_count(sqlite_tracker: Tracker) -> None:
    root = sqlite_tracker.project.root
    first = open_run(sqlite_tracker)
    other = default_params().model_copy(
        update={"train": default_params().train.model_copy(update={"checkpoint_every_seconds": 1.0})}
    )
    again = sqlite_tracker.open_run(make_key(), other, make_data(root), make_splits(root), name="again")
    assert again.run_id == first.run_id


def test_only_a_finished_run_with_a_version_is_found(tracker: Tracker) -> None:
    key = make_key("b" * 64)
    assert tracker.find_finished(key) is None
    open_run(tracker, key)
    assert tracker.find_finished(key) is None, "still running"
    run_id = finish_with_version(tracker, key)
    found = tracker.find_finished(key)
    assert found is not None
    assert found.run_id == run_id
    assert found.model.version == 1
    assert found.model.uri == f"models:/{found.model.name}/1"
    assert found.model.manifest_sha256 == "f" * 64
    assert found.metrics == {"accuracy": Interval(0.9, 0.85, 0.95), "f1_macro": Interval(0.89, 0.8, 0.94)}
    assert found.baselines == {"majority_class": {"accuracy": 0.5}, "logistic_regression": {"accuracy": 0.8}}
    assert tracker.find_finished(make_key("c" * 64)) is None
    tracker.client.delete_model_version(found.model.name, "1")
    assert tracker.find_finished(key) is None, "its version is gone"


def test_threads_open_one_client(sqlite_tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    def open_slowly(project: Project, store: Store) -> object:
        opened.append(object())
        time.sleep(0.1)  # long enough for the others to get there
        return opened[-1]

    monkeypatch.setattr(runs, "open_client", open_slowly)
    with ThreadPoolExecutor(4) as threads:
        clients = list(threads.map(lambda _: sqlite_tracker.client, range(4)))
    assert clients == opened * 4
    assert len(opened) == 1


def test_nearest_is_the_latest_run_with_most_equal_parts(sqlite_tracker: Tracker) -> None:
    assert sqlite_tracker.nearest(make_key()) is None
    base = make_key("1" * 64)
    finish_with_version(sqlite_tracker, base)
    other_data = dataclasses.replace(make_key("2" * 64), parts={**base.parts, "data": "0" * 32})
    finish_with_version(sqlite_tracker, other_data)
    both_differ = dataclasses.replace(make_key("3" * 64), parts={"data": "1" * 32, "params": "x"})
    finish_with_version(sqlite_tracker, both_differ)
    asked = dataclasses.replace(make_key("4" * 64), parts={**base.parts, "params": "y"})
    assert sqlite_tracker.nearest(asked) == base


def test_nearest_survives_a_lost_lineage_file(sqlite_tracker: Tracker) -> None:
    run_id = finish_with_version(sqlite_tracker, make_key())
    folder = Path(sqlite_tracker.client.get_run(run_id).info.artifact_uri.removeprefix("file://"))
    (folder / "lineage.json").unlink()
    found = sqlite_tracker.nearest(make_key())
    assert found is not None
    assert (found.digest, found.parts, found.details) == (make_key().digest, make_key().parts, {})


def test_an_evaluation_comes_back_as_it_was(tracker: Tracker) -> None:
    run = open_run(tracker)
    evaluation = make_evaluation(tracker.project.root / "evaluation")
    tracker.log_evaluation(run.run_id, evaluation)
    tracker.log_evaluation(run.run_id, evaluation)
    assert tracker.load_evaluation(run.run_id) == evaluation
    stored = tracker.client.get_run(run.run_id).data.metrics
    assert (stored["test_accuracy"], stored["test_accuracy_low"], stored["test_accuracy_high"]) == (0.9, 0.85, 0.95)
    assert stored["baseline/logistic_regression/accuracy"] == 0.8
    assert len(tracker.client.get_metric_history(run.run_id, "test_accuracy")) == 1
    files = {file.path for file in tracker.client.list_artifacts(run.run_id)}
    assert {"report.html", "predictions.parquet", "evaluation.json", "figures"} <= files
    assert [file.path for file in tracker.client.list_artifacts(run.run_id, "figures")] == ["figures/confusion.png"]


def test_a_non_finite_result_is_refused_whole(sqlite_tracker: Tracker) -> None:
    run = open_run(sqlite_tracker)
    evaluation = make_evaluation(sqlite_tracker.project.root / "evaluation")
    bad = dataclasses.replace(evaluation, metrics={**evaluation.metrics, "log_loss": Interval(1.0, 0.5, float("inf"))})
    with pytest.raises(NonFiniteError, match="test_log_loss_high is inf"):
        sqlite_tracker.log_evaluation(run.run_id, bad)
    assert sqlite_tracker.client.get_run(run.run_id).data.metrics == {}


def test_a_full_disk_is_said_in_words(sqlite_tracker: Tracker) -> None:
    with (
        pytest.raises(StorageError, match=r"cannot be written \(No space left on device\)"),
        service_errors(sqlite_tracker.store),
    ):
        Path("/dev/full").write_bytes(b"x")
