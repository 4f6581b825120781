"""`assay ui`: the dashboard on loopback, for its own host name only, gone after Ctrl+C."""

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

from tests.ports import free_port

OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def status_of(port: int, host: str) -> int | None:
    """The status of the health page when asked for by that host name; None while nobody listens."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/get?experiment_id=0")
    request.add_header("Host", host)
    try:
        with OPENER.open(request, timeout=30) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return None


@pytest.mark.slow
@pytest.mark.usefixtures("sigint_not_ignored")
def test_it_serves_its_own_host_name_until_it_is_interrupted(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").touch()
    port = free_port()
    command = [sys.executable, "-m", "assay.cli.main", "ui", "--port", str(port)]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert f"http://127.0.0.1:{port}/" in process.stderr.readline()
            while process.poll() is None and status_of(port, f"127.0.0.1:{port}") is None:
                time.sleep(0.1)
            assert status_of(port, f"127.0.0.1:{port}") == 200
            assert status_of(port, "evil.example") == 403
            children = psutil.Process(process.pid).children(recursive=True)
        finally:
            process.send_signal(signal.SIGINT)
            process.stderr.read()
    assert process.returncode == 0
    _, left = psutil.wait_procs(children, timeout=30)
    assert left == []


def test_a_taken_port_is_said(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").touch()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "assay.cli.main", "ui", "--port", str(port)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"assay: port {port}: Address already in use.")


def test_a_server_that_is_named_has_a_dashboard_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").touch()
    environment = os.environ | {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    command = [sys.executable, "-m", "assay.cli.main", "ui"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "has a dashboard of its own" in done.stderr
