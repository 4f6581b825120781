"""Which MLflow store a project writes to, and opening it.

Without a server: a SQLite file and an artifact folder in the project's state folder. ``MLFLOW_TRACKING_URI``
names another: an MLflow server, or a SQLite or PostgreSQL database. A store that does not answer is an error
within seconds, before MLflow's own retries (minutes) begin.
"""

import fcntl
import logging
import os
import socket
import struct
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from assay.errors import ServiceError, StorageError
from assay.project import Project

if TYPE_CHECKING:
    from mlflow import MlflowClient

PROBE_TIMEOUT_SECONDS = 5.0
"""How long a named server may take to answer the first question."""

_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # A server that was there and goes away: 3 retries of at most 30 s, where MLflow's own are 7 of 120 s.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}


@dataclass(frozen=True)
class Store:
    """Where runs and models are kept.

    Attributes:
        uri: Tracking and registry URI.
        artifact_root: URI below which runs keep files, or None where the server decides.
        database: The SQLite file, or None.
    """

    uri: str
    artifact_root: str | None
    database: Path | None

    @property
    def is_new(self) -> bool:
        """Whether it is a SQLite file that is not there yet, so that no run can be in it."""
        return self.database is not None and not self.database.exists()

    @property
    def is_server(self) -> bool:
        """Whether it is an MLflow server, which has a dashboard of its own."""
        return urllib.parse.urlsplit(self.uri).scheme in ("http", "https")

    @property
    def shown_uri(self) -> str:
        """The URI without its password."""
        return _masked(self.uri)


def find_store(project: Project) -> Store:
    """Decide on the store; touches neither disk nor network.

    Raises:
        ServiceError: ``MLFLOW_TRACKING_URI`` names a kind of store that cannot be used.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip().rstrip("/")
    local_artifacts = (project.home / "artifacts").absolute().as_uri()
    if not uri:
        database = (project.home / "mlflow.db").absolute()
        return Store(f"sqlite:///{database}", local_artifacts, database)
    scheme, _, rest = uri.partition("://")
    if scheme in ("http", "https") and urllib.parse.urlsplit(uri).hostname:
        return Store(uri, None, None)
    if scheme == "sqlite" and len(rest) > 1:
        return Store(uri, local_artifacts, Path(rest[1:]).absolute())
    if scheme.partition("+")[0] == "postgresql" and urllib.parse.urlsplit(uri).hostname:
        return Store(uri, local_artifacts, None)
    raise ServiceError(
        f"MLFLOW_TRACKING_URI={_masked(uri)}: not a store that runs can be kept in. Give http://HOST:PORT, "
        "sqlite:///FILE or postgresql://USER@HOST/DATABASE, or unset it to use the project's own SQLite file."
    )


def open_client(project: Project, store: Store) -> "MlflowClient":
    """Open the store, which is created when it is a SQLite file that is not there yet.

    Raises:
        ServiceError: The store cannot be opened.
        StorageError: The SQLite file cannot be created.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    if store.artifact_root is not None:
        project.make_home()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if store.database is not None:
        _create_database(store)
    try:
        client = MlflowClient(tracking_uri=store.uri, registry_uri=store.uri)
        client.get_experiment("0")
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise _cannot_open(store, error) from error
    except SQLAlchemyError as error:
        raise _cannot_open(store, error) from error
    return client


def _cannot_open(store: Store, error: Exception) -> ServiceError:
    return ServiceError(
        f"{store.shown_uri}: the MLflow store cannot be opened ({str(error).splitlines()[0]}). "
        "Move it away to start with an empty one, or name another by MLFLOW_TRACKING_URI."
    )


def probe(store: Store) -> None:
    """Ask a named server whether it is there.

    Raises:
        ServiceError: It is not, within `PROBE_TIMEOUT_SECONDS`.
    """
    parts = urllib.parse.urlsplit(store.uri)
    try:
        if store.is_server:
            address = parts._replace(netloc=parts.netloc.rpartition("@")[2])
            _probe_http(f"{address.geturl()}/health")
        elif parts.scheme.startswith("postgresql"):
            _probe_postgresql(parts.hostname or "", parts.port or 5432)
    except (OSError, ValueError) as error:
        raise ServiceError(
            f"MLFLOW_TRACKING_URI={store.shown_uri}: no MLflow store answers there ({_reason(error)}). Start it, "
            "correct the address, or unset MLFLOW_TRACKING_URI to use the project's own SQLite file."
        ) from error


def _masked(uri: str) -> str:
    password = urllib.parse.urlsplit(uri).password
    return uri if password is None else uri.replace(f":{password}@", ":***@", 1)


def _probe_http(health_page: str) -> None:
    with urllib.request.urlopen(health_page, timeout=PROBE_TIMEOUT_SECONDS) as reply:
        if reply.read(64).strip() != b"OK":
            raise ValueError("something else than MLflow")


def _probe_postgresql(host: str, port: int) -> None:
    """Send PostgreSQL's SSLRequest; every server answers it with one letter, before any password."""
    with socket.create_connection((host, port), timeout=PROBE_TIMEOUT_SECONDS) as connection:
        connection.sendall(struct.pack("!II", 8, 80877103))
        if connection.recv(1) not in (b"S", b"N"):
            raise ValueError("something else than PostgreSQL")


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} instead of MLflow's health page"
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        return f"no answer in {PROBE_TIMEOUT_SECONDS:g} s"
    return str(getattr(cause, "strerror", None) or cause)


def _create_database(store: Store) -> None:
    """Make the SQLite file under another name and move it into place, so that no half-made one is ever seen."""
    assert store.database is not None and store.artifact_root is not None
    if store.database.exists():
        return
    try:
        store.database.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(store.database.with_name(f"{store.database.name}.lock")):
            if not store.database.exists():
                _migrate_into_place(store.database, store.artifact_root)
    except OSError as error:
        raise StorageError(
            f"{store.database}: the MLflow database cannot be created ({error.strerror or error}). Make its folder "
            "writable, or set ASSAY_HOME to one that is."
        ) from error


def _migrate_into_place(database: Path, artifact_root: str) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    new = database.with_name(f"{database.name}.new")
    new.unlink(missing_ok=True)
    new.touch(mode=0o600)
    store = SqlAlchemyStore(f"sqlite:///{new}", artifact_root)  # type: ignore[no-untyped-call]
    store.engine.dispose()
    new.rename(database)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a kernel lock on a file; it dies with its process."""
    with path.open("a") as file:
        os.chmod(path, 0o600)
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
