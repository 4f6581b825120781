import dataclasses
import math
import threading
import time

import pytest

from assay.errors import NonFiniteError, ServiceError
from assay.records import LayerHealth
from assay.tracking.metrics import NUM_DENSE_EPOCHS, NUM_DENSE_STEPS, MetricStream, is_logged_step
from assay.tracking.runs import OpenRun, Tracker
from tests.tracking.parts import START_MS, make_epoch, make_steps


@pytest.fixture
def run(sqlite_tracker: Tracker) -> OpenRun:
    experiment = sqlite_tracker.client.create_experiment("metrics")
    info = sqlite_tracker.client.create_run(experiment).info
    return OpenRun(info.run_id, experiment, info.start_time, continued=False)


def history(tracker: Tracker, run: OpenRun, name: str) -> list[tuple[int, float]]:
    return sorted((item.step, item.value) for item in tracker.client.get_metric_history(run.run_id, name))


def test_nothing_is_lost_at_the_end(sqlite_tracker: Tracker, run: OpenRun) -> None:
    with sqlite_tracker.metrics(run, flush_seconds=3600, system_metrics_seconds=0) as stream:
        stream.log_steps(make_steps(1, 900))
        stream.log_epoch(make_epoch(90))
    assert history(sqlite_tracker, run, "step/loss") == [(step, 1.0 / step) for step in range(1, 901)]
    assert history(sqlite_tracker, run, "val_loss") == [(900, 0.4 / 90)]


def test_each_layer_is_logged_and_what_it_lacks_is_not(sqlite_tracker: Tracker, run: OpenRun) -> None:
    layers = (
        LayerHealth("convs.0", "Conv2d", 0.5, 2.0, -0.25, 1.5, 0.125, 0.0),
        LayerHealth("positions", "Embedding", 0.75, 3.0),
        LayerHealth("layers.0.a to layers.1.b", "", 0.25, 1.0),
    )
    with sqlite_tracker.metrics(run, flush_seconds=3600, system_metrics_seconds=0) as stream:
        stream.log_epoch(dataclasses.replace(make_epoch(2), health=layers))
    stored = sqlite_tracker.client.get_run(run.run_id).data.metrics
    assert {name: value for name, value in stored.items() if name.startswith("health/")} == {
        "health/convs.0/grad_norm": 0.5,
        "health/convs.0/weight_norm": 2.0,
        "health/convs.0/activation_mean": -0.25,
        "health/convs.0/activation_std": 1.5,
        "health/convs.0/dead_share": 0.125,
        "health/positions/grad_norm": 0.75,
        "health/positions/weight_norm": 3.0,
        "health/layers.0.a to layers.1.b/grad_norm": 0.25,
        "health/layers.0.a to layers.1.b/weight_norm": 1.0,
    }
    assert history(sqlite_tracker, run, "health/convs.0/grad_norm") == [(20, 0.5)]


def test_layers_of_many_epochs_are_thinned(sqlite_tracker: Tracker, run: OpenRun) -> None:
    layers = (LayerHealth("a", "Linear", 0.5, 2.0),)
    with sqlite_tracker.metrics(run, flush_seconds=3600, system_metrics_seconds=0) as stream:
        for number in (NUM_DENSE_EPOCHS, NUM_DENSE_EPOCHS + 1, NUM_DENSE_EPOCHS + 2):
            stream.log_epoch(dataclasses.replace(make_epoch(number), health=layers))
    steps = [step for step, _ in history(sqlite_tracker, run, "health/a/grad_norm")]
    assert steps == [10 * NUM_DENSE_EPOCHS, 10 * (NUM_DENSE_EPOCHS + 2)]
    assert len(history(sqlite_tracker, run, "val_loss")) == 3


def test_buffered_metrics_are_written_when_training_fails(sqlite_tracker: Tracker, run: OpenRun) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        sqlite_tracker.metrics(run, flush_seconds=3600, system_metrics_seconds=0) as stream,
    ):
        stream.log_epoch(make_epoch(1))
        raise ZeroDivisionError
    assert history(sqlite_tracker, run, "val_loss") == [(10, 0.4)]


