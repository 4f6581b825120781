"""Has this been run already? Asked of MLflow's tables directly, where the store is a SQLite file.

Importing MLflow and opening its store takes 2 to 3 s, most of what running again with nothing changed would cost. The
one question that decides is therefore answered here in milliseconds, read-only, and so is which run comes nearest where
there is none. `SlowLookupError` says that it has to be asked through MLflow instead.
"""

import sqlite3
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from assay.records import ModelRef
from assay.tracking.lineage import KEY_TAG, KIND_TAG, MANIFEST_TAG

KNOWN_SCHEMA = "dc11669786a5"
"""Revision of MLflow's tables that the queries below were written for (`alembic_version`)."""

_RUNS = """
SELECT runs.run_uuid, runs.experiment_id, runs.end_time
FROM runs JOIN experiments USING (experiment_id) JOIN tags USING (run_uuid)
WHERE experiments.name = ? AND tags.key = ? AND tags.value = ?
  AND runs.status = 'FINISHED' AND runs.lifecycle_stage = 'active' AND experiments.lifecycle_stage = 'active'
ORDER BY runs.start_time DESC
"""

_VERSION = """
SELECT version.name, version.version, tag.value
FROM model_versions AS version LEFT JOIN model_version_tags AS tag
  ON tag.name = version.name AND tag.version = version.version AND tag.key = ?
WHERE version.run_id = ? AND version.status = 'READY' AND version.current_stage != 'Deleted_Internal'
ORDER BY version.version LIMIT 1
"""

_OF_KIND = """
SELECT key_tag.value, runs.run_uuid, runs.artifact_uri
FROM runs JOIN experiments USING (experiment_id)
  JOIN tags AS key_tag ON key_tag.run_uuid = runs.run_uuid AND key_tag.key = ?
  JOIN tags AS kind_tag ON kind_tag.run_uuid = runs.run_uuid AND kind_tag.key = ? AND kind_tag.value = ?
WHERE experiments.name = ? AND experiments.lifecycle_stage = 'active'
  AND runs.status = 'FINISHED' AND runs.lifecycle_stage = 'active'
ORDER BY runs.start_time
"""

_LATEST = """
SELECT latest.run_uuid, latest.start_time, tags.key, tags.value
FROM (
    SELECT runs.run_uuid, runs.start_time FROM runs JOIN experiments USING (experiment_id)
    WHERE experiments.name = ? AND runs.status = 'FINISHED' AND runs.lifecycle_stage = 'active'
    ORDER BY runs.start_time DESC, runs.run_uuid LIMIT ?
) AS latest JOIN tags USING (run_uuid)
WHERE tags.key = ? OR tags.key GLOB ?
ORDER BY latest.start_time DESC, latest.run_uuid
"""

_METRICS = "SELECT key, value FROM latest_metrics WHERE run_uuid = ? AND NOT is_nan"

_FILES = """
SELECT version.source, tag.value
FROM model_versions AS version LEFT JOIN model_version_tags AS tag
  ON tag.name = version.name AND tag.version = version.version AND tag.key = ?
WHERE version.name = ? AND version.version = ? AND version.current_stage != 'Deleted_Internal'
"""

_ARTIFACTS = "SELECT artifact_uri FROM runs WHERE run_uuid = ?"


class SlowLookupError(Exception):
    """The tables are not those that the queries were written for, or cannot be read just now."""


@dataclass(frozen=True)
class FoundRun:
    """A finished run with a registered version, as the tables hold it.

    Attributes:
        model: The version.
        metrics: Metric name -> latest value.
        experiment_id: MLflow experiment.
        finished_ms: Unix time in ms.
    """

    model: ModelRef
    metrics: dict[str, float]
    experiment_id: str
    finished_ms: int


@dataclass(frozen=True)
class KeyedRun:
    """A run that has a run key.

    Attributes:
        run_id: MLflow run.
        start_time_ms: Unix time in ms.
        tags: Its tags; from the tables only those of its key.
    """

    run_id: str
    start_time_ms: int
    tags: dict[str, str]


