"""The nightly run: look, decide whether to train, train, meet the gate, and leave one decision record."""

import json
import logging
import time
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from prefect import flow, get_client, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
)
from prefect.client.schemas.objects import State, StateType
from prefect.runtime import deployment, flow_run
from prefect.states import Completed

from assay import progress
from assay.data.importing import import_data
from assay.data.loading import load_dataset
from assay.data.splits import make_splits
from assay.data.versioning import read_pin
from assay.errors import AssayError
from assay.nightly import Champion, Sight, find_champion, first_sight, look_at_data, seen_before
from assay.params import Params, RunParams, load_params
from assay.plan import Plan, make_plan, open_tracker
from assay.project import Project, find_project, only_one
from assay.records import REFUSED, NightRecord
from assay.records.night import FAILED, SKIPPED, STOPPED
from assay.registry.ledger import Ledger
from assay.registry.promotions import Promotions
from assay.tracking.nights import experiment_of, log_night
from flows import page
from flows.notify import notify
from flows.pipeline import run_chain

_log = logging.getLogger(__name__)
_GIVEN_UP = (StateType.CANCELLED, StateType.CANCELLING, StateType.FAILED, StateType.CRASHED)


@flow(name="nightly", persist_result=False)
def nightly(project_dir: Path | None = None) -> NightRecord | State[str]:
    """Run the chain for the night that is due, unless there is nothing to train, or the night has been run.

    Args:
        project_dir: The project's folder; the one at or above the current folder by default.

    Returns:
        What was decided, or why this is no night of its own.
    """
    project = find_project(project_dir)
    due = flow_run.get_scheduled_start_time() or datetime.now(UTC)
    own_id = page.own_id() or ""
    with only_one(project.home / "nightly.lock", on_wait=lambda: None):
        later = _later_night(due)
        if later is not None:
            return _no_night(f"The night of {later:%Y-%m-%d %H:%M %Z} is due too: after a pause only the latest runs.")
        with closing(Ledger(project)) as ledger:
            owner = ledger.take_night(due, own_id)
            if owner is not None:
                return _no_night(f"The night of {due:%Y-%m-%d %H:%M %Z} was taken by flow run {owner}.")
            with page.progress_shown():
                record = _run_night(project, ledger, due, own_id)
    return page.completed(record, f"{record.describe()}.", record.outcome)


def _run_night(project: Project, ledger: Ledger, due: datetime, own_id: str) -> NightRecord:
    """Run a night to its decision record, which is written even where the night fails."""
    begun = time.perf_counter()
    empty = NightRecord(due.isoformat(), FAILED, "", False, "", flow_run_id=own_id)
    params: Params | None = None
    try:
        params = load_params(project.params_file)
        empty = replace(empty, model_name=params.registry.model_name)
        record = decide_night(project, params, ledger, empty)
    except Exception as error:
        words = str(error) if isinstance(error, AssayError) else f"{type(error).__name__}: {error}"
        try:
            _write_down(project, params, ledger, due, _timed(replace(empty, reason=words), begun))
        except AssayError as failure:  # what went wrong first says more than a store that is gone by now
            _log.warning("The night was not written down whole: %s", failure)
        raise
    record = _timed(record, begun)
    _write_down(project, params, ledger, due, record)
    return record


