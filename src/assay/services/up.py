"""``assay up`` and ``assay down``: the whole training line of a project, started, repaired and ended."""

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import psutil

from assay.errors import ServiceError
from assay.files import replace_file
from assay.params import Params
from assay.project import Project, only_one
from assay.services.api import PrefectApi, answers
from assay.services.child import GRACE_SECONDS
from assay.services.paths import ServicePaths
from assay.services.programs import Program, read_programs
from assay.services.servers import Access, Server, mlflow_server, prefect_server
from assay.services.settings import Settings, credentials, read_settings, running, server_environment
from assay.services.slots import DEVICE_VARIABLES, Slot, find_slots, forks
from assay.services.supervisor import Supervisor
from assay.tracking.store import find_store, open_client

_READY_SECONDS = 180.0
_ANSWER_SECONDS = 5.0
_SERVER_STOP_SECONDS = 15
_WORKER_STOP_SECONDS = int(GRACE_SECONDS) + 20

Say = Callable[[str], None]


def up(project: Project, params: Params, say: Say) -> Settings:
    """Start what is missing, repair what is broken, and wait until everything answers.

    Args:
        project: The project.
        params: Its params; `services` and `schedule` count here.
        say: Told what happens, in sentences.

    Returns:
        Where everything is.

    Raises:
        ServiceError: A port is taken, a server does not start, or the address is not allowed.
    """
    os.umask(0o077)
    project.make_home()
    paths = ServicePaths(project)
    with only_one(paths.up_lock, on_wait=lambda: say("Another assay up or down is at work here: waiting for it.")):
        slots = find_slots(params.services)
        servers = _servers(project, params)
        supervisor = Supervisor(paths)
        before = {program.name: program for program in read_programs(paths.folder)} if supervisor.is_running() else {}
        for server in servers:
            _require_port(server, known=server.name in before)
        _prepare_store(project)
        programs = _programs(project, params, servers, slots)
        started = [program.name for program in programs if before.get(program.name) != program]
        if started:
            say(f"Starting {', '.join(started)}.")
        supervisor.apply(programs)
        supervisor.start_stopped()
        settings = _settings(project, params, servers, slots)
        _wait_for_servers(servers, supervisor, paths)
        for change in _ensure_line(project, params, settings, slots):
            say(f"{change[0].upper()}{change[1:]}.")
        _wait_for_workers(settings, supervisor, paths)
        known = read_settings(paths)
        if known is None or started or replace(known, started_ms=settings.started_ms) != settings:
            replace_file(paths.settings_file, json.dumps(settings.to_json(), indent=1).encode())
        return settings


def down(project: Project, say: Say) -> bool:
    """End all services; trainings that are under way write their checkpoint first.

    Args:
        project: The project.
        say: Told what happens, in sentences.

    Returns:
        Whether there was anything to end.
    """
    paths = ServicePaths(project)
    if not paths.folder.exists():
        return False
    with only_one(paths.up_lock, on_wait=lambda: say("Another assay up or down is at work here: waiting for it.")):
        supervisor = Supervisor(paths)
        was_running = supervisor.is_running()
        runs = running(paths)
        if runs:
            say(f"Waiting for {len(runs)} running training{'s' * (len(runs) != 1)} to write a checkpoint.")
        if was_running:
            workers = [program.name for program in read_programs(paths.folder) if program.priority == _WORKER_PRIORITY]
            supervisor.stop(workers)
        _end_left_over_runs(paths)
        supervisor.shut_down()
        paths.settings_file.unlink(missing_ok=True)
    return was_running or bool(runs)


def _servers(project: Project, params: Params) -> tuple[Server, ...]:
    """Prefect, and MLflow unless ``MLFLOW_TRACKING_URI`` names a server that is there already."""
    services, store = params.services, find_store(project)
    access = Access(services.host, services.allowed_hosts, credentials())
    prefect = prefect_server(project.home / "prefect", services.prefect_port, access)
    if store.is_server:
        return (prefect,)
    return prefect, mlflow_server(store, services.mlflow_port, access)


def _mlflow_url(project: Project, servers: tuple[Server, ...]) -> str:
    """Where a browser finds MLflow."""
    own = [server.url for server in servers if server.name == "mlflow"]
    return own[0] if own else find_store(project).shown_uri


_SERVER_PRIORITY, _KEEPER_PRIORITY, _WORKER_PRIORITY = 10, 20, 30


def _programs(
    project: Project, params: Params, servers: tuple[Server, ...], slots: tuple[Slot, ...]
) -> tuple[Program, ...]:
    client = _client_environment(project, servers)
    return (
        *(
            Program(server.name, server.command, server.environment, _SERVER_STOP_SECONDS, _SERVER_PRIORITY)
            for server in servers
        ),
        Program(
            "keeper",
            (sys.executable, "-m", "assay.services.keeper"),
            client | {"ASSAY_MAX_RETRIES": str(params.services.max_retries)},
            _SERVER_STOP_SECONDS,
            _KEEPER_PRIORITY,
        ),
        *_starters(client, slots if params.services.preload else ()),
        *(
            Program(
                slot.name,
                (sys.executable, "-m", "assay.services.worker", slot.name),
                client | slot.environment,
                _WORKER_STOP_SECONDS,
                _WORKER_PRIORITY,
            )
            for slot in slots
        ),
    )


def _starters(client: dict[str, str], slots: tuple[Slot, ...]) -> Iterator[Program]:
    """One process for each pool that forks its runs."""
    for pool, slot in {slot.pool: slot for slot in slots if forks(slot.pool)}.items():
        is_one_of_many = pool != "cpu"  # which device a run sees is its own then; a CPU's runs see none
        own = {k: v for k, v in slot.environment.items() if not (is_one_of_many and k in DEVICE_VARIABLES)}
        yield Program(
            f"{pool}-starter",
            (sys.executable, "-m", "assay.services.run_starter", pool),
            client | own,
            _SERVER_STOP_SECONDS,
            _KEEPER_PRIORITY,
        )


