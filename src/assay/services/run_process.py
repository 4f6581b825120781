"""The process of one flow run in a pool: owns its device while it lives, and ends with its worker.

    python -m assay.services.run_process SLOT WORKER_PID FLOW_RUN_ID

It holds two kernel locks. The run's lock says that the run lives, so that nothing else starts it again; the
device's lock says that the device is in use, so that nothing else computes on it. Both go when the process goes,
whichever way that is. Then it does what ``python -m prefect.engine`` does.

Where `assay.services.run_starter` is there, such a process is a fork of it instead.
"""

import os
import runpy
import signal
import sys
from pathlib import Path
from typing import NamedTuple

from assay.garbage import collect_rarely
from assay.project import find_project
from assay.services.child import end_with_parent
from assay.services.locks import hold
from assay.services.paths import ServicePaths

ALREADY_RUNNING = 75  # sysexits.h, EX_TEMPFAIL
"""Exit code of a process that finds its flow run executed by another one."""


class RunRequest(NamedTuple):
    """A run that is to have a process.

    Attributes:
        slot: Name of the device's slot, e.g. ``gpu-0``.
        flow_run_id: Prefect's id of the run.
        environment: All variables of its process.
        log_file: Where it writes what is on no page.
    """

    slot: str
    flow_run_id: str
    environment: dict[str, str]
    log_file: str


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


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.umask(0o077)
    end_with_parent(int(sys.argv[2]))
    collect_rarely()
    sys.exit(execute(sys.argv[3], sys.argv[1]))
