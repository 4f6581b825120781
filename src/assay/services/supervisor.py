"""supervisord keeps the programs alive; this writes its configuration and talks to it over a Unix socket."""

import os
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Iterable
from configparser import RawConfigParser
from io import StringIO
from pathlib import Path
from typing import Any

from assay.errors import ServiceError
from assay.files import replace_file
from assay.services.paths import ServicePaths
from assay.services.programs import Program, write_programs

_START_SECONDS = 20.0
_KEPT_LOG_BYTES = 10 << 20


class Supervisor:
    """The supervisor of one project's services.

    Args:
        paths: Where its files are.
    """

    def __init__(self, paths: ServicePaths) -> None:
        self._paths = paths

    def apply(self, programs: Iterable[Program]) -> None:
        """Start the supervisor if it is not there; start what is new, restart what changed, stop what is gone.

        Args:
            programs: All programs there should be.

        Raises:
            ServiceError: The supervisor does not start.
        """
        programs = tuple(programs)
        for folder in (self._paths.folder, self._paths.logs, self._paths.socket.parent):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._paths.socket.parent.stat().st_uid != os.getuid():
            raise ServiceError(f"{self._paths.socket.parent}: belongs to somebody else. Remove it or set TMPDIR.")
        write_programs(self._paths.folder, programs)
        replace_file(self._paths.supervisor_file, _configuration(self._paths, programs).encode())
        self._paths.supervisor_file.chmod(0o600)
        if not self.is_running():
            self._start()
        else:
            self._update()

    def is_running(self) -> bool:
        """Say whether the supervisor answers."""
        try:
            self._call("getState")
        except (OSError, xmlrpc.client.Error):
            return False
        return True

    def pid(self) -> int | None:
        """Return its process id; None where it is not there."""
        try:
            return int(self._call("getPID"))
        except (OSError, xmlrpc.client.Error):
            return None

    def states(self) -> dict[str, dict[str, Any]]:
        """Return what the supervisor knows of each program: ``state``, ``pid``, ``uptime_seconds``, ``message``."""
        try:
            known = self._call("getAllProcessInfo")
        except (OSError, xmlrpc.client.Error):
            return {}
        return {
            info["name"]: {
                "state": info["statename"].lower(),
                "pid": info["pid"] or None,
                "uptime_seconds": max(0, info["now"] - info["start"]) if info["pid"] else 0,
                "message": info["spawnerr"],
            }
            for info in known
        }

    def start_stopped(self) -> None:
        """Start again whatever is down: stopped by hand, or given up on."""
        for name, info in self.states().items():
            if info["state"] in ("stopped", "exited", "fatal"):
                self._call("startProcess", name, False)

    def restart(self, name: str) -> None:
        """Stop a program and start it again."""
        self._call("stopProcess", name, True)
        self._call("startProcess", name, True)

    def stop(self, names: Iterable[str]) -> None:
        """Ask programs to end, all at once, and wait until they have."""
        names = list(names)
        for name in names:
            self._ignore_missing("stopProcess", name, False)
        for name in names:
            self._ignore_missing("stopProcess", name, True)

    def shut_down(self) -> None:
        """End the supervisor and every program that is left, and wait until it is gone."""
        pid = self.pid()
        if pid is None:
            return
        self._call("shutdown")
        while _exists(pid):
            time.sleep(0.05)

    def _start(self) -> None:
        self._paths.socket.unlink(missing_ok=True)
        command = [sys.executable, "-m", "supervisor.supervisord", "-c", str(self._paths.supervisor_file)]
        done = subprocess.run(command, cwd=self._paths.project.root, capture_output=True, text=True, check=False)
        deadline = time.monotonic() + _START_SECONDS
        while done.returncode == 0 and time.monotonic() < deadline:
            if self.is_running():
                return
            time.sleep(0.05)
        raise ServiceError(
            f"{self._paths.supervisor_file}: the supervisor does not start: {(done.stderr or done.stdout).strip()!r}. "
            f"Its log is {self._paths.logs / 'supervisord.log'}."
        )

    def _update(self) -> None:
        """Do what ``supervisorctl update`` does."""
        [[added, changed, removed]] = self._call("reloadConfig")
        for name in (*changed, *removed):
            self._call("stopProcessGroup", name)
            self._call("removeProcessGroup", name)
        for name in (*added, *changed):
            self._call("addProcessGroup", name)

    def _call(self, method: str, *arguments: Any) -> Any:
        from supervisor.xmlrpc import SupervisorTransport

        transport = SupervisorTransport(serverurl=f"unix://{self._paths.socket}")
        with xmlrpc.client.ServerProxy("http://localhost", transport=transport) as proxy:
            return getattr(proxy.supervisor, method)(*arguments)

    def _ignore_missing(self, method: str, *arguments: Any) -> None:
        """Call; a program that does not run or is not known is fine."""
        try:
            self._call(method, *arguments)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode not in (10, 70):  # BAD_NAME, NOT_RUNNING
                raise


def _configuration(paths: ServicePaths, programs: Iterable[Program]) -> str:
    config = RawConfigParser()
    config["unix_http_server"] = {"file": str(paths.socket), "chmod": "0600"}
    config["supervisord"] = {
        "logfile": str(paths.logs / "supervisord.log"),
        "logfile_maxbytes": str(_KEPT_LOG_BYTES),
        "logfile_backups": "1",
        "pidfile": str(paths.folder / "supervisord.pid"),
        "childlogdir": str(paths.logs),
        "umask": "077",
        "nocleanup": "true",
    }
    config["rpcinterface:supervisor"] = {
        "supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface"
    }
    for program in programs:
        launcher = (sys.executable, "-m", "assay.services.programs", str(paths.folder), program.name)
        config[f"program:{program.name}"] = {
            "command": " ".join(_quoted(word) for word in launcher),
            "directory": str(paths.project.root),
            "environment": f'ASSAY_PROGRAM="{program.digest[:16]}"',  # another digest, another process
            "priority": str(program.priority),
            "autostart": "true",
            "autorestart": "true",
            "startsecs": "2",
            "startretries": "100",
            "stopsignal": "TERM",
            "stopwaitsecs": str(program.stop_seconds),
            "redirect_stderr": "true",
            "stdout_logfile": str(paths.logs / f"{program.name}.log"),
            "stdout_logfile_maxbytes": str(_KEPT_LOG_BYTES),
            "stdout_logfile_backups": "2",
        }
    text = StringIO()
    config.write(text)
    return text.getvalue().replace("%", "%%")


def _quoted(word: str) -> str:
    """A word of a command as supervisor's shell-like reader takes it."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _exists(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    try:
        return "State:\tZ" not in status.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