def find_run(database: Path, experiment: str, digest: str) -> FoundRun | None:
    """Find the latest finished run with a run key whose registered version still exists.

    Args:
        database: MLflow's SQLite file.
        experiment: Name of the experiment to look in.
        digest: Digest of the run key.

    Raises:
        SlowLookupError: Ask through MLflow.
    """
    with _tables(database) as tables:
        for run_id, experiment_id, end_time in tables.execute(_RUNS, (experiment, KEY_TAG, digest)):
            version = tables.execute(_VERSION, (MANIFEST_TAG, run_id)).fetchone()
            if version is not None:
                name, number, manifest_sha256 = version
                model = ModelRef(name, number, run_id, f"models:/{name}/{number}", manifest_sha256 or "")
                metrics = dict(tables.execute(_METRICS, (run_id,)))
                return FoundRun(model, metrics, str(experiment_id), end_time or 0)
    return None


def find_of_kind(database: Path, experiment: str, kind: str) -> dict[str, tuple[str, Path]]:
    """Find every finished run of a kind, e.g. all trials; the latest of several with one run key.

    Args:
        database: MLflow's SQLite file.
        experiment: Name of the experiment to look in.
        kind: Value of the tag `KIND_TAG`.

    Returns:
        Digest of the run key -> the run's id and the folder of its files.

    Raises:
        SlowLookupError: Ask through MLflow.
    """
    with _tables(database) as tables:
        rows = tables.execute(_OF_KIND, (KEY_TAG, KIND_TAG, kind, experiment)).fetchall()
    return {key: (run_id, _local_path(uri)) for key, run_id, uri in rows}


def find_latest(database: Path, experiment: str, limit: int) -> list[KeyedRun]:
    """Find those with a run key among the latest finished runs, latest first.

    Args:
        database: MLflow's SQLite file.
        experiment: Name of the experiment to look in.
        limit: Finished runs, with or without a run key, that are looked at.

    Raises:
        SlowLookupError: Ask through MLflow.
    """
    found: dict[str, KeyedRun] = {}
    with _tables(database) as tables:
        for run_id, start_time, name, value in tables.execute(_LATEST, (experiment, limit, KEY_TAG, f"{KEY_TAG}.*")):
            found.setdefault(run_id, KeyedRun(run_id, start_time, {})).tags[name] = value
    return [run for run in found.values() if KEY_TAG in run.tags]


def find_artifacts(database: Path, run_id: str) -> Path:
    """Find the folder of a run's files.

    Raises:
        SlowLookupError: Ask through MLflow.
    """
    with _tables(database) as tables:
        row = tables.execute(_ARTIFACTS, (run_id,)).fetchone()
    return _local_path(row[0] if row else "")


def find_version_files(database: Path, name: str, number: int) -> tuple[str, str] | None:
    """Find where a registered version's files are, and the SHA-256 of their manifest, empty where nobody noted it.

    Args:
        database: MLflow's SQLite file.
        name: Registered model.
        number: Its version.

    Returns:
        URI or path, and SHA-256 (hex); None where there is no such version.

    Raises:
        SlowLookupError: Ask through MLflow.
    """
    with _tables(database) as tables:
        row = tables.execute(_FILES, (MANIFEST_TAG, name, number)).fetchone()
    return None if row is None else (row[0] or "", row[1] or "")


def _local_path(uri: str) -> Path:
    parts = urllib.parse.urlsplit(uri)
    if parts.scheme != "file":
        raise SlowLookupError
    return Path(urllib.request.url2pathname(parts.path))


@contextmanager
def _tables(database: Path) -> Iterator[sqlite3.Connection]:
    try:
        connection = sqlite3.connect(f"file:{urllib.parse.quote(str(database))}?mode=ro", uri=True)
        try:
            if connection.execute("SELECT version_num FROM alembic_version").fetchall() != [(KNOWN_SCHEMA,)]:
                raise SlowLookupError
            yield connection
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise SlowLookupError from error
