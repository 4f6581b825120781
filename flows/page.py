"""What a person sees on a flow run's page in Prefect: progress, results, figures, the way to MLflow.

A page is a courtesy: a server that is gone for a moment never fails a run that is training.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast
from urllib.parse import quote
from uuid import UUID

from prefect import get_run_logger
from prefect.artifacts import (
    create_image_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.runtime import flow_run
from prefect.states import Completed
from prefect.utilities.urls import url_for

from assay import progress
from assay.ablation.wording import headline
from assay.headlines import BASELINES, HEADLINES
from assay.records import (
    KEPT,
    REFUSED,
    AblationPlan,
    AblationRecord,
    Decision,
    Drift,
    Finding,
    NightRecord,
    Record,
    RunRecord,
    TrainResult,
    Verdict,
)
from assay.records.night import SKIPPED, STOPPED
from assay.tracking.ablations import compare_page

MLFLOW_URL_VARIABLE = "ASSAY_MLFLOW_URL"
"""Where a browser finds MLflow; `assay up` sets it for the runs of its workers."""

ABLATION_FIGURES = ("forest", "learning_curves", "generalization_gap", "interaction")
"""Figures of an ablation that a page may show."""

STATES = {KEPT: "Kept", REFUSED: "Refused", SKIPPED: "Skipped", STOPPED: "Stopped"}
"""Outcome that leaves the champion -> name of the state of a flow run that ended with it."""

_LONG_STAGES = {"train": "progress", "ablate": "ablation-progress"}
"""Stage -> key of its progress artifact."""

_SPENT = ("used", "saved")

_EVERY_SECONDS = 1.0

_log = logging.getLogger(__name__)
_Args = ParamSpec("_Args")
_Result = TypeVar("_Result")


def _courtesy(show: Callable[_Args, None]) -> Callable[_Args, None]:
    """Let nothing that goes wrong with the page go on to the run."""

    @wraps(show)
    def attempt(*args: _Args.args, **kwargs: _Args.kwargs) -> None:
        try:
            show(*args, **kwargs)
        except Exception as error:
            _log.warning("The flow run's page was not updated: %s: %s", type(error).__name__, error)

    return attempt


@_courtesy
def show_record(key: str, description: str, record: Record) -> None:
    """Put a record on the page as a table of two columns."""
    rows = [{"what": name, "value": str(value)} for name, value in record.to_json().items()]
    create_table_artifact(rows, key=key, description=description)


@_courtesy
def show_table(key: str, description: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Put rows on the page as a table."""
    create_table_artifact([dict(row) for row in rows], key=key, description=description)


@_courtesy
def show_result(record: RunRecord, experiment_id: str, figures: Sequence[str] = ()) -> None:
    """Put the result on the page: the table beside the baselines, the figures, the way to MLflow and the report.

    Args:
        record: What the run came to.
        experiment_id: MLflow experiment of its run.
        figures: Names of its figures' files in MLflow.
    """
    create_markdown_artifact(_result_page(record, experiment_id, figures), key="result", description="The result")


@_courtesy
def show_training(trained: TrainResult, experiment_id: str, run_id: str) -> None:
    """Put the end of training on the page, and the way to MLflow."""
    lines = [f"{trained.describe()}.", "", "Test was not looked at: run the whole chain with the same params for that."]
    lines += ["", *(f"- {warning}" for warning in trained.warnings)]
    link = mlflow_page(experiment_id, run_id)
    if link is not None:
        lines += ["", f"[The run in MLflow]({link})"]
    create_markdown_artifact("\n".join(lines), key="result", description="The result")


@_courtesy
def show_plan(plan: AblationPlan, words: str) -> None:
    """Put what an ablation will train on the page."""
    rows = [{"variant": variant.name} | variant.changes for variant in plan.variants]
    create_table_artifact(rows, key="plan", description=f"{words}. Metric: {plan.metric} on val.")


@_courtesy
def show_decision(decision: Decision) -> None:
    """Put the gate's rules on the page, each with its numbers."""
    create_table_artifact(
        [
            {"rule": rule.name, "state": rule.state, "reason": rule.reason, "on failure": rule.decides}
            for rule in decision.rules
        ],
        key="gate",
        description=describe_decision(decision),
    )


