"""Runs as forks: each is the process it would have been, is told apart from the others, and ends with its worker."""

import asyncio
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import assay.services.runs as runs
from assay.services.run_process import RunRequest
from assay.services.runs import RunHandle, fork_run, start_run
from assay.services.slots import forks

PROGRAM = """
import json, os, sys, time
import assay.services.run_starter as starter

stand_in, folder, imports, prefect, address = sys.argv[1:]
sys.executable = stand_in
sys.path.append(folder)
starter._SLOW_IMPORTS, starter._SLOW_IMPORTS_OF = tuple(imports.split()), {}
if not prefect:
    starter._prefect_is_as_set = lambda: True

def execute(flow_run_id, slot):
    own = {"run": flow_run_id, "slot": slot, "pid": os.getpid(), "guardian": os.getppid(), "input": sys.stdin.read()}
    print(json.dumps(own | {"wave": "wave" in sys.modules, "environment": dict(os.environ)}), flush=True)
    if flow_run_id == "sleeps":
        time.sleep(600)
    if flow_run_id == "dies":
        os.kill(os.getpid(), 9)
    if flow_run_id == "raises":
        raise RuntimeError("no")
    if flow_run_id == "exits":
        sys.exit(3)
    return 75

starter.execute = execute
import pathlib
request = starter.serve(pathlib.Path(address), "cpu")
sys.exit(0 if request is None else execute(request.flow_run_id, request.slot))
"""


NOBODYS = RunRequest("cpu-0", "abc", {}, "log")


class Starter:
    """A starter with little to import, and what its runs are told and say."""

    def __init__(self, folder: Path, imports: str = "wave", prefect: bool = False) -> None:
        self.address = folder / "run.sock"
        self.log = folder / "runs.log"
        self.packages = folder / "site-packages"
        self.packages.mkdir()
        # `python -m assay.services.run_process` is what a run executes that starts over: here a stand-in that says so.
        stand_in = folder / "python"
        words = 'print(json.dumps({"over": sys.argv[3:], "flavour": os.environ.get("FLAVOUR")}))'
        stand_in.write_text(f"#!{sys.executable}\nimport json, os, sys\n{words}\n")
        stand_in.chmod(0o700)
        self.environment = os.environ | {"FLAVOUR": "plain", "PREFECT_LOGGING_LEVEL": "INFO"}
        told = (str(stand_in), str(self.packages), imports, "1" if prefect else "", str(self.address))
        self.process = subprocess.Popen([sys.executable, "-c", PROGRAM, *told], cwd=folder, env=self.environment)
        while not self.address.exists() and self.process.poll() is None:
            time.sleep(0.01)
        while not self._listens():
            assert self.process.poll() is None
            time.sleep(0.01)

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.address)) == 0

    async def fork(self, run: str, **variables: str) -> RunHandle | None:
        return await fork_run(self.address, self.request(run, **variables))

    def request(self, run: str, **variables: str) -> RunRequest:
        return RunRequest("cpu-0", run, self.environment | variables, str(self.log))

    def run(self, run: str, **variables: str) -> int | None:
        """Exit code of a run; None where none was started."""

        async def wait() -> int | None:
            handle = await self.fork(run, **variables)
            return None if handle is None else await handle.code

        return asyncio.run(wait())

    def said(self) -> list[dict[str, Any]]:
        """What runs wrote."""
        text = self.log.read_text() if self.log.exists() else ""
        return [json.loads(line) for line in text.splitlines() if line.startswith("{") and line.endswith("}")]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Starter]]:
    made = []

    def start(**options: Any) -> Starter:
        made.append(Starter(tmp_path, **options))
        return made[-1]

    yield start
    for starter in made:
        starter.process.kill()
        starter.process.wait()


def wait_for(look: Callable[[], Any]) -> Any:
    while not (found := look()):
        time.sleep(0.02)
    return found


def has_ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_run_has_what_was_imported_and_its_own_variables(make: Callable[..., Starter]) -> None:
    starter = make()
    variables = {"CUDA_VISIBLE_DEVICES": "3", "PREFECT__FLOW_RUN_ID": "abc", "SUPERVISOR_PROCESS_NAME": "cpu-0"}
    assert starter.run("returns", **variables) == 75
    [said] = starter.said()
    assert (said["run"], said["slot"], said["wave"], said["input"]) == ("returns", "cpu-0", True, "")
    assert said["environment"] == starter.environment | variables
    assert said["pid"] != starter.process.pid


@pytest.mark.parametrize(("run", "code"), [("exits", 3), ("raises", 1), ("dies", -signal.SIGKILL)])
def test_the_worker_is_told_how_a_run_ended(make: Callable[..., Starter], run: str, code: int) -> None:
    starter = make()
    assert starter.run(run) == code
    assert starter.run("returns") == 75, "another one is started after it"


