"""Metrics of a running training: buffered, thinned and written by a background thread.

Writing one metric costs MLflow 0.15 ms of Python, which competes with training for the interpreter. So while
training runs the writer may use `CPU_SHARE` of the elapsed time and leaves the rest in the buffer; what is left is
written once training is over. Epoch metrics go first.

Every metric keeps the timestamp of the record it came from. MLflow stores an equal metric once, so a resumed run
that repeats its records logs nothing twice.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Self

from assay.errors import NonFiniteError, ServiceError
from assay.records import EpochRecord, PretrainingRecord, StepRecords

if TYPE_CHECKING:
    from mlflow import MlflowClient

CPU_SHARE = 0.003
"""Share of the elapsed time that the writer may use while training runs."""

START_SECONDS = 0.02
"""What the writer may use on top, so that the first epochs are seen soon."""

REQUEST_SECONDS = 0.005
"""Fixed cost of one request, about."""

BATCH_SIZE = 1000
"""Metrics in one request; MLflow's limit."""

MIN_BATCH_SIZE = 50
"""While training runs, fewer are sent only if there are no more."""

NUM_DENSE_STEPS = 1000
"""Steps up to here are all logged; from there on every 2nd, from twice as far every 4th, and so on."""

EPOCH_METRICS = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "learning_rate", "seconds")
HEALTH_METRICS = ("grad_norm", "weight_norm", "activation_mean", "activation_std", "dead_share")
"""What is logged of each layer, as ``health/<layer>/<name>``."""

NUM_DENSE_EPOCHS = 100
"""Like `NUM_DENSE_STEPS`, for what is logged of layers."""

PRETRAINING_METRICS = ("loss", "accuracy", "learning_rate", "seconds")
STEP_METRICS = {"loss": "step/loss", "learning_rate": "step/learning_rate", "grad_norm": "step/grad_norm"}

_Point = tuple[str, float, int, int]
"""Name, value, Unix time in ms, step; the order of MLflow's `Metric`."""

_log = logging.getLogger(__name__)


def is_logged_step(step: int, num_dense: int = NUM_DENSE_STEPS) -> bool:
    """Whether a step's metrics are kept: a rule of the step alone, so that a resumed run keeps the same ones."""
    stride = 1
    while step > num_dense * stride:
        stride *= 2
    return step % stride == 0


def require_finite(name: str, value: float, step: int | None = None) -> float:
    """Return the value.

    Raises:
        NonFiniteError: It is NaN or infinite; MLflow would store infinity as a huge number that ranks first.
    """
    if math.isfinite(value):
        return value
    where = "" if step is None else f" at step {step}"
    raise NonFiniteError(f"metric {name}{where} is {value}: not logged. Only finite values can be compared.")


