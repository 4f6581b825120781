"""``assay ui``: the MLflow dashboard of a project, on loopback, until Ctrl+C."""

import argparse
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from assay.errors import ServiceError
from assay.project import find_project
from assay.tracking.store import find_store

_GRACE_SECONDS = 10.0
_COMPARE_PAGE = "/#/experiments/{}/runs?workflowType=machine_learning"


def serve(args: argparse.Namespace) -> int:
    """Serve the dashboard until it is interrupted.

    Args:
        args: ``port`` of the command line.

    Returns:
        The server's exit code.

    Raises:
        ServiceError: The port is taken, or the project's runs are on a server that has its own dashboard.
    """
    project = find_project()
    store = find_store(project)
    if store.uri.startswith("http"):
        raise ServiceError(f"MLFLOW_TRACKING_URI={store.shown_uri} has a dashboard of its own: open that address.")
    _check_port(args.port)
    project.make_home()
    host = f"127.0.0.1:{args.port}"
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store.uri),
        *("--host", "127.0.0.1", "--port", str(args.port), "--workers", "1"),
        *("--allowed-hosts", f"{host},localhost:{args.port}", "--cors-allowed-origins", f"http://{host}"),
    ]
    if store.artifact_root:
        command += ["--default-artifact-root", store.artifact_root]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    sys.stderr.write(
        f"MLflow dashboard of {project.root}: http://{host}{_COMPARE_PAGE.format('1')}  (Ctrl+C ends it)\n"
    )
    sys.stderr.flush()
    return _serve_until_interrupted(command, environment, project.home)


def _serve_until_interrupted(command: list[str], environment: dict[str, str], folder: Path) -> int:
    """Run a server that starts processes of its own, and end all of them on Ctrl+C or SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    server = subprocess.Popen(command, env=environment, cwd=folder, start_new_session=True)
    try:
        return server.wait()
    except KeyboardInterrupt:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(timeout=_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
        return 0


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ServiceError(f"port {port}: {error.strerror}. Choose another: assay ui --port {port + 1}") from error
