"""Nights as `assay nightly` runs them: they train, skip, stop or fail, and each leaves one record everywhere."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from sklearn.datasets import load_digits

from tests.copies import Copy

pytestmark = pytest.mark.slow

QUICK = {
    "model": {"channels": [8, 16]},
    "train": {"num_epochs": 6, "batch_size": 32, "augmentation": {"kind": "none"}},
    "evaluation": {"num_bootstrap": 100},
    "device": {"num_threads": 1},
    "gate": {"in_run": False, "baselines": ["majority_class"], "max_calibration_error": None},
}


def change_params(project: Copy, changes: dict[str, Any]) -> None:
    file = project.root / "params.yaml"
    params = yaml.safe_load(file.read_text())
    for section, values in changes.items():
        params[section] |= values
    file.write_text(yaml.safe_dump(params))


def night(project: Copy, code: int) -> dict[str, Any]:
    done = project.assay("nightly", "--json")
    assert done.returncode == code, done.stderr
    record: dict[str, Any] = json.loads(done.stdout)
    return record


def rows(project: Copy, database: str, query: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(project.home / database)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def runs_of(project: Copy, experiment: str) -> list[tuple[str, dict[str, str]]]:
    """Status and tags of an experiment's runs, the first one first."""
    found = rows(
        project,
        "mlflow.db",
        "select run_uuid, status from runs join experiments using (experiment_id) "
        f"where experiments.name = '{experiment}' order by start_time",
    )
    return [
        (status, dict(rows(project, "mlflow.db", f"select key, value from tags where run_uuid = '{run_id}'")))
        for run_id, status in found
    ]


def page(project: Copy, flow_run_id: str) -> dict[str, str]:
    """Artifacts of a flow run: key -> description."""
    found = rows(project, "prefect/prefect.db", "select key, description, flow_run_id from artifact")
    own = flow_run_id.replace("-", "")
    return {key: text for key, text, run_id in found if str(run_id).replace("-", "") == own}


def import_digits_without(project: Copy, name: str, folder: Path) -> None:
    digits = load_digits()
    for number, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        if str(label) != name:
            (folder / str(label)).mkdir(parents=True, exist_ok=True)
            Image.fromarray((image * 15).astype("uint8")).save(folder / str(label) / f"{number}.png")
    done = project.assay("data", "import", "image-folder", str(folder))
    assert done.returncode == 0, done.stderr


def test_nights_train_skip_and_stop(served: Copy, tmp_path: Path) -> None:
    listed = served.assay("nightly", "--list")
    assert (listed.returncode, listed.stdout) == (0, "No night has been run yet. Start one: assay nightly\n")
    change_params(served, QUICK)

    first = night(served, 0)
    assert (first["outcome"], first["trained"], first["version"], first["champion"]) == (
        "first champion",
        True,
        1,
        None,
    )
    assert first["reason"].startswith("there is no champion yet. Gate: There is no champion yet, and it passes all")
    assert first["device_minutes_used"] > 0.0 and first["run_id"]
    assert rows(served, "mlflow.db", "select alias, version from registered_model_aliases") == [("champion", 1)]

    second = night(served, 0)
    assert (second["outcome"], second["trained"], second["champion"], second["version"]) == ("skipped", False, 1, None)
    assert second["reason"] == "data, params, code and packages are those of champion 1"
    assert second["device_minutes_saved"] == first["device_minutes_used"]
    assert second["device"] == first["device"]

    change_params(served, {"train": {"num_epochs": 1}})
    third = night(served, 3)
    assert (third["outcome"], third["trained"], third["version"], third["champion"]) == ("refused", True, 2, 1)
    assert third["changes"] == ["train.num_epochs 6 -> 1"]
    assert third["reason"].startswith("changed since champion 1: train.num_epochs 6 -> 1. Gate: ")
    assert third["drifts"] == [], "the data is the champion's"

    fourth = night(served, 0)
    assert (fourth["outcome"], fourth["trained"]) == ("skipped", False)
    assert fourth["reason"].startswith("version 2 was made of the same data, params, code and packages, and the gate")

    import_digits_without(served, "9", tmp_path / "pictures")
    fifth = night(served, 3)
    assert (fifth["outcome"], fifth["trained"], fifth["version"]) == ("stopped", False, None)
    assert fifth["reason"].startswith("vanished class: 9: Class '9' is gone; it had 180 examples")
    assert fifth["findings"][0]["level"] == "stops"
    assert {"inputs", "labels"} == {drift["kind"] for drift in fifth["drifts"]}, "the champion knows other classes"
    assert fifth["data_md5"] != first["data_md5"]

    nights = [first, second, third, fourth, fifth]
    everywhere_the_same(served, nights)
    assert len(runs_of(served, "assay")) == 2, "two were trained"
    assert {"quality", "drift"} <= page(served, fifth["flow_run_id"]).keys()


def everywhere_the_same(project: Copy, nights: list[dict[str, Any]]) -> None:
    """The ledger, MLflow, Prefect and the list have the record of each night."""
    records = rows(project, "ledger.db", "select record from assay_night_records order by due_ms")
    assert [json.loads(text) for (text,) in records] == nights
    logged = runs_of(project, "assay-nights")
    assert [status for status, _ in logged] == ["FINISHED"] * len(nights)
    for record, (_, tags) in zip(nights, logged, strict=True):
        assert (tags["assay.night.due"], tags["assay.night.outcome"]) == (record["due"], record["outcome"])
        assert tags["assay.night.reason"] == record["reason"]
        shown = page(project, record["flow_run_id"])
        assert shown["night"].startswith(record["outcome"]) and record["reason"] in shown["night"]
    listed = project.assay("nightly", "--list", "--json")
    assert json.loads(listed.stdout) == nights[::-1], "the latest first"
    lines = " ".join(listed.stderr.split())
    assert all(f"{record['outcome']}" in lines for record in nights)


def test_a_night_that_fails_leaves_a_record_and_an_exit_code(project: Copy) -> None:
    change_params(project, QUICK)
    pin = project.root / "data.dvc"
    pin.write_text(pin.read_text()[:100])
    done = project.assay("nightly", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["kind"] == "PinMismatchError"
    listed = json.loads(project.assay("nightly", "--list", "--json").stdout)
    (record,) = listed
    assert (record["outcome"], record["trained"], record["champion"]) == ("failed", False, None)
    assert str(pin) in record["reason"] and record["reason"] in done.stderr
    everywhere_the_same(project, [record])
    states = rows(project, "prefect/prefect.db", "select state_type from flow_run")
    assert states == [("FAILED",)]
