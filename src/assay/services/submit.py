"""Sending a run to a pool, and watching it."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx

from assay.errors import ServiceError
from assay.params import Params
from assay.project import Project
from assay.records import Record
from assay.services.api import PrefectApi
from assay.services.forms import form_values
from assay.services.paths import ServicePaths
from assay.services.settings import Settings, credentials, read_settings

_ENDED = frozenset({"COMPLETED", "FAILED", "CRASHED", "CANCELLED"})
_LOOK_SECONDS = 0.5
_DECIDED_SECONDS = 15.0
"""Within this time the keeper has started a run again that crashed."""


@dataclass(frozen=True)
class Submission(Record):
    """A run that was sent to a pool.

    Attributes:
        flow_run_id: Prefect's id.
        name: Prefect's name.
        flow: Which flow.
        pool: Which pool; empty for the nightly run, whose deployment names it.
        url: Its page in Prefect.
        num_workers: Workers of the pool that are there.
    """

    flow_run_id: str
    name: str
    flow: str
    pool: str
    url: str
    num_workers: int


def submit(project: Project, flow: str, pool: str | None, params: Params) -> Submission:
    """Send a run to a pool.

    Args:
        project: The project.
        flow: ``pipeline``, ``train`` or ``nightly``.
        pool: The pool; None for the nightly run's own.
        params: What the form is filled with.

    Returns:
        The run, and how many workers there are to take it.

    Raises:
        ServiceError: The services are not up, or do not take it.
    """
    settings = _require_up(project)
    verb = "run" if flow == "pipeline" else flow
    name = verb if pool is None else f"{verb}-{pool}"
    body = {"parameters": form_values(flow, params), "state": {"type": "SCHEDULED", "message": "Sent by assay."}}
    try:
        with PrefectApi(settings.prefect_url, credentials()) as api:
            deployment = api.get(f"/deployments/name/{flow}/{name}")
            taken = deployment["work_pool_name"]
            workers = api.filter(f"/work_pools/{taken}/workers/filter")
            run = api.filter(f"/deployments/{deployment['id']}/create_flow_run", body)
    except httpx.HTTPError as error:
        raise _not_taken(settings, error) from error
    return Submission(
        flow_run_id=run["id"],
        name=run["name"],
        flow=flow,
        pool=taken,
        url=f"{settings.prefect_url}/runs/flow-run/{run['id']}",
        num_workers=sum(worker["status"] == "ONLINE" for worker in workers),
    )


def watch(project: Project, flow_run_id: str) -> Iterator[Mapping[str, Any]]:
    """Follow a run to its end.

    Args:
        project: The project.
        flow_run_id: Prefect's id.

    Yields:
        Its state whenever it has changed: ``type``, ``name``, ``message``; the last one is its end.

    Raises:
        ServiceError: The services are not up.
    """
    settings = _require_up(project)
    last: tuple[str, str | None] | None = None
    with PrefectApi(settings.prefect_url, credentials()) as api:
        while True:
            try:
                run = api.get(f"/flow_runs/{flow_run_id}")
            except httpx.TransportError:
                time.sleep(_LOOK_SECONDS)  # the server is starting again
                continue
            state = run["state"]
            if (state["name"], state["message"]) != last:
                last = (state["name"], state["message"])
                yield state
            if state["type"] in _ENDED and not _will_be_retried(state):
                return
            time.sleep(_LOOK_SECONDS)


def _will_be_retried(state: Mapping[str, Any]) -> bool:
    """Whether the keeper may start a run again: it decides within seconds of the crash."""
    if state["type"] != "CRASHED":
        return False
    age = datetime.now(UTC) - datetime.fromisoformat(state["timestamp"])
    return age.total_seconds() < _DECIDED_SECONDS


def _require_up(project: Project) -> Settings:
    settings = read_settings(ServicePaths(project))
    if settings is None:
        raise ServiceError(f"{project.root}: its services are not up. Start them with: assay up")
    return settings


def _not_taken(settings: Settings, error: httpx.HTTPError) -> ServiceError:
    if isinstance(error, httpx.HTTPStatusError):
        try:
            reason = error.response.json().get("detail", "")
        except ValueError:
            reason = ""
        return ServiceError(f"{settings.prefect_url}: the run was not taken ({reason or error}). Run assay up again.")
    return ServiceError(f"{settings.prefect_url}: Prefect does not answer ({error}). Run assay up again.")
