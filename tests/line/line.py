"""A project whose services are up, for tests that use them, break them and kill them."""

import json
import os
import signal
import sqlite3
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, time
from hashlib import sha256
from pathlib import Path
from time import sleep
from typing import Any, TypeVar

import psutil

from assay.services.api import PrefectApi
from tests.copies import Copy
from tests.ports import free_port

SMALL = (
    "train.augmentation.kind=none",
    "train.optimizer.kind=sgd",
    "train.optimizer.learning_rate=0.01",
    "model.channels=[8]",
    "model.hidden_units=16",
    "evaluation.num_bootstrap=100",
    "gate.in_run=false",
)
_LOOK_SECONDS = 0.25
_LOOK_FOR_END_SECONDS = 1.0
"""Each look is several requests, which take time from what is looked at."""
_ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
_Found = TypeVar("_Found")


def wait_for(look: Callable[[], _Found], every_seconds: float = _LOOK_SECONDS) -> _Found:
    """Look until there is something; the test's own timeout bounds it."""
    while not (found := look()):
        sleep(every_seconds)
    return found


@dataclass
class Line:
    """A project's training line.

    Attributes:
        copy: The project.
        overrides: What `assay up` is told each time.
        night: The hour, UTC, of the nightly run: half a day away, so that none starts amid a test.
    """

    copy: Copy
    overrides: tuple[str, ...]
    prefect_port: int = field(default_factory=free_port)
    mlflow_port: int = field(default_factory=free_port)
    night: time = field(default_factory=lambda: time((datetime.now(UTC).hour + 12) % 24))

    @property
    def home(self) -> Path:
        """The project's state folder."""
        return self.copy.home

    @property
    def url(self) -> str:
        """Where Prefect is."""
        return f"http://127.0.0.1:{self.prefect_port}"

    @property
    def mlflow_url(self) -> str:
        """Where MLflow is."""
        return f"http://127.0.0.1:{self.mlflow_port}"

    def up(self, *overrides: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """``assay up``; it has to work."""
        ports = (f"services.prefect_port={self.prefect_port}", f"services.mlflow_port={self.mlflow_port}")
        night = f"schedule.cron=0 {self.night.hour} * * *"
        done = self.copy.assay("up", *ports, night, *self.overrides, *overrides, **variables)
        assert done.returncode == 0, done.stderr
        return done

    def down(self) -> None:
        """``assay down``; it has to work."""
        done = self.copy.assay("down")
        assert done.returncode == 0, done.stderr

    def status(self) -> dict[str, Any]:
        """``assay status --json``."""
        done = self.copy.assay("status", "--json")
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    @contextmanager
    def api(self) -> Iterator[PrefectApi]:
        """Questions to Prefect."""
        with PrefectApi(self.url, self.copy.environment.get("ASSAY_AUTH"), timeout_seconds=60) as api:
            yield api

    def submit(self, *overrides: str, pool: str = "cpu") -> str:
        """Send a run to a pool; return its id."""
        done = self.copy.assay("run", "--pool", pool, "--detach", "--json", *SMALL, *overrides)
        assert done.returncode == 0, done.stderr
        return str(json.loads(done.stdout)["flow_run_id"])

    def run(self, flow_run_id: str) -> dict[str, Any]:
        """What Prefect knows of a run; asks again while the server is away."""
        while True:
            try:
                with self.api() as api:
                    found: dict[str, Any] = api.get(f"/flow_runs/{flow_run_id}")
                    return found
            except OSError:
                sleep(0.2)
            except Exception as error:
                if type(error).__module__.partition(".")[0] not in ("httpx", "httpcore"):
                    raise
                sleep(0.2)

    def states(self, flow_run_id: str) -> list[dict[str, Any]]:
        """Every state that a run had, first to last."""
        with self.api() as api:
            found: list[dict[str, Any]] = api.get(f"/flow_run_states/?flow_run_id={flow_run_id}")
        return sorted(found, key=lambda state: str(state["timestamp"]))

    def names(self, flow_run_id: str) -> list[str]:
        """The names of these states."""
        return [state["name"] for state in self.states(flow_run_id)]

    def wait_for_state(self, flow_run_id: str, *names: str) -> dict[str, Any]:
        """Wait until a run is in one of these states."""
        return wait_for(lambda: next((run for run in [self.run(flow_run_id)] if run["state"]["name"] in names), None))

    def wait_for_end(self, flow_run_id: str) -> str:
        """Wait until a run has ended for good; return the name of its state."""
        end = wait_for(
            lambda: next((r for r in [self.run(flow_run_id)] if r["state"]["type"] in _ENDED), None),
            _LOOK_FOR_END_SECONDS,
        )
        if end["state"]["type"] == "CRASHED":  # the keeper decides about it
            wait_for(lambda: self.run(flow_run_id)["state"]["name"] != "Crashed" or self._is_given_up(flow_run_id))
            if not self._is_given_up(flow_run_id):
                return self.wait_for_end(flow_run_id)
        return str(self.run(flow_run_id)["state"]["name"])

    def _is_given_up(self, flow_run_id: str) -> bool:
        log = self.home / "services" / "logs" / "keeper.log"
        name = self.run(flow_run_id)["name"]
        return f"flow run {name} crashed" in log.read_text()

    def wait_for_training(self, flow_run_id: str) -> None:
        """Wait until a run has trained at least one epoch since it was last started."""
        starts = self.run(flow_run_id)["run_count"]

        def is_training() -> bool:
            run = self.run(flow_run_id)
            since = max((s["timestamp"] for s in self.states(flow_run_id) if s["type"] == "RUNNING"), default="")
            return run["run_count"] >= max(starts, 1) and any(
                log["timestamp"] > since and log["message"].startswith("train: epoch") for log in self.logs(flow_run_id)
            )

        wait_for(is_training)

    def logs(self, flow_run_id: str) -> list[dict[str, Any]]:
        """The lines on a run's page."""
        with self.api() as api:
            body = {"logs": {"flow_run_id": {"any_": [flow_run_id]}}, "sort": "TIMESTAMP_ASC"}
            found: list[dict[str, Any]] = api.filter("/logs/filter", body)
        return found

    def pid_of(self, program: str) -> int:
        """Process id of a service; waits until it has one."""

        def find() -> int | None:
            pid: int | None = self.status()["services"].get(program, {}).get("pid")
            return pid

        return wait_for(find)

    def run_pid(self, flow_run_id: str) -> int | None:
        """Process id of a run, by the lock that it holds."""
        from assay.services.locks import holder

        about = holder(self.home / "services" / "runs" / f"{flow_run_id}.lock")
        return int(about["pid"]) if about and "pid" in about else None  # nobody, or not written down yet

    def worker_pid(self, flow_run_id: str) -> int:
        """Process id of the worker that a run under way belongs to."""
        from assay.services.locks import holder

        about = holder(self.home / "services" / "runs" / f"{flow_run_id}.lock")
        assert about is not None
        return self.pid_of(about["slot"])

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        """Send a signal to one of this line's processes."""
        assert self._is_ours(pid)
        os.kill(pid, number)

    def _is_ours(self, pid: int) -> bool:
        return pid in {process.pid for process in self.processes()}

    def processes(self) -> list[psutil.Process]:
        """Every process that works in this project's folder."""
        found = []
        for process in psutil.process_iter():
            try:
                if Path(process.cwd()) == self.copy.root and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found

    def rows(self, database: str, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Ask one of the project's databases."""
        with sqlite3.connect(self.home / database, timeout=60) as connection:
            return connection.execute(query, values).fetchall()

    def mlflow_runs(self, flow_run_id: str) -> list[tuple[str, str]]:
        """The MLflow runs that link back to a flow run: id and status."""
        query = (
            "select distinct runs.run_uuid, runs.status from runs join tags on runs.run_uuid = tags.run_uuid "
            "where tags.value like ? and tags.key != 'mlflow.note.content'"
        )
        return [(str(run), str(status)) for run, status in self.rows("mlflow.db", query, f"%{flow_run_id}%")]

    def weights(self, flow_run_id: str) -> str:
        """SHA-256 of the registered weights of a run that registered exactly one version."""
        [(run_id, _)] = self.mlflow_runs(flow_run_id)
        return self.weights_of(run_id)

    def weights_of(self, run_id: str) -> str:
        """The same of an MLflow run."""
        [(version,)] = self.rows("mlflow.db", "select version from model_versions where run_id = ?", run_id)
        assert version >= 1
        file = self.home / "artifacts" / "assay" / run_id / "artifacts" / "model" / "weights.safetensors"
        return sha256(file.read_bytes()).hexdigest()

    def epochs_logged(self, flow_run_id: str) -> list[int]:
        """The steps at which val loss is in MLflow, in the order they were written."""
        [(run_id, _)] = self.mlflow_runs(flow_run_id)
        query = "select step from metrics where run_uuid = ? and key = 'val_loss' order by step"
        return [int(step) for (step,) in self.rows("mlflow.db", query, run_id)]


def text_of(values: Mapping[str, Any]) -> str:
    """A record as one text."""
    return json.dumps(values)
