"""The two servers of a project: what they run as, where they listen, and what they are told."""

import ipaddress
import json
import sys
from collections.abc import Iterable
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


def prefect_server(
    home: Path,
    host: str = "127.0.0.1",
    port: int = 4200,
    allowed_hosts: Iterable[str] = (),
    auth: str | None = None,
) -> Server:
    """Return the Prefect server of a project.

    Args:
        home: Folder of its database.
        host: Address to listen on.
        port: Port to listen on.
        allowed_hosts: Names, besides its addresses, under which browsers reach it.
        auth: ``user:password``, or None.

    Raises:
        ServiceError: Other machines could reach it and nothing would protect it.
    """
    hosts = _hosts(host, port, tuple(allowed_hosts), auth)
    serving = Serving("assay.services.prefect_app:create_app", True, host, port, hosts, ("/api/health",), (), "", auth)
    environment = {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": "",  # its own services talk to it in memory
        "PREFECT_UI_API_URL": "/api",  # whatever name the browser knows it by
        "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": ",".join(f"http://{name}" for name in hosts),
        "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
        "PREFECT_LOGGING_LEVEL": "WARNING",
    }
    return _server("prefect", serving, environment, "/api/health")


def mlflow_server(
    store: Store,
    host: str = "127.0.0.1",
    port: int = 5000,
    allowed_hosts: Iterable[str] = (),
    auth: str | None = None,
) -> Server:
    """Return the MLflow server of a project: one process, without the job runners.

    Args:
        store: Where runs and models are kept.
        host: Address to listen on.
        port: Port to listen on.
        allowed_hosts: Names, besides its addresses, under which browsers reach it.
        auth: ``user:password``, or None.

    Raises:
        ServiceError: Other machines could reach it and nothing would protect it.
    """
    hosts = _hosts(host, port, tuple(allowed_hosts), auth)
    serving = Serving(
        "mlflow.server.fastapi_app:app", False, host, port, hosts, ("/health",), _SWITCHED_OFF, _NO_ASSISTANT, auth
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
    return _server("mlflow", serving, environment, "/health")


def _server(name: str, serving: Serving, environment: dict[str, str], health_path: str) -> Server:
    told = {SERVE_VARIABLE: json.dumps(serving.to_json())}
    command = (sys.executable, "-m", "assay.services.serve", name)
    return Server(name, serving.host, serving.port, command, _QUIET | environment | told, health_path)


def _hosts(host: str, port: int, allowed_hosts: tuple[str, ...], auth: str | None) -> tuple[str, ...]:
    """Every exact ``Host`` that is let through, or a refusal to listen at all."""
    address = _address(host)
    if not address.is_loopback and not (auth and allowed_hosts):
        missing = [f"{AUTH_VARIABLE}=USER:PASSWORD in the environment"] * (not auth)
        missing += ["services.allowed_hosts in params.yaml"] * (not allowed_hosts)
        raise ServiceError(
            f"services.host={host}: other machines could reach the servers there. "
            f"That needs {' and '.join(missing)}. Set {'both' if len(missing) > 1 else 'it'}, or stay on 127.0.0.1."
        )
    own = [] if address.is_loopback or address.is_unspecified else [_bracketed(host)]
    names = ["127.0.0.1", "localhost", "[::1]"] if address.is_loopback or address.is_unspecified else []
    wanted = [name.lower() for name in allowed_hosts]
    return tuple(
        dict.fromkeys(
            [f"{name}:{port}" for name in (*names, *own)]
            + [name for wish in wanted for name in (wish, *([f"{wish}:{port}"] if _has_no_port(wish) else []))]
        )
    )


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        return ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError as error:
        raise ServiceError(
            f"services.host={host}: must be an IP address of this machine, e.g. 127.0.0.1 or 0.0.0.0. "
            "Names that browsers use go into services.allowed_hosts."
        ) from error


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _has_no_port(name: str) -> bool:
    return not name.rpartition("]")[2].partition(":")[1]
