"""Champion and challenger on the same frozen test examples: what each answers, and what is wrong with it.

A version is read anew from the registry, every byte checked, so that the gate judges what would be served and not
what training had in memory. A version whose data has moved since is scored again on the test examples of today; test
examples that it was trained on are known by their content and left out for both.
"""

import hashlib
import json
import time
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from assay.data.loading import Dataset
from assay.data.splits import load_seen, load_split
from assay.devices import Compute, resolve
from assay.errors import DataError, ModelFileError, NonFiniteError
from assay.evaluation.bootstrap import interval, resample
from assay.evaluation.metrics import score
from assay.evaluation.predictions import predict_probabilities, read_predictions
from assay.models.fitting import example_input, mismatch
from assay.models.spec import ModelSpec
from assay.params import RunParams
from assay.records import Evaluation, Interval, Splits
from assay.registry.load import VersionInfo, load_version
from assay.tracking.runs import Tracker, service_errors
from assay.training.session import compute_session

if TYPE_CHECKING:
    from torch import nn

PREDICTIONS_FILE = "predictions.parquet"
EVALUATION_FILE = "evaluation.json"
LATENCY_REPEATS = 100
"""Single examples that are timed for the median, after a tenth as many that are not."""
_SAME_ANSWER = 0.05
"""Largest difference of a probability that another processor's arithmetic explains."""


@dataclass(frozen=True)
class TestBench:
    """The test examples of today, and how they are computed.

    Attributes:
        tracker: The open store.
        dataset: All examples.
        splits: Their division.
        params: The sections of the run that asks.
    """

    tracker: Tracker
    dataset: Dataset
    splits: Splits
    params: RunParams

    __test__ = False  # no test of pytest's

    @cached_property
    def rows(self) -> np.ndarray:
        """Rows of test, int64 ``[example]``."""
        return load_split(self.splits).test

    @property
    def test_set(self) -> str:
        """What the budget of looks is counted by: the data's hash."""
        return self.dataset.ref.md5


@dataclass(frozen=True)
class Examined:
    """One version on the bench.

    Attributes:
        info: The version.
        evaluation: Its own test results; None where its run has none.
        spec: Its shapes and classes; None where it cannot be loaded.
        probabilities: float64 ``[example, class]`` for the bench's test rows; None where it cannot answer them.
        was_seen: Whether its training or choices saw a test example's content, bool ``[example]``; None where its
            run did not keep that.
        load_error: Why it cannot be loaded; empty if it can.
        answer_error: Why it cannot answer, e.g. NaN; empty if it can.
        reload_error: How its answers differ from those that it was evaluated with; empty if they do not.
        size_bytes: Size of its weights.
        latency_ms: Median time to answer one example on one thread.
        is_finite: Whether all of its weights are.
        is_evaluated: Whether its own test results are of exactly these test examples.
    """

    info: VersionInfo
    evaluation: Evaluation | None
    spec: ModelSpec | None = None
    probabilities: np.ndarray | None = None
    was_seen: np.ndarray | None = None
    load_error: str = ""
    answer_error: str = ""
    reload_error: str = ""
    size_bytes: int = 0
    latency_ms: float = 0.0
    is_finite: bool = True
    is_evaluated: bool = False


def examine(bench: TestBench, info: VersionInfo) -> Examined:
    """Load a version from the registry and have it answer the test examples.

    Args:
        bench: The test examples.
        info: The version.

    Returns:
        What was found; whatever is wrong with the version is said in it and not raised.

    Raises:
        ServiceError: The store fails.
    """
    examined = Examined(info, _evaluation(bench.tracker, info), was_seen=_was_seen(bench, info))
    try:
        model, spec = load_version(bench.tracker, info.ref.name, info.ref.version)
    except ModelFileError as error:
        return replace(examined, load_error=str(error))
    tensors = list(model.state_dict().values())
    examined = replace(
        examined,
        spec=spec,
        size_bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
        is_finite=all(bool(torch.isfinite(tensor).all()) for tensor in tensors),
    )
    if (found := mismatch(spec, bench.dataset.ref)) is not None:
        return replace(examined, answer_error=found)
    compute = resolve(bench.params.device)
    try:
        probabilities = predict_probabilities(model, spec, bench.dataset, bench.rows, compute)
    except NonFiniteError as error:
        return replace(examined, answer_error=str(error))
    same_test, reload_error = _compare_with_evaluation(bench, info, probabilities)
    if examined.evaluation is None:
        same_test, reload_error = False, reload_error or "its run kept no evaluation to compare with"
    return replace(
        examined,
        probabilities=probabilities,
        reload_error=reload_error,
        is_evaluated=same_test,
        latency_ms=measure_latency(model, spec, compute),
    )


def common_rows(first: Examined, second: Examined | None, num_test: int) -> np.ndarray:
    """Which test examples are fair to both: nobody's training saw them; bool ``[example]``."""
    fair = np.ones(num_test, bool)
    for examined in (first, second):
        if examined is not None and examined.was_seen is not None:
            fair &= ~examined.was_seen
    return fair


