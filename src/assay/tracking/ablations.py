"""Ablations in MLflow: a run for the ablation, in it one for each variant, and in that one for each trial.

They have an experiment of their own, beside that of whole runs. A trial is found again by its run key, whichever
ablation it was trained for; an ablation that it is part of again gets a run that holds the same results.
"""

import json
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assay.params import RunParams, flatten
from assay.project import Project
from assay.records import (
    VARIANT_KINDS,
    AblationPlan,
    AblationRecord,
    DataRef,
    RunKey,
    Splits,
    Trial,
    Variant,
    VariantSummary,
    Verdict,
)
from assay.tracking import lookup
from assay.tracking.lineage import KEY_TAG, KIND_TAG, dataset_inputs, key_json, lineage_tags
from assay.tracking.runs import LINEAGE_FILE, Tracker, service_errors

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run

ABLATION, VARIANT, TRIAL = "ablation", "variant", "trial"
RECORD_FILE = "ablation.json"
TRIAL_FILE = "trial.json"
OUTCOMES_FILE = "outcomes.npz"
REPORT_FILE = "report.html"
OWNER_TAG = "assay.ablation"
"""Tag of variants and trials: the MLflow run of the ablation that they belong to."""
VERDICT_TAG = "assay.verdict"
_PARENT_TAG = "mlflow.parentRunId"
_NOTE_TAG = "mlflow.note.content"
_CURVES = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "learning_rate")
_PAGE = 1000


def experiment_of(experiment: str) -> str:
    """Return the name of the experiment that holds the ablations beside an experiment of whole runs."""
    return f"{experiment}-ablations"


@dataclass
class OpenAblation:
    """An ablation that is being written.

    Attributes:
        run_id: Its MLflow run.
        experiment_id: MLflow experiment.
        variants: Variant name -> MLflow run.
        trials: Variant name and seed -> MLflow run of those that were begun.
        finished: Which of these are written to the end.
    """

    run_id: str
    experiment_id: str
    variants: dict[str, str] = field(default_factory=dict)
    trials: dict[tuple[str, int], str] = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)


