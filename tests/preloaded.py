"""Commands of ours as forks of a process that has imported the packages they take.

Importing torch, its exporter, MLflow and scikit-learn is most of what a short command takes, and the tests run about a
hundred. A fork of a process that has them begins where ``python -m assay.cli.main`` would have finished importing
them; what is ours, the project's flows and Prefect, which reads its settings when it is imported, each fork imports by
itself. Commands that are to be killed, and those whose interpreter is told something else, are started as people
start them.

    python -m tests.preloaded SOCKET PID_OF_THE_TESTS
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from assay.garbage import collect_rarely
from assay.services.child import end_at_once_after, end_with_parent

_PACKAGES = (
    *("torch", "torch.export._trace", "torch._dynamo", "safetensors.torch", "PIL.Image", "psutil", "httpx", "grimp"),
    *(
        "mlflow.pyfunc",
        "mlflow.store.tracking.sqlalchemy_workspace_store",
        "mlflow.system_metrics.system_metrics_monitor",
    ),
    *("mlflow.store.model_registry.sqlalchemy_workspace_store", "sklearn.linear_model", "sklearn.metrics"),
    *("sklearn.feature_extraction.text", "scipy.stats", "matplotlib.figure", "matplotlib.backends.backend_agg"),
    *("pandas", "pyarrow.parquet", "pydantic_settings", "rich.live", "tokenizers", "jinja2", "fsspec", "websockets"),
)
_OF_THE_INTERPRETER = ("PYTHON", "LC_", "LANG", "OMP_", "MKL_", "GOMP_", "LD_", "TZ")
_REPOSITORY = Path(__file__).resolve().parents[1]
_LENGTH = struct.Struct("!I")
_END = struct.Struct("!i")


def run(arguments: Sequence[str], folder: Path, environment: Mapping[str, str]) -> "subprocess.CompletedProcess[str]":
    """Run ``assay ARGUMENTS`` and wait for its end.

    Args:
        arguments: What follows the program's name.
        folder: Where it works.
        environment: All of its variables.

    Returns:
        What `subprocess.run` would return, with both outputs as text.
    """
    command = [sys.executable, "-m", "assay.cli.main", *arguments]
    if _of_the_interpreter(environment) != _of_the_interpreter(_own_environment()):
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    request = {"arguments": arguments, "folder": str(folder), "environment": dict(environment)}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, socket.socket(socket.AF_UNIX) as connection:
        connection.connect(_server())
        text = json.dumps(request).encode()
        socket.send_fds(connection, [_LENGTH.pack(len(text))], [out.fileno(), err.fileno()])
        connection.sendall(text)
        [code] = _END.unpack(_receive(connection, _END.size))
        outputs = []
        for file in (out, err):
            file.seek(0)
            outputs.append(file.read().decode())
    return subprocess.CompletedProcess(command, code, *outputs)


def _own_environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def _of_the_interpreter(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(_OF_THE_INTERPRETER)}


@cache
def _server() -> str:
    """Start the process that imports and forks; return where it listens. It ends with this one."""
    address = str(Path(tempfile.mkdtemp(prefix="assay-tests-")) / "preloaded")
    environment = {k: v for k, v in _own_environment().items() if not k.startswith(("PREFECT_", "MLFLOW_", "ASSAY_"))}
    environment |= {"DO_NOT_TRACK": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}  # as the command line does, in time
    command = [sys.executable, "-m", "tests.preloaded", address, str(os.getpid())]
    server = subprocess.Popen(
        command, cwd=_REPOSITORY, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert server.stdin is not None and server.stdout is not None
    assert server.stdout.readline() == "listening\n"

    def end() -> None:
        server.terminate()
        server.communicate()
        Path(address).unlink()
        Path(address).parent.rmdir()

    atexit.register(end)
    return address


def _receive(connection: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        more = connection.recv(size - len(found))
        assert more, "the process that forks commands ended"
        found += more
    return found


def _serve(address: str) -> list[str]:
    """Take requests for ever; return in each fork, with the arguments of its command."""
    for name in _PACKAGES:
        importlib.import_module(name)
    assert "prefect" not in sys.modules, "it would have read its settings"
    gc.freeze()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen()
        sys.stdout.write("listening\n")
        sys.stdout.flush()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # those that have answered are waited for by nobody
        while True:
            connection, _ = listening.accept()
            with connection:
                if os.fork() == 0:
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    listening.close()
                    if (arguments := _fork(connection)) is not None:
                        return arguments
                    os._exit(0)


def _fork(connection: socket.socket) -> list[str] | None:
    """Start the command that is asked for; return its arguments in the command, and nothing once it has ended."""
    length, (out, err), *_ = socket.recv_fds(connection, _LENGTH.size, 2)
    request = json.loads(_receive(connection, *_LENGTH.unpack(length)))
    if pid := os.fork():
        connection.sendall(_END.pack(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])))
        return None
    connection.close()
    for number, descriptor in enumerate((os.open(os.devnull, os.O_RDONLY), out, err)):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.path[0] = request["folder"]
    return list(request["arguments"])


def _main(address: str) -> int:
    """Be the process that forks; in each fork, be the command."""
    collect_rarely()
    sys.argv = ["assay", *_serve(address)]
    runpy.run_module("assay.cli.main", run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    end_with_parent(int(sys.argv[2]))
    end_at_once_after(lambda: _main(sys.argv[1]))
