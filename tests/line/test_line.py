"""The whole training line with its real parts: started, used, killed piece by piece, ended."""

import json
import os
import re
import signal
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from assay.services.locks import hold
from tests.line.line import SMALL, Line, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SERVICES = ("services.cpu_workers=2",)
IS_NEW = True
SECRET = "s3cret-of-the-line"
AUTH = f"anna:{SECRET}"
LONG = ("train.num_epochs=80", "train.early_stopping=null", "train.checkpoint_every_seconds=0.5")
"""Some seconds of training: long enough to be hit in the middle."""

Result = tuple[str, list[int]]
"""SHA-256 of the weights, and the steps at which MLflow has the val loss: one for each epoch."""


@pytest.fixture(scope="module")
def unbroken(line: Line) -> Result:
    """What came of a run that nothing happened to; broken ones differ in the bootstrap only."""
    run = line.submit(*LONG)
    assert line.wait_for_end(run) == "Completed"
    epochs = line.epochs_logged(run)
    assert len(epochs) == len(set(epochs)) == 80
    return line.weights(run), epochs


def assert_whole(line: Line, run: str, unbroken: Result) -> None:
    """A run that was broken off ended well: the same weights, every epoch once, one version, nothing left running."""
    assert line.wait_for_end(run) == "Completed"
    assert (line.weights(run), line.epochs_logged(run)) == unbroken
    assert [status for _, status in line.mlflow_runs(run)] == ["FINISHED"]
    with line.api() as api:
        tasks = api.filter("/task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
    assert {task["state_type"] for task in tasks} <= {"COMPLETED", "CRASHED"}
    wait_for(lambda: line.run_pid(run) is None)


def test_status_shows_everything(line: Line) -> None:
    status = wait_for(lambda: next((s for s in [line.status()] if s["next_night"]), None))
    assert list(status["services"]) == ["mlflow", "prefect", "keeper", "cpu-starter", "cpu-0", "cpu-1"]
    assert all(info["state"] == "running" for info in status["services"].values())
    assert status["services"]["prefect"]["url"] == line.url
    assert status["services"]["mlflow"]["healthy"]
    assert status["pools"]["cpu"]["workers"] == ["cpu-0", "cpu-1"]
    assert status["pools"]["gpu"]["workers"] == []
    assert status["devices"] == {"cpu-0": None, "cpu-1": None}
    assert f"T{line.night:%H:%M}" in status["next_night"]
    assert status["versions"]["prefect"] == "3.8.8"
    assert 0 < sum(info["memory_mb"] for info in status["services"].values()) < 1500
    shown = line.copy.assay("status")
    for word in ("mlflow", "cpu-0, cpu-1 free", "none: runs wait", "next night", "torch 2.13.0"):
        assert word in shown.stdout


def test_a_second_up_changes_nothing(line: Line) -> None:
    def seen() -> tuple[Any, ...]:
        services = {name: info["pid"] for name, info in line.status()["services"].items()}
        with line.api() as api:
            deployments = {d["name"]: d["updated"] for d in api.filter("/deployments/filter")}
            pools = {pool["name"]: pool["updated"] for pool in api.filter("/work_pools/filter")}
            nights = api.filter("/flow_runs/filter", {"deployments": {"name": {"any_": ["nightly"]}}, "limit": 200})
        return services, deployments, pools, sorted((night["id"], night["expected_start_time"]) for night in nights)

    before = seen()
    again = line.up()
    assert "Starting" not in again.stderr
    assert line.url in again.stdout
    assert line.mlflow_url in again.stdout
    assert seen() == before


def test_no_night_is_planned_twice(line: Line) -> None:
    with line.api() as api:
        nights = api.filter("/flow_runs/filter", {"deployments": {"name": {"any_": ["nightly"]}}, "limit": 200})
    due = [night["expected_start_time"] for night in nights]
    assert len(due) >= 3
    assert len(set(due)) == len(due)


def test_a_run_shows_its_way_and_its_end(line: Line) -> None:
    run = line.submit("train.num_epochs=3")
    assert line.wait_for_end(run) == "Completed"
    [(mlflow_run, status)] = line.mlflow_runs(run)
    assert status == "FINISHED"
    assert "Registered mnist5k-cnn version " in line.run(run)["state"]["message"]
    with line.api() as api:
        artifacts = api.filter("/artifacts/filter", {"flow_runs": {"id": {"any_": [run]}}})
    pages = {artifact["key"]: artifact for artifact in artifacts}
    assert {"progress", "result", "training", "evaluation", "model"} <= set(pages)
    assert pages["progress"]["data"] == 100
    assert f"{line.mlflow_url}/#/experiments/" in pages["result"]["data"]
    assert mlflow_run in pages["result"]["data"]
    for words in ("train: epoch 1:", "register: "):  # logs come a moment later
        wait_for(lambda words=words: any(log["message"].startswith(words) for log in line.logs(run)))  # type: ignore[misc]


def test_a_run_in_the_own_process_is_in_the_same_prefect_and_ends_in_the_same_bytes(line: Line) -> None:
    done = line.copy.assay("run", "--json", *SMALL, "train.num_epochs=2")
    assert done.returncode == 0, done.stderr
    run_id = json.loads(done.stdout)["run_id"]
    query = "select value from tags where run_uuid = ? and key = 'assay.prefect.flow_run'"
    [(page,)] = line.rows("mlflow.db", query, run_id)
    assert page.startswith(f"{line.url}/runs/flow-run/")
    assert not (line.home / "prefect" / "server.log").exists()  # of a Prefect of its own

    forked = line.submit("train.num_epochs=2", "evaluation.num_bootstrap=109")
    assert line.wait_for_end(forked) == "Completed"
    assert line.weights(forked) == line.weights_of(run_id)


def test_an_ablation_in_a_pool_shows_its_verdicts(line: Line) -> None:
    factors = ("ablation.factors={train.l2: [0.5]}", "ablation.baseline={}", "ablation.num_seeds=2")
    done = line.copy.assay("ablate", "--json", "--pool", "cpu", *SMALL, "train.num_epochs=2", *factors)
    assert done.returncode == 0, done.stderr
    sent = json.loads(done.stdout)
    assert sent["state"] == "Completed"
    assert sent["message"].startswith("4 trials trained: 1 ")
    with line.api() as api:
        artifacts = api.filter("/artifacts/filter", {"flow_runs": {"id": {"any_": [sent["flow_run_id"]]}}})
    pages = {artifact["key"]: artifact["data"] for artifact in artifacts}
    assert {"plan", "verdicts", "result", "ablation-progress", "forest", "learning-curves"} <= set(pages)
    [verdict] = json.loads(pages["verdicts"])
    assert verdict["level"] == "l2=0.5"
    assert f"{line.mlflow_url}/#/compare-runs?" in pages["result"]
    assert httpx.get(pages["forest"], auth=("anna", SECRET), timeout=30).headers["content-type"] == "image/png"


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("train", {"dropout_prob": 1.4}),
        ("train", {"num_epochs": 0}),
        ("train", {"num_epoch": 3}),
        ("train", {"optimizer": {"kind": "sgdd"}}),
        ("model", {"kind": "cnn", "channels": []}),
        ("secrets", {}),
    ],
)
def test_a_bad_value_is_refused_by_the_form(line: Line, section: str, values: dict[str, Any]) -> None:
    with line.api() as api:
        deployment = api.get("/deployments/name/pipeline/run-cpu")
        with pytest.raises(httpx.HTTPStatusError) as refused:
            api.filter(f"/deployments/{deployment['id']}/create_flow_run", {"parameters": {section: values}})
    assert refused.value.response.status_code in (409, 422)


