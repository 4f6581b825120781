"""Many processes at one ledger, so that a test can race and kill them.

``python -m tests.registry.crowd JOB FOLDER NUM_PROCESSES [ARGUMENT]`` runs the job in so many processes, started
together, and prints a JSON list of what each came to: ``[exit code, answer or error]``.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sqlalchemy import Engine, event

from assay.project import Project, find_project
from assay.records import FIRST, PROMOTED, Decision, Look, Promotion, Rule
from assay.registry.aliases import sync_aliases
from assay.registry.ledger import Ledger
from assay.registry.promotions import Promotions, StaleDecisionError

MODEL = "digits-cnn"
REGISTRY = "sqlite:////somewhere/mlflow.db"
VERSIONS_EACH = 3
NUM_KILLS = 40
REPOSITORY = Path(__file__).parents[2]

Job = Callable[[], object]


def run_crowd(job: str, folder: Path, num_processes: int, argument: str = "") -> list[tuple[int, Any]]:
    """Start this module; returns each process's exit code and answer."""
    command = [sys.executable, "-m", "tests.registry.crowd", job, str(folder), str(num_processes), argument]
    done = subprocess.run(command, stdout=subprocess.PIPE, cwd=REPOSITORY, text=True, check=True)
    return [(code, answer) for code, answer in json.loads(done.stdout)]


def make_decision(version: int, head: Promotion | None, **changes: Any) -> Decision:
    values: dict[str, Any] = {
        "outcome": FIRST if head is None else PROMOTED,
        "reason": f"version {version} is better",
        "model_name": MODEL,
        "version": version,
        "champion": None if head is None else head.version,
        "rules": (Rule("superiority", "passed", "it is", "kept champion", {"low": 0.001, "p": 1 / 3}),),
        "look": Look("t" * 32, 2, 20, 0.05 / 3),
        "data_md5": "d" * 32 + ".dir",
        "num_test": 1000,
        "decided_ms": 1_760_000_000_123,
        "seconds": 0.1,
    }
    return Decision(**values | changes)


def promote(promotions: Promotions, version: int) -> int:
    """Promote a version whatever comes in between; returns how many decisions had become stale."""
    num_stale = 0
    while all(line.version != version for line in promotions.history(MODEL)):
        head = promotions.champion(MODEL)
        try:
            promotions.promote(make_decision(version, head), 0 if head is None else head.fence)
        except StaleDecisionError:
            num_stale += 1
    return num_stale


class FileTracker:
    """Stands in for the tracker: aliases in a JSON file, set with a pause in which another process could."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "aliases.json"
        self.store = SimpleNamespace(shown_uri=REGISTRY, database=None)
        self.client = self
        self.before_and_after_set: Callable[[], object] = lambda: time.sleep(0.002)

    def get_registered_model(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(aliases=json.loads(self._file.read_text()) if self._file.exists() else {})

    def get_model_version(self, name: str, version: str) -> None:
        pass

    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
        aliases = self.get_registered_model(name).aliases | {alias: version}
        self.before_and_after_set()
        new = self._file.with_suffix(f".{os.getpid()}")
        new.write_text(json.dumps(aliases))
        new.rename(self._file)
        self.before_and_after_set()


def open_tracker(project: Project, kind: str) -> Any:
    """MLflow's own registry in SQLite, or the one in a file."""
    if kind == "file":
        return FileTracker(project.home)
    from assay.tracking.runs import Tracker

    return Tracker.open(project, "unit")


def _take_night(project: Project, number: int, due: str) -> object:
    return Ledger(project).take_night(datetime.fromisoformat(due), f"run-{number}")


def _promote_all(project: Project, number: int, kind: str) -> object:
    tracker, promotions = open_tracker(project, kind), Promotions(Ledger(project), REGISTRY)
    num_stale = 0
    for version in range(number * VERSIONS_EACH + 1, (number + 1) * VERSIONS_EACH + 1):
        num_stale += promote(promotions, version)
        sync_aliases(tracker, promotions, MODEL)
    return num_stale


