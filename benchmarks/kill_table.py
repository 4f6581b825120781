"""Kill what can be killed at random moments of a run, and count what was lost.

    python benchmarks/kill_table.py [--kills 78] [--seed 0]

One project, two CPU workers. Each trial submits a training and sends SIGKILL to one process at a random moment: the
run's, its guardian, its worker, the starter that forks runs, either server, the keeper or the supervisor (then followed
by `assay up`). Lost is anything of: the run does not complete; its weights differ from those of an undisturbed run; an
epoch is missing or twice in MLflow; not exactly one finished MLflow run and one registered version.
"""

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from datetime import datetime
from pathlib import Path
from statistics import median

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.copies import Copy, copy_project
from tests.line.line import Line, wait_for

TARGETS = ("run", "guardian", "worker", "starter", "prefect", "mlflow", "keeper", "supervisor")
WEIGHTS = (14, 10, 14, 10, 10, 8, 6, 6)
EPOCHS = "train.num_epochs=250"
LONGEST_SECONDS = 9.0
"""From the submission to the kill; an undisturbed run takes about this long."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=sum(WEIGHTS))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    dice = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        line = Line(prepare(Path(folder)), ("services.cpu_workers=2",))
        line.up()
        try:
            table(line, dice, arguments.kills)
        finally:
            line.copy.assay("down")


def prepare(folder: Path) -> Copy:
    copy = copy_project(folder / "project")
    done = copy.assay("data", "import", "digits")
    if done.returncode:
        raise SystemExit(done.stderr)
    shutil.rmtree(copy.home / "downloads", ignore_errors=True)
    return copy


def table(line: Line, dice: random.Random, num_kills: int) -> None:
    run = submit(line, 1000)
    line.wait_for_end(run)
    wanted = outcome(line, run)
    print(f"undisturbed: {wanted}")
    targets = [target for target, weight in zip(TARGETS, WEIGHTS, strict=True) for _ in range(weight)]
    dice.shuffle(targets)
    lost: Counter[str] = Counter()
    tried: Counter[str] = Counter()
    retried: Counter[str] = Counter()
    noticed: dict[str, list[float]] = defaultdict(list)
    for number, target in enumerate(targets[:num_kills]):
        run = submit(line, 1001 + number)
        time.sleep(dice.uniform(0.0, LONGEST_SECONDS))
        stage, killed_at = line.run(run)["state"]["name"], time.time()
        kill(line, run, target)
        line.wait_for_end(run)
        found = outcome(line, run)
        states = line.states(run)
        crashes = [state for state in states if state["name"] == "Crashed"]
        tried[target] += 1
        retried[target] += bool(crashes)
        if crashes:
            noticed[target].append(datetime.fromisoformat(crashes[0]["timestamp"]).timestamp() - killed_at)
        if found != wanted:
            lost[target] += 1
        print(f"{number + 1:3d} {target:<10} while {stage:<10} crashed {len(crashes)} {found == wanted}", flush=True)
        if found != wanted:
            print(f"    LOST: {found}; {[state['name'] for state in states]}", flush=True)
    print("\ntarget      kills  runs that crashed  Crashed after, s (median, most)  lost")
    for target in TARGETS:
        seconds = noticed[target] or [float("nan")]
        span = f"{median(seconds):.1f}, {max(seconds):.1f}"
        print(f"{target:<10} {tried[target]:6d} {retried[target]:18d} {span:>32} {lost[target]:5d}")


def submit(line: Line, num_bootstrap: int) -> str:
    """Submit a run whose training is the same as every other's and whose key is its own."""
    return line.submit(EPOCHS, "train.early_stopping=null", f"evaluation.num_bootstrap={num_bootstrap}")


def outcome(line: Line, run: str) -> tuple[object, ...]:
    """What may not differ: the state, the weights, the epochs in MLflow, its status, the number of versions."""
    state = line.run(run)["state"]["name"]
    if state != "Completed":
        return (state,)
    statuses = sorted(status for _, status in line.mlflow_runs(run))
    if len(statuses) != 1:
        return state, statuses
    epochs = line.epochs_logged(run)
    return state, line.weights(run)[:16], len(epochs), len(set(epochs)), statuses


def kill(line: Line, run: str, target: str) -> None:
    """Send SIGKILL to one process."""
    if target in ("run", "guardian", "worker"):
        pid = line.run_pid(run) or wait_for(lambda: line.run_pid(run) or (ended(line, run) and -1))
        if pid == -1:  # it had just completed: a worker that waits is killed instead
            victim = line.pid_of("cpu-0")
        else:
            victim = worker(line, run) if target == "worker" else parent(pid) if target == "guardian" else pid
    elif target == "starter":
        victim = line.pid_of("cpu-starter")
    elif target == "supervisor":
        victim = parent(line.pid_of("keeper"))
    else:
        victim = line.pid_of(target)
    try:
        line.kill(victim, signal.SIGKILL)
    except (AssertionError, ProcessLookupError):
        print("    it was gone already", flush=True)
    if target == "supervisor":
        line.up()


def worker(line: Line, run: str) -> int:
    try:
        return line.worker_pid(run)
    except (AssertionError, KeyError):  # it has just completed
        return line.pid_of("cpu-0")


def parent(pid: int) -> int:
    try:
        return psutil.Process(pid).ppid()
    except psutil.NoSuchProcess:
        return pid


def ended(line: Line, run: str) -> bool:
    return line.run(run)["state"]["type"] in ("COMPLETED", "FAILED", "CANCELLED")


if __name__ == "__main__":
    main()