def test_a_pool_without_a_worker_says_so(line: Line) -> None:
    done = line.copy.assay("run", "--pool", "tpu", "--detach", "--json")
    assert done.returncode == 0
    assert "Pool tpu has no worker" in done.stderr
    run = done.stdout.partition('"flow_run_id": "')[2].partition('"')[0]
    waiting = line.wait_for_state(run, "WaitingForWorker")
    assert "Pool tpu has no worker" in waiting["state"]["message"]
    with line.api() as api:
        assert "no worker" in api.get("/deployments/name/pipeline/run-tpu")["description"]
        api.filter(f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLED", "name": "Cancelled"}, "force": True})


def test_a_killed_run_goes_on_from_its_checkpoint(line: Line, unbroken: Result) -> None:
    run = line.submit(*LONG, "evaluation.num_bootstrap=101")
    line.wait_for_training(run)
    pid = line.run_pid(run)
    assert pid is not None
    line.kill(pid)
    assert_whole(line, run, unbroken)
    names = line.names(run)
    assert [name for name in names if name in ("Crashed", "AwaitingRetry")] == ["Crashed", "AwaitingRetry"]


def test_a_run_whose_worker_is_killed_goes_on(line: Line, unbroken: Result) -> None:
    run = line.submit(*LONG, "evaluation.num_bootstrap=102")
    line.wait_for_training(run)
    line.kill(line.worker_pid(run))
    assert_whole(line, run, unbroken)
    assert line.run(run)["run_count"] > 1, "it was hit"


def test_a_worker_that_is_asked_to_end_lets_its_run_write_a_checkpoint(line: Line, unbroken: Result) -> None:
    run = line.submit(*LONG, "train.checkpoint_every_seconds=3600", "evaluation.num_bootstrap=103")
    line.wait_for_training(run)
    line.kill(line.worker_pid(run), signal.SIGTERM)
    line.wait_for_state(run, "Crashed", "AwaitingRetry")
    assert_whole(line, run, unbroken)
    firsts = [log["message"] for log in line.logs(run) if log["message"].startswith("train: epoch")]
    assert sum(message.startswith("train: epoch 1:") for message in firsts) <= 2


@pytest.mark.parametrize("server", ["prefect", "mlflow"])
def test_a_run_outlives_a_killed_server(line: Line, unbroken: Result, server: str) -> None:
    run = line.submit(*LONG, f"evaluation.num_bootstrap={104 + (server == 'mlflow')}")
    line.wait_for_training(run)
    before = line.pid_of(server)
    line.kill(before)
    assert_whole(line, run, unbroken)
    assert line.pid_of(server) != before


def test_a_cancelled_run_frees_its_device_and_is_not_started_again(line: Line) -> None:
    run = line.submit(*LONG, "evaluation.num_bootstrap=106")
    line.wait_for_training(run)
    with line.api() as api:
        api.filter(f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
    assert line.wait_for_end(run) == "Cancelled"
    wait_for(lambda: line.run_pid(run) is None)
    assert set(line.status()["devices"].values()) == {None}
    assert list((line.home / "runs").glob("*/checkpoint.safetensors"))


def test_a_zombie_that_a_server_restart_hid_is_found(line: Line) -> None:
    """A run that Prefect believes to be running and that no process executes."""
    with line.api() as api:
        deployment = api.get("/deployments/name/train/train-gpu")
        body = {"parameters": {}, "state": {"type": "SCHEDULED"}}
        run = api.filter(f"/deployments/{deployment['id']}/create_flow_run", body)["id"]
        for kind in ("PENDING", "RUNNING"):
            api.filter(f"/flow_runs/{run}/set_state", {"state": {"type": kind}, "force": True})
    crashed = line.wait_for_state(run, "Crashed", "AwaitingRetry", "WaitingForWorker")
    assert "Running" in line.names(run)
    assert "Crashed" in line.names(run), crashed
    with line.api() as api:
        api.filter(f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLED"}, "force": True})


def test_a_run_that_crashes_every_time_is_given_up(line: Line) -> None:
    run = line.submit(*LONG, "evaluation.num_bootstrap=107", "train.seed=1")
    killed: set[int] = set()
    for _ in range(4):

        def pid_of_next_start() -> int | None:
            pid = line.run_pid(run)
            return None if pid in killed else pid

        pid = wait_for(pid_of_next_start)
        assert pid is not None
        line.kill(pid)
        killed.add(pid)
    assert line.wait_for_end(run) == "Crashed"
    assert line.names(run).count("Crashed") == 4
    assert line.names(run).count("AwaitingRetry") == 3


def test_nothing_else_uses_a_device_that_is_in_use(line: Line) -> None:
    """Whoever holds the lock, the run waits for it."""
    locks = line.home / "services" / "devices"
    with (
        hold(locks / "cpu-0.lock", {"flow_run_id": "somebody"}, wait=True) as first,
        hold(locks / "cpu-1.lock", {"flow_run_id": "somebody"}, wait=True) as second,
    ):
        assert first and second
        run = line.submit("train.num_epochs=1", "train.seed=2")
        assert line.status()["devices"] == {"cpu-0": "somebody", "cpu-1": "somebody"}
        assert line.run(run)["state"]["type"] in ("SCHEDULED", "PENDING")
    assert line.wait_for_end(run) == "Completed"


def test_up_repairs_what_was_killed(line: Line) -> None:
    before = {name: info["pid"] for name, info in line.status()["services"].items()}
    supervisor = psutil.Process(before["keeper"]).ppid()
    line.kill(supervisor)
    again = line.up()
    assert line.url in again.stdout
    after = {name: info["pid"] for name, info in line.status()["services"].items()}
    assert list(after) == list(before)
    assert not set(after.values()) & set(before.values())
    for pid in before.values():
        wait_for(lambda pid=pid: not psutil.pid_exists(pid))  # type: ignore[misc]


@dataclass
class Downtime:
    """What happened while everything was down.

    Attributes:
        run: The run that was training before.
        nights: Three nights that passed, the first one first.
        down: `assay down`, as that run trained.
        again: `assay down` once more.
        taken: `assay up` with a port that something else listens on.
    """

    run: str
    nights: list[str]
    down: subprocess.CompletedProcess[str]
    again: subprocess.CompletedProcess[str]
    taken: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def downtime(line: Line) -> Downtime:
    """Take everything down in the middle of a training, let three nights pass, and bring it up again."""
    run = line.submit(*LONG, "train.checkpoint_every_seconds=3600", "evaluation.num_bootstrap=108")
    line.wait_for_training(run)
    down = line.copy.assay("down")
    assert line.processes() == []
    again = line.copy.assay("down")
    assert not line.status()["is_up"]
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        ports = (f"services.prefect_port={line.prefect_port}", f"services.mlflow_port={other.getsockname()[1]}")
        taken = line.copy.assay("up", *ports)
    assert line.processes() == []
    query = (
        "select id from flow_run where auto_scheduled and state_type = 'SCHEDULED' order by expected_start_time limit 3"
    )
    nights = [str(night) for (night,) in line.rows("prefect/prefect.db", query)]
    for days, night in zip((3, 2, 1), nights, strict=True):
        moment = f"strftime('%Y-%m-%d %H:%M:%S.000000', 'now', '-{days} days')"
        line.rows(
            "prefect/prefect.db",
            f"update flow_run set expected_start_time = {moment}, next_scheduled_start_time = {moment} where id = ?",
            night,
        )
        iso = f"strftime('%Y-%m-%dT%H:%M:%SZ', 'now', '-{days} days')"
        line.rows(
            "prefect/prefect.db",
            f"update flow_run_state set state_details = json_set(state_details, '$.scheduled_time', {iso}) "
            "where flow_run_id = ?",
            night,
        )
    line.up()
    return Downtime(run, nights, down, again, taken)


def test_down_checkpoints_and_the_next_up_goes_on(line: Line, unbroken: Result, downtime: Downtime) -> None:
    assert "Waiting for 1 running training to write a checkpoint" in downtime.down.stderr
    assert "Nothing was up" in downtime.again.stderr
    assert_whole(line, downtime.run, unbroken)


def test_a_taken_port_is_named(line: Line, downtime: Downtime) -> None:
    assert downtime.taken.returncode == 2
    assert re.search(
        rf"services\.mlflow_port=\d+: Address already in use \(process {os.getpid()}: ", downtime.taken.stderr
    )


def test_only_the_latest_missed_night_runs(line: Line, downtime: Downtime) -> None:
    ends = [line.wait_for_end(night) for night in downtime.nights]
    assert ends[2] == "Completed"
    assert set(ends[:2]) <= {"Cancelled", "Skipped"}
    [(taken,)] = line.rows("ledger.db", "select count(*) from assay_nights")
    assert taken == 1


def test_two_nights_at_once_train_once(line: Line) -> None:
    [(before,)] = line.rows("mlflow.db", "select count(*) from model_versions")
    runs = []
    for _ in range(2):
        done = line.copy.assay("nightly", "--detach", "--json")
        assert done.returncode == 0, done.stderr
        runs.append(str(json.loads(done.stdout)["flow_run_id"]))
    ends = [line.wait_for_end(run) for run in runs]
    assert set(ends) <= {"Completed", "Kept", "Refused", "Skipped"}
    [(after,)] = line.rows("mlflow.db", "select count(*) from model_versions")
    assert after - before == 2 - ends.count("Skipped") <= 1
    words = [line.run(run)["state"]["message"] for run in runs]
    assert any("data, params, code and packages" in text for text in words)


def test_another_schedule_replaces_the_planned_nights(line: Line) -> None:
    def planned() -> list[str]:
        with line.api() as api:
            wanted = {"deployments": {"name": {"any_": ["nightly"]}}, "limit": 200}
            scheduled = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}
            return sorted(run["expected_start_time"] for run in api.filter("/flow_runs/filter", wanted | scheduled))

    changed = line.up("schedule.cron=30 3 * * *", "schedule.timezone=Europe/Berlin")
    assert "Deployment nightly changed." in changed.stderr
    due = wait_for(planned)
    assert len(set(due)) == len(due)
    assert all(("T02:30" in night) or ("T01:30" in night) for night in due)  # UTC, in winter and in summer
    line.up("schedule.enabled=false")
    wait_for(lambda: planned() == [])
    line.up()
    assert all(f"T{line.night:%H:%M}" in night for night in wait_for(planned))


def test_other_addresses_are_refused_without_credentials(line: Line) -> None:
    done = line.copy.assay("up", "--host", "0.0.0.0")
    assert done.returncode == 2
    assert "services.host=0.0.0.0: other machines could reach the servers there" in done.stderr


def test_the_state_is_private(line: Line) -> None:
    assert line.home.stat().st_mode & 0o777 == 0o700
    kept = [*line.home.glob("*.db"), *(line.home / "prefect").glob("*.db"), *(line.home / "services").rglob("*")]
    assert {file.name for file in kept} >= {"mlflow.db", "prefect.db", "ledger.db", "programs.json", "keeper.log"}
    assert [file for file in kept if file.stat().st_mode & 0o077] == []


def test_nothing_runs_as_a_pickle(line: Line) -> None:
    assert not [file for file in Path(line.home).rglob("*") if file.suffix in (".pkl", ".pickle")]
    assert subprocess.run(["grep", "-rlE", "cloudpickle", str(line.home / "prefect")], check=False).returncode in (1, 2)


def test_secrets_are_in_no_log_no_process_list_and_no_readable_file(line: Line) -> None:
    """The last one: whatever the tests before it did has left its traces."""
    run = line.submit("train.num_epochs=1", "train.seed=3")
    assert httpx.get(f"{line.url}/api/flow_runs/{run}", trust_env=False).status_code == 401
    assert line.wait_for_end(run) == "Completed"
    for process in line.processes():
        assert SECRET not in " ".join(process.cmdline())
    for file in (line.home / "services").rglob("*"):
        if file.is_file() and SECRET.encode() in file.read_bytes():
            assert file.name == "programs.json"
            assert file.stat().st_mode & 0o077 == 0
    with line.api() as api:
        mine = {"flow_runs": {"id": {"any_": [run]}}}
        assert SECRET not in str(api.filter("/flow_runs/filter", mine))
        assert SECRET not in str(api.filter("/logs/filter", {"logs": {"flow_run_id": {"any_": [run]}}}))