@_courtesy
def show_sight(findings: Sequence[Finding], drifts: Sequence[Drift]) -> None:
    """Put what a night saw in its data on the page: what is odd, and every comparison with the champion's data."""
    if findings:
        rows = [{"finding": item.name, "level": item.level, "reason": item.reason} for item in findings]
        create_table_artifact(rows, key="quality", description="What is odd about the data")
    if drifts:
        rows = [
            {"what": item.name, "kind": item.kind, "drifted": "yes" if item.drifted else "no", "found": item.reason}
            for item in drifts
        ]
        create_table_artifact(rows, key="drift", description="Compared with the champion's data")


@_courtesy
def show_night(record: NightRecord) -> None:
    """Put a night's decision on the page."""
    shown = ("due", "outcome", "reason", "version", "champion", "data_md5", "seconds", "device")
    values = record.to_json()
    rows = [{"what": name.replace("_", " "), "value": str(values[name])} for name in shown]
    rows += [{"what": f"device-minutes {verb}", "value": str(values[f"device_minutes_{verb}"])} for verb in _SPENT]
    create_table_artifact(rows, key="night", description=record.describe())


@_courtesy
def show_ablation(record: AblationRecord) -> None:
    """Put an ablation's verdicts on the page, as a table and as figures, with the way to MLflow."""
    create_table_artifact(
        [_verdict_cells(verdict) for verdict in record.verdicts],
        key="verdicts",
        description=f"{record.plan.metric} on {record.num_val} val examples, against the baseline",
    )
    create_markdown_artifact(_ablation_page(record), key="result", description="The verdicts")
    base = os.environ.get(MLFLOW_URL_VARIABLE)
    if base:
        for name in ABLATION_FIGURES:
            address = _file_address(base, record.run_id, f"figures/{name}.png")
            create_image_artifact(address, key=name.replace("_", "-"), description=name.replace("_", " "))


def _verdict_cells(verdict: Verdict) -> dict[str, str]:
    measured = verdict.num_seeds > 0
    return {
        "level": verdict.name,
        "verdict": verdict.verdict,
        "difference": f"{verdict.difference:+.4f}" if measured else "-",
        "interval": f"{verdict.low:+.4f} to {verdict.high:+.4f}" if measured else "-",
        "p, Holm": f"{verdict.p_holm:.3f}" if measured else "-",
        "why": verdict.reason,
    }


