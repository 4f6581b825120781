import os
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from assay.errors import AssayError, ServiceError, StorageError
from assay.project import Project
from assay.tracking import store as store_module
from assay.tracking.runs import Tracker
from assay.tracking.store import find_store, probe
from tests.ports import free_port
from tests.tracking.parts import make_project

OPEN = """
import sys
from pathlib import Path
from assay.project import Project
from assay.tracking.runs import Tracker
root = Path(sys.argv[1])
tracker = Tracker.open(Project(root, root / ".assay"), "unit")
print(tracker.experiment_id())
"""


@pytest.fixture
def empty_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return make_project(tmp_path / "fresh")


@contextmanager
def black_hole() -> Iterator[int]:
    """A port that accepts connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@contextmanager
def other_server() -> Iterator[int]:
    """An HTTP server that is no MLflow."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>hello</html>")

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def test_without_a_uri_the_store_is_in_the_state_folder(empty_project: Project) -> None:
    store = find_store(empty_project)
    assert store.uri == f"sqlite:///{empty_project.home}/mlflow.db"
    assert store.artifact_root == f"file://{empty_project.home}/artifacts"
    assert not empty_project.home.exists()


@pytest.mark.parametrize(
    "uri",
    ["file:///tmp/mlruns", "/tmp/mlruns", "mlruns", "databricks", "http://", "ftp://host/", "sqlite://", "mysql://h/d"],
)
def test_other_kinds_of_store_are_refused(empty_project: Project, monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ServiceError, match="not a store that runs can be kept in") as raised:
        Tracker.open(empty_project, "unit")
    assert uri.rstrip("/") in str(raised.value)
    assert not empty_project.home.exists()


@pytest.mark.parametrize("scheme", ["http", "postgresql"])
def test_a_closed_port_is_an_error(empty_project: Project, monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{scheme}://me:secret@127.0.0.1:{free_port()}")
    with pytest.raises(ServiceError, match="Connection refused") as raised:
        Tracker.open(empty_project, "unit")
    assert "secret" not in str(raised.value)
    assert not empty_project.home.exists(), "a bad request changes nothing"


@pytest.mark.parametrize("scheme", ["http", "postgresql"])
def test_a_server_that_never_answers_is_an_error(
    empty_project: Project, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.setattr(store_module, "PROBE_TIMEOUT_SECONDS", 0.3)
    with black_hole() as port:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{scheme}://127.0.0.1:{port}")
        with pytest.raises(ServiceError, match=r"no answer in 0\.3 s"):
            Tracker.open(empty_project, "unit")


def test_the_probe_gives_up_well_before_ten_seconds() -> None:
    assert store_module.PROBE_TIMEOUT_SECONDS <= 5


def test_another_server_is_not_taken_for_mlflow(empty_project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    with other_server() as port:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        with pytest.raises(ServiceError, match="something else than MLflow"):
            Tracker.open(empty_project, "unit")


def test_a_real_server_answers_the_probe(
    server_uri: str, empty_project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{server_uri}/")
    store = find_store(empty_project)
    assert (store.uri, store.artifact_root) == (server_uri, None)
    probe(store)


def test_passwords_are_not_shown() -> None:
    store = store_module.Store("postgresql://me:s3cret@db:5432/runs", None, None)
    assert store.shown_uri == "postgresql://me:***@db:5432/runs"


def test_the_database_is_private(sqlite_tracker: Tracker) -> None:
    home = sqlite_tracker.project.home
    assert stat.S_IMODE(home.stat().st_mode) == 0o700


def test_a_read_only_state_folder_is_an_error(empty_project: Project) -> None:
    if os.geteuid() == 0:
        pytest.skip("root writes everywhere")
    empty_project.root.chmod(0o500)
    with pytest.raises(StorageError):
        _ = Tracker.open(empty_project, "unit").client


def test_a_file_that_is_no_database_is_an_error(empty_project: Project) -> None:
    empty_project.make_home()
    (empty_project.home / "mlflow.db").write_bytes(b"not a database" * 100)
    with pytest.raises(AssayError, match=r"mlflow\.db"):
        _ = Tracker.open(empty_project, "unit").client


def test_two_processes_may_start_at_once(empty_project: Project) -> None:
    command = [sys.executable, "-W", "error", "-c", OPEN, str(empty_project.root)]
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    replies = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], replies
    assert replies[0] == replies[1], "the same experiment, and no noise"
    assert replies[0][1] == ""
    database = empty_project.home / "mlflow.db"
    assert stat.S_IMODE(database.stat().st_mode) == 0o600
    with sqlite3.connect(database) as connection:
        assert connection.execute("select count(*) from experiments where name = 'unit'").fetchone() == (1,)
    assert not database.with_name("mlflow.db.new").exists()


def test_a_half_made_database_is_made_again(empty_project: Project) -> None:
    empty_project.make_home()
    (empty_project.home / "mlflow.db.new").write_bytes(b"half of a")
    tracker = Tracker.open(empty_project, "unit")
    assert tracker.find_version("0" * 32) is None