class MetricStream:
    """Logs one run's metrics; use as a context manager, which ends with everything written.

    Args:
        client: Open MLflow client.
        run_id: The run.
        start_time_ms: When the run started; system metrics are logged at the second since then.
        flush_seconds: Time between two writes while training runs.
        system_metrics_seconds: Time between two samples of CPU, memory and GPU; 0 takes none.
    """

    def __init__(
        self,
        client: "MlflowClient",
        run_id: str,
        start_time_ms: int,
        flush_seconds: float = 5.0,
        system_metrics_seconds: float = 10.0,
    ) -> None:
        self._client = client
        self._run_id = run_id
        self._flush_seconds = flush_seconds
        self._urgent: deque[_Point] = deque()
        self._bulk: deque[_Point] = deque()
        self._spent_seconds = 0.0
        self._seconds_per_metric = 0.0002
        self._started = time.monotonic()
        self._training = True
        self._closing = False
        self._error: Exception | None = None
        self._wake = threading.Condition()
        self._sampler = _SystemSampler(start_time_ms, system_metrics_seconds)
        self._thread = threading.Thread(target=self._run, name="assay-metrics", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            self.close()
        except ServiceError:
            # An exception that is under way says more than the metrics that it left behind.
            if error is None:
                raise
            _log.warning("run %s: its last metrics could not be written", self._run_id, exc_info=True)

    def log_epoch(self, record: EpochRecord) -> None:
        """Log one epoch, at its optimizer step; of many, what is said of layers is thinned as steps are.

        Raises:
            NonFiniteError: A value is NaN or infinite.
        """
        values = {name: getattr(record, name) for name in EPOCH_METRICS}
        self.log_metrics(values | {"epoch": float(record.epoch)}, record.step, record.timestamp_ms)
        if is_logged_step(record.epoch, NUM_DENSE_EPOCHS):
            self._bulk.extend(
                [
                    (key, require_finite(key, value, record.step), record.timestamp_ms, record.step)
                    for layer in record.health
                    for name in HEALTH_METRICS
                    if (value := getattr(layer, name)) is not None
                    for key in (f"health/{layer.name}/{name}",)
                ]
            )

    def log_pretraining(self, record: PretrainingRecord) -> None:
        """Log one epoch of pretraining, at its optimizer step, which counts apart from training's.

        Raises:
            NonFiniteError: A value is NaN or infinite.
        """
        values = {f"pretrain/{name}": getattr(record, name) for name in PRETRAINING_METRICS}
        self.log_metrics(values, record.step, record.timestamp_ms)

    def log_metrics(self, values: dict[str, float], step: int, timestamp_ms: int) -> None:
        """Log a few values of one moment.

        Raises:
            NonFiniteError: A value is NaN or infinite.
        """
        self._urgent.extend(
            [(name, float(require_finite(name, value, step)), timestamp_ms, step) for name, value in values.items()]
        )

    def log_steps(self, records: StepRecords) -> None:
        """Log consecutive optimizer steps, thinned by `is_logged_step`.

        Raises:
            NonFiniteError: A value is NaN or infinite.
        """
        kept = [row for row, step in enumerate(records.step) if is_logged_step(step)]
        for column, name in STEP_METRICS.items():
            values = getattr(records, column)
            # Kept as plain tuples: making MLflow's objects here would cost training time.
            self._bulk.extend(
                [
                    (name, require_finite(name, values[row], records.step[row]), records.timestamp_ms[row], step)
                    for row, step in ((row, records.step[row]) for row in kept)
                ]
            )

    @property
    def cpu_seconds(self) -> float:
        """What the writer has used so far."""
        return self._spent_seconds

    def training_done(self) -> None:
        """Write what is buffered as fast as it goes; returns at once."""
        with self._wake:
            self._training = False
            self._wake.notify()

    def close(self) -> None:
        """Write everything and stop the thread.

        Raises:
            ServiceError: Some metrics could not be written; says how many and why.
        """
        with self._wake:
            self._training, self._closing = False, True
            self._wake.notify()
        self._thread.join()
        left = len(self._urgent) + len(self._bulk)
        if left:
            raise ServiceError(
                f"run {self._run_id}: {left} metrics could not be written to MLflow ({self._error}). "
                "Run the same command again: it goes on from the checkpoint and logs them."
            ) from self._error

    def _run(self) -> None:
        """The thread: write every `flush_seconds`, and once more after `close`."""
        while True:
            with self._wake:
                if not self._closing and not (self._drainable and self._error is None):
                    self._wake.wait(self._flush_seconds)
                closing = self._closing
            self._error = self._flush()
            if closing:
                return

    @property
    def _drainable(self) -> bool:
        return not self._training and bool(self._urgent or self._bulk)

    def _flush(self) -> Exception | None:
        """Write what may be written now; return what went wrong, with the metrics still buffered."""
        from mlflow.entities import Metric

        try:
            started = time.thread_time()
            self._urgent.extend(self._sampler.sample())
            self._account(time.thread_time() - started, 0)
            while (counts := self._next_counts()) != (0, 0):
                started = time.thread_time()
                batch = _first(self._urgent, counts[0]) + _first(self._bulk, counts[1])
                self._client.log_batch(self._run_id, metrics=[Metric(*point) for point in batch])
                for queue, count in zip((self._urgent, self._bulk), counts, strict=True):
                    for _ in range(count):
                        queue.popleft()
                self._account(time.thread_time() - started, len(batch))
        except Exception as error:  # whatever it is, training goes on and `close` reports it
            if self._error is None:
                _log.warning("run %s: metrics stay buffered, MLflow cannot be written: %s", self._run_id, error)
            return error
        return None

    def _next_counts(self) -> tuple[int, int]:
        """How many urgent and how many other metrics the next request may hold."""
        room = BATCH_SIZE
        if self._training:
            seconds = START_SECONDS + CPU_SHARE * (time.monotonic() - self._started) - self._spent_seconds
            room = min(room, int((seconds - REQUEST_SECONDS) / self._seconds_per_metric))
            # Requests of a few metrics would spend the allowance on their fixed cost.
            if room < min(MIN_BATCH_SIZE, len(self._urgent) + len(self._bulk)):
                room = 0
        num_urgent = min(room, len(self._urgent))
        return num_urgent, min(room - num_urgent, len(self._bulk))

    def _account(self, seconds: float, num_metrics: int) -> None:
        self._spent_seconds += seconds
        if num_metrics >= MIN_BATCH_SIZE:
            self._seconds_per_metric = max(seconds / num_metrics, 1e-6)


def _first(queue: deque[_Point], count: int) -> list[_Point]:
    """Copy without an iterator: another thread may append meanwhile."""
    return [queue[index] for index in range(count)]


class _SystemSampler:
    """CPU, memory and GPU load under MLflow's own names, from MLflow's own monitors."""

    def __init__(self, start_time_ms: int, every_seconds: float) -> None:
        self._start_time_ms = start_time_ms
        self._every_seconds = every_seconds
        self._next = time.monotonic() if every_seconds > 0 else math.inf
        self._monitors: list[Any] | None = None

    def sample(self) -> Iterable[_Point]:
        if time.monotonic() < self._next:
            return ()
        self._next = time.monotonic() + self._every_seconds
        now_ms = int(time.time() * 1000)
        step = max(0, (now_ms - self._start_time_ms) // 1000)
        values: dict[str, float] = {}
        for monitor in self._open_monitors():
            monitor.collect_metrics()
            values |= monitor.aggregate_metrics()
            monitor.clear_metrics()
        return [
            (f"system/{name}", float(value), now_ms, step) for name, value in values.items() if math.isfinite(value)
        ]

    def _open_monitors(self) -> list[Any]:
        if self._monitors is None:
            from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
            from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

            self._monitors = [CPUMonitor()]  # type: ignore[no-untyped-call]
            try:
                self._monitors.append(GPUMonitor())  # type: ignore[no-untyped-call]
            except (ImportError, RuntimeError):
                _log.debug("no GPU metrics: no NVIDIA GPU, or nvidia-ml-py is not installed")
        return self._monitors
