"""Real processes: one thread each, replaced when killed, ended with whoever started them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from assay.ablation.pool import ONE_THREAD, TrialPool, WorkerLostError, environments
from tests.copies import ROOT

pytestmark = pytest.mark.slow


def children_of(pool: TrialPool) -> list[psutil.Process]:
    return [psutil.Process(pid) for pid in pool.process_ids]


def until(condition, seconds: float = 60.0) -> None:
    """Wait for something that happens; the limit only keeps a broken test from hanging."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_killed_process_is_replaced_and_takes_nothing_with_it() -> None:
    with TrialPool([ONE_THREAD] * 2) as pool:
        assert pool.size == 2
        assert pool.run([]) == []
        assert pool.run([]) == []
        before = children_of(pool)
        assert len(before) == 2
        before[0].send_signal(signal.SIGKILL)
        before[0].wait()
        answers: list[object] = []
        for _ in range(4):  # one of them falls to the process that is gone
            try:
                answers.append(pool.run([]))
            except WorkerLostError as error:
                answers.append(error)
        assert sum(isinstance(answer, WorkerLostError) for answer in answers) == 1
        after = children_of(pool)
        assert len(after) == 2
        assert before[1] in after
    assert not any(process.is_running() for process in after)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere each process imports torch by itself")
def test_processes_on_a_cpu_are_forks_of_one_that_has_torch_and_no_thread_that_computes() -> None:
    before = dict(os.environ)
    with TrialPool([ONE_THREAD] * 2) as pool:
        assert dict(os.environ) == before
        pool.run([])
        first, second = children_of(pool)
        server = first.parent()
        assert server is not None
        assert server == second.parent()
        assert server.parent() == psutil.Process()
        assert any("libtorch_cpu" in area.path for area in server.memory_maps())
        names = [Path(f"/proc/{server.pid}/task/{thread.id}/comm").read_text().strip() for thread in server.threads()]
        others = [name for name in names if name != "jemalloc_bg_thd"]  # pyarrow's, which minds forks
        assert len(others) == 1, names
        assert server.environ()["OMP_NUM_THREADS"] == "1"
    assert not server.is_running()
    with TrialPool([ONE_THREAD]) as pool:
        assert pool.run([]) == []


def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    script = (
        "import sys, time\n"
        "from assay.ablation.pool import ONE_THREAD, TrialPool\n"
        "if __name__ == '__main__':\n"
        "    pool = TrialPool([ONE_THREAD] * 2)\n"
        "    pool.run([]); pool.run([])\n"
        "    print(*pool.process_ids, flush=True)\n"
        "    time.sleep(600)\n"
    )
    (tmp_path / "start.py").write_text(script)
    command = [sys.executable, str(tmp_path / "start.py")]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as starter:
        assert starter.stdout is not None
        children = [psutil.Process(int(pid)) for pid in starter.stdout.readline().split()]
        assert len(children) == 2
        starter.send_signal(signal.SIGKILL)
        starter.wait()
        until(lambda: not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children))


def test_each_process_gets_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environments("cpu", 3) == (ONE_THREAD,) * 3
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "TPU_VISIBLE_CHIPS"):
        monkeypatch.delenv(name, raising=False)
    assert [item["CUDA_VISIBLE_DEVICES"] for item in environments("cuda", 3)] == ["0", "1", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-5f,GPU-7a")
    assert [item["CUDA_VISIBLE_DEVICES"] for item in environments("cuda", 2)] == ["GPU-5f", "GPU-7a"]
    monkeypatch.setenv("TPU_VISIBLE_CHIPS", "2,3")
    assert [item["TPU_VISIBLE_CHIPS"] for item in environments("tpu", 2)] == ["2", "3"]
