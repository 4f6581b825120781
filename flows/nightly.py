"""The nightly run: the whole chain with the params.yaml of the night, once a night."""

from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from prefect import flow, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
)
from prefect.client.schemas.objects import State, StateType
from prefect.runtime import deployment, flow_run
from prefect.states import Completed

from assay.params import load_params
from assay.project import find_project, only_one
from assay.records import RunRecord
from assay.registry.ledger import Ledger
from flows import page
from flows.pipeline import run_chain

_GIVEN_UP = (StateType.CANCELLED, StateType.CANCELLING, StateType.FAILED, StateType.CRASHED)


@flow(name="nightly", persist_result=False)
def nightly(project_dir: Path | None = None) -> RunRecord | State[str]:
    """Run the chain for the night that is due, unless a later one is due too or the night has been run.

    Args:
        project_dir: The project's folder; the one at or above the current folder by default.

    Returns:
        What the run came to, or why nothing was run.
    """
    project = find_project(project_dir)
    due = flow_run.get_scheduled_start_time() or datetime.now(UTC)
    own_id = str(flow_run.get_id())
    with only_one(project.home / "nightly.lock", on_wait=lambda: None):
        later = _later_night(due)
        if later is not None:
            return _skipped(f"The night of {later:%Y-%m-%d %H:%M %Z} is due too: after a pause only the latest runs.")
        with closing(Ledger(project)) as ledger:
            owner = ledger.take_night(due, own_id)
            if owner is not None:
                return _skipped(f"The night of {due:%Y-%m-%d %H:%M %Z} was taken by flow run {owner}.")
            with page.progress_shown():
                record = run_chain(project, load_params(project.params_file).of_run())
            ledger.close_night(due, page.describe(record))
    return page.completed(record, page.describe(record))


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


def _skipped(why: str) -> State[str]:
    return Completed(name="Skipped", message=why)
