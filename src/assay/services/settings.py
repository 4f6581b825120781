"""What the services of a project were last started with, and who uses its devices."""

import base64
import json
import os
from dataclasses import dataclass

from assay.errors import ServiceError
from assay.records import Record
from assay.services.locks import holder
from assay.services.paths import ServicePaths

AUTH_VARIABLE = "ASSAY_AUTH"
"""``user:password`` of both servers; needed for every address other than loopback."""


@dataclass(frozen=True)
class Settings(Record):
    """What the services were last started with.

    Attributes:
        host: Address that the servers listen on.
        prefect_url: Where a browser on this machine finds Prefect.
        mlflow_url: Where a browser on this machine finds MLflow.
        has_auth: Whether the servers want credentials.
        slots: Names of the workers' slots.
        started_ms: Unix time in ms of the `assay up` that last changed something.
    """

    host: str
    prefect_url: str
    mlflow_url: str
    has_auth: bool
    slots: tuple[str, ...]
    started_ms: int


def running(paths: ServicePaths) -> dict[str, dict[str, object]]:
    """Return who holds which device: name of the slot -> what its run process says about itself."""
    files = (paths.folder / "devices").glob("*.lock")
    held = {file.stem: holder(file) for file in files}
    return {slot: about for slot, about in sorted(held.items()) if about is not None}


def read_settings(paths: ServicePaths) -> Settings | None:
    """Return what the services were last started with; None where they are not up."""
    try:
        return Settings.from_json(json.loads(paths.settings_file.read_bytes()))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def credentials() -> str | None:
    """Return ``user:password`` of both servers, where they are set.

    Raises:
        ServiceError: They are not of this form.
    """
    auth = os.environ.get(AUTH_VARIABLE)
    if not auth:
        return None
    user, colon, password = auth.partition(":")
    if not (user and colon and password):
        raise ServiceError(f"{AUTH_VARIABLE}: must be USER:PASSWORD. Set both, or unset it.")
    return auth


def server_environment(prefect_url: str, mlflow_url: str) -> dict[str, str]:
    """Return what a process that speaks to both servers, or leads people to them, needs in its environment.

    Args:
        prefect_url: Where Prefect is.
        mlflow_url: Where MLflow is.
    """
    found = {"PREFECT_API_URL": f"{prefect_url}/api", "PREFECT_UI_URL": prefect_url, "ASSAY_MLFLOW_URL": mlflow_url}
    auth = credentials()
    if auth is None:
        return found
    header = f"Basic {base64.b64encode(auth.encode()).decode()}"
    # Prefect sends the first with requests and some of its WebSockets, the second with all of them.
    return found | {
        "PREFECT_API_AUTH_STRING": auth,
        "PREFECT_CLIENT_CUSTOM_HEADERS": json.dumps({"Authorization": header}),
    }
