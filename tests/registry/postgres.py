"""A PostgreSQL server of the tests' own, and the ledger on either database."""

import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import create_engine

from assay.registry.ledger import DATABASE_VARIABLE

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
DRIVERS = [name for name in ("psycopg2", "psycopg") if importlib.util.find_spec(name)]


@pytest.fixture(scope="session")
def postgres_folder() -> Iterator[Path]:
    """The folder in which a running server has its socket."""
    if not BINARIES and shutil.which("initdb") is None:
        pytest.skip("PostgreSQL is not installed: no /usr/lib/postgresql/*/bin")
    if not DRIVERS:
        pytest.skip("no PostgreSQL driver is installed: pip install 'assay[postgres]'")
    with tempfile.TemporaryDirectory(prefix="assay-pg-", dir="/tmp") as name, _postgres(Path(name)) as folder:
        yield folder


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have ledgers lie in a SQLite file of their project, and in a new PostgreSQL database."""
    monkeypatch.delenv(DATABASE_VARIABLE, raising=False)
    if request.param == "postgresql":
        folder = request.getfixturevalue("postgres_folder")
        monkeypatch.setenv(DATABASE_VARIABLE, new_database(folder))
    return str(request.param)


def new_database(folder: Path) -> str:
    """Make a database; returns its address."""
    name = f"ledger_{time.monotonic_ns()}"
    engine = create_engine(_address(folder, "postgres"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    engine.dispose()
    return _address(folder, name)


def _address(folder: Path, name: str) -> str:
    return f"postgresql+{DRIVERS[0]}://postgres@/{name}?host={folder}"


@contextmanager
def _postgres(folder: Path) -> Iterator[Path]:
    binaries = BINARIES[-1] if BINARIES else Path(shutil.which("initdb") or "").parent
    other_user = ["--reuid", "postgres", "--regid", "postgres", "--clear-groups"] if os.getuid() == 0 else []
    run_as = ["setpriv", *other_user, "--pdeathsig", "INT"]
    if other_user:
        shutil.chown(folder, "postgres", "postgres")
    data = folder / "data"
    command = [*run_as, str(binaries / "initdb"), "--no-sync", "-A", "trust", "-U", "postgres", "-D", str(data)]
    subprocess.run(command, check=True, capture_output=True, cwd="/")
    options = {"listen_addresses": "", "unix_socket_directories": str(folder), "fsync": "off"}
    command = [*run_as, str(binaries / "postgres"), "-D", str(data)]
    command += [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
    with tempfile.TemporaryFile() as log, subprocess.Popen(command, stdout=log, stderr=log, cwd="/") as server:
        try:
            while subprocess.run([binaries / "pg_isready", "-q", "-h", folder], check=False).returncode != 0:
                assert server.poll() is None, "PostgreSQL did not start"
                time.sleep(0.05)
            yield folder
        finally:
            server.send_signal(signal.SIGQUIT)