def test_metrics_appear_while_training_runs(sqlite_tracker: Tracker, run: OpenRun) -> None:
    with sqlite_tracker.metrics(run, flush_seconds=0.05, system_metrics_seconds=0) as stream:
        stream.log_epoch(make_epoch(1))
        while not history(sqlite_tracker, run, "val_loss"):
            time.sleep(0.05)


def test_the_rest_is_written_once_training_is_done(sqlite_tracker: Tracker, run: OpenRun) -> None:
    with sqlite_tracker.metrics(run, flush_seconds=3600, system_metrics_seconds=0) as stream:
        stream.log_steps(make_steps(1, 500))
        stream.training_done()
        while len(history(sqlite_tracker, run, "step/loss")) < 500:
            time.sleep(0.05)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_values_are_refused(sqlite_tracker: Tracker, run: OpenRun, value: float) -> None:
    with sqlite_tracker.metrics(run, system_metrics_seconds=0) as stream:
        with pytest.raises(NonFiniteError, match="metric val_loss at step 20 is"):
            stream.log_epoch(make_epoch(2, val_loss=value))
        with pytest.raises(NonFiniteError, match="metric quality at step 3"):
            stream.log_metrics({"quality": value}, step=3, timestamp_ms=START_MS)
    assert sqlite_tracker.client.get_run(run.run_id).data.metrics == {}


def test_system_metrics_carry_mlflow_names(sqlite_tracker: Tracker, run: OpenRun) -> None:
    with sqlite_tracker.metrics(run):
        pass
    stored = sqlite_tracker.client.get_run(run.run_id).data.metrics
    assert 0 <= stored["system/cpu_utilization_percentage"] <= 100
    assert stored["system/system_memory_usage_megabytes"] > 0


@pytest.mark.parametrize(
    ("step", "logged"),
    [
        (1, True),
        (NUM_DENSE_STEPS, True),
        (NUM_DENSE_STEPS + 1, False),
        (NUM_DENSE_STEPS + 2, True),
        (2 * NUM_DENSE_STEPS + 2, False),
        (2 * NUM_DENSE_STEPS + 4, True),
    ],
)
def test_late_steps_are_thinned(step: int, logged: bool) -> None:
    assert is_logged_step(step) is logged


def test_a_million_steps_stay_few_thousand_points() -> None:
    assert sum(map(is_logged_step, range(1, 1_000_001))) <= NUM_DENSE_STEPS * 6


class FailingClient:
    """Stands in for a store that is away: refuses while `away` is set."""

    def __init__(self) -> None:
        self.away = True
        self.asked = threading.Event()
        self.stored: list[object] = []

    def log_batch(self, run_id: str, metrics: list[object]) -> None:
        self.asked.set()
        if self.away:
            raise ConnectionError("no route to host")
        self.stored += metrics


def test_a_store_that_comes_back_gets_everything() -> None:
    client = FailingClient()
    with MetricStream(client, "r1", START_MS, flush_seconds=0.05, system_metrics_seconds=0) as stream:
        stream.log_steps(make_steps(1, 40))
        stream.log_epoch(make_epoch(1))
        assert client.asked.wait(30)
        client.away = False
    assert len(client.stored) == 3 * 40 + 7


def test_a_store_that_stays_away_is_reported_at_the_end() -> None:
    with (
        pytest.raises(ServiceError, match=r"run r1: 120 metrics could not be written.*no route to host"),
        MetricStream(FailingClient(), "r1", START_MS, flush_seconds=3600, system_metrics_seconds=0) as stream,
    ):
        stream.log_steps(make_steps(1, 40))


def test_a_failing_store_does_not_hide_why_training_failed() -> None:
    with (
        pytest.raises(ZeroDivisionError),
        MetricStream(FailingClient(), "r1", START_MS, flush_seconds=3600, system_metrics_seconds=0) as stream,
    ):
        stream.log_steps(make_steps(1, 4))
        raise ZeroDivisionError
