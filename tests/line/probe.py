"""A flow that holds its device for a moment and writes down which, and whether anybody else is on it."""

import json
import os
import time
from pathlib import Path

import psutil
from prefect import flow
from prefect.runtime import flow_run

FILE = Path("probe.jsonl")
VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "TPU_VISIBLE_CHIPS")


def write(what: str) -> None:
    """Append one line; a line this short is written whole."""
    event = {
        "what": what,
        "run": flow_run.get_id(),
        "device": os.environ["CUDA_VISIBLE_DEVICES"],
        "pid": os.getpid(),
        "environment": {name: os.environ.get(name) for name in VARIABLES},
    }
    with FILE.open("a") as file:
        file.write(json.dumps(event) + "\n")


def others() -> list[int]:
    """Processes that began on this device, did not end, and live."""
    on_device: dict[int, str] = {}
    for line in FILE.read_text().splitlines():
        event = json.loads(line)
        if event["device"] == os.environ["CUDA_VISIBLE_DEVICES"] and event["what"] in ("begin", "end"):
            on_device[event["pid"]] = event["what"]
    unfinished = [pid for pid, what in on_device.items() if what == "begin" and pid != os.getpid()]
    return [pid for pid in unfinished if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]


@flow(name="probe")
def probe(seconds: float = 1.0) -> None:
    """Hold the device for a while."""
    write("begin")
    if others():
        write("shared")
    time.sleep(seconds)
    if others():
        write("shared")
    write("end")