def _ablation_page(record: AblationRecord) -> str:
    cells = [_verdict_cells(verdict) for verdict in record.verdicts]
    titles = list(cells[0])
    lines = [f"**{headline(record)}**", "", "| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    lines += ["| " + " | ".join(text.replace("|", "\\|") for text in row.values()) + " |" for row in cells]
    base = os.environ.get(MLFLOW_URL_VARIABLE)
    if base:
        runs = [summary.run_id for summary in record.summaries if summary.run_id]
        compared = compare_page(base, record.experiment_id, runs)
        report = _file_address(base, record.run_id, "report.html")
        run = mlflow_page(record.experiment_id, record.run_id)
        lines += ["", f"[The variants compared in MLflow]({compared}) | [Report]({report}) | [The run]({run})"]
        lines += ["", f"![forest plot]({_file_address(base, record.run_id, 'figures/forest.png')})"]
    return "\n".join(lines)


def mlflow_page(experiment_id: str, run_id: str) -> str | None:
    """Return the address of a run in MLflow's dashboard; None where no dashboard is known."""
    base = os.environ.get(MLFLOW_URL_VARIABLE)
    return f"{base}/#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning" if base else None


def completed(result: _Result, words: str, outcome: str | None = None) -> _Result:
    """Return a flow's result so that its state says in words what came of it, on its page and in `assay status`.

    Args:
        result: What the flow came to.
        words: One line.
        outcome: Of the gate or the night; where no version became champion, the state is named after it.
    """
    return cast(_Result, Completed(message=words, data=result, name=STATES.get(outcome or "")))


def outcome_of(decision: Decision | None) -> str | None:
    """Return what the gate said, or None where it let the version through or was not asked."""
    return None if decision is None or decision.moves_champion else decision.outcome


def describe(record: RunRecord) -> str:
    """Return one line: what was registered or found again, and how good it is."""
    low, high = record.intervals["accuracy"]
    verb = "Reused" if record.reused else "Registered"
    outcome = f" Gate: {record.decision.outcome}." if record.decision is not None else ""
    return (
        f"{verb} {record.model_name} version {record.model_version}: test accuracy {record.metrics['accuracy']:.4f} "
        f"({low:.4f} to {high:.4f}).{outcome}"
    )


def describe_decision(decision: Decision) -> str:
    """Return one line: what the gate decided and why."""
    met = f" against champion {decision.champion}" if decision.champion is not None else ""
    outcome = f"forced ({decision.forced_reason})" if decision.forced_reason else decision.outcome
    return f"Version {decision.version}{met}: {outcome}. {decision.reason}"


def own_id() -> str | None:
    """Return the id of this flow run."""
    return flow_run.get_id()


def own_name() -> str | None:
    """Return the name that Prefect gave this flow run, or a person did; the MLflow run gets the same."""
    return flow_run.get_name() or None


def own_page() -> str | None:
    """Return the address of this flow run's page; None where Prefect has no dashboard."""
    run_id = flow_run.get_id()
    return url_for("flow-run", obj_id=run_id) if run_id and os.environ.get(MLFLOW_URL_VARIABLE) else None


@contextmanager
def progress_shown() -> Iterator[None]:
    """Draw the progress of training on the page while the block runs, and log every stage."""
    with progress.listening(_Bar()), progress.listening(_Log()):
        yield


class _Log:
    """The run's log: the end of every stage, and of epochs as often as a person can read."""

    def __init__(self) -> None:
        self._logger: Any = None
        self._written = -_EVERY_SECONDS

    @_courtesy
    def __call__(self, event: progress.Progress) -> None:
        """Write an event down; the first epoch always."""
        now = time.monotonic()
        if event.finished or (event.done and now - self._written >= _EVERY_SECONDS):
            self._written = -_EVERY_SECONDS if event.finished else now
            if self._logger is None:
                self._logger = get_run_logger()
            self._logger.info("%s: %s", event.stage, event.text)


class _Bar:
    """A progress artifact for each long stage, ``ablate`` and ``train``."""

    def __init__(self) -> None:
        self._stage = ""
        self._artifact: UUID | None = None
        self._drawn = 0.0

    def __call__(self, event: progress.Progress) -> None:
        if event.stage not in _LONG_STAGES:
            return
        if event.stage != self._stage:
            self._stage, self._artifact = event.stage, None
        now = time.monotonic()
        if event.finished or self._artifact is None or now - self._drawn >= _EVERY_SECONDS:
            self._drawn = now
            self._draw(event)

    def _draw(self, event: progress.Progress) -> None:
        share = 100.0 if event.finished else 100.0 * event.done / max(event.total, 1)
        try:
            if self._artifact is None:
                key = _LONG_STAGES[event.stage]
                made = create_progress_artifact(share, key=key, description=event.text or "training")
                self._artifact = made if isinstance(made, UUID) else None
            elif self._artifact is not None:
                update_progress_artifact(self._artifact, share, description=event.text)
        except Exception as error:
            _log.warning("The progress bar was not updated: %s: %s", type(error).__name__, error)


def _result_page(record: RunRecord, experiment_id: str, figures: Sequence[str]) -> str:
    verb = "Reused" if record.reused else "Trained"
    lines = [
        f"**{record.model_name} version {record.model_version}**",
        "",
        f"{verb} because {'; '.join(record.reasons)}.",
        "",
        *([f"Gate: {describe_decision(record.decision)}", ""] if record.decision is not None else []),
        *_metric_rows(record),
        "",
    ]
    page = mlflow_page(experiment_id, record.run_id)
    if page is not None:
        base = os.environ[MLFLOW_URL_VARIABLE]
        report = _file_address(base, record.run_id, "report.html")
        lines += [f"[The run in MLflow]({page}) | [Its one-page report]({report})", ""]
        for name in figures:
            title = name.rpartition(".")[0].replace("_", " ")
            lines += [f"![{title}]({_file_address(base, record.run_id, f'figures/{name}')})", ""]
    return "\n".join(lines)


def _metric_rows(record: RunRecord) -> list[str]:
    baselines = [name for name in BASELINES if name in record.baselines]
    titles = ["on test", "model", f"{record.confidence:.0%} interval", *(BASELINES[name] for name in baselines)]
    rows = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for name, label in HEADLINES.items():
        if name not in record.metrics:
            continue
        low, high = record.intervals[name]
        others = [record.baselines[baseline].get(name) for baseline in baselines]
        cells = [label, f"{record.metrics[name]:.4f}", f"{low:.4f} to {high:.4f}"]
        cells += ["-" if value is None else f"{value:.4f}" for value in others]
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def _file_address(base: str, run_id: str, path: str) -> str:
    return f"{base}/get-artifact?path={quote(path, safe='')}&run_uuid={run_id}"
