"""``assay status``: each service, pool, worker and device, the next night, the last result."""

import importlib.metadata
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import psutil

from assay.project import Project
from assay.records import Record
from assay.services.api import PrefectApi, answers
from assay.services.paths import ServicePaths
from assay.services.settings import Settings, credentials, read_settings, running
from assay.services.slots import POOLS
from assay.services.supervisor import Supervisor

_PACKAGES = ("assay", "prefect", "mlflow", "torch", "dvc", "scikit-learn")
_LAST_RUNS = 5
_ANSWER_SECONDS = 2.0


@dataclass(frozen=True)
class Status(Record):
    """How a project's training line is.

    Attributes:
        is_up: Whether the supervisor is there.
        services: Program -> ``state``, ``pid``, ``uptime_seconds``, ``memory_mb``; of servers ``url``, ``healthy`` too.
        pools: Pool -> ``type``, ``workers`` (online), ``running`` and ``waiting`` (runs).
        devices: Slot -> the flow run that holds it, or None.
        next_night: When the next nightly run is due, ISO 8601 in its own time zone; None without one.
        last_runs: The latest flow runs that ended: ``name``, ``flow``, ``state``, ``message``, ``ended``.
        versions: Package -> version.
        disk: ``state_mb`` (the state folder), ``free_gb`` (its file system).
    """

    is_up: bool
    services: dict[str, dict[str, Any]]
    pools: dict[str, dict[str, Any]]
    devices: dict[str, str | None]
    next_night: str | None
    last_runs: list[dict[str, Any]]
    versions: dict[str, str]
    disk: dict[str, float]


def read_status(project: Project) -> Status:
    """Look at everything once; what does not answer is missing from the status, not an error.

    Args:
        project: The project.
    """
    paths = ServicePaths(project)
    settings = read_settings(paths)
    services = _services(Supervisor(paths).states(), settings)
    pools: dict[str, dict[str, Any]] = {}
    last_runs: list[dict[str, Any]] = []
    next_night = None
    if settings is not None and services.get("prefect", {}).get("healthy"):
        with PrefectApi(settings.prefect_url, credentials()) as api:
            try:
                pools = {pool: _pool(api, pool) for pool in POOLS}
                next_night, last_runs = _next_night(api), _last_runs(api)
            except httpx.HTTPError:
                services["prefect"]["healthy"] = False
    held = running(paths)
    slots = settings.slots if settings else ()
    return Status(
        is_up=bool(services),
        services=services,
        pools=pools,
        devices={slot: str(held[slot].get("flow_run_id", "?")) if slot in held else None for slot in slots},
        next_night=next_night,
        last_runs=last_runs,
        versions={name: importlib.metadata.version(name) for name in _PACKAGES},
        disk=_disk(project.home),
    )


def _services(states: dict[str, dict[str, Any]], settings: Settings | None) -> dict[str, dict[str, Any]]:
    services = {}
    for name, info in sorted(states.items(), key=lambda item: _order(item[0])):
        services[name] = {**info, "memory_mb": _memory_mb(info["pid"])}
        url = {"prefect": settings.prefect_url, "mlflow": settings.mlflow_url}.get(name) if settings else None
        if url:
            services[name] |= {"url": url, "healthy": _is_healthy(name, url)}
    return services


def _order(name: str) -> tuple[int, str]:
    known = ("mlflow", "prefect", "keeper", "cpu-starter", "gpu-starter")
    return (known.index(name) if name in known else len(known), name)


def _is_healthy(name: str, url: str) -> bool:
    path = "/api/health" if name == "prefect" else "/health"
    return answers(f"{url}{path}", _ANSWER_SECONDS)


def _memory_mb(pid: int | None) -> float:
    """Memory that only this process and its children use, MB; 0 where it is gone."""
    try:
        process = psutil.Process(pid) if pid else None
        family = [process, *process.children(recursive=True)] if process else []
        return round(sum(member.memory_full_info().uss for member in family) / 1e6, 1)
    except psutil.Error:
        return 0.0


def _pool(api: PrefectApi, pool: str) -> dict[str, Any]:
    found = api.get(f"/work_pools/{pool}")
    workers = api.filter(f"/work_pools/{pool}/workers/filter")
    only = {"work_pools": {"name": {"any_": [pool]}}}
    due = {"state": {"type": {"any_": ["SCHEDULED"]}}, "next_scheduled_start_time": {"before_": _now()}}
    return {
        "type": found["type"],
        "workers": sorted(worker["name"] for worker in workers if worker["status"] == "ONLINE"),
        "running": api.filter(
            "/flow_runs/count", only | {"flow_runs": {"state": {"type": {"any_": ["RUNNING", "PENDING"]}}}}
        ),
        "waiting": api.filter("/flow_runs/count", only | {"flow_runs": due}),
    }


def _next_night(api: PrefectApi) -> str | None:
    found = api.filter("/deployments/filter", {"deployments": {"name": {"any_": ["nightly"]}}})
    zone = next((item["schedule"].get("timezone") for deployment in found for item in deployment["schedules"]), None)
    runs = api.filter(
        "/flow_runs/filter",
        {
            "deployments": {"name": {"any_": ["nightly"]}},
            "flow_runs": {
                "state": {"type": {"any_": ["SCHEDULED"]}},
                "expected_start_time": {"after_": _now()},
            },
            "sort": "EXPECTED_START_TIME_ASC",
            "limit": 1,
        },
    )
    return _local(runs[0]["expected_start_time"], zone) if runs else None


def _last_runs(api: PrefectApi) -> list[dict[str, Any]]:
    ended = {"state": {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED", "CANCELLED"]}}}
    runs = api.filter("/flow_runs/filter", {"flow_runs": ended, "sort": "END_TIME_DESC", "limit": _LAST_RUNS})
    names = {flow["id"]: flow["name"] for flow in api.filter("/flows/filter")}
    return [
        {
            "name": run["name"],
            "flow": names.get(run["flow_id"], "?"),
            "state": run["state"]["name"],
            "message": run["state"]["message"] or "",
            "ended": run["end_time"],
        }
        for run in runs
    ]


def _local(moment: str, zone: str | None) -> str:
    return datetime.fromisoformat(moment).astimezone(ZoneInfo(zone or "UTC")).isoformat(timespec="minutes")


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _disk(home: Path) -> dict[str, float]:
    if not home.exists():
        return {"state_mb": 0.0, "free_gb": round(shutil.disk_usage(home.parent).free / 1e9, 1)}
    size = 0
    for file in home.rglob("*"):
        try:
            size += file.stat().st_size if file.is_file() and not file.is_symlink() else 0
        except OSError:
            continue
    return {"state_mb": round(size / 1e6, 1), "free_gb": round(shutil.disk_usage(home).free / 1e9, 1)}
