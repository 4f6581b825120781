"""A Prefect API for the length of one run, so that `assay run` needs no server started first.

Prefect's own ephemeral server starts when the flow does and everything waits for it (FastAPI builds some
hundred routes). This one is started as soon as a run is known to be needed and comes up while the caller imports
torch. It listens on loopback, behind a password that only this run knows, and its history stays in ``.assay/prefect``.
"""

import os
import secrets
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from assay.errors import ServiceError

_LAST_WORDS_SECONDS = 5.0
_NAMED_SERVER_TIMEOUT_SECONDS = 8.0
_START_TIMEOUT_SECONDS = 120.0
_WITHOUT_BLOCKS = {
    "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",
    "PREFECT_SERVER_MEMOIZE_BLOCK_AUTO_REGISTRATION": "false",
}
"""Importing every installed collection for the block types in it is a third of the start; a block that somebody saves
brings its own type, and the server of `assay up` registers them all."""


def quiet_settings(home: Path) -> dict[str, str]:
    """Return Prefect's settings for a run in this process: no telemetry, no pickles, no chatter.

    Args:
        home: Folder for Prefect's database and profiles.
    """
    return {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_LOGGING_LEVEL": "CRITICAL",
        "PREFECT_LOGGING_TO_API_ENABLED": "false",
        "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
        "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
    }


class LocalPrefect:
    """Prefect for one run: the server that ``PREFECT_API_URL`` names, the one of `assay up`, or a private one.

    Use it as a context manager around `ready` and the flow. It sets environment variables, so it must be
    entered before prefect is imported.

    Args:
        home: Folder for Prefect's state, created with mode 0700.
        of_up: Environment that leads to the servers of `assay up`, where they were started; used if they answer.
    """

    def __init__(self, home: Path, of_up: Mapping[str, str] | None = None) -> None:
        self._home = home
        self._of_up = dict(of_up or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._url = ""
        self._stack = ExitStack()

    @property
    def pid(self) -> int | None:
        """Process id of the private server; None where a named one is used."""
        return self._process.pid if self._process else None

    def __enter__(self) -> Self:
        named = os.environ.get("PREFECT_API_URL")
        if named:
            _check_named_server(named)
            return self
        if self._of_up and _answers(f"{self._of_up['PREFECT_API_URL']}/health", _NAMED_SERVER_TIMEOUT_SECONDS):
            self._stack.enter_context(_environment(quiet_settings(self._home) | self._of_up))
            return self
        self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
        secret = f"assay:{secrets.token_urlsafe(24)}"
        settings = quiet_settings(self._home) | {"PREFECT_API_AUTH_STRING": secret}
        self._start(os.environ | settings | {"PREFECT_SERVER_API_AUTH_STRING": secret})
        self._stack.enter_context(_environment(settings | {"PREFECT_API_URL": f"{self._url}/api"}))
        return self

    def _start(self, environment: dict[str, str]) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(64)
            self._url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            log = (self._home / "server.log").open("wb")
            with log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "assay.services.prefect_api", str(listener.fileno())],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    pass_fds=[listener.fileno()],
                    start_new_session=True,  # Ctrl+C is for the run, which still has its end to tell the server
                    env=environment
                    | {
                        **_WITHOUT_BLOCKS,
                        "PREFECT_UI_ENABLED": "0",
                        "PREFECT__SERVER_EPHEMERAL": "1",
                        "PREFECT__SERVER_FINAL": "1",
                        "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
                    },
                )

    def ready(self) -> None:
        """Wait until the API answers.

        Raises:
            ServiceError: The private server ended or did not answer in time.
        """
        if self._process is None:
            return
        deadline = time.monotonic() + _START_TIMEOUT_SECONDS
        while self._process.poll() is None and time.monotonic() < deadline:
            if _answers(f"{self._url}/api/health", timeout_seconds=5.0):
                self._stack.enter_context(_without_heartbeat())
                return
            time.sleep(0.02)
        log = self._home / "server.log"
        raise ServiceError(
            f"Prefect's API did not start (log: {log}). It said last: {_last_line(log)!r}. Mend that, or "
            "name a running server with PREFECT_API_URL."
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let the private server go: it writes what it still holds and ends by itself, unwaited for."""
        if self._process is not None and kind is not None and "prefect" in sys.modules:
            _tell_the_rest()
        self._stack.close()
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            threading.Thread(target=self._process.wait, daemon=True).start()


def _tell_the_rest() -> None:
    """Send what an interrupted flow has still to tell while there is somebody to tell it to.

    Prefect would do it when the process ends, try again and again where nobody listens, and print every event.
    """
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    for worker in (EventsWorker, APILogWorker):
        worker.drain_all(timeout=_LAST_WORDS_SECONDS)


def _without_heartbeat() -> AbstractContextManager[object]:
    """Nobody watches a private server's heartbeats, and its thread holds up the end of the flow by up to a second."""
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    return temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None})


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _check_named_server(url: str) -> None:
    if not _answers(f"{url.rstrip('/')}/health", timeout_seconds=_NAMED_SERVER_TIMEOUT_SECONDS):
        raise ServiceError(
            f"PREFECT_API_URL={url}: no Prefect server answers there. Start it, correct the address, or unset "
            "PREFECT_API_URL to run without a server."
        )


def _answers(url: str, timeout_seconds: float) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=timeout_seconds) as response:
            return bool(response.status == 200)
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)  # it is there and wants the password that prefect will send
    except (OSError, ValueError):
        return False


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1] if lines else ""