def require_enough(fair: np.ndarray, least: int, examined: Examined) -> None:
    """Refuse a comparison on too few examples.

    Raises:
        DataError: Fewer than `least` test examples are left.
    """
    if fair.sum() < least:
        name = f"{examined.info.ref.name} version {examined.info.ref.version}"
        raise DataError(
            f"{name}: of {len(fair):,} test examples only {int(fair.sum()):,} were seen by no training of the two "
            f"versions; at least {least} are needed. Nothing was moved. Train on the data as it is now, or add test "
            "examples that no version has seen."
        )


def metrics_on(bench: TestBench, examined: Examined, fair: np.ndarray) -> dict[str, Interval]:
    """Return a version's test metrics with intervals on some of the test examples; empty where it cannot answer."""
    if examined.probabilities is None:
        return {}
    if examined.evaluation is not None and examined.is_evaluated and fair.all():
        return examined.evaluation.metrics
    evaluation = bench.params.evaluation
    labels, probabilities = np.asarray(bench.dataset.labels)[bench.rows][fair], examined.probabilities[fair]
    values = score(labels, probabilities, evaluation.num_calibration_bins)
    resampled = resample(labels, probabilities, evaluation.num_bootstrap, evaluation.num_calibration_bins)
    return {name: interval(value, resampled.metrics[name], evaluation.confidence) for name, value in values.items()}


def measure_latency(model: "nn.Module", spec: ModelSpec, compute: Compute) -> float:
    """Time single examples on one thread.

    Returns:
        Median, in ms.
    """
    example = example_input(spec, 1)
    model = model.to("cpu").eval()
    alone = Compute("cpu", compute.precision, 1)
    seconds = []
    bf16 = torch.autocast("cpu", dtype=torch.bfloat16, enabled=compute.precision == "bf16")
    with compute_session(alone), torch.inference_mode(), bf16:
        for repeat in range(LATENCY_REPEATS + LATENCY_REPEATS // 10):
            begun = time.perf_counter()
            model(example)
            if repeat >= LATENCY_REPEATS // 10:
                seconds.append(time.perf_counter() - begun)
    return float(np.median(seconds)) * 1000.0


def _evaluation(tracker: Tracker, info: VersionInfo) -> Evaluation | None:
    """A version's own test results; None where its run kept none that can be read."""
    if EVALUATION_FILE not in tracker.file_names(info.ref.run_id):
        return None
    try:
        with service_errors(tracker.store):
            return tracker.load_evaluation(info.ref.run_id)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def seen_by(tracker: Tracker, info: VersionInfo) -> np.ndarray:
    """Read the contents that a version was trained and chosen on, bytes (``S16``) ``[content]``, sorted.

    Raises:
        DataError: Its run did not keep them.
        ServiceError: The store fails.
    """
    name = next((name for name in tracker.file_names(info.ref.run_id) if name.startswith("splits-")), None)
    if name is None:
        raise DataError(f"{info.ref.uri}: its run kept no division of the data.")
    with tracker.artifact(info.ref.run_id, name) as path:
        return load_seen(path)


def _was_seen(bench: TestBench, info: VersionInfo) -> np.ndarray | None:
    """Which test examples a version's training saw, by content; None where its run did not keep that."""
    try:
        seen = seen_by(bench.tracker, info)
    except DataError:
        return None
    was_seen: np.ndarray = np.isin(np.asarray(bench.dataset.content_hash)[bench.rows], seen)
    return was_seen


def _compare_with_evaluation(bench: TestBench, info: VersionInfo, probabilities: np.ndarray) -> tuple[bool, str]:
    """Compare the answers with those that the version was evaluated with, where these are of the same test examples.

    Returns:
        Whether they are of the same test examples, and how they differ in words; empty if they do not.
    """
    if PREDICTIONS_FILE not in bench.tracker.file_names(info.ref.run_id):
        return False, "its run kept no answers to compare with"
    try:
        with bench.tracker.artifact(info.ref.run_id, PREDICTIONS_FILE) as path:
            before = read_predictions(path)
    except DataError as error:
        return False, str(error)
    if before.data_md5 != bench.dataset.ref.md5 or not np.array_equal(before.rows, bench.rows):
        return False, ""
    if before.probabilities.shape != probabilities.shape:
        return False, f"{PREDICTIONS_FILE} of its run holds answers to {before.probabilities.shape[1]} classes"
    difference = np.abs(before.probabilities - probabilities)
    if difference.max() <= _SAME_ANSWER:
        return True, ""
    changed = int((before.predicted != probabilities.argmax(axis=1)).sum())
    return True, (
        f"read back from the registry it answers {changed:,} of {len(probabilities):,} test examples otherwise than "
        f"when it was evaluated (a probability differs by {difference.max():.2f})"
    )


def params_digest(params: RunParams) -> str:
    """SHA-256 (hex) of what the gate asks for."""
    text = json.dumps(params.gate.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
