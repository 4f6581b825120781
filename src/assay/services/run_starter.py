"""The process that forks the runs of a pool's workers, so that none of them imports torch for itself.

    python -m assay.services.run_starter POOL

Importing torch, MLflow, scikit-learn and Prefect is much of the time between a submitted form and the first step. This
process has done it, and does nothing else: no step, no product and no device before a fork, so torch has no thread and
no device a state that a fork could lose. A worker asks over a Unix socket, one connection for each run. For it a
guardian is forked, which forks the run, waits for its end, and ends it where the worker goes first.

What somebody may have changed since is not imported ahead: neither assay's training nor the flows. Where a package
changed, this process ends and the supervisor starts another one; where a variable or a setting of Prefect's is another
one, the fork starts over as a process of its own.
"""

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy

from assay.garbage import collect_rarely
from assay.project import find_project
from assay.services.child import end_at_once_after, end_with_parent
from assay.services.paths import ServicePaths
from assay.services.run_process import RunRequest, execute
from assay.services.slots import DEVICE_VARIABLES

_SLOW_IMPORTS = (
    *("torch", "torch.export", "safetensors.torch", "sklearn.linear_model", "sklearn.metrics", "scipy.stats"),
    *("matplotlib.figure", "matplotlib.backends.backend_agg", "PIL.Image", "pyarrow.parquet", "mlflow.pyfunc"),
    *("mlflow.store.tracking.sqlalchemy_workspace_store", "prefect.flow_engine", "prefect.task_engine"),
)
_SLOW_IMPORTS_OF = {"cpu": ("torch._dynamo",)}  # with a GPU it may ask the driver, which no fork could do again
_PACKAGE_FOLDERS = ("site-packages", "dist-packages")
_OWN_OF_EACH = ("PREFECT", "SUPERVISOR_", "ASSAY_PROGRAM", *DEVICE_VARIABLES)
"""Beginnings of variables that differ from run to run and that no import reads, or that are looked at by themselves."""


def serve(address: Path, pool: str) -> RunRequest | None:
    """Import what is slow and fork for each run that is asked for.

    Args:
        address: The Unix socket to listen on.
        pool: Pool of the workers.

    Returns:
        In a fork the run; nothing in this process, once packages have changed.
    """
    packages, variables = _packages_as_they_are(), dict(os.environ)  # before the imports: some set variables
    address.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(address))
        listening.listen()  # who asks now is answered once all is imported
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # should an import count GPUs: without the driver
        for name in (*_SLOW_IMPORTS, *_SLOW_IMPORTS_OF.get(pool, ())):
            importlib.import_module(name)
        gc.freeze()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # guardians are waited for by nobody
        while True:
            connection, _ = listening.accept()
            with connection:
                if _packages_as_they_are() != packages:
                    return None
                if os.fork() == 0:
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    listening.close()
                    request = _guard(connection)
                    _take_over(request, variables)
                    return request


def _guard(connection: socket.socket) -> RunRequest:
    """Fork the run that a worker asks for, tell the worker its process id and its exit code; return in the run only.

    A worker that goes first has its run write a checkpoint and end.
    """
    os.setsid()  # a SIGINT to whoever started this process is not for the runs
    with connection.makefile("rb") as lines:
        line = lines.readline()
    if not line.endswith(b"\n"):  # the worker has gone
        os._exit(0)
    request = RunRequest(**json.loads(line))
    parent = os.getpid()
    if (pid := os.fork()) == 0:
        os.setsid()
        end_with_parent(parent)
        return request
    _tell(connection, pid=pid)
    if _worker_goes_first(pid, connection):
        os.kill(pid, signal.SIGTERM)
    _tell(connection, code=os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    os._exit(0)


def _worker_goes_first(pid: int, connection: socket.socket) -> bool:
    """Wait until a process ends or the connection, on which nothing more is said; say whether it was the latter."""
    process = os.pidfd_open(pid)
    try:
        ended, _, _ = select.select([process, connection.fileno()], [], [])
    finally:
        os.close(process)
    return process not in ended


def _tell(connection: socket.socket, **values: Any) -> None:
    with contextlib.suppress(OSError):  # the worker has gone
        connection.sendall(json.dumps(values).encode() + b"\n")


def _take_over(request: RunRequest, variables: Mapping[str, str]) -> None:
    """Be the run's process; start over where what was imported has read other variables or settings than it has."""
    log = os.open(request.log_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    for number, descriptor in enumerate((os.open(os.devnull, os.O_RDONLY), log, log)):
        os.dup2(descriptor, number)
    os.environ.clear()
    os.environ.update(request.environment)
    numpy.random.seed()  # every fork would go on from the same state
    if _read_by_imports(request.environment) != _read_by_imports(variables) or not _prefect_is_as_set():
        arguments = (request.slot, str(os.getppid()), request.flow_run_id)
        command = (sys.executable, "-m", "assay.services.run_process", *arguments)
        os.execve(sys.executable, command, request.environment)


def _read_by_imports(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith(_OWN_OF_EACH)}


def _prefect_is_as_set() -> bool:
    """Whether Prefect has the settings that the environment and its profile ask for."""
    from prefect.settings import Settings, get_current_settings

    return get_current_settings() == Settings()


def _packages_as_they_are() -> dict[str, int]:
    """When each folder of packages, and each file of this package that is imported, was changed (Unix time, ns)."""
    folders = [entry for entry in sys.path if Path(entry).name in _PACKAGE_FOLDERS]
    own = [module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "assay"]
    files = [Path(entry) for entry in (*folders, *own, __file__) if entry]
    return {str(file): file.stat().st_mtime_ns for file in files if file.exists()}


def main(pool: str) -> int:
    """Serve a pool until packages change.

    Args:
        pool: ``cpu`` or ``gpu``.

    Returns:
        Exit code, of this process or of a run.
    """
    collect_rarely()
    request = serve(ServicePaths(find_project(Path.cwd())).starter_socket(pool), pool)
    return 0 if request is None else execute(request.flow_run_id, request.slot)


if __name__ == "__main__":
    os.umask(0o077)
    end_with_parent(os.getppid())
    end_at_once_after(lambda: main(sys.argv[1]))
