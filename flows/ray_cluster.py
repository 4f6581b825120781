"""Trials on Ray: a cluster that ``RAY_ADDRESS`` names, or a Ray of this machine's own that stays on loopback."""

import importlib.util
import logging
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assay.errors import ParamsError

if TYPE_CHECKING:
    from prefect_ray.task_runners import RayTaskRunner

ADDRESS_VARIABLE = "RAY_ADDRESS"

_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # leave CUDA_VISIBLE_DEVICES alone where a task asks for no GPU
}
_LOCAL_SETTINGS = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on Linux too: without it 127.0.0.1 becomes the machine's address
    "RAY_worker_register_timeout_seconds": "120",
}
"""Ray reads these when it is imported and when it starts."""

_OBJECT_STORE_BYTES = 128 * 2**20


@contextmanager
def ray_runner(num_workers: int) -> Iterator["RayTaskRunner[Any]"]:
    """Run a flow's tasks on Ray while the block runs.

    Args:
        num_workers: Tasks at a time on a Ray of this machine's own; a cluster knows its own size.

    Yields:
        Prefect's runner, entered.

    Raises:
        ParamsError: Ray is not installed.
    """
    if importlib.util.find_spec("prefect_ray") is None:
        raise ParamsError(
            "ablation.runner=ray: Ray is not installed. Install it with pip install 'assay[ray]', or use "
            "ablation.runner=processes."
        )
    address = os.environ.get(ADDRESS_VARIABLE)
    folder = Path(tempfile.mkdtemp(prefix="assay-ray-"))  # a short path: sockets allow 107 characters
    try:
        with _runner(num_workers, folder, address) as runner:
            yield runner
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _runner(num_workers: int, folder: Path, address: str | None) -> "RayTaskRunner[Any]":
    settings = dict(_SETTINGS if address else _SETTINGS | _LOCAL_SETTINGS)
    if address is None and not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        # For the life of this process: Ray keeps what it read first. In the environment, or Ray writes ~/.ray.
        settings |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    os.environ.update({name: value for name, value in settings.items() if name not in os.environ})
    from prefect_ray.task_runners import RayTaskRunner

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is not None:
        return RayTaskRunner(address=address, init_kwargs=quiet)
    own = {
        "num_cpus": num_workers,
        "include_dashboard": False,
        "object_store_memory": _OBJECT_STORE_BYTES,
        "_node_ip_address": "127.0.0.1",
        "_temp_dir": str(folder),
        # A worker sees the folder of the driver's script, not what was put on its path later, e.g. the project.
        "runtime_env": {"env_vars": {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}},
    }
    return RayTaskRunner(init_kwargs=quiet | own)
