"""A worker that owns one device: it takes one run at a time from its pool and has a process of its own for it.

    python -m assay.services.worker SLOT

Prefect's own process worker is not used for three reasons: on SIGTERM it ends its run without a checkpoint and
leaves it Running; to call crash hooks it imports the flow, and with it torch, into the worker; and it knows of no
device.
"""

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.abc
import httpx
from prefect import get_client
from prefect.client.schemas.objects import State, StateType
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelled
from prefect.workers.base import BaseJobConfiguration, BaseVariables, BaseWorker, BaseWorkerResult

from assay.project import Project, find_project
from assay.services.api import answers
from assay.services.child import end_with_parent
from assay.services.locks import holder
from assay.services.paths import ServicePaths
from assay.services.run_process import RunRequest
from assay.services.runs import RunHandle, fork_run, start_run
from assay.services.slots import forks

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

_LOOK_SECONDS = 2.0
_WAIT_SECONDS = 0.2
_ANSWER_SECONDS = 5.0


class DeviceWorkerResult(BaseWorkerResult):
    """How a run's process ended."""


class DeviceWorker(BaseWorker[BaseJobConfiguration, BaseVariables, DeviceWorkerResult]):
    """A worker of a process pool that runs each flow run in a process of its own on one device.

    Attributes:
        project: The project whose flows it runs.
        slot: Name of the device's slot, e.g. ``gpu-0``.

    Runs are forks of `assay.services.run_starter` where that is there.
    """

    type = "process"
    job_configuration = BaseJobConfiguration
    job_configuration_variables = BaseVariables

    @classmethod
    def __dispatch_key__(cls) -> str:
        """Prefect's registry of worker classes keeps its own worker under ``process``."""
        return "assay-device"

    def __init__(self, project: Project, slot: str, **settings: Any) -> None:
        pool = slot.rpartition("-")[0]
        super().__init__(work_pool_name=pool, name=slot, limit=1, create_pool_if_not_found=False, **settings)
        self.project = project
        self.slot = slot
        self._run: RunHandle | None = None
        self._cancelled = False

    async def get_and_submit_flow_runs(self) -> "list[FlowRun]":
        """Ask for the next run, once the device is free: a run may outlive a worker that was killed."""
        if self._run is None and holder(ServicePaths(self.project).slot_lock(self.slot)) is not None:
            return []
        return await super().get_and_submit_flow_runs()

    async def _start(self, flow_run_id: str, environment: dict[str, str]) -> RunHandle:
        """Start a run's process, as a fork where there is somebody to fork."""
        paths = ServicePaths(self.project)
        request = RunRequest(self.slot, flow_run_id, environment, str(paths.logs / f"{self.slot}-runs.log"))
        pool = self.slot.rpartition("-")[0]
        forked = await fork_run(paths.starter_socket(pool), request) if forks(pool) else None
        return forked or await start_run(self.project.root, request)

    async def run(
        self,
        flow_run: "FlowRun",
        configuration: BaseJobConfiguration,
        task_status: anyio.abc.TaskStatus[int] | None = None,
    ) -> DeviceWorkerResult:
        """Start the run's process and wait for its end.

        Args:
            flow_run: The run.
            configuration: Environment of the process.
            task_status: Told the process id.

        Returns:
            The process id and exit code.
        """
        environment = {**os.environ, **{k: v for k, v in configuration.env.items() if v is not None}}
        run = self._run = await self._start(str(flow_run.id), environment)
        self._cancelled = False
        if task_status is not None:
            task_status.started(run.pid)
        try:
            async with anyio.create_task_group() as watching:
                watching.start_soon(self._end_when_cancelled, flow_run)
                code = await run.code
                watching.cancel_scope.cancel()
        finally:
            self._run = None
        if self._cancelled:  # whatever its process said last
            state: State[Any] = Cancelled(message="Cancelled; its checkpoint is kept.")
            with contextlib.suppress(ObjectNotFound):
                await self.client.set_flow_run_state(flow_run.id, state, force=True)
            code = 0
        return DeviceWorkerResult(status_code=code, identifier=str(run.pid))

    async def end_run(self) -> None:
        """Have the run that is under way write its checkpoint and end; kill it when it takes too long."""
        if self._run is not None:
            await self._run.end()

    async def _end_when_cancelled(self, flow_run: "FlowRun") -> None:
        while True:
            await anyio.sleep(_LOOK_SECONDS)
            if await self._state(flow_run) == StateType.CANCELLING:
                self._cancelled = True
                await self.end_run()
                return

    async def _state(self, flow_run: "FlowRun") -> StateType | None:
        try:
            now = await self.client.read_flow_run(flow_run.id)
        except ObjectNotFound:
            return StateType.CANCELLING  # deleted: nobody wants it any more
        except Exception:
            return None  # the server is gone for a moment; the run goes on
        return now.state_type


async def work(slot: str) -> None:
    """Serve a slot until SIGTERM or SIGINT; a run that is under way writes its checkpoint first.

    Args:
        slot: Name of the slot, e.g. ``cpu-0``.
    """
    worker = DeviceWorker(find_project(Path.cwd()), slot, heartbeat_interval_seconds=5)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    serving = asyncio.create_task(_serve(worker))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if serving.done():
        serving.result()
        return
    await worker.end_run()
    await asyncio.sleep(_WAIT_SECONDS)  # for the exit code to be reported
    serving.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await serving


async def _serve(worker: DeviceWorker) -> None:
    """Start the worker once the server and its pool are there."""
    pool = worker.slot.rpartition("-")[0]
    health = f"{PREFECT_API_URL.value()}/health"
    while True:
        while not await asyncio.to_thread(answers, health, _ANSWER_SECONDS):  # much cheaper than Prefect's client
            await asyncio.sleep(_WAIT_SECONDS)
        try:
            async with get_client() as client:
                await client.read_work_pool(pool)
            break
        except (httpx.HTTPError, PrefectHTTPStatusError, ObjectNotFound, RuntimeError):
            await asyncio.sleep(_WAIT_SECONDS)
    await worker.start(printer=lambda *_: None)


if __name__ == "__main__":
    os.umask(0o077)
    end_with_parent(os.getppid())
    asyncio.run(work(sys.argv[1]))
