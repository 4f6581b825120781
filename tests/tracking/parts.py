"""Real parts that the tests of tracking and registry share: a project, its records, an MLflow server."""

import dataclasses
import fcntl
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import numpy as np

from assay.params import Params
from assay.project import Project, only_one
from assay.records import (
    ClassMetrics,
    DataRef,
    EpochRecord,
    Evaluation,
    Interval,
    RunKey,
    RunRecord,
    Splits,
    StepRecords,
)
from tests.ports import free_port

REPOSITORY = Path(__file__).parents[2]
START_MS = 1_760_000_000_000


def make_project(root: Path) -> Project:
    root.mkdir(parents=True, exist_ok=True)
    (root / "params.yaml").write_text("train: {}\n")
    return Project(root=root, home=root / ".assay")


def make_key(digest: str = "a" * 64, **params: str) -> RunKey:
    details = {"params": {"train.dropout_prob": "0.3", **params}, "data": {"data md5": "d" * 32 + ".dir"}}
    return RunKey(digest=digest, parts={"params": repr(details["params"]), "data": "d" * 32 + ".dir"}, details=details)


def make_data(root: Path) -> DataRef:
    return DataRef(
        path=str(root / "data"),
        md5="d" * 32 + ".dir",
        source="digits",
        num_examples=100,
        class_names=("0", "1", "2"),
        shape=(8, 8, 1),
    )


def make_splits(root: Path) -> Splits:
    path = root / "splits.npz"
    np.savez(path, train=np.arange(70), val=np.arange(70, 80), test=np.arange(80, 100))
    return Splits(str(path), "e" * 64, "d" * 32 + ".dir", 70, 10, 20)


def make_evaluation(folder: Path) -> Evaluation:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("predictions.parquet", "report.html", "confusion.png"):
        (folder / name).write_bytes(name.encode())
    return Evaluation(
        metrics={"accuracy": Interval(0.9, 0.85, 0.95), "f1_macro": Interval(0.89, 0.8, 0.94)},
        per_class={"0": ClassMetrics(0.9, 0.9, 0.9, 10)},
        confusion=((9, 1), (0, 10)),
        baselines={"majority_class": {"accuracy": 0.5}, "logistic_regression": {"accuracy": 0.8}},
        num_test=20,
        confidence=0.95,
        predictions_path=str(folder / "predictions.parquet"),
        figures={"confusion": str(folder / "confusion.png")},
        report_path=str(folder / "report.html"),
        seconds=0.1,
    )


def make_record(run_id: str) -> RunRecord:
    return RunRecord(
        run_id=run_id,
        model_name="digits-cnn",
        model_version=1,
        data_md5="d" * 32 + ".dir",
        run_key="b" * 64,
        reused=False,
        reasons=("nothing like it was run before",),
        metrics={"accuracy": 0.9},
        intervals={"accuracy": (0.85, 0.95)},
        confidence=0.95,
        baselines={"majority_class": {"accuracy": 0.5}},
        seconds=1.5,
        timings={"train": 1.0},
        report_path="report.html",
        source="digits",
        num_examples=(70, 10, 20),
        num_epochs=3,
        device="cpu fp32 x1",
    )


def make_epoch(epoch: int, **changes: float) -> EpochRecord:
    record = EpochRecord(epoch, epoch * 10, 0.5 / epoch, 0.8, 0.4 / epoch, 0.9, 0.001, 1.5, START_MS + epoch * 1000)
    return dataclasses.replace(record, **changes)


def make_steps(first: int, last: int) -> StepRecords:
    steps = range(first, last + 1)
    return StepRecords(
        step=tuple(steps),
        loss=tuple(1.0 / step for step in steps),
        learning_rate=tuple(0.001 * step for step in steps),
        grad_norm=tuple(2.0 + step for step in steps),
        timestamp_ms=tuple(START_MS + step for step in steps),
    )


def default_params() -> Params:
    return Params.model_validate({"registry": {"experiment": "unit", "model_name": "digits-cnn"}})


def server_settings(port: int) -> dict[str, str]:
    """What ``mlflow/server.env`` says, for another port."""
    lines = (REPOSITORY / "mlflow" / "server.env").read_text().splitlines()
    settings = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    return {name: value.replace("5000", str(port)) for name, value in settings.items()}


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """Run the server that ``mlflow/README.md`` describes on a free loopback port; yields its address."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder}/server.db"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    environment |= server_settings(port)
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=environment, start_new_session=True)
        try:
            _wait_until_healthy(uri, process, folder / "server.log")
            yield uri
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()


@contextmanager
def shared(folder: Path, server: AbstractContextManager[str]) -> Iterator[str]:
    """One server for all processes that run tests: the first one starts it, and ends it when no other needs it.

    Yields:
        What the server yields: its address.
    """
    folder.mkdir(parents=True, exist_ok=True)
    address = folder / "address"
    with (folder / "users.lock").open("w") as users, ExitStack() as own:
        with only_one(folder / "start.lock", on_wait=lambda: None):
            fcntl.flock(users, fcntl.LOCK_SH)
            is_first = not address.exists()
            if is_first:
                address.write_text(own.enter_context(server))
        yield address.read_text()
        if is_first:
            fcntl.flock(users, fcntl.LOCK_EX)  # until all others have ended
            address.unlink()


def _wait_until_healthy(uri: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    while process.poll() is None:
        try:
            with urllib.request.urlopen(f"{uri}/health", timeout=5) as reply:
                assert reply.read() == b"OK"
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.1)
    raise AssertionError(f"the MLflow server ended with {process.returncode}:\n{log.read_text()[-3000:]}")
