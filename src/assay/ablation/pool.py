"""Processes that train trials: one thread each, and where there are GPUs or TPU chips one device each.

Every process is an executor of its own, so one that is killed takes nothing with it but its own trials. On a CPU they
are forks of one process that has imported torch and done nothing else; with accelerators each imports it by itself, as
importing may ask the driver. Either way that is done while whoever started them does something else.
"""

import gc
import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import os
import queue
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.context import BaseContext
from types import TracebackType
from typing import Any, Self

from assay.garbage import collect_rarely
from assay.records import Trial

ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
"""Variables with which a process computes with one thread."""

_END_SECONDS = 60.0
_TRIAL_MODULE = "assay.ablation.trial"


class WorkerLostError(Exception):
    """The process that trained a trial is gone: killed, or out of memory."""


class TrialPool:
    """Some processes, and the trials that they are given.

    Args:
        environments: For each process the variables that it has beside those of this process, e.g. which device.
    """

    def __init__(self, environments: Sequence[Mapping[str, str]]) -> None:
        self._lock = threading.Lock()
        self._closed = False
        self._free: queue.Queue[_Worker] = queue.Queue()
        _open.add(self)
        self._workers = [_Worker(environment) for environment in environments]
        for worker in self._workers:
            self._free.put(worker)

    @property
    def size(self) -> int:
        """Processes, which is how many trials are trained at a time."""
        return len(self._workers)

    @property
    def process_ids(self) -> tuple[int, ...]:
        """Process ids of the processes that are there."""
        return tuple(pid for worker in self._workers for pid in worker.process_ids)

    def run(self, jobs: Sequence[Mapping[str, Any]]) -> list[Trial]:
        """Have a free process train some trials one after another; waits for one to be free.

        Args:
            jobs: `assay.ablation.trial.TrialJob` as JSON values.

        Raises:
            WorkerLostError: The process is gone; another one takes its place.
        """
        worker = self._free.get()
        try:
            return worker.run(jobs)
        except BrokenProcessPool as error:
            with self._lock:
                if not self._closed:
                    worker.start_over()
            raise WorkerLostError("the process that trained it was killed, or ran out of memory") from error
        finally:
            self._free.put(worker)

    def close(self) -> None:
        """End all processes; one that is training writes a checkpoint first."""
        with self._lock:
            self._closed = True
        for worker in self._workers:
            worker.ask_to_end()
        for worker in self._workers:
            worker.wait()
        _open.discard(self)
        _stop_fork_server()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Worker:
    """One process, and the executor that hands it work."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = dict(environment)
        self.start_over()

    def start_over(self) -> None:
        """Start a process, in place of the one that is gone."""
        context = _context(self._environment)
        self._executor = ProcessPoolExecutor(1, context, initializer=_prepare, initargs=(self._environment,))
        self._executor.submit(_import_torch)  # which also starts it

    @property
    def process_ids(self) -> list[int]:
        processes = self._executor._processes or {}
        return list(processes)

    def run(self, jobs: Sequence[Mapping[str, Any]]) -> list[Trial]:
        return self._executor.submit(_run_jobs, list(jobs)).result()

    def ask_to_end(self) -> None:
        for pid in self.process_ids:
            try:
                os.kill(pid, signal.SIGTERM)
            except ProcessLookupError:
                continue

    def wait(self) -> None:
        processes = dict(self._executor._processes or {})
        for process in processes.values():
            process.join(_END_SECONDS)
            if process.is_alive():
                process.kill()
        self._executor.shutdown(wait=True, cancel_futures=True)


def _context(environment: Mapping[str, str]) -> BaseContext:
    """Say how a process with these variables is started."""
    if not _is_forked(environment):
        return multiprocessing.get_context("spawn")
    _start_fork_server()
    return multiprocessing.get_context("forkserver")


def _is_forked(environment: Mapping[str, str]) -> bool:
    return environment == ONE_THREAD and sys.platform.startswith("linux")


def _start_fork_server() -> None:
    """Have a process import torch that others are forked from, unless it is there; returns at once."""
    multiprocessing.set_forkserver_preload([_TRIAL_MODULE])
    with _variables(ONE_THREAD), _without_interrupts():
        multiprocessing.forkserver.ensure_running()


def _stop_fork_server() -> None:
    """End it, unless a pool needs it, and at once: until it has freed what it imported, it holds our outputs open."""
    server: Any = multiprocessing.forkserver._forkserver
    if server._forkserver_pid is not None and not _open:
        os.kill(server._forkserver_pid, signal.SIGKILL)
        server._stop()


@contextmanager
def _variables(environment: Mapping[str, str]) -> Iterator[None]:
    """Set variables for what is started in the block: OpenBLAS starts its threads when it is imported."""
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Block SIGINT for what is started in the block, and from then on: Ctrl+C reaches it before it can ignore it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _prepare(environment: Mapping[str, str]) -> None:
    """Set up a fresh process, before it imports torch where it was not imported ahead."""
    os.environ.update(environment)
    gc.freeze()  # looking through what was imported ahead would copy its pages
    collect_rarely()
    # Ctrl+C reaches every process of the terminal; the one that started this one asks it to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, name="assay-parent", daemon=True).start()


def _end_with_parent() -> None:
    """Ask this process to end when the one that started it is gone, however that went."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)


def _import_torch() -> None:
    """Import what trials need."""
    from assay.ablation import trial

    assert trial


def _run_jobs(jobs: list[Mapping[str, Any]]) -> list[Trial]:
    from assay.ablation.trial import run_jobs

    return run_jobs(jobs)


def environments(device: str, num_workers: int) -> tuple[dict[str, str], ...]:
    """Return the variables of each process of a pool.

    Args:
        device: ``cpu``, ``cuda`` or ``tpu``.
        num_workers: Processes. On accelerators each gets one of the devices that this process may see.
    """
    if device == "cpu":
        return (dict(ONE_THREAD),) * num_workers
    variables = {"cuda": ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"), "tpu": ("TPU_VISIBLE_CHIPS",)}[device]
    named = next((os.environ[name] for name in variables if os.environ.get(name)), "")
    names = [name.strip() for name in named.split(",") if name.strip()]
    names += [str(index) for index in range(len(names), num_workers)]
    return tuple({**dict.fromkeys(variables, names[index]), **ONE_THREAD} for index in range(num_workers))


_open: set[TrialPool] = set()
_started: list[TrialPool] = []


def start_early(pool_environments: Sequence[Mapping[str, str]]) -> None:
    """Have torch imported for a pool that `take` will ask for; returns at once."""
    if all(_is_forked(environment) for environment in pool_environments):
        _start_fork_server()
        return
    _started.append(TrialPool(pool_environments))


def take(pool_environments: Sequence[Mapping[str, str]]) -> TrialPool:
    """Return the pool that was started early, if it has as many processes, or a new one."""
    while _started:
        pool = _started.pop()
        if pool.size == len(pool_environments):
            return pool
        pool.close()
    return TrialPool(pool_environments)


def stop_early() -> None:
    """End what `start_early` started, where nothing was trained after all."""
    while _started:
        _started.pop().close()
    _stop_fork_server()