def test_runs_go_on_side_by_side_and_end_when_they_are_asked_to(make: Callable[..., Starter]) -> None:
    starter = make()

    async def two() -> list[int]:
        first, second = await starter.fork("sleeps"), await starter.fork("sleeps")
        assert first is not None and second is not None
        await asyncio.to_thread(wait_for, lambda: len(starter.said()) == 2)
        assert not first.code.done() and not second.code.done()
        await first.end()
        assert first.code.done() and not second.code.done()
        await second.end()
        return [await first.code, await second.code]

    assert asyncio.run(two()) == [-signal.SIGTERM] * 2


def test_a_run_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(runs, "GRACE_SECONDS", 0.1)
    stubborn = tmp_path / "stubborn"
    stubborn.write_text("#!/bin/sh\ntrap '' TERM\necho ready\nwhile :; do sleep 0.01; done\n")
    stubborn.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(stubborn))

    async def end() -> int:
        log = tmp_path / "log"
        run = await start_run(tmp_path, RunRequest("cpu-0", "abc", dict(os.environ), str(log)))
        await asyncio.to_thread(wait_for, log.read_text)
        await run.end()
        return await run.code

    assert asyncio.run(end()) == -signal.SIGKILL


def started(starter: Starter) -> tuple[socket.socket, dict[str, Any]]:
    """A run under way, and the connection that it was asked for on."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(starter.address))
    connection.sendall(json.dumps(starter.request("sleeps")._asdict()).encode() + b"\n")
    run: dict[str, Any] = wait_for(starter.said)[0]
    return connection, run


def test_a_run_ends_with_its_worker(make: Callable[..., Starter]) -> None:
    connection, run = started(make())
    assert not has_ended(run["pid"])
    connection.close()
    wait_for(lambda: has_ended(run["pid"]) and has_ended(run["guardian"]))


def test_a_run_ends_when_nobody_could_tell_of_its_end(make: Callable[..., Starter]) -> None:
    connection, run = started(make())
    with connection, connection.makefile() as answers:
        assert json.loads(answers.readline()) == {"pid": run["pid"]}
        os.kill(run["guardian"], signal.SIGKILL)
        assert answers.readline() == ""
        wait_for(lambda: has_ended(run["pid"]))


def test_a_run_outlives_the_process_that_forked_it(make: Callable[..., Starter]) -> None:
    starter = make()
    connection, run = started(starter)
    with connection, connection.makefile() as answers:
        starter.process.kill()
        starter.process.wait()
        assert starter.run("returns") is None, "nobody listens"
        assert not has_ended(run["pid"])
        os.kill(run["pid"], signal.SIGTERM)
        assert [json.loads(line) for line in answers] == [{"pid": run["pid"]}, {"code": -signal.SIGTERM}]


def test_another_variable_starts_the_run_over(make: Callable[..., Starter]) -> None:
    starter = make()
    assert starter.run("abc", FLAVOUR="salty") == 0
    [said] = starter.said()
    assert said["flavour"] == "salty"
    assert (said["over"][0], said["over"][2]) == ("cpu-0", "abc")


def test_another_package_ends_the_starter(make: Callable[..., Starter]) -> None:
    starter = make()
    assert starter.run("returns") == 75
    (starter.packages / "another_package").mkdir()
    assert starter.run("returns") is None
    assert starter.process.wait() == 0


@pytest.mark.parametrize("level", ["INFO", "DEBUG"])
def test_another_setting_of_prefects_starts_the_run_over(make: Callable[..., Starter], level: str) -> None:
    starter = make(imports="prefect", prefect=True)
    starter.run("returns", PREFECT_LOGGING_LEVEL=level)
    [said] = starter.said()
    assert ("over" in said) == (level == "DEBUG")


def test_nobody_listens(tmp_path: Path) -> None:
    assert asyncio.run(fork_run(tmp_path / "run.sock", NOBODYS)) is None


def test_a_starter_that_does_not_answer_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_ANSWER_SECONDS", 0.05)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "run.sock"))
        silent.listen()
        assert asyncio.run(fork_run(tmp_path / "run.sock", NOBODYS)) is None


def test_runs_are_not_forked_where_the_kernel_does_not_tell_of_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    assert forks("cpu") and forks("gpu") and not forks("tpu")

    def refuse(pid: int) -> int:
        raise OSError(errno.ENOSYS, "no such call")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    assert not forks("cpu")


def test_the_end_of_a_fork_calls_every_exit_function_before_it_leaves() -> None:
    """Those that are there before it is told to end at once would be called after it, which is never."""
    program = "import sys, assay.services.run_starter\nprint('logging' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n", "logging has an exit function"
    program = (
        "import atexit, sys\nfrom assay.services.child import end_at_once_after\n"
        "def main():\n    atexit.register(print, 'called')\n    sys.exit(3)\nend_at_once_after(main)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, "called\n")