class AblationRuns:
    """The ablations of one project's store.

    Args:
        project: The project.
        experiment: Experiment of its whole runs; the ablations have their own beside it.
    """

    def __init__(self, project: Project, experiment: str) -> None:
        self.project = project
        self.tracker = Tracker.open(project, experiment_of(experiment))

    def find_trials(self, keys: Iterable[str]) -> dict[str, Trial]:
        """Find the trials that are done, in any ablation.

        Args:
            keys: Digests of run keys.

        Returns:
            Digest -> the trial; its `outcomes_path` is a local file.
        """
        wanted = set(keys)
        database = self.tracker.store.database
        if self.tracker.store.is_new:
            return {}
        if database is not None:
            with suppress(lookup.SlowLookupError):
                found = lookup.find_of_kind(database, self.tracker.experiment, TRIAL)
                return _read_trials({key: place for key, place in found.items() if key in wanted})
        runs = self._search(f"tags.`{KIND_TAG}` = '{TRIAL}' AND attributes.status = 'FINISHED'")
        places = {
            run.data.tags[KEY_TAG]: (run.info.run_id, self._download(run.info.run_id))
            for run in runs
            if run.data.tags.get(KEY_TAG) in wanted
        }
        return _read_trials(places)

    def find_finished(self, key: RunKey) -> AblationRecord | None:
        """Find the latest finished ablation with this key."""
        database = self.tracker.store.database
        if self.tracker.store.is_new:
            return None
        if database is not None:
            with suppress(lookup.SlowLookupError):
                found = lookup.find_of_kind(database, self.tracker.experiment, ABLATION).get(key.digest)
                return _read_record(found[1]) if found else None
        condition = f"tags.`{KEY_TAG}` = '{key.digest}' AND tags.`{KIND_TAG}` = '{ABLATION}'"
        runs = self._search(f"{condition} AND attributes.status = 'FINISHED'")
        return _read_record(self._download(runs[0].info.run_id, RECORD_FILE)) if runs else None

    def latest(self) -> AblationRecord | None:
        """Find the finished ablation that was started last."""
        database = self.tracker.store.database
        if self.tracker.store.is_new:
            return None
        if database is not None:
            with suppress(lookup.SlowLookupError):
                found = list(lookup.find_of_kind(database, self.tracker.experiment, ABLATION).values())
                return _read_record(found[-1][1]) if found else None
        runs = self._search(f"tags.`{KIND_TAG}` = '{ABLATION}' AND attributes.status = 'FINISHED'")
        return _read_record(self._download(runs[0].info.run_id, RECORD_FILE)) if runs else None

    def load(self, run_id: str) -> AblationRecord | None:
        """Read an ablation back by its MLflow run; None if its files are gone."""
        return _read_record(self._download(run_id, RECORD_FILE))

    def nearest(self, key: RunKey) -> RunKey | None:
        """The key of the finished ablation that differs least, for saying why there is none to reuse."""
        return None if self.tracker.store.is_new else self.tracker.nearest(key)

    def open(
        self,
        key: RunKey,
        params: RunParams,
        data: DataRef,
        splits: Splits,
        plan: AblationPlan,
        *,
        name: str,
        page: str | None = None,
    ) -> OpenAblation:
        """Go on with the ablation of this key that never finished, or start one.

        Args:
            key: Its run key.
            params: All params of the project.
            data: The data set.
            splits: Its division.
            plan: What is planned.
            name: Display name of a new run.
            page: Address of the flow run that makes it.
        """
        tracker = self.tracker
        with service_errors(tracker.store):
            condition = f"tags.`{KEY_TAG}` = '{key.digest}' AND tags.`{KIND_TAG}` = '{ABLATION}'"
            unfinished = [run for run in self._search(condition) if run.info.status != "FINISHED"]
            if unfinished:
                opened = self._reopen(unfinished[0])
            else:
                tags = lineage_tags(self.project, key, params, data) | _source_tags(ABLATION, name)
                run = tracker.client.create_run(tracker.experiment_id(), tags=tags, run_name=name)
                opened = OpenAblation(run.info.run_id, run.info.experiment_id)
                self._describe(opened.run_id, key, params, data, splits, plan)
            if page is not None:
                tracker.link_page(opened.run_id, page)
        return opened

    def _reopen(self, run: "Run") -> OpenAblation:
        self.tracker.client.update_run(run.info.run_id, status="RUNNING")
        opened = OpenAblation(run.info.run_id, run.info.experiment_id)
        for child in self._search(f"tags.`{OWNER_TAG}` = '{run.info.run_id}'"):
            tags, run_id = child.data.tags, child.info.run_id
            if tags.get(KIND_TAG) == VARIANT:
                opened.variants[tags["assay.variant"]] = run_id
            else:
                opened.trials[(tags["assay.variant"], int(tags["assay.seed"]))] = run_id
            if child.info.status == "FINISHED":
                opened.finished.add(run_id)
        return opened

    def _describe(
        self, run_id: str, key: RunKey, params: RunParams, data: DataRef, splits: Splits, plan: AblationPlan
    ) -> None:
        from mlflow.entities import Param

        client = self.tracker.client
        values = {name: _text(value) for name, value in flatten(params).items()}
        values |= {"mode": plan.mode, "metric": plan.metric, "num_seeds": str(len(plan.seeds))}
        client.log_batch(run_id, params=[Param(name, value[:6000]) for name, value in values.items()][:100])
        client.log_inputs(run_id, datasets=dataset_inputs(data, splits)[:2])  # train and val; test is not looked at
        self._write(run_id, {LINEAGE_FILE: key_json(key), "plan.json": json.dumps(plan.to_json(), indent=1)})

    def log_trial(self, ablation: OpenAblation, trial: Trial, variant: Variant, levels: Mapping[str, str]) -> Trial:
        """Write a trial into its variant's run, once: called again it changes nothing.

        Args:
            ablation: The ablation that it is part of.
            trial: The trial.
            variant: Its variant.
            levels: What the factors are in it, params path -> JSON text; the run's params, so that the compare page
                shows what differs and nothing else.

        Returns:
            The trial with its run's id, and with its outcomes where MLflow keeps them.
        """
        from mlflow.entities import Param

        client, where = self.tracker.client, (trial.variant, trial.seed)
        with service_errors(self.tracker.store):
            run_id = ablation.trials.get(where)
            if run_id is not None and run_id in ablation.finished:
                return replace(trial, run_id=run_id)
            if run_id is None:
                name = f"{trial.variant}, seed {trial.seed}"
                tags = _source_tags(TRIAL, name) | {
                    KEY_TAG: trial.key,
                    OWNER_TAG: ablation.run_id,
                    _PARENT_TAG: self._variant_run(ablation, variant, levels),
                    "assay.variant": trial.variant,
                    "assay.seed": str(trial.seed),
                    "assay.trial.state": trial.state,
                }
                if trial.message:
                    tags["assay.failure"] = trial.message[:2000]
                run = client.create_run(ablation.experiment_id, tags=tags, run_name=name)
                run_id = ablation.trials[where] = run.info.run_id
            params = [Param(name, text) for name, text in levels.items()] + [Param("seed", str(trial.seed))]
            metrics = _trial_metrics(trial)
            for start in range(0, max(len(metrics), 1), _PAGE):
                client.log_batch(run_id, metrics=metrics[start : start + _PAGE], params=params if not start else [])
            kept = replace(trial, run_id=run_id)
            outcomes = Path(trial.outcomes_path).read_bytes() if trial.outcomes_path else None
            files: dict[str, str | bytes] = {TRIAL_FILE: json.dumps(kept.to_json())}
            self._write(run_id, files | ({OUTCOMES_FILE: outcomes} if outcomes is not None else {}))
            client.set_terminated(run_id, status="FAILED" if trial.state == "failed" else "FINISHED")
            ablation.finished.add(run_id)
        return kept

    def _variant_run(self, ablation: OpenAblation, variant: Variant, levels: Mapping[str, str]) -> str:
        from mlflow.entities import Param

        run_id = ablation.variants.get(variant.name)
        if run_id is None:
            tags = _source_tags(VARIANT, variant.name) | {
                OWNER_TAG: ablation.run_id,
                _PARENT_TAG: ablation.run_id,
                "assay.variant": variant.name,
            }
            run = self.tracker.client.create_run(ablation.experiment_id, tags=tags, run_name=variant.name)
            run_id = ablation.variants[variant.name] = run.info.run_id
            self.tracker.client.log_batch(run_id, params=[Param(name, text) for name, text in levels.items()])
        return run_id

    def finish(
        self,
        ablation: OpenAblation,
        record: AblationRecord,
        figures: Mapping[str, str],
        report: Path,
    ) -> None:
        """Write what each variant came to, the record, the figures and the report; the ablation is FINISHED then.

        Args:
            ablation: The ablation.
            record: What it came to.
            figures: Figure name -> PNG file.
            report: The HTML report.
        """
        client = self.tracker.client
        verdicts = {verdict.name: verdict for verdict in record.verdicts if verdict.kind in VARIANT_KINDS}
        now_ms = int(time.time() * 1000)
        with service_errors(self.tracker.store):
            for summary in record.summaries:
                run_id = ablation.variants.get(summary.variant.name)
                if run_id is None or run_id in ablation.finished:
                    continue
                verdict = verdicts.get(summary.variant.name)
                client.log_batch(run_id, metrics=_metrics(_variant_values(summary, verdict, record), now_ms))
                client.set_tag(run_id, VERDICT_TAG, verdict.verdict if verdict else summary.variant.name)
                if verdict:
                    client.set_tag(run_id, _NOTE_TAG, verdict.reason)
                client.set_terminated(run_id, status="FINISHED")
            files = {RECORD_FILE: json.dumps(record.to_json()), "verdicts.json": _verdict_json(record.verdicts)}
            self._write(ablation.run_id, files)
            client.log_artifact(ablation.run_id, str(report))
            for file in figures.values():
                client.log_artifact(ablation.run_id, file, "figures")
            client.log_batch(ablation.run_id, metrics=_metrics(_ablation_values(record), now_ms))
            client.set_terminated(ablation.run_id, status="FINISHED")

    def report_path(self, ablation: OpenAblation) -> str:
        """Where the report will be, if the store keeps its files on this machine; else empty."""
        database = self.tracker.store.database
        if database is not None:
            with suppress(lookup.SlowLookupError):
                return str(lookup.find_artifacts(database, ablation.run_id) / REPORT_FILE)
        return ""

    def _search(self, condition: str) -> "list[Run]":
        tracker = self.tracker
        with service_errors(tracker.store):
            experiment = tracker.client.get_experiment_by_name(tracker.experiment)
            runs: list[Run] = []
            token: str | None = None
            while experiment is not None:
                page = tracker.client.search_runs(
                    [experiment.experiment_id], condition, max_results=_PAGE, page_token=token
                )
                runs += page
                token = page.token
                if not token:
                    break
        return runs

    def _download(self, run_id: str, *names: str) -> Path:
        """Fetch a run's files to a folder of this machine's cache."""
        folder = self.project.cache_dir / "ablation" / run_id
        folder.mkdir(parents=True, exist_ok=True)
        with service_errors(self.tracker.store):
            for name in names or (TRIAL_FILE, OUTCOMES_FILE):
                if not (folder / name).exists():
                    self.tracker.client.download_artifacts(run_id, name, str(folder))
        return folder

    def _write(self, run_id: str, files: Mapping[str, str | bytes]) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            for name, content in files.items():
                Path(scratch, name).write_bytes(content.encode() if isinstance(content, str) else content)
            self.tracker.client.log_artifacts(run_id, scratch)


