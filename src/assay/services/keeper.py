"""The keeper looks after flow runs that nobody else does.

    python -m assay.services.keeper

- A run whose process is gone ends Crashed instead of being Running for ever: its run lock says whether it lives.
- A run that crashed is started again, up to a number of times; it goes on from its checkpoint.
- A run that waits in a pool without a worker says so.
- After a pause only the latest missed night is left waiting.

A process pool belongs to one machine: the locks of its runs are files here.
"""

import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas import filters
from prefect.client.schemas.objects import FlowRun, State, StateType, TaskRun
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.states import Cancelled, Crashed, Scheduled

from assay.project import find_project
from assay.services.child import end_with_parent
from assay.services.locks import holder
from assay.services.paths import ServicePaths
from assay.services.slots import POOLS
from assay.services.words import no_worker_words

LOOK_SECONDS = 2.0
_RUNNING_GRACE = timedelta(seconds=5)
_PENDING_GRACE = timedelta(seconds=60)
_RETRY_AFTER = timedelta(seconds=2)
_WAITING_AFTER = timedelta(seconds=3)
_FORGET_AFTER = timedelta(days=7)
WAITING = "WaitingForWorker"
_UNFINISHED = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]

_log = logging.getLogger(__name__)


@dataclass
class Keeper:
    """Looks at all runs of the process pools and mends what is wrong.

    Attributes:
        client: Client of the Prefect server.
        paths: Where the locks of the runs are.
        max_retries: How often a run that crashed is started again.
        now: The clock.
    """

    client: SyncPrefectClient
    paths: ServicePaths
    max_retries: int
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    _given_up: set[UUID] = field(default_factory=set)
    _suspects: dict[UUID, datetime] = field(default_factory=dict)

    def look(self) -> None:
        """Look once."""
        runs = self._runs([*_UNFINISHED, StateType.CRASHED, StateType.SCHEDULED])
        self._end_dead_runs([run for run in runs if run.state_type in _UNFINISHED])
        self._retry_crashed_runs([run for run in runs if run.state_type == StateType.CRASHED])
        waiting = [run for run in runs if run.state_type == StateType.SCHEDULED and self._is_due(run)]
        self._keep_latest_night(waiting)
        self._say_who_waits(waiting)

    def _end_dead_runs(self, runs: list[FlowRun]) -> None:
        suspects: dict[UUID, datetime] = {}
        for run in runs:
            state = run.state
            if state is None or holder(self.paths.run_lock(str(run.id))) is not None:
                continue
            grace = _PENDING_GRACE if state.is_pending() else _RUNNING_GRACE
            since = self._suspects.get(run.id, self.now())
            suspects[run.id] = since
            # Twice dead, some time apart: between two looks a process may have been about to report its end.
            if run.id in self._suspects and self.now() - max(since, state.timestamp) > grace:
                self._end(run)
        self._suspects = suspects

    def _end(self, run: FlowRun) -> None:
        if run.state_type == StateType.CANCELLING:
            self._set(run, Cancelled(message="Cancelled; its process is gone."))
        else:
            self._set(run, Crashed(message="Its process is gone: killed, or the machine was. Its checkpoint is kept."))
        self._end_tasks(run)

    def _end_tasks(self, run: FlowRun) -> None:
        """A process that was killed leaves its task Running."""
        for task in self._running_tasks(run):
            crashed: State[Any] = Crashed(message="The process of its flow run is gone.")
            self.client.set_task_run_state(task.id, crashed, force=True)

    def _retry_crashed_runs(self, runs: list[FlowRun]) -> None:
        for run in runs:
            if run.id in self._given_up or run.state is None or run.deployment_id is None:
                continue
            if self.now() - run.state.timestamp < _RETRY_AFTER or holder(self.paths.run_lock(str(run.id))) is not None:
                continue
            crashes = sum(state.type == StateType.CRASHED for state in self.client.read_flow_run_states(run.id))
            self._end_tasks(run)
            if crashes > self.max_retries:
                self._given_up.add(run.id)
                _log.warning("flow run %s crashed %d times: it is not started again", run.name, crashes)
                continue
            words = f"Start {crashes + 1} of {self.max_retries + 1} after: {run.state.message}"
            self._set(run, Scheduled(name="AwaitingRetry", scheduled_time=self.now(), message=words))

    def _is_due(self, run: FlowRun) -> bool:
        return run.next_scheduled_start_time is not None and run.next_scheduled_start_time <= self.now()

    def _keep_latest_night(self, waiting: list[FlowRun]) -> None:
        """Cancel the missed nights before the latest: Prefect keeps all of them for later."""
        nights: dict[UUID | None, list[FlowRun]] = {}
        for run in waiting:
            if run.auto_scheduled and run.run_count == 0:
                nights.setdefault(run.deployment_id, []).append(run)
        for runs in nights.values():
            *missed, latest = sorted(runs, key=_due)
            for run in missed:
                self._set(run, Cancelled(message=f"Missed; only the latest missed night runs, that of {_due(latest)}."))
                waiting.remove(run)

    def _say_who_waits(self, waiting: list[FlowRun]) -> None:
        for pool in {run.work_pool_name for run in waiting if run.work_pool_name}:
            if self._has_worker(pool):
                continue
            for run in waiting:
                due = run.next_scheduled_start_time
                old_enough = due is not None and self.now() - due > _WAITING_AFTER
                if run.work_pool_name == pool and old_enough and run.state and run.state.name != WAITING:
                    self._set(run, Scheduled(name=WAITING, scheduled_time=due, message=no_worker_words(pool)))

    def _has_worker(self, pool: str) -> bool:
        workers = self.client.read_workers_for_work_pool(pool)
        return any(worker.status == "ONLINE" for worker in workers)

    def _runs(self, types: list[StateType]) -> list[FlowRun]:
        """Runs of the process pools in one of these states, of the last days, latest first."""
        pools = filters.WorkPoolFilter(
            name=filters.WorkPoolFilterName(any_=list(POOLS)), type=filters.WorkPoolFilterType(any_=["process"])
        )
        wanted = filters.FlowRunFilter(
            state=filters.FlowRunFilterState(type=filters.FlowRunFilterStateType(any_=types)),
            expected_start_time=filters.FlowRunFilterExpectedStartTime(
                after_=self.now() - _FORGET_AFTER, before_=self.now()
            ),
        )
        return self.client.read_flow_runs(flow_run_filter=wanted, work_pool_filter=pools, limit=200)

    def _running_tasks(self, run: FlowRun) -> list[TaskRun]:
        return self.client.read_task_runs(
            flow_run_filter=filters.FlowRunFilter(id=filters.FlowRunFilterId(any_=[run.id])),
            task_run_filter=filters.TaskRunFilter(
                state=filters.TaskRunFilterState(type=filters.TaskRunFilterStateType(any_=[StateType.RUNNING]))
            ),
        )

    def _set(self, run: FlowRun, state: State[Any]) -> None:
        try:
            self.client.set_flow_run_state(run.id, state, force=True)
        except ObjectNotFound:
            return
        _log.info("flow run %s: %s (%s)", run.name, state.name, state.message)


def _due(run: FlowRun) -> datetime:
    due = run.expected_start_time or run.next_scheduled_start_time
    assert due is not None
    return due


def main() -> None:
    """Look every few seconds, for ever; a server that is gone for a while changes nothing."""
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    end_with_parent(os.getppid())
    project = find_project(Path.cwd())
    max_retries = int(os.environ["ASSAY_MAX_RETRIES"])
    is_lost = False
    while True:
        try:
            with get_client(sync_client=True) as client:
                keeper = Keeper(client, ServicePaths(project), max_retries)
                while True:
                    keeper.look()
                    is_lost = False
                    time.sleep(LOOK_SECONDS)
        except (httpx.HTTPError, PrefectHTTPStatusError, OSError, RuntimeError) as error:
            if not is_lost:
                _log.warning(
                    "Prefect does not answer as it should: %s", str(error).splitlines()[0] if str(error) else error
                )
            is_lost = True
            time.sleep(LOOK_SECONDS)


if __name__ == "__main__":
    main()
