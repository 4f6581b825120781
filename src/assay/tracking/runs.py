"""One project's MLflow runs: find, open, log, finish."""

import errno
import json
import logging
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from assay.errors import ServiceError, StorageError
from assay.params import RunParams, flatten
from assay.project import Project
from assay.records import DataRef, Evaluation, Interval, ModelRef, RunKey, RunRecord, Splits
from assay.tracking import lookup
from assay.tracking.lineage import KEY_TAG, MANIFEST_TAG, dataset_inputs, key_json, lineage_tags
from assay.tracking.metrics import MetricStream, require_finite
from assay.tracking.store import Store, find_store, open_client, probe

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

FAILURE_TAG = "assay.failure"
STAGE_TAG = "assay.stage"
TRAINED = "trained"
"""Value of `STAGE_TAG` on a run that was trained and is not evaluated on test yet."""
PAGE_TAG = "assay.prefect.flow_run"
LINEAGE_FILE = "lineage.json"
PARAMS_FILE = "params.json"
PIN_FILE = "data.dvc"
RECORD_FILE = "record.json"
NUM_COMPARED_RUNS = 200
"""Finished runs, latest first, among which `Tracker.nearest` looks."""
_KIND = {"mlflow.experimentKind": "custom_model_development"}  # else the dashboard shows its pages for language models
_FAILURE_CHARACTERS = 2000
_PARAMS_PER_REQUEST = 100

_STORAGE_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM})

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FinishedRun:
    """A run that ended well and whose model is registered.

    Attributes:
        run_id: MLflow run.
        model: The version it registered.
        metrics: Test metric name -> estimate with interval, as in `Evaluation.metrics`.
        baselines: As in `Evaluation.baselines`.
        experiment_id: MLflow experiment, for links.
        finished_ms: Unix time in ms.
    """

    run_id: str
    model: ModelRef
    metrics: dict[str, Interval]
    baselines: dict[str, dict[str, float]]
    experiment_id: str
    finished_ms: int


@dataclass(frozen=True)
class OpenRun:
    """A run that is being written.

    Attributes:
        run_id: MLflow run.
        experiment_id: MLflow experiment, for links.
        start_time_ms: Unix time in ms; of the first start where the run is continued.
        continued: Whether it goes on from a run that was killed or failed.
    """

    run_id: str
    experiment_id: str
    start_time_ms: int
    continued: bool


