"""Where the services of a project keep their files."""

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from assay.project import Project

_LONGEST_SOCKET_PATH = 100  # the kernel takes 107 bytes


@dataclass(frozen=True)
class ServicePaths:
    """Files below ``.assay/services``.

    Attributes:
        project: The project.
    """

    project: Project

    @property
    def folder(self) -> Path:
        """Folder of all of them."""
        return self.project.home / "services"

    @property
    def settings_file(self) -> Path:
        """What the services were last started with, as JSON."""
        return self.folder / "settings.json"

    @property
    def supervisor_file(self) -> Path:
        """Configuration of the supervisor; the secrets of its programs are elsewhere."""
        return self.folder / "supervisord.conf"

    @property
    def socket(self) -> Path:
        """Unix socket of the supervisor; in the temporary folder where the project's path is too long for one."""
        return self._socket("supervisor.sock")

    def starter_socket(self, pool: str) -> Path:
        """Unix socket of the process that forks a pool's runs; beside the supervisor's."""
        return self._socket(f"run-{pool}.sock")

    def _socket(self, name: str) -> Path:
        file = self.folder / "supervisor.sock"
        if len(os.fsencode(file)) <= _LONGEST_SOCKET_PATH:
            return file.with_name(name)
        digest = hashlib.sha256(os.fsencode(file)).hexdigest()[:16]
        return Path(tempfile.gettempdir(), f"assay-{os.getuid()}-{digest}", name)

    @property
    def logs(self) -> Path:
        """Folder of the services' logs."""
        return self.folder / "logs"

    @property
    def up_lock(self) -> Path:
        """Held by the `assay up` or `assay down` that is at work."""
        return self.folder / "up.lock"

    def slot_lock(self, slot: str) -> Path:
        """Held by the run process that uses a device."""
        return self.folder / "devices" / f"{slot}.lock"

    @property
    def run_locks(self) -> Path:
        """Folder of the run locks."""
        return self.folder / "runs"

    def run_lock(self, flow_run_id: str) -> Path:
        """Held by the process that executes a flow run: who looks here knows whether a run lives."""
        return self.run_locks / f"{flow_run_id}.lock"