def _source_tags(kind: str, name: str) -> dict[str, str]:
    return {
        KIND_TAG: kind,
        "mlflow.runName": name,
        "mlflow.source.name": "assay ablate",
        "mlflow.source.type": "LOCAL",
    }


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _read_trials(places: Mapping[str, tuple[str, Path]]) -> dict[str, Trial]:
    """Trials whose files are whole; one that is not is trained again."""
    trials = {}
    for key, (run_id, folder) in places.items():
        with suppress(OSError, ValueError, TypeError, KeyError):
            trial = Trial.from_json(json.loads((folder / TRIAL_FILE).read_bytes()))
            outcomes = folder / OUTCOMES_FILE
            if outcomes.is_file():
                trials[key] = replace(trial, run_id=run_id, outcomes_path=str(outcomes))
    return trials


def _read_record(folder: Path) -> AblationRecord | None:
    with suppress(OSError, ValueError, TypeError, KeyError):
        return AblationRecord.from_json(json.loads((folder / RECORD_FILE).read_bytes()))
    return None


def _metrics(values: Mapping[str, float], now_ms: int) -> "list[Metric]":
    from mlflow.entities import Metric

    return [Metric(name, value, now_ms, 0) for name, value in values.items()]


def _trial_metrics(trial: Trial) -> "list[Metric]":
    """Curves by epoch, and what the trial came to; timestamps are the trial's own, so that twice is once."""
    from mlflow.entities import Metric

    points = [
        Metric(name, getattr(record, name), record.timestamp_ms, record.epoch)
        for record in trial.history
        for name in _CURVES
    ]
    end_ms = trial.history[-1].timestamp_ms if trial.history else 0
    values = {f"val_{name}": value for name, value in trial.metrics.items() if f"val_{name}" not in _CURVES}
    values |= {f"train_{name}_eval": value for name, value in trial.train_metrics.items()}
    values |= {"seconds": trial.seconds, "num_epochs": float(trial.num_epochs)}
    return points + [Metric(name, value, end_ms, trial.num_epochs) for name, value in values.items()]


