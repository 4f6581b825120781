"""Pools and deployments on a Prefect server: made, and changed only where they differ from what they should be."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectNotFound

from assay.params import Params
from assay.project import Project
from assay.services.forms import form_schema, form_values
from assay.services.slots import POOLS, Slot
from assay.services.worker import DeviceWorker

if TYPE_CHECKING:
    from prefect.client.schemas.responses import DeploymentResponse

NIGHTLY, PROMOTE = "nightly", "promote"
_ONE_EACH = (NIGHTLY, PROMOTE)
"""Flows with one deployment, whatever the pools."""
_TAG = "assay"
_SUMMARIES = {
    "pipeline": "The whole chain: version, validate, split, train, evaluate on test, register, meet the gate.",
    "train": "Train and choose on val; test is not looked at and nothing is registered.",
    "ablate": "Train every level with several seeds and say which ones help; test is not looked at.",
    "promote": "Have a registered version meet the gate; the champion moves if it passes.",
    "nightly": "The whole chain with the params.yaml of the night, when its schedule says so.",
}
_POOL_WORDS = {
    "cpu": "Runs on this machine's cores, one thread each.",
    "gpu": "Runs on this machine's GPUs, one run for each at a time.",
    "tpu": "Runs on this machine's TPU chips, one run for each at a time.",
}


@dataclass(frozen=True)
class Deployment:
    """A flow that can be started in a pool.

    Attributes:
        flow: Name of the flow, and of its function in ``flows/FLOW.py``.
        pool: Where it runs.
    """

    flow: str
    pool: str

    @property
    def name(self) -> str:
        """What people see: ``run-cpu``, ``train-gpu``, ``promote``, ``nightly``."""
        verb = "run" if self.flow == "pipeline" else self.flow
        return verb if self.flow in _ONE_EACH else f"{verb}-{self.pool}"


def deployments(slots: tuple[Slot, ...]) -> tuple[Deployment, ...]:
    """Return all deployments; the nightly run takes a GPU or TPU where there is one."""
    here = [pool for pool in POOLS if any(slot.pool == pool for slot in slots)]
    nightly_pool = next((pool for pool in ("tpu", "gpu") if pool in here), "cpu")
    return (
        *(Deployment(flow, pool) for flow in ("pipeline", "train", "ablate") for pool in POOLS),
        Deployment(PROMOTE, "cpu"),
        Deployment(NIGHTLY, nightly_pool),
    )


def ensure_pools(client: SyncPrefectClient) -> list[str]:
    """Make the pools that are missing; a pool of another type, e.g. on Kubernetes, is left alone.

    Args:
        client: Client of the server.

    Returns:
        What was changed, in words.
    """
    changed = []
    template = DeviceWorker.get_default_base_job_template()
    for pool in POOLS:
        words = _POOL_WORDS[pool]
        try:
            found = client.read_work_pool(pool)
        except ObjectNotFound:
            client.create_work_pool(
                WorkPoolCreate(name=pool, type="process", description=words, base_job_template=template)
            )
            changed.append(f"pool {pool} made")
            continue
        if found.type == "process" and (found.base_job_template != template or found.description != words):
            client.update_work_pool(pool, WorkPoolUpdate(description=words, base_job_template=template))
            changed.append(f"pool {pool} changed")
    return changed


def ensure_deployments(
    client: SyncPrefectClient, project: Project, params: Params, slots: tuple[Slot, ...]
) -> list[str]:
    """Make the deployments that are missing and change those that differ.

    A deployment that is as it should be is not written again: writing one has Prefect plan its scheduled runs anew.

    Args:
        client: Client of the server.
        project: The project whose flows they start.
        params: What their forms are filled with, and the schedule.
        slots: The devices of this machine.

    Returns:
        What was changed, in words.
    """
    changed = []
    for deployment in deployments(slots):
        wanted = _settings(deployment, project, params, slots)
        schedule = _schedule(deployment, params)
        found = _find(client, deployment)
        if found is not None and _is_as(found, wanted, schedule):
            continue
        flow_id = client.create_flow_from_name(deployment.flow)
        client.create_deployment(
            flow_id=flow_id,
            name=deployment.name,
            schedules=[schedule] if schedule else [],
            **wanted,
        )
        changed.append(f"deployment {deployment.name} {'changed' if found else 'made'}")
    return changed


def _settings(deployment: Deployment, project: Project, params: Params, slots: tuple[Slot, ...]) -> dict[str, Any]:
    """Everything of a deployment but its name, flow and schedule."""
    num_workers = sum(slot.pool == deployment.pool for slot in slots)
    workers = f"{num_workers} worker{'s' * (num_workers != 1)}" if num_workers else "no worker: runs will wait for one"
    return {
        "description": f"{_SUMMARIES[deployment.flow]}\n\nPool {deployment.pool} has {workers} on this machine.",
        "entrypoint": f"flows/{deployment.flow}.py:{deployment.flow}",
        "parameters": form_values(deployment.flow, params),
        "parameter_openapi_schema": form_schema(deployment.flow),
        "enforce_parameter_schema": True,
        "path": str(project.root),
        "pull_steps": [{"prefect.deployments.steps.set_working_directory": {"directory": str(project.root)}}],
        "tags": [_TAG],
        "work_pool_name": deployment.pool,
    }


def _schedule(deployment: Deployment, params: Params) -> DeploymentScheduleCreate | None:
    if deployment.flow != NIGHTLY:
        return None
    wanted = params.schedule
    return DeploymentScheduleCreate(
        schedule=CronSchedule(cron=wanted.cron, timezone=wanted.timezone), active=wanted.enabled
    )


def _find(client: SyncPrefectClient, deployment: Deployment) -> "DeploymentResponse | None":
    try:
        return client.read_deployment_by_name(f"{deployment.flow}/{deployment.name}")
    except ObjectNotFound:
        return None


def _is_as(found: "DeploymentResponse", wanted: dict[str, Any], schedule: DeploymentScheduleCreate | None) -> bool:
    schedules = [(item.schedule, item.active) for item in found.schedules]
    return all(getattr(found, name) == value for name, value in wanted.items()) and schedules == (
        [(schedule.schedule, schedule.active)] if schedule else []
    )
