import dataclasses
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from assay.errors import AssayError
from assay.records import RunKey
from assay.tracking import lookup, runs
from assay.tracking.lookup import KNOWN_SCHEMA, SlowLookupError, find_artifacts
from assay.tracking.runs import Tracker
from tests.tracking.parts import (
    default_params,
    make_data,
    make_evaluation,
    make_key,
    make_project,
    make_record,
    make_splits,
)

KEY = make_key("b" * 64)


def finish_one(tracker: Tracker, key: RunKey = KEY) -> str:
    root = tracker.project.root
    run = tracker.open_run(key, default_params(), make_data(root), make_splits(root), name="one")
    tracker.log_evaluation(run.run_id, make_evaluation(root / "evaluation"))
    if not tracker.client.search_registered_models("name = 'digits-cnn'"):
        tracker.client.create_registered_model("digits-cnn")
    uri = tracker.client.get_run(run.run_id).info.artifact_uri
    tags = {"assay.manifest.sha256": "f" * 64}
    tracker.client.create_model_version("digits-cnn", f"{uri}/model", run.run_id, tags=tags)
    tracker.finish(run.run_id, make_record(run.run_id))
    return run.run_id


def nothing(tracker: Tracker, run_id: str) -> None:
    pass


def run_again(tracker: Tracker, run_id: str) -> None:
    tracker.client.update_run(run_id, status="RUNNING")


def fail(tracker: Tracker, run_id: str) -> None:
    tracker.fail(run_id, "no")


def delete_run(tracker: Tracker, run_id: str) -> None:
    tracker.client.delete_run(run_id)


def delete_version(tracker: Tracker, run_id: str) -> None:
    tracker.client.delete_model_version("digits-cnn", "1")


def delete_model(tracker: Tracker, run_id: str) -> None:
    tracker.client.delete_registered_model("digits-cnn")


def delete_experiment(tracker: Tracker, run_id: str) -> None:
    tracker.client.delete_experiment(tracker.client.get_run(run_id).info.experiment_id)


def rename_model(tracker: Tracker, run_id: str) -> None:
    tracker.client.rename_registered_model("digits-cnn", "other")


def finish_another(tracker: Tracker, run_id: str) -> None:
    delete_version(tracker, run_id)
    finish_one(tracker)


@pytest.mark.parametrize(
    ("change", "is_found"),
    [
        (nothing, True),
        (rename_model, True),
        (finish_another, True),
        (run_again, False),
        (fail, False),
        (delete_run, False),
        (delete_version, False),
        (delete_model, False),
        (delete_experiment, False),
    ],
)
def test_the_tables_and_mlflow_say_the_same(
    sqlite_tracker: Tracker,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Tracker, str], None],
    is_found: bool,
) -> None:
    run_id = finish_one(sqlite_tracker)
    change(sqlite_tracker, run_id)
    tables = Tracker.open(sqlite_tracker.project, "unit")
    found = tables.find_finished(KEY)
    assert tables._client is None, "the tables alone answered"
    assert (found is not None) is is_found
    monkeypatch.setattr(lookup, "KNOWN_SCHEMA", "another")
    if change is not delete_experiment:
        assert found == sqlite_tracker.find_finished(KEY), "MLflow says the same"


def lose_lineage(tracker: Tracker, run_id: str) -> None:
    (lookup.find_artifacts(tracker.project.home / "mlflow.db", run_id) / "lineage.json").unlink()


def spoil_lineage(tracker: Tracker, run_id: str) -> None:
    (lookup.find_artifacts(tracker.project.home / "mlflow.db", run_id) / "lineage.json").write_text("{")


def add_without_key(tracker: Tracker, run_id: str) -> None:
    run = tracker.client.create_run(tracker.experiment_id(), tags={"assay.keyed": "no"})
    tracker.client.set_terminated(run.info.run_id)


def look_at_one(tracker: Tracker, run_id: str) -> None:
    runs.NUM_COMPARED_RUNS = 1


def look_at_none(tracker: Tracker, run_id: str) -> None:
    runs.NUM_COMPARED_RUNS = 1
    add_without_key(tracker, run_id)