def _variant_values(summary: VariantSummary, verdict: Verdict | None, record: AblationRecord) -> dict[str, float]:
    metric = record.plan.metric
    values = {
        f"val_{metric}": summary.mean,
        f"val_{metric}_sd": summary.sd,
        f"val_{metric}_low": summary.low,
        f"val_{metric}_high": summary.high,
        f"train_{metric}": summary.train_mean,
        "num_seeds": float(summary.num_seeds),
        "num_epochs": float(summary.num_epochs),
        "num_diverged": float(summary.num_diverged),
        "seconds": summary.seconds,
    }
    if verdict is not None:
        values |= {
            "difference": verdict.difference,
            "difference_low": verdict.low,
            "difference_high": verdict.high,
            "p_holm": verdict.p_holm,
        }
    return values


def _ablation_values(record: AblationRecord) -> dict[str, float]:
    words = [verdict.verdict for verdict in record.verdicts]
    counts = {f"num_{word.replace(' ', '_')}": float(words.count(word)) for word in sorted(set(words))}
    baseline = record.baseline
    return counts | {
        f"baseline_val_{record.plan.metric}": baseline.mean,
        "num_trials": float(len(record.trials)),
        "num_trained": float(record.num_trained),
        "seconds": record.seconds,
    }


def _verdict_json(verdicts: Sequence[Verdict]) -> str:
    return json.dumps([verdict.to_json() for verdict in verdicts], indent=1)


def compare_page(base: str, experiment_id: str, run_ids: Sequence[str]) -> str:
    """Return the address of MLflow's comparison of exactly these runs.

    Args:
        base: Address of the dashboard.
        experiment_id: MLflow experiment.
        run_ids: The runs, in the order in which they are shown.
    """
    from urllib.parse import quote

    runs, experiments = json.dumps(list(run_ids)), json.dumps([experiment_id])
    return f"{base}/#/compare-runs?runs={quote(runs)}&experiments={quote(experiments)}"