def _client_environment(project: Project, servers: tuple[Server, ...]) -> dict[str, str]:
    """What the keeper, the workers and their runs need to know of the servers."""
    return server_environment(servers[0].url, _mlflow_url(project, servers)) | {
        "PREFECT_HOME": str(project.home / "prefect"),
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_LOGGING_LEVEL": "INFO",
        "PREFECT_LOGGING_INTERNAL_LEVEL": "WARNING",
        "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
        "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "1",
        "DVC_NO_ANALYTICS": "1",
        "GOMP_SPINCOUNT": "1000",
        "ASSAY_HOME": str(project.home),
    }


def _require_port(server: Server, known: bool) -> None:
    """Refuse a port that something else listens on, and name it.

    Raises:
        ServiceError: The port is taken.
    """
    if known:
        return
    family = socket.AF_INET6 if ":" in server.host else socket.AF_INET
    deadline = time.monotonic() + _SERVER_STOP_SECONDS
    while True:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((server.host, server.port))
                return
            except OSError as error:
                reason = error.strerror
        owner = _owner(server.port)
        if "assay.services.serve" not in owner or time.monotonic() > deadline:
            break
        time.sleep(0.2)  # a server whose supervisor was killed is on its way out
    raise ServiceError(
        f"services.{server.name}_port={server.port}: {reason} ({owner}). End that, or choose another: "
        f"assay up services.{server.name}_port={server.port + 1}, or write it into params.yaml."
    )


def _owner(port: int) -> str:
    """Who listens on a port, as far as this user may know."""
    try:
        connections = psutil.net_connections("tcp")
    except psutil.AccessDenied:
        return "by a process that this user may not see"
    for connection in connections:
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port:
            if connection.pid is None:
                break
            try:
                words = " ".join(psutil.Process(connection.pid).cmdline())
            except psutil.Error:
                words = "?"
            return f"process {connection.pid}: {words[:120]}"
    return "by a process that this user may not see"


def _prepare_store(project: Project) -> None:
    """Make the MLflow database before two servers and a run do it at once."""
    store = find_store(project)
    if store.is_new:
        open_client(project, store)


def _settings(project: Project, params: Params, servers: tuple[Server, ...], slots: tuple[Slot, ...]) -> Settings:
    return Settings(
        host=params.services.host,
        prefect_url=servers[0].url,
        mlflow_url=_mlflow_url(project, servers),
        has_auth=credentials() is not None,
        slots=tuple(slot.name for slot in slots),
        started_ms=time.time_ns() // 1_000_000,
    )


def _wait_for_servers(servers: tuple[Server, ...], supervisor: Supervisor, paths: ServicePaths) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    for server in servers:
        while not answers(server.health_url, _ANSWER_SECONDS):
            _require_alive(server.name, supervisor, paths, deadline)
            time.sleep(0.1)


def _wait_for_workers(settings: Settings, supervisor: Supervisor, paths: ServicePaths) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    with PrefectApi(settings.prefect_url, credentials()) as api:
        missing = set(settings.slots)
        while missing:
            for pool in {slot.rpartition("-")[0] for slot in missing}:
                workers = api.filter(f"/work_pools/{pool}/workers/filter")
                missing -= {worker["name"] for worker in workers if worker["status"] == "ONLINE"}
            if missing:
                _require_alive(min(missing), supervisor, paths, deadline)
                time.sleep(0.1)


def _require_alive(name: str, supervisor: Supervisor, paths: ServicePaths, deadline: float) -> None:
    """Raise when waiting for a program has become pointless.

    Raises:
        ServiceError: It does not start, or takes too long.
    """
    state = supervisor.states().get(name, {}).get("state")
    if state in ("starting", "running", "backoff") and time.monotonic() < deadline:
        return
    log = paths.logs / f"{name}.log"
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    raise ServiceError(
        f"{name}: does not come up (it is {state}). It said last: {lines[-1] if lines else ''!r}. "
        f"The whole log is {log}. Mend that and run assay up again, or assay down."
    )


def _ensure_line(project: Project, params: Params, settings: Settings, slots: tuple[Slot, ...]) -> list[str]:
    """Make pools and deployments; prefect reads its settings from the environment when it is imported."""
    os.environ["PREFECT_HOME"] = str(project.home / "prefect")
    os.environ["PREFECT_API_URL"] = f"{settings.prefect_url}/api"
    auth = credentials()
    if auth:
        os.environ["PREFECT_API_AUTH_STRING"] = auth
    from prefect import get_client
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    from assay.services.deployments import ensure_deployments, ensure_pools

    here = {PREFECT_API_URL: f"{settings.prefect_url}/api", PREFECT_API_AUTH_STRING: auth}
    with temporary_settings(here), get_client(sync_client=True) as client:
        return [*ensure_pools(client), *ensure_deployments(client, project, params, slots)]


def _end_left_over_runs(paths: ServicePaths) -> None:
    """End run processes whose worker is gone: those of a supervisor that was killed."""
    pids = {about["pid"] for about in running(paths).values() if isinstance(about.get("pid"), int)}
    left = [psutil.Process(pid) for pid in pids if isinstance(pid, int) and psutil.pid_exists(pid)]
    for process in left:
        process.terminate()
    _, stubborn = psutil.wait_procs(left, timeout=GRACE_SECONDS)
    for process in stubborn:
        process.kill()