class Tracker:
    """One project's MLflow store; `open` makes one.

    MLflow is imported, and a SQLite file made, when `client` is first used. Whether a run has been done already, and
    which comes nearest, is found out without it where the store is a SQLite file.

    Attributes:
        project: The project.
        store: Where its runs are.
        experiment: Name of the experiment that runs are looked for and written in.
    """

    def __init__(self, project: Project, store: Store, experiment: str) -> None:
        self.project = project
        self.store = store
        self.experiment = experiment
        self._opening = threading.Lock()
        self._client: MlflowClient | None = None

    @classmethod
    def open(cls, project: Project, experiment: str) -> Self:
        """Settle on the project's store, and ask a named server whether it is there.

        Raises:
            ServiceError: A named server does not answer within seconds, or is no MLflow store.
        """
        store = find_store(project)
        probe(store)
        return cls(project, store, experiment)

    @property
    def client(self) -> "MlflowClient":
        """MLflow's client; its first use takes 2 to 3 s, and 2 s more where it makes the SQLite file.

        Threads that use it first at the same time get the same one.

        Raises:
            ServiceError: The store cannot be opened.
            StorageError: The SQLite file cannot be created.
        """
        with self._opening:
            if self._client is None:
                self._client = open_client(self.project, self.store)
            return self._client

    def find_finished(self, key: RunKey) -> FinishedRun | None:
        """Find the latest finished run with this key whose registered version still exists."""
        database = self.store.database
        if database is not None:
            if not database.exists():
                return None
            with suppress(lookup.SlowLookupError):
                found = lookup.find_run(database, self.experiment, key.digest)
                if found is None:
                    return None
                return finished_run(found.model, found.metrics, found.experiment_id, found.finished_ms)
        for run in self._search(f"tags.`{KEY_TAG}` = '{key.digest}' AND attributes.status = 'FINISHED'"):
            model = self.find_version(run.info.run_id)
            if model is not None:
                return finished_run(model, run.data.metrics, run.info.experiment_id, run.info.end_time or 0)
        return None

    def find_version(self, run_id: str) -> ModelRef | None:
        """The model version that a run registered, if it still exists."""
        with service_errors(self.store):
            versions = self.client.search_model_versions(f"run_id = '{run_id}'")
        usable = [version for version in versions if version.status == "READY"]
        if not usable:
            return None
        version = min(usable, key=lambda candidate: int(candidate.version))
        return ModelRef(
            name=version.name,
            version=int(version.version),
            run_id=run_id,
            uri=f"models:/{version.name}/{version.version}",
            manifest_sha256=version.tags.get(MANIFEST_TAG, ""),
        )

    def nearest(self, key: RunKey) -> RunKey | None:
        """The key, details included, of the finished run with the most equal parts; the latest of several."""
        runs = self._latest()
        if not runs:
            return None
        best = max(runs, key=lambda run: (_num_equal_parts(run.tags, key), run.start_time_ms))
        return self._read_key(best.run_id, best.tags)

    def _latest(self) -> list[lookup.KeyedRun]:
        """Those with a run key among the latest finished runs, latest first."""
        database = self.store.database
        if database is not None:
            with suppress(lookup.SlowLookupError):
                return lookup.find_latest(database, self.experiment, NUM_COMPARED_RUNS)
        runs = self._search("attributes.status = 'FINISHED'", NUM_COMPARED_RUNS)
        return [
            lookup.KeyedRun(run.info.run_id, run.info.start_time, run.data.tags)
            for run in runs
            if KEY_TAG in run.data.tags
        ]

    def open_run(
        self, key: RunKey, params: RunParams, data: DataRef, splits: Splits, *, name: str, resumable: bool = True
    ) -> OpenRun:
        """Go on with the run of this key that never finished, or start one.

        Args:
            key: The run key.
            params: All parameters, logged under their dotted names.
            data: The data set, logged as MLflow datasets for train, val and test.
            splits: The division, whose file is logged.
            name: Display name of a new run.
            resumable: Whether training goes on from a checkpoint. If not, a run that has metrics already is
                closed as KILLED instead of getting a second curve.

        Returns:
            The run, in state RUNNING.
        """
        with service_errors(self.store):
            run = self._unfinished(key, resumable)
            continued = run is not None
            if run is None:
                run = self._create(key, params, data, name)
            else:
                self.client.update_run(run.info.run_id, status="RUNNING")
                for tag in {FAILURE_TAG, STAGE_TAG} & set(run.data.tags):
                    self.client.delete_tag(run.info.run_id, tag)
            self._describe(run, key, params, data, splits)
        return OpenRun(run.info.run_id, run.info.experiment_id, run.info.start_time, continued)

    def _unfinished(self, key: RunKey, resumable: bool) -> "Run | None":
        usable = None
        for run in self._search(f"tags.`{KEY_TAG}` = '{key.digest}'"):
            trained_only = run.data.tags.get(STAGE_TAG) == TRAINED
            if run.info.status == "KILLED" or (run.info.status == "FINISHED" and not trained_only):
                continue
            if usable is None and (resumable or not _has_curve(run)):
                usable = run
            elif run.info.status == "RUNNING":
                self.client.set_tag(run.info.run_id, FAILURE_TAG, "killed; started again without its checkpoint")
                self.client.set_terminated(run.info.run_id, status="KILLED")
        return usable

    def _create(self, key: RunKey, params: RunParams, data: DataRef, name: str) -> "Run":
        tags = lineage_tags(self.project, key, params, data) | {
            "mlflow.runName": name,
            "mlflow.source.name": "assay",
            "mlflow.source.type": "LOCAL",
        }
        return self.client.create_run(self.experiment_id(), tags=tags, run_name=name)

    def experiment_id(self) -> str:
        """Return the id of the experiment, which is made where it is not there yet."""
        experiment = self.client.get_experiment_by_name(self.experiment)
        if experiment is not None:
            return str(experiment.experiment_id)
        from mlflow.exceptions import MlflowException

        root = self.store.artifact_root
        location = None if root is None else f"{root}/{self.experiment.replace(' ', '-')}"
        try:
            return str(self.client.create_experiment(self.experiment, artifact_location=location, tags=_KIND))
        except MlflowException as error:
            # Another process may have created it in between.
            experiment = self.client.get_experiment_by_name(self.experiment)
            if experiment is None:
                raise ServiceError(f"experiment {self.experiment}: cannot be created ({error}).") from error
            return str(experiment.experiment_id)

    def _describe(self, run: "Run", key: RunKey, params: RunParams, data: DataRef, splits: Splits) -> None:
        """Log what a run starts from; what it has already is left alone."""
        from mlflow.entities import Param

        run_id = run.info.run_id
        missing = [
            Param(name, _param_text(value)) for name, value in flatten(params).items() if name not in run.data.params
        ]
        for start in range(0, len(missing), _PARAMS_PER_REQUEST):
            self.client.log_batch(run_id, params=missing[start : start + _PARAMS_PER_REQUEST])
        if run.inputs is None or not run.inputs.dataset_inputs:
            self.client.log_inputs(run_id, datasets=dataset_inputs(data, splits))
        self._log_text(run_id, key_json(key), LINEAGE_FILE)
        self._log_text(run_id, params.model_dump_json(indent=1), PARAMS_FILE)
        pin_file = Path(data.path).with_name(PIN_FILE)  # of the data of this run, which may not be the project's own
        if pin_file.is_file():
            self.client.log_artifact(run_id, str(pin_file))
        self.client.log_artifact(run_id, splits.path)

    def metrics(self, run: OpenRun, flush_seconds: float = 5.0, system_metrics_seconds: float = 10.0) -> MetricStream:
        """A stream of a run's metrics: ``with tracker.metrics(run) as stream: fit(..., on_epoch=stream.log_epoch)``."""
        return MetricStream(self.client, run.run_id, run.start_time_ms, flush_seconds, system_metrics_seconds)

    def log_evaluation(self, run_id: str, evaluation: Evaluation) -> None:
        """Log test metrics with their interval's ends, baselines, and all files of an evaluation.

        Raises:
            NonFiniteError: A metric is NaN or infinite; nothing was logged.
        """
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        values = dict(_metric_values(evaluation))
        batch = [Metric(name, require_finite(name, value), now_ms, 0) for name, value in values.items()]
        with service_errors(self.store):
            logged = self.client.get_run(run_id).data.metrics
            new = [metric for metric in batch if logged.get(metric.key) != metric.value]
            for start in range(0, len(new), 1000):
                self.client.log_batch(run_id, metrics=new[start : start + 1000])
            self._log_text(run_id, json.dumps(evaluation.to_json(), indent=1), "evaluation.json")
            self.client.log_artifact(run_id, evaluation.report_path)
            self.client.log_artifact(run_id, evaluation.predictions_path)
            for figure in evaluation.figures.values():
                self.client.log_artifact(run_id, figure, "figures")

    def load_evaluation(self, run_id: str) -> Evaluation:
        """Read back what `log_evaluation` kept; its paths are those of the machine that evaluated."""
        return Evaluation.from_json(json.loads(self._read_text(run_id, "evaluation.json")))

    def finish(self, run_id: str, record: RunRecord | None = None) -> None:
        """Keep what a run came to as its ``record.json`` and mark it FINISHED."""
        with service_errors(self.store):
            if record is not None:
                self._log_text(run_id, json.dumps(record.to_json(), indent=1), RECORD_FILE)
            self.client.set_terminated(run_id, status="FINISHED")

    def finish_training(self, run_id: str) -> None:
        """Mark a run FINISHED that was trained and not evaluated; a whole run of its key goes on with it."""
        with service_errors(self.store):
            self.client.set_tag(run_id, STAGE_TAG, TRAINED)
            self.client.set_terminated(run_id, status="FINISHED")

    def link_page(self, run_id: str, url: str) -> None:
        """Have the run's page lead back to the page of the flow run that made it."""
        with service_errors(self.store):
            self.client.set_tag(run_id, PAGE_TAG, url)
            self.client.set_tag(run_id, "mlflow.note.content", f"Made by [this Prefect flow run]({url}).")

    def load_record(self, run_id: str) -> RunRecord:
        """Read back what `finish` kept."""
        with service_errors(self.store):
            return RunRecord.from_json(json.loads(self._read_text(run_id, RECORD_FILE)))

    def load_key(self, run_id: str) -> RunKey:
        """Read back a run's key with the details of its parts."""
        with service_errors(self.store):
            return self._read_key(run_id, self.client.get_run(run_id).data.tags)

    def load_params(self, run_id: str) -> RunParams:
        """Read back all params of a run.

        Raises:
            ServiceError: The store fails, or the run did not keep them.
        """
        with self.artifact(run_id, PARAMS_FILE) as path:
            return RunParams.model_validate_json(path.read_text())

    def tags(self, run_id: str) -> dict[str, str]:
        """Return a run's tags."""
        with service_errors(self.store):
            return dict(self.client.get_run(run_id).data.tags)

    def param_texts(self, run_id: str) -> dict[str, str]:
        """Return a run's params as MLflow shows them: dotted name -> text."""
        with service_errors(self.store):
            return dict(self.client.get_run(run_id).data.params)

    def set_tag(self, run_id: str, name: str, value: str) -> None:
        """Set a tag of a run."""
        with service_errors(self.store):
            self.client.set_tag(run_id, name, value)

    def log_json(self, run_id: str, values: Mapping[str, Any], name: str) -> None:
        """Keep JSON values as one of a run's files; a file of that name is replaced."""
        with service_errors(self.store):
            self._log_text(run_id, json.dumps(values, indent=1), name)

    def lineage(self, run_id: str) -> dict[str, str]:
        """What a run came from, for people: commit, key, data, constraints."""
        with service_errors(self.store):
            tags = self.client.get_run(run_id).data.tags
        shown = ("git.commit", "git.dirty", "key", "data.source", "data.md5", "params.sha256", "constraints.sha256")
        return {name: tags[f"assay.{name}"] for name in shown if f"assay.{name}" in tags} | {"MLflow run": run_id}

    @contextmanager
    def failure_noted(self, run_id: str) -> Iterator[None]:
        """Mark the run FAILED with its reason when the block raises, and let the error pass."""
        try:
            yield
        except BaseException as error:  # also what Prefect makes of SIGTERM
            try:
                self.fail(run_id, f"{type(error).__name__}: {error}")
            except ServiceError:
                # What went wrong first says more than a store that is gone by now.
                _log.warning("run %s: could not be marked as failed", run_id, exc_info=True)
            raise

    def fail(self, run_id: str, reason: str) -> None:
        """Mark a run FAILED and say why in its tag ``assay.failure``."""
        with service_errors(self.store):
            self.client.set_tag(run_id, FAILURE_TAG, reason[:_FAILURE_CHARACTERS])
            self.client.set_terminated(run_id, status="FAILED")

    def _search(self, condition: str, limit: int = 50) -> "list[Run]":
        with service_errors(self.store):
            experiment = self.client.get_experiment_by_name(self.experiment)
            if experiment is None:
                return []
            order = ["attributes.start_time DESC"]
            return list(
                self.client.search_runs([experiment.experiment_id], condition, max_results=limit, order_by=order)
            )

    def _read_key(self, run_id: str, tags: Mapping[str, str]) -> RunKey:
        """The run's key; without details if its lineage file is gone."""
        try:
            return RunKey.from_json(json.loads(self._read_text(run_id, LINEAGE_FILE)))
        except (OSError, ValueError):
            pass
        except Exception as error:
            from mlflow.exceptions import MlflowException

            if not isinstance(error, MlflowException):
                raise
        prefix = f"{KEY_TAG}."
        parts = {name.removeprefix(prefix): value for name, value in tags.items() if name.startswith(prefix)}
        return RunKey(digest=tags[KEY_TAG], parts=parts)

    def _log_text(self, run_id: str, text: str, name: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, name)
            file.write_text(text)
            self.client.log_artifact(run_id, str(file))

    @contextmanager
    def artifact(self, run_id: str, name: str) -> Iterator[Path]:
        """One of a run's files on this machine: in place, or fetched for as long as the block runs.

        Args:
            run_id: MLflow run.
            name: Path below the run's artifacts.

        Raises:
            ServiceError: The store fails, or the run has no such file.
        """
        database = self.store.database
        if database is not None:
            with suppress(lookup.SlowLookupError):
                path = lookup.find_artifacts(database, run_id) / name
                if path.is_file():
                    yield path
                    return
        with tempfile.TemporaryDirectory() as folder:
            with service_errors(self.store):
                fetched = Path(self.client.download_artifacts(run_id, name, folder))
            yield fetched

    def file_names(self, run_id: str) -> tuple[str, ...]:
        """Names of a run's files, folders left out."""
        with service_errors(self.store):
            found = self.client.list_artifacts(run_id)
        return tuple(item.path for item in found if not item.is_dir)

    def _read_text(self, run_id: str, name: str) -> str:
        database = self.store.database
        if database is not None:
            with suppress(lookup.SlowLookupError, FileNotFoundError):
                return (lookup.find_artifacts(database, run_id) / name).read_text()
        with tempfile.TemporaryDirectory() as folder:
            return Path(self.client.download_artifacts(run_id, name, folder)).read_text()


