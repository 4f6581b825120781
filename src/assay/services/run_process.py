"""The process of one flow run in a pool: owns its device while it lives, and ends with its worker.

    python -m assay.services.run_process SLOT WORKER_PID [FLOW_RUN_ID]

Importing torch, scikit-learn and matplotlib is much of the time between a submitted form and the first step, so
a worker keeps one such process waiting with them imported; it reads its run from standard input, as JSON. What
somebody may have changed since is not imported ahead: neither assay nor the flows nor prefect, which reads its
settings then. Where a package or a variable did change, the process starts over.

It holds two kernel locks. The run's lock says that the run lives, so that nothing else starts it again; the
device's lock says that the device is in use, so that nothing else computes on it. Both go when the process goes,
whichever way that is. Then it does what ``python -m prefect.engine`` does.
"""

import gc
import importlib
import json
import os
import runpy
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from assay.garbage import collect_rarely
from assay.project import find_project
from assay.services.child import end_with_parent
from assay.services.locks import hold
from assay.services.paths import ServicePaths

ALREADY_RUNNING = 75  # sysexits.h, EX_TEMPFAIL
"""Exit code of a process that finds its flow run executed by another one."""

_SLOW_IMPORTS = (
    *("torch", "sklearn.metrics", "scipy.stats", "safetensors.torch"),
    *("matplotlib.figure", "matplotlib.backends.backend_agg", "PIL.Image"),
)
PRELOAD_VARIABLE = "ASSAY_PRELOAD"
"""``0`` has no process import anything before it knows its run."""
_PACKAGE_FOLDERS = ("site-packages", "dist-packages")
_RUN_VARIABLES = "PREFECT"  # they are another run's each time, and nothing that is imported ahead reads them


def wait_for_run(slot: str) -> tuple[str, dict[str, str]] | None:
    """Import what is slow, then wait for a run.

    Args:
        slot: Name of the device's slot.

    Returns:
        Prefect's id of the run and the environment it is to have; None when the worker wants no run any more.
    """
    before, own = _packages_as_they_are(), _other_variables(os.environ)  # some packages set variables
    if os.environ.get(PRELOAD_VARIABLE) != "0" and not slot.startswith("tpu"):  # importing torch may take a chip
        for name in _SLOW_IMPORTS:
            importlib.import_module(name)
    gc.freeze()
    line = sys.stdin.readline()
    if not line:
        return None
    told = json.loads(line)
    environment: dict[str, str] = told["environment"]
    if _packages_as_they_are() != before or _other_variables(environment) != own:
        arguments = [sys.executable, "-m", "assay.services.run_process", *sys.argv[1:], told["flow_run_id"]]
        os.execve(sys.executable, arguments, environment)
    return told["flow_run_id"], environment


def _other_variables(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith(_RUN_VARIABLES)}


def _packages_as_they_are() -> dict[str, int]:
    """When each folder of packages, and each file of this package that is imported, was changed (Unix time, ns)."""
    folders = [entry for entry in sys.path if Path(entry).name in _PACKAGE_FOLDERS]
    own = [module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "assay"]
    files = [Path(entry) for entry in (*folders, *own) if entry]
    return {str(file): file.stat().st_mtime_ns for file in files if file.exists()}


def execute(flow_run_id: str, slot: str) -> int:
    """Execute a flow run on a device.

    Args:
        flow_run_id: Prefect's id of the run.
        slot: Name of the device's slot, e.g. ``gpu-0``.

    Returns:
        Exit code: 0 when the run's end was reported to Prefect, whatever it was.
    """
    paths = ServicePaths(find_project(Path.cwd()))
    about = {"flow_run_id": flow_run_id, "slot": slot}
    with hold(paths.run_lock(flow_run_id), about, wait=False) as is_ours:
        if not is_ours:
            sys.stderr.write(f"Flow run {flow_run_id} is being executed by another process.\n")
            return ALREADY_RUNNING
        try:
            with hold(paths.slot_lock(slot), about, wait=True):
                sys.argv = ["prefect.engine", flow_run_id]
                sys.path.insert(0, str(Path.cwd()))
                runpy.run_module("prefect.engine", run_name="__main__", alter_sys=True)
        finally:
            paths.run_lock(flow_run_id).unlink(missing_ok=True)
    return 0


def main(slot: str, worker: int, flow_run_id: str | None = None) -> int:
    """Wait for a run unless it is known, and execute it.

    Args:
        slot: Name of the device's slot.
        worker: Process id of the worker.
        flow_run_id: Prefect's id of the run.

    Returns:
        Exit code.
    """
    end_with_parent(worker)
    collect_rarely()
    if flow_run_id is None:
        told = wait_for_run(slot)
        if told is None:
            return 0
        flow_run_id, environment = told
        os.environ.update(environment)
    return execute(flow_run_id, slot)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.umask(0o077)
    sys.exit(main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:4]))