def _look(project: Project, number: int, _: str) -> object:
    promotions = Promotions(Ledger(project), REGISTRY)
    return [promotions.take_look("t" * 32, MODEL, 2 + number // 2, 1, 20, 0.05).number for _ in range(2)]


def _die_in_turn(project: Project, num_versions: int, kind: str) -> list[tuple[int, Any]]:
    """Promote versions by processes of which the n-th dies at its n-th statement, until one gets through."""
    ends: list[tuple[int, Any]] = []
    while not ends or ends[-1][0] == -signal.SIGKILL:
        ends += _run_all([partial(_promote_and_die, project, kind, num_versions, len(ends) + 1)])
    return ends


def _promote_and_die(project: Project, kind: str, num_versions: int, fatal_statement: int) -> object:
    tracker, promotions = open_tracker(project, kind), Promotions(Ledger(project), REGISTRY)
    count = 0

    def die(*_: object) -> None:
        nonlocal count
        count += 1
        if count == fatal_statement:
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(Engine, "before_cursor_execute", die)
    event.listen(Engine, "commit", die)
    tracker.before_and_after_set = die
    for version in range(1, num_versions + 1):
        promote(promotions, version)
        sync_aliases(tracker, promotions, MODEL)
    return fatal_statement


def _killed_at_random(project: Project, num_processes: int, kind: str) -> list[tuple[int, Any]]:
    """Promote in all processes; every now and then kill one and start it again."""
    chance = random.Random(5)
    event.listen(Engine, "before_cursor_execute", lambda *_: time.sleep(0.003))  # most die within a transaction
    ends: list[tuple[int, Any]] = []
    alive = {_fork(partial(_promote_all, project, number, kind), None): number for number in range(num_processes)}
    for _ in range(NUM_KILLS):
        time.sleep(chance.uniform(0.0, 0.03))
        (pid, answers), number = chance.choice(sorted(alive.items()))
        os.kill(pid, signal.SIGKILL)
        end = _wait(pid, answers)
        ends.append(end)
        del alive[pid, answers]
        if end[0] == -signal.SIGKILL:
            alive[_fork(partial(_promote_all, project, number, kind), None)] = number
        if not alive:
            break
    return ends + [_wait(pid, answers) for pid, answers in alive]


def _run_all(jobs: list[Job]) -> list[tuple[int, Any]]:
    gate, opener = os.pipe()
    children = [_fork(job, (gate, opener)) for job in jobs]
    os.close(gate)
    os.close(opener)
    return [_wait(pid, answers) for pid, answers in children]


def _fork(job: Job, gate: tuple[int, int] | None) -> tuple[int, int]:
    """Run a job in a new process, once the parent has closed the gate; returns its id and where its answer comes."""
    answers, answer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(answer)
        return pid, answers
    code = 0
    try:
        if gate is not None:
            os.close(gate[1])
            os.read(gate[0], 1)
        text = json.dumps(job())
    except BaseException:
        code, text = 1, json.dumps(traceback.format_exc()[-2000:])
    os.write(answer, text.encode())
    os._exit(code)


def _wait(pid: int, answers: int) -> tuple[int, Any]:
    with os.fdopen(answers) as pipe:
        text = pipe.read()
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), json.loads(text) if text else None


_JOBS = {"night": _take_night, "promote": _promote_all, "look": _look}
_WITH_ALIASES = ("promote", "die", "kill")
_WHOLE = {"die": _die_in_turn, "kill": _killed_at_random}


def main(job: str, folder: Path, num_processes: int, argument: str) -> list[tuple[int, Any]]:
    project = find_project(folder)
    if job in _WITH_ALIASES:
        import mlflow.exceptions  # once, before there are many

        assert mlflow.exceptions
    if job in _WHOLE:
        return _WHOLE[job](project, num_processes, argument)
    return _run_all([partial(_JOBS[job], project, number, argument) for number in range(num_processes)])


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])))  # noqa: T201
