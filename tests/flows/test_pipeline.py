"""The whole chain as a person runs it: train, reuse, explain, resume after SIGKILL."""

import json
import shutil
import signal
import sqlite3
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.copies import QUICK, ROOT, Copy

pytestmark = pytest.mark.slow


def rows(copy: Copy, database: str, query: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(copy.home / database)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def test_a_run_trains_once_and_the_next_finds_it(project: Copy) -> None:
    first = project.run()
    assert first["reused"] is False
    assert first["reasons"] == ["there is no finished run in experiment 'assay' yet"]
    assert first["model_version"] == 1
    assert 0.5 < first["metrics"]["accuracy"] <= 1
    low, high = first["intervals"]["accuracy"]
    assert low <= first["metrics"]["accuracy"] <= high
    assert first["baselines"]["majority_class"]["accuracy"] < 0.2
    assert first["baselines"]["logistic_regression"]["accuracy"] > 0.9
    assert Path(first["report_path"]).is_file()

    again = project.run()
    assert again["reused"] is True
    same = ("run_id", "model_name", "model_version", "run_key", "data_md5", "metrics", "baselines")
    assert {name: again[name] for name in same} == {name: first[name] for name in same}
    assert rows(project, "mlflow.db", "select count(*) from runs") == [(1,)]

    other = project.run("train.dropout_prob=0.5")
    assert other["reused"] is False
    assert other["reasons"] == ["train.dropout_prob 0.25 -> 0.5"]
    assert other["model_version"] == 2

    flows = rows(project, "prefect/prefect.db", "select state_type from flow_run")
    assert flows == [("COMPLETED",), ("COMPLETED",)]
    names = [name for (name,) in rows(project, "prefect/prefect.db", "select distinct key from artifact")]
    assert sorted(names) == ["data", "evaluation", "model", "progress", "result", "splits", "training", "validation"]


def test_an_edited_source_file_is_named_and_trains(served: Copy) -> None:
    shutil.copytree(ROOT / "src" / "assay", served.root / "src" / "assay", ignore=shutil.ignore_patterns("__pycache__"))
    served.environment["PYTHONPATH"] = str(served.root / "src")
    first = served.run()
    helper = served.root / "src" / "assay" / "training" / "losses.py"
    helper.write_text(helper.read_text() + "\n# changed\n")
    second = served.run()
    assert second["reused"] is False
    assert second["reasons"] == ["assay/training/losses.py changed"]
    assert second["run_key"] != first["run_key"]


def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(served: Copy, tmp_path: Path) -> None:
    overrides = ("train.num_epochs=12", "train.checkpoint_every_seconds=0")
    shutil.copytree(served.home, tmp_path / "unbroken", symlinks=True)
    unbroken = served.run(*overrides, ASSAY_HOME=str(tmp_path / "unbroken"))

    command = served.command("run", "--json", *QUICK, *overrides)
    kills = 0
    for _ in range(3):
        with subprocess.Popen(
            command, cwd=served.root, env=served.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            before = checkpoint_bytes(served)
            while process.poll() is None and checkpoint_bytes(served) == before:
                time.sleep(0.01)
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                kills += 1
    assert kills >= 1

    resumed = served.run(*overrides)
    assert resumed["run_key"] == unbroken["run_key"]
    assert resumed["metrics"] == unbroken["metrics"]
    assert resumed["model_version"] == 1
    assert rows(served, "mlflow.db", "select count(*) from runs") == [(1,)]
    assert rows(served, "mlflow.db", "select count(*) from model_versions") == [(1,)]
    doubled = (
        "select key, step, count(*) from metrics where key not like 'system/%' group by key, step having count(*) > 1"
    )
    assert rows(served, "mlflow.db", doubled) == []
    assert weights_tag(served) == weights_tag(served, tmp_path / "unbroken")


def checkpoint_bytes(project: Copy) -> bytes:
    files = list(project.home.glob("runs/*/checkpoint.safetensors"))
    return files[0].read_bytes() if files else b""


def weights_tag(project: Copy, home: Path | None = None) -> str:
    connection = sqlite3.connect((home or project.home) / "mlflow.db")
    try:
        query = "select value from model_version_tags where key = 'assay.weights.sha256'"
        return str(connection.execute(query).fetchone()[0])
    finally:
        connection.close()


def test_two_at_once_in_a_fresh_project_train_once(fresh_project: Copy) -> None:
    project = fresh_project
    command = project.command("run", "--json", *QUICK)
    pair = [
        subprocess.Popen(command, cwd=project.root, env=project.environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    records = [json.loads(process.communicate()[0]) for process in pair]
    assert [process.returncode for process in pair] == [0, 0]
    assert sorted(record["reused"] for record in records) == [False, True]
    assert records[0]["run_id"] == records[1]["run_id"]
    assert rows(project, "mlflow.db", "select count(*) from model_versions") == [(1,)]
