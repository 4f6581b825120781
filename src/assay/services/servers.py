"""The two servers of a project: what they run as, where they listen, and what they are told."""

import ipaddress
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from assay.errors import ServiceError
from assay.services.serve import SERVE_VARIABLE, Serving
from assay.services.settings import AUTH_VARIABLE
from assay.tracking.store import Store

_QUIET = {"DO_NOT_TRACK": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}

# MLflow's assistant has a shell on this machine for whoever can open the dashboard here.
_SWITCHED_OFF = ("/ajax-api/3.0/mlflow/assistant", "/api/3.0/mlflow/assistant")
# The page decides by the host's name to open a panel for it on the first visit; this tells it that it has done so.
_NO_ASSISTANT = (
    '<script>localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1","true")</script>'
    "<style>[data-assistant-ui]{display:none!important}</style>"
)


@dataclass(frozen=True)
class Server:
    """One server.

    Attributes:
        name: ``prefect`` or ``mlflow``.
        host: Address it listens on.
        port: Port it listens on.
        command: What is executed.
        environment: What it is told; holds the credentials.
        health_path: Path that answers 200 when it is well.
    """

    name: str
    host: str
    port: int
    command: tuple[str, ...]
    environment: dict[str, str]
    health_path: str

    @property
    def url(self) -> str:
        """Where programs and browsers on this machine find it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://{_bracketed(host)}:{self.port}"

    @property
    def health_url(self) -> str:
        """Where to ask whether it is well."""
        return self.url + self.health_path


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        return ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError as error:
        raise ServiceError(
            f"services.host={host}: must be an IP address of this machine, e.g. 127.0.0.1 or 0.0.0.0. "
            "Names that browsers use go into services.allowed_hosts."
        ) from error


@dataclass(frozen=True)
class Access:
    """Where both servers listen, and who may speak to them.

    Attributes:
        host: Address to listen on.
        allowed_hosts: Names, besides its addresses, under which browsers reach them.
        auth: ``user:password``, or None.

    Raises:
        ServiceError: Other machines could reach them and nothing would protect them.
    """

    host: str = "127.0.0.1"
    allowed_hosts: tuple[str, ...] = ()
    auth: str | None = None

    def __post_init__(self) -> None:
        if _address(self.host).is_loopback or (self.auth and self.allowed_hosts):
            return
        missing = [f"{AUTH_VARIABLE}=USER:PASSWORD in the environment"] * (not self.auth)
        missing += ["services.allowed_hosts in params.yaml"] * (not self.allowed_hosts)
        raise ServiceError(
            f"services.host={self.host}: other machines could reach the servers there. "
            f"That needs {' and '.join(missing)}. Set {'both' if len(missing) > 1 else 'it'}, or stay on 127.0.0.1."
        )

    def hosts(self, port: int) -> tuple[str, ...]:
        """Return every exact ``Host`` that is let through to a port."""
        address = _address(self.host)
        names = ["127.0.0.1", "localhost", "[::1]"] if address.is_loopback or address.is_unspecified else []
        own = [] if names else [_bracketed(self.host)]
        wanted = [name.lower() for name in self.allowed_hosts]
        with_port = [f"{name}:{port}" for name in (*names, *own, *filter(_has_no_port, wanted))]
        return (*with_port, *(name for name in wanted if name not in with_port))


LOOPBACK = Access()
"""This machine only, without credentials."""


def prefect_server(home: Path, port: int, access: Access = LOOPBACK) -> Server:
    """Return the Prefect server of a project.

    Args:
        home: Folder of its database.
        port: Port to listen on.
        access: Where it listens, and for whom; on loopback by default.
    """
    hosts = access.hosts(port)
    serving = Serving(
        app="assay.services.prefect_app:create_app",
        is_factory=True,
        host=access.host,
        port=port,
        hosts=hosts,
        health_path="/api/health",
        closed_paths=(),
        page_head="",
        auth=access.auth,
    )
    environment = {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": "",  # its own services talk to it in memory
        "PREFECT_UI_API_URL": "/api",  # whatever name the browser knows it by
        "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": ",".join(f"http://{name}" for name in hosts),
        "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
        "PREFECT_LOGGING_LEVEL": "WARNING",
    }
    return _server("prefect", serving, environment)


def mlflow_server(store: Store, port: int, access: Access = LOOPBACK) -> Server:
    """Return the MLflow server of a project: one process, without the job runners.

    Args:
        store: Where runs and models are kept.
        port: Port to listen on.
        access: Where it listens, and for whom; on loopback by default.
    """
    hosts = access.hosts(port)
    serving = Serving(
        app="mlflow.server.fastapi_app:app",
        is_factory=False,
        host=access.host,
        port=port,
        hosts=hosts,
        health_path="/health",
        closed_paths=_SWITCHED_OFF,
        page_head=_NO_ASSISTANT,
        auth=access.auth,
    )
    environment = {
        # What `mlflow server` hands to the processes it starts.
        "_MLFLOW_SERVER_FILE_STORE": store.uri,
        "_MLFLOW_SERVER_ARTIFACT_ROOT": store.artifact_root or "",
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
        "_MLFLOW_SGI_NAME": "uvicorn",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(hosts),
        "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": ",".join(f"http://{name}" for name in hosts),
    }
    return _server("mlflow", serving, environment)


def _server(name: str, serving: Serving, environment: dict[str, str]) -> Server:
    told = {SERVE_VARIABLE: json.dumps(serving.to_json())}
    command = (sys.executable, "-m", "assay.services.serve", name)
    return Server(name, serving.host, serving.port, command, _QUIET | environment | told, serving.health_path)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _has_no_port(name: str) -> bool:
    return not name.rpartition("]")[2].partition(":")[1]