def decide_night(project: Project, params: Params, ledger: Ledger, empty: NightRecord) -> NightRecord:
    """See what there is, decide, and train if it is worth it; to be called within a flow.

    Args:
        project: The project.
        params: All of ``params.yaml``.
        ledger: The project's ledger.
        empty: The record with what is known before anything is seen.

    Returns:
        The record, but for its wall time.
    """
    run_params = _with_gate(params.of_run())
    watch = progress.Stopwatch()
    with watch.stage("night", "pulling and hashing the data") as words:
        _import_again(project, params)
        plan = make_plan(project, run_params)
        tracker = open_tracker(project, run_params.registry.experiment)
        champion = find_champion(tracker, Promotions(ledger, tracker.store.shown_uri), empty.model_name)
        sight = seen_before(tracker, plan, first_sight(plan, champion))
        if champion is not None and sight.trains and plan.data.md5 != champion.record.data_md5:
            sight = look_closer(project, run_params, params, plan, champion, sight)
        words.append(sight.reason)
    record = replace(
        empty,
        data_md5=plan.data.md5,
        reason=sight.reason,
        changes=sight.changes,
        findings=sight.findings,
        drifts=sight.drifts,
        champion=None if champion is None else champion.info.ref.version,
    )
    if not sight.trains:
        outcome = STOPPED if sight.stopped else SKIPPED
        saved = 0.0 if champion is None else _minutes(champion.record.timings)
        device = "" if champion is None else champion.record.device
        return replace(record, outcome=outcome, device=device, device_minutes_saved=saved)
    run = run_chain(project, run_params)
    decision = run.decision
    return replace(
        record,
        outcome=REFUSED if decision is None else decision.outcome,
        reason=f"{sight.reason}. Gate: {'' if decision is None else decision.reason}",
        trained=not run.reused,
        version=run.model_version,
        device=run.device,
        device_minutes_used=0.0 if run.reused else _minutes(run.timings),
        run_id=run.run_id,
    )


@task(name="Look at the night's data", cache_policy=NO_CACHE)
def look_closer(
    project: Project, run_params: RunParams, params: Params, plan: Plan, champion: Champion, sight: Sight
) -> Sight:
    """Check the quality of data that is not the champion's, and whether it drifted."""
    dataset = load_dataset(plan.data, project.cache_dir)
    splits = make_splits(dataset, run_params.split, project.home / "nights")
    tracker = open_tracker(project, run_params.registry.experiment)
    sight = look_at_data(tracker, champion, dataset, splits, run_params, params.schedule, sight)
    page.show_sight(sight.findings, sight.drifts)
    return sight


def _with_gate(params: RunParams) -> RunParams:
    """A night ends at the gate whatever whole runs do."""
    return params.model_copy(update={"gate": params.gate.model_copy(update={"in_run": True})})


def _import_again(project: Project, params: Params) -> None:
    """Read a folder of images again, where the schedule names one, as it was imported before."""
    if params.schedule.import_from is None:
        return
    details = read_pin(project).source_details if project.pin_file.is_file() else {}
    height, _, width = details.get("size", "").partition("x")
    import_data(
        project,
        "image-folder",
        project.root / params.schedule.import_from,
        size=(int(height), int(width)) if width else None,
        skip_bad=details.get("skip_bad") == "yes",
    )


def _minutes(timings: dict[str, float]) -> float:
    """Minutes that a device worked for a run."""
    return round(sum(timings.get(stage, 0.0) for stage in ("ablate", "train")) / 60.0, 3)


def _timed(record: NightRecord, begun: float) -> NightRecord:
    return replace(record, seconds=round(time.perf_counter() - begun, 3))


def _write_down(project: Project, params: Params | None, ledger: Ledger, due: datetime, record: NightRecord) -> None:
    """Keep the decision in the ledger, show it, tell whoever wants to know, and keep it in MLflow.

    MLflow comes last: a night that failed because the store is gone is told of all the same. Without params nobody
    knows whom to tell.
    """
    ledger.close_night(due, record.describe(), json.dumps(record.to_json()))
    page.show_night(record)
    if params is not None:
        notify(params.schedule, record)
        log_night(open_tracker(project, experiment_of(params.registry.experiment)), record)


def _later_night(due: datetime) -> datetime | None:
    """The latest night of this deployment that is due by now, later than this one, and waiting, under way or done."""
    if deployment.get_id() is None:
        return None
    now = datetime.now(UTC)
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment.get_id()])),
            flow_run_filter=FlowRunFilter(expected_start_time=FlowRunFilterExpectedStartTime(after_=due, before_=now)),
        )
    nights = [
        run.expected_start_time
        for run in runs
        if run.auto_scheduled and run.expected_start_time and run.state_type not in _GIVEN_UP
    ]
    return max((night for night in nights if night > due), default=None)


def _no_night(why: str) -> State[str]:
    return Completed(name="Skipped", message=why)