NEAREST = make_key("1" * 64)
OTHER = dataclasses.replace(make_key("2" * 64), parts={"params": "x", "data": "0" * 32})


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (nothing, NEAREST),
        (delete_version, NEAREST),
        (lose_lineage, dataclasses.replace(NEAREST, details={})),
        (spoil_lineage, dataclasses.replace(NEAREST, details={})),
        (add_without_key, NEAREST),
        (run_again, OTHER),
        (fail, OTHER),
        (delete_run, OTHER),
        (look_at_one, OTHER),
        (look_at_none, None),
        (delete_experiment, None),
    ],
)
def test_the_tables_and_mlflow_find_the_same_nearest(
    sqlite_tracker: Tracker,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Tracker, str], None],
    expected: RunKey | None,
) -> None:
    monkeypatch.setattr(runs, "NUM_COMPARED_RUNS", runs.NUM_COMPARED_RUNS)  # put back what a change makes of it
    run_id = finish_one(sqlite_tracker, NEAREST)
    finish_one(sqlite_tracker, OTHER)
    asked = dataclasses.replace(make_key("3" * 64), parts={**NEAREST.parts, "params": "y"})
    change(sqlite_tracker, run_id)
    tables = Tracker.open(sqlite_tracker.project, "unit")
    assert tables.nearest(asked) == expected
    assert (tables._client is not None) is (change is lose_lineage), "the tables answered, and MLflow for a lost file"
    monkeypatch.setattr(lookup, "KNOWN_SCHEMA", "another")
    assert sqlite_tracker.nearest(asked) == expected, "MLflow says the same"


def test_only_this_key_in_this_experiment_is_found(sqlite_tracker: Tracker) -> None:
    finish_one(sqlite_tracker)
    assert sqlite_tracker.find_finished(make_key("c" * 64)) is None
    assert Tracker.open(sqlite_tracker.project, "elsewhere").find_finished(KEY) is None
    assert sqlite_tracker.find_finished(KEY) is not None


def test_the_known_schema_is_the_one_that_mlflow_makes(sqlite_tracker: Tracker) -> None:
    with sqlite3.connect(sqlite_tracker.project.home / "mlflow.db") as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [(KNOWN_SCHEMA,)]


def test_another_schema_is_left_to_mlflow(sqlite_tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = finish_one(sqlite_tracker)
    monkeypatch.setattr(lookup, "KNOWN_SCHEMA", "another")
    with pytest.raises(SlowLookupError):
        find_artifacts(sqlite_tracker.project.home / "mlflow.db", run_id)
    found = sqlite_tracker.find_finished(KEY)
    assert found is not None
    assert found.run_id == run_id
    assert sqlite_tracker.load_record(run_id) == make_record(run_id)


def test_without_a_database_there_is_nothing_and_nothing_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    project = make_project(tmp_path)
    assert Tracker.open(project, "unit").find_finished(KEY) is None
    assert not project.home.exists()


def test_a_file_that_is_no_database_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    project = make_project(tmp_path)
    (project.make_home() / "mlflow.db").write_bytes(b"not a database" * 100)
    with pytest.raises(AssayError, match=r"mlflow\.db"):
        Tracker.open(project, "unit").find_finished(KEY)


def test_the_answer_needs_no_heavy_import(sqlite_tracker: Tracker) -> None:
    finish_one(sqlite_tracker)
    program = (
        "import sys; from pathlib import Path; from assay.project import Project; from assay.records import RunKey;"
        "from assay.tracking.runs import Tracker; root = Path(sys.argv[1]);"
        "tracker = Tracker.open(Project(root, root / '.assay'), 'unit');"
        "found = tracker.find_finished(RunKey('b' * 64, {}));"
        "assert tracker.load_record(found.run_id).run_id == found.run_id;"
        "assert tracker.nearest(RunKey('c' * 64, {})).details;"
        "print(found.model.version, sorted({'mlflow', 'torch', 'sqlalchemy', 'pandas'} & set(sys.modules)))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    reply = subprocess.run(
        [sys.executable, "-c", program, str(sqlite_tracker.project.root)],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    assert reply.stdout.strip() == "1 []"
