"""Evaluation on test, once: load, predict, measure, compare, draw, report."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from assay.data.loading import Dataset
from assay.data.splits import load_split
from assay.devices import resolve
from assay.errors import DataError, StorageError
from assay.evaluation.baselines import Baseline, logistic_regression, majority_class
from assay.evaluation.bootstrap import Resampled, interval, resample
from assay.evaluation.figures import draw_figures
from assay.evaluation.metrics import score, score_classes
from assay.evaluation.predictions import predict, write_predictions
from assay.evaluation.report import ReportContext, render_report
from assay.models.files import load_model
from assay.models.fitting import mismatch
from assay.models.spec import ModelSpec
from assay.params import DeviceParams, EvaluationParams, flatten
from assay.progress import announce
from assay.records import ClassMetrics, Evaluation, Splits, TrainResult

_NUM_STEPS = 5


def evaluate(
    dataset: Dataset,
    splits: Splits,
    trained: TrainResult,
    params: EvaluationParams,
    device: DeviceParams,
    out_dir: Path,
    *,
    lineage: Mapping[str, str] | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> Evaluation:
    """Measure a trained model on test and write ``predictions.parquet``, ``figures/*.png`` and ``report.html``.

    Args:
        dataset: All examples.
        splits: Their division; the baselines see train, everything else sees test only.
        trained: The model.
        params: The evaluation section.
        device: Where to compute.
        out_dir: Folder for the files; made when missing.
        lineage: Name -> value of what the result came from, for the report.
        on_progress: Called with what is being done; announced to `assay.progress` by default.

    Returns:
        Metrics with intervals, baselines, and the paths of the files.

    Raises:
        DataError: The test split is empty, or the model knows other classes than the data.
        ModelFileError: The model's files are not what their manifest says.
        NonFiniteError: The model answers with NaN or infinity.
        StorageError: The folder cannot be written.
    """
    started = time.perf_counter()
    tell = _Teller(on_progress)
    _make_folder(out_dir / "figures")

    tell("answering the test examples")
    model, spec = load_model(Path(trained.model_dir))
    rows = load_split(splits)
    _check_fit(dataset, spec, rows.test)
    compute = resolve(device)
    predictions = predict(model, spec, dataset, rows.test, compute)
    write_predictions(predictions, out_dir / "predictions.parquet")
    labels, probabilities, names = predictions.labels, predictions.probabilities, predictions.class_names
    measure = partial(score, labels, num_bins=params.num_calibration_bins)

    tell("metrics and their intervals")
    values = measure(probabilities)
    per_class, confusion = score_classes(labels, probabilities, names)
    resampled = resample(labels, probabilities, params.num_bootstrap, params.num_calibration_bins)

    tell("baselines")
    baselines: dict[str, Baseline] = {
        "majority_class": majority_class(dataset.labels[rows.train], len(rows.test), names)
    }
    if (fitted := logistic_regression(dataset, rows.train, rows.test)) is not None:
        baselines["logistic_regression"] = fitted

    tell("figures")
    figures = draw_figures(
        labels,
        probabilities,
        dataset,
        rows.test,
        trained.history,
        trained.best_epoch,
        confusion,
        params.num_calibration_bins,
    )

    tell("report")
    evaluation = Evaluation(
        metrics={name: interval(value, resampled.metrics[name], params.confidence) for name, value in values.items()},
        per_class=_with_intervals(per_class, resampled, params.confidence),
        confusion=tuple(tuple(map(int, row)) for row in confusion),
        baselines={name: measure(baseline.probabilities) for name, baseline in baselines.items()},
        num_test=len(labels),
        confidence=params.confidence,
        predictions_path=str(out_dir / "predictions.parquet"),
        figures={name: str(out_dir / "figures" / f"{name}.png") for name in figures},
        report_path=str(out_dir / "report.html"),
        seconds=0.0,
        notes=_find_oddities(confusion, values, names, fitted is not None),
    )
    context = ReportContext(
        data=dataset.ref,
        splits=splits,
        trained=trained,
        model={f"model.{name}": str(value) for name, value in flatten(spec.model).items()},
        baseline_notes={name: baseline.note for name, baseline in baselines.items()},
        notes=evaluation.notes,
        num_bootstrap=params.num_bootstrap,
        num_bins=params.num_calibration_bins,
        device=compute,
        lineage=lineage or {},
    )
    page = render_report(evaluation, context, figures)
    files = {evaluation.figures[name]: png for name, png in figures.items()}
    _write_files({**files, evaluation.report_path: page.encode()})
    return replace(evaluation, seconds=time.perf_counter() - started)


class _Teller:
    """Says what is being done, to one listener or to all of them."""

    def __init__(self, listener: Callable[[str], None] | None) -> None:
        self._listener, self._done = listener, 0

    def __call__(self, text: str) -> None:
        if self._listener is not None:
            self._listener(text)
        else:
            announce("evaluate", text, done=self._done, total=_NUM_STEPS)
        self._done += 1


def _check_fit(dataset: Dataset, spec: ModelSpec, test: np.ndarray) -> None:
    if not len(test):
        raise DataError("the test split is empty: there is nothing to evaluate on. Raise split.test_fraction.")
    if (found := mismatch(spec, dataset.ref)) is not None:
        raise DataError(f"the model does not fit the data: {found}. Train on this data.")


def _with_intervals(
    per_class: Mapping[str, ClassMetrics], resampled: Resampled, confidence: float
) -> dict[str, ClassMetrics]:
    """Add intervals to each class that has test examples."""
    return {
        name: replace(
            metrics,
            intervals={
                kind: interval(getattr(metrics, kind), values[number], confidence)
                for kind, values in resampled.per_class.items()
                if metrics.support
            },
        )
        for number, (name, metrics) in enumerate(per_class.items())
    }


def _find_oddities(
    confusion: np.ndarray, values: Mapping[str, float], names: tuple[str, ...], is_fitted: bool
) -> tuple[str, ...]:
    """Say what is undefined or needs care in reading."""
    num_test, notes = int(confusion.sum()), []
    if absent := [name for name, support in zip(names, confusion.sum(axis=1), strict=True) if not support]:
        notes.append(f"Not in test, so without metrics of their own: {', '.join(absent)}.")
    if "roc_auc_macro" not in values:
        notes.append("Test holds one class only: ROC-AUC and average precision are undefined.")
    if values["accuracy"] == 1.0:
        notes.append(
            f"No mistake on {num_test:,} examples, which resampling cannot vary: the intervals are of no width. "
            f"With 95% confidence the error rate is below {min(1.0, 3 / num_test):.2g} (rule of three)."
        )
    if not is_fitted:
        notes.append(
            "Train holds one class only, or texts without a letter: there is no logistic regression to compare with."
        )
    return tuple(notes)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_written(folder, error) from error


def _write_files(contents: Mapping[str, bytes]) -> None:
    """Write files, each replaced in one step."""
    for name, content in contents.items():
        path = Path(name)
        partial_path = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            partial_path.write_bytes(content)
            os.replace(partial_path, path)
        except OSError as error:
            raise _not_written(path, error) from error
        finally:
            partial_path.unlink(missing_ok=True)


def _not_written(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"{path}: cannot write the evaluation ({error.strerror or error}). Free some space or make the folder writable."
    )
