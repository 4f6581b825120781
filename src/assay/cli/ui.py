"""``assay ui``: the MLflow dashboard of a project, on loopback, until Ctrl+C."""

import argparse
import os
import socket
import sys

from assay.errors import ServiceError
from assay.project import find_project
from assay.services.servers import mlflow_server
from assay.tracking.store import find_store, open_client

_COMPARE_PAGE = "/#/experiments/{}/runs?workflowType=machine_learning"


def serve(args: argparse.Namespace) -> int:
    """Become the dashboard's server, until it is interrupted.

    Args:
        args: ``port`` of the command line.

    Raises:
        ServiceError: The port is taken, or the project's runs are on a server that has its own dashboard.
    """
    project = find_project()
    store = find_store(project)
    if store.is_server:
        raise ServiceError(f"MLFLOW_TRACKING_URI={store.shown_uri} has a dashboard of its own: open that address.")
    _check_port(args.port)
    project.make_home()
    if store.is_new:
        open_client(project, store)
    server = mlflow_server(store, args.port)
    sys.stderr.write(f"MLflow dashboard of {project.root}: {server.url}{_COMPARE_PAGE.format('1')}  (Ctrl+C ends it)\n")
    sys.stderr.flush()
    os.chdir(project.home)
    os.execvpe(server.command[0], server.command, os.environ | server.environment)


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ServiceError(
                f"port {port}: {error.strerror}. If that is assay up, its dashboard is there already. "
                f"Or choose another: assay ui --port {port + 1}"
            ) from error
