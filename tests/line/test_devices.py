"""Four pretended GPUs, twenty runs, processes that are killed: every device has one run at a time, and none rests."""

import json
import random
import shutil
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.line.line import Line, wait_for

SERVICES = ("services.cpu_workers=0", "services.gpu_workers=4")
NUM_RUNS = 20
DEVICES = {"0", "1", "2", "3"}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def deploy_probe(line: Line) -> str:
    """Make a deployment of the probe in pool gpu; return its id."""
    shutil.copy(Path(__file__).with_name("probe.py"), line.copy.root / "flows" / "probe.py")
    with line.api() as api:
        flow = api.filter("/flows/", {"name": "probe"})
        steps = [{"prefect.deployments.steps.set_working_directory": {"directory": str(line.copy.root)}}]
        body = {
            "name": "probe",
            "flow_id": flow["id"],
            "entrypoint": "flows/probe.py:probe",
            "path": str(line.copy.root),
            "pull_steps": steps,
            "work_pool_name": "gpu",
        }
        return str(api.filter("/deployments/", body)["id"])


def start(line: Line, deployment: str, **parameters: Any) -> str:
    with line.api() as api:
        body = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
        return str(api.filter(f"/deployments/{deployment}/create_flow_run", body)["id"])


def events(line: Line) -> list[dict[str, Any]]:
    """What the probes wrote, in the order of their writing."""
    file = line.copy.root / "probe.jsonl"
    return [json.loads(text) for text in file.read_text().splitlines()] if file.exists() else []


def begun(line: Line) -> list[dict[str, Any]]:
    return [event for event in events(line) if event["what"] == "begin"]


@pytest.fixture
def deployment(line: Line) -> str:
    (line.copy.root / "probe.jsonl").unlink(missing_ok=True)
    return deploy_probe(line)


def test_twenty_runs_share_four_devices(line: Line, deployment: str) -> None:
    runs = [start(line, deployment) for _ in range(NUM_RUNS)]
    assert {line.wait_for_end(run) for run in runs} == {"Completed"}
    assert not [event for event in events(line) if event["what"] == "shared"]
    starts = [event["device"] for event in begun(line)]
    assert len(starts) == NUM_RUNS
    assert set(starts) == DEVICES
    # While runs wait, a device that is free takes one before another has come round three more times.
    for device in DEVICES:
        turns = [number for number, name in enumerate(starts) if name == device] + [len(starts) - 1]
        for first, second in pairwise(turns):
            between = Counter(starts[first + 1 : second])
            assert not between or max(between.values()) <= 3, starts


def test_killed_runs_and_workers_share_no_device_either(line: Line, deployment: str) -> None:
    dice = random.Random(0)
    runs = [start(line, deployment, seconds=2.0) for _ in range(NUM_RUNS)]
    for kill in ("run", "worker", "run", "worker", "run", "worker"):
        already = len(begun(line))
        wait_for(lambda already=already: len(begun(line)) > already)  # type: ignore[misc]
        event = dice.choice(begun(line)[-2:])
        try:
            line.kill(line.pid_of(f"gpu-{event['device']}") if kill == "worker" else event["pid"])
        except (psutil.NoSuchProcess, AssertionError, ProcessLookupError):
            continue  # it had just ended
    assert {line.wait_for_end(run) for run in runs} == {"Completed"}
    assert not [event for event in events(line) if event["what"] == "shared"]
    ended = Counter(event["run"] for event in events(line) if event["what"] == "end")
    assert set(ended) == set(runs)
    assert set(event["device"] for event in begun(line)) == DEVICES


def test_a_run_sees_its_own_device_alone(line: Line, deployment: str) -> None:
    run = start(line, deployment, seconds=0.0)
    assert line.wait_for_end(run) == "Completed"
    [event] = begun(line)
    assert event["environment"]["CUDA_VISIBLE_DEVICES"] == event["device"]
    assert event["environment"]["HIP_VISIBLE_DEVICES"] == event["device"]
    assert event["environment"]["TPU_VISIBLE_CHIPS"] == ""