def _param_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _num_equal_parts(tags: Mapping[str, str], key: RunKey) -> int:
    return sum(tags.get(f"{KEY_TAG}.{part}") == value for part, value in key.parts.items())


def _metric_values(evaluation: Evaluation) -> Iterator[tuple[str, float]]:
    for name, interval in evaluation.metrics.items():
        yield f"test_{name}", interval.value
        yield f"test_{name}_low", interval.low
        yield f"test_{name}_high", interval.high
    for baseline, values in evaluation.baselines.items():
        yield from ((f"baseline/{baseline}/{name}", value) for name, value in values.items())


def finished_run(model: ModelRef, logged: Mapping[str, float], experiment_id: str, finished_ms: int) -> FinishedRun:
    """Give a finished run's metrics the shape that they had in its `Evaluation`."""
    names = [name[: -len("_low")] for name in logged if name.startswith("test_") and name.endswith("_low")]
    baselines: dict[str, dict[str, float]] = {}
    for name, value in sorted(logged.items()):
        if name.startswith("baseline/"):
            _, baseline, metric = name.split("/", 2)
            baselines.setdefault(baseline, {})[metric] = value
    return FinishedRun(
        run_id=model.run_id,
        model=model,
        metrics={
            name.removeprefix("test_"): Interval(logged[name], logged[f"{name}_low"], logged[f"{name}_high"])
            for name in sorted(names)
        },
        baselines=baselines,
        experiment_id=experiment_id,
        finished_ms=finished_ms,
    )


@contextmanager
def service_errors(store: Store) -> Iterator[None]:
    """Say of every failure of the store which store it was.

    Raises:
        ServiceError: MLflow failed.
        StorageError: A file could not be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _STORAGE_ERRNOS:
            raise
        raise StorageError(
            f"{error.filename or store.shown_uri}: cannot be written ({error.strerror}). "
            "Free some space or make it writable, and run the same command again."
        ) from error
    except Exception as error:
        from mlflow.exceptions import MlflowException

        if not isinstance(error, MlflowException):
            raise
        raise ServiceError(f"{store.shown_uri}: {str(error).splitlines()[0]}") from error


def _has_curve(run: "Run") -> bool:
    """Whether training has logged anything; MLflow notes the use of the machine as soon as a run starts."""
    return any(not name.startswith("system/") for name in run.data.metrics)
