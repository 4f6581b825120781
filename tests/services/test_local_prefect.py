"""The private Prefect API: up for one run, password on every route, gone with its parent."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from assay.errors import ServiceError
from assay.services.local_prefect import LocalPrefect

OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@pytest.fixture(autouse=True)
def environment_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        monkeypatch.delenv(name)


def status_of(url: str, **headers: str) -> int:
    try:
        with OPENER.open(urllib.request.Request(url, headers=headers), timeout=30) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def wait_until_gone(pid: int) -> None:
    """Wait for the end of a process that is not ours to reap; the test's own timeout bounds it."""
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.05)


@pytest.mark.slow
def test_it_is_up_for_the_block_and_wants_a_password(tmp_path: Path) -> None:
    with LocalPrefect(tmp_path / "prefect") as prefect:
        prefect.ready()
        url = os.environ["PREFECT_API_URL"]
        assert url.startswith("http://127.0.0.1:")
        assert status_of(f"{url}/health") == 200
        assert status_of(f"{url}/admin/version") == 401
        pid = prefect.pid
        assert pid is not None
    assert "PREFECT_API_URL" not in os.environ
    wait_until_gone(pid)
    assert (tmp_path / "prefect").stat().st_mode & 0o777 == 0o700
    assert not (tmp_path / "prefect" / "memo_store.toml").exists(), "every installed collection was imported"


PARENT = """
import sys, time
from pathlib import Path
from assay.services.local_prefect import LocalPrefect
with LocalPrefect(Path(sys.argv[1])) as prefect:
    print(prefect.pid, flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_a_killed_parent_leaves_no_process_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT, str(tmp_path / "prefect")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert psutil.pid_exists(pid)
        parent.send_signal(signal.SIGKILL)
    wait_until_gone(pid)


def test_a_server_that_is_named_and_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{closed.getsockname()[1]}/api")
        with pytest.raises(ServiceError, match="no Prefect server answers there"), LocalPrefect(tmp_path):
            pass


def test_a_server_that_never_answers_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{silent.getsockname()[1]}/api")
        with pytest.raises(ServiceError, match="no Prefect server answers there"), LocalPrefect(tmp_path):
            pass


def test_a_server_that_cannot_start_is_said_with_its_last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", "nonsense://")
    with LocalPrefect(tmp_path / "prefect") as prefect, pytest.raises(ServiceError, match="did not start"):
        prefect.ready()
