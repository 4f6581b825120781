"""Nights in MLflow: a run for each, in an experiment of their own, with the decision as tags and as a file."""

import hashlib
import json
import tempfile
from pathlib import Path

from assay.records import NightRecord
from assay.tracking.lineage import KIND_TAG
from assay.tracking.runs import Tracker, service_errors

NIGHT = "night"
RECORD_FILE = "night.json"
_DUE_TAG = "assay.night.due"
_FLOW_RUN_TAG = "assay.night.flow_run"
_RECORD_TAG = "assay.night.sha256"


def experiment_of(experiment: str) -> str:
    """Return the name of the experiment that holds the nights beside an experiment of whole runs."""
    return f"{experiment}-nights"


def log_night(tracker: Tracker, record: NightRecord) -> str:
    """Write a night down: one run for each; what a night that was begun again came to replaces what it came to before.

    Args:
        tracker: A tracker of the experiment of the nights.
        record: What the night came to.

    Returns:
        Its MLflow run.

    Raises:
        ServiceError: The store fails.
    """
    tags = _tags(record)
    with service_errors(tracker.store):
        experiment = tracker.experiment_id()
        same = f"tags.`{_DUE_TAG}` = '{record.due}' AND tags.`{_FLOW_RUN_TAG}` = '{record.flow_run_id}'"
        found = tracker.client.search_runs([experiment], same, max_results=1)
        if found and found[0].info.status == "FINISHED" and found[0].data.tags.get(_RECORD_TAG) == tags[_RECORD_TAG]:
            return str(found[0].info.run_id)
        if found:
            run_id = found[0].info.run_id
            for tag, value in tags.items():
                tracker.client.set_tag(run_id, tag, value)
        else:
            run_id = tracker.client.create_run(experiment, tags=tags, run_name=tags["mlflow.runName"]).info.run_id
        for name in ("seconds", "device_minutes_used", "device_minutes_saved"):
            tracker.client.log_metric(run_id, name, getattr(record, name))
        tracker.client.log_metric(run_id, "num_drifted", sum(drift.drifted for drift in record.drifts))
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, RECORD_FILE)
            file.write_text(json.dumps(record.to_json(), indent=1))
            tracker.client.log_artifact(run_id, str(file))
        tracker.client.set_terminated(run_id, status="FINISHED")
    return str(run_id)


def _tags(record: NightRecord) -> dict[str, str]:
    return {
        KIND_TAG: NIGHT,
        _DUE_TAG: record.due,
        _FLOW_RUN_TAG: record.flow_run_id,
        _RECORD_TAG: hashlib.sha256(json.dumps(record.to_json()).encode()).hexdigest(),
        "assay.night.outcome": record.outcome,
        "assay.night.reason": record.reason,
        "assay.night.champion": "" if record.champion is None else str(record.champion),
        "assay.night.version": "" if record.version is None else str(record.version),
        "assay.data.md5": record.data_md5,
        "mlflow.runName": f"{record.due[:10]} {record.outcome}",
        "mlflow.source.name": "assay nightly",
        "mlflow.source.type": "LOCAL",
        "mlflow.note.content": record.describe(),
    }
