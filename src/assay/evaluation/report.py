"""One self-contained HTML page about an evaluation: no other file, no network, no script."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import jinja2

from assay.devices import Compute
from assay.evaluation.health_figure import HEALTH_COLUMNS, health_rows
from assay.evaluation.metrics import LOWER_IS_BETTER, METRIC_NAMES
from assay.records import SERIES, TABLE, TEXT, ClassMetrics, DataRef, Evaluation, Interval, Splits, TrainResult

_LABELS = {
    "accuracy": "accuracy",
    "precision_macro": "precision, macro",
    "recall_macro": "recall, macro",
    "f1_macro": "F1, macro",
    "precision_weighted": "precision, weighted",
    "recall_weighted": "recall, weighted",
    "f1_weighted": "F1, weighted",
    "roc_auc_macro": "ROC-AUC, one against the rest, macro",
    "average_precision_macro": "average precision, macro",
    "log_loss": "log-loss",
    "brier": "Brier score (0 to 2)",
    "expected_calibration_error": "expected calibration error",
}
_CAPTIONS = {
    "confusion_matrix": ("Confusion matrix", "Right answers in blue, mistakes in orange, by share of the true class."),
    "roc_curves": ("ROC curves", "Each class against the rest."),
    "precision_recall_curves": ("Precision and recall", "Each class against the rest."),
    "reliability": (
        "Reliability",
        "How often the answer is right against the probability it was given, with Wilson's 95% intervals.",
    ),
    "learning_curves": ("Learning curves", "The dashed line marks the epoch whose weights were kept."),
    "training_health": ("Training health", "Each layer at an epoch's end, from the first (dark) to the last (light)."),
    "worst_mistakes": (
        "Worst mistakes",
        "The least probability for the true class first: the true class, then the answer and its probability.",
    ),
}
_SHOWN = {
    TEXT: "Beside them, the beginning of the text.",
    SERIES: "One line for each of the first channels.",
    TABLE: "Beside them, the values farthest from the mean of the true class, in its standard deviations (z).",
}
"""Kind of data -> what the worst mistakes are drawn as, where it does not go without saying."""
_NUM_CONFUSIONS = 5
_NOTHING = "-"


@dataclass(frozen=True)
class ReportContext:
    """What the page says beside the evaluation itself.

    Attributes:
        data: The data.
        splits: Its division.
        trained: The training.
        model: Name -> value of what describes the model, e.g. its params.
        baseline_notes: Baseline name -> how it was made.
        notes: Sentences about what is odd or was left out.
        num_bootstrap: Resamples behind each interval.
        num_bins: Bins of the calibration error.
        device: Where the test examples were answered.
        lineage: Name -> value, e.g. git commit and run key.
    """

    data: DataRef
    splits: Splits
    trained: TrainResult
    model: Mapping[str, str]
    baseline_notes: Mapping[str, str]
    notes: Sequence[str]
    num_bootstrap: int
    num_bins: int
    device: Compute
    lineage: Mapping[str, str]


def render_report(evaluation: Evaluation, context: ReportContext, figures: Mapping[str, bytes]) -> str:
    """Render the page; names of classes and files are escaped, whatever they hold.

    Args:
        evaluation: The results.
        context: Everything else.
        figures: Figure name -> PNG bytes, in the order of the page.

    Returns:
        HTML.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8"))
    names = context.data.class_names
    return template.render(
        title=f"Model report: {context.data.source}",
        summary=_summary(evaluation),
        headline=[_headline(name, evaluation) for name in ("accuracy", "f1_macro", "roc_auc_macro", "log_loss")],
        facts=_facts(context),
        level=f"{100 * evaluation.confidence:.4g}%",
        baseline_names=[name.replace("_", " ") for name in evaluation.baselines],
        metrics=[_metric_row(name, evaluation) for name in METRIC_NAMES if name in evaluation.metrics],
        health_columns=HEALTH_COLUMNS,
        health=health_rows(context.trained.history),
        notes=[
            *context.trained.warnings,
            *context.notes,
            *(f"{n.replace('_', ' ')}: {note}" for n, note in context.baseline_notes.items()),
        ],
        classes=[_class_row(k, name, evaluation.per_class[name]) for k, name in enumerate(names)],
        confusions=_frequent_confusions(evaluation, names),
        figures=[_figure(name, png, context.data.kind) for name, png in figures.items()],
        method=_method(evaluation, context),
        lineage=list(context.lineage.items()),
    )


def _summary(evaluation: Evaluation) -> str:
    accuracy = evaluation.metrics["accuracy"].value
    wrong = round((1.0 - accuracy) * evaluation.num_test)
    beside = ", ".join(
        f"{name.replace('_', ' ')} {values['accuracy']:.3f}" for name, values in evaluation.baselines.items()
    )
    return f"{wrong:,} mistakes on {evaluation.num_test:,} test examples. Baselines' accuracy: {beside}."


def _headline(name: str, evaluation: Evaluation) -> dict[str, str]:
    found = evaluation.metrics.get(name)
    if found is None:
        return {"label": _LABELS[name], "value": _NOTHING, "interval": "undefined on this test split"}
    label = "ROC-AUC, macro" if name == "roc_auc_macro" else _LABELS[name]
    return {"label": label, "value": _number(found.value), "interval": _ends(found)}


def _facts(context: ReportContext) -> list[tuple[str, str]]:
    data, splits, trained = context.data, context.splits, context.trained
    kept = f"epoch {trained.best_epoch} of {len(trained.history)}"
    return [
        ("data", f"{data.source}, {data.num_examples:,} examples, {len(data.class_names)} classes"),
        ("data md5", data.md5),
        _contents(data),
        ("split", f"{splits.num_train:,} train, {splits.num_val:,} val, {splits.num_test:,} test"),
        *context.model.items(),
        ("parameters", f"{trained.num_parameters:,}"),
        ("weights kept", kept + (", stopped early" if trained.stopped_early else "")),
        ("trained on", _place(trained.device, trained.precision, trained.num_threads)),
        ("training speed", f"{trained.samples_per_second:,.0f} samples/s, {trained.seconds:.1f} s in all"),
        ("tested on", _place(context.device.device, context.device.precision, context.device.num_threads)),
    ]


def _contents(data: DataRef) -> tuple[str, str]:
    """What one example is."""
    match data.kind:
        case "image":
            height, width, channels = data.image_shape
            return "images", f"{height} x {width} pixels, {channels} channel{'s' if channels != 1 else ''}"
        case "text":
            return "texts", f"at most {data.shape[0]:,} bytes of UTF-8"
        case "series":
            steps, channels = data.shape
            return "series", f"at most {steps:,} steps, {channels} channel{'s' if channels != 1 else ''}"
        case _:
            return "rows", f"{data.shape[0]:,} column{'s' if data.shape[0] != 1 else ''}"


def _place(device: str, precision: str, num_threads: int) -> str:
    threads = f", {num_threads} thread{'s' if num_threads != 1 else ''}" if device == "cpu" else ""
    return f"{device}, {precision}{threads}"


def _metric_row(name: str, evaluation: Evaluation) -> dict[str, Any]:
    found = evaluation.metrics[name]
    arrow = " ↓" if name in LOWER_IS_BETTER else ""
    return {
        "label": _LABELS[name] + arrow,
        "value": _number(found.value),
        "interval": _ends(found),
        "baselines": [
            _number(values[name]) if name in values else _NOTHING for values in evaluation.baselines.values()
        ],
    }


def _class_row(number: int, name: str, metrics: ClassMetrics) -> dict[str, Any]:
    row: dict[str, Any] = {"number": str(number), "name": name, "support": f"{metrics.support:,}"}
    if not metrics.support:
        return row | {"precision": _NOTHING, "recall": _NOTHING, "f1": _NOTHING, "interval": "not in test"}
    found = metrics.intervals.get("f1")
    return row | {
        "precision": _number(metrics.precision),
        "recall": _number(metrics.recall),
        "f1": _number(metrics.f1),
        "interval": _ends(found) if found else _NOTHING,
    }


def _frequent_confusions(evaluation: Evaluation, names: Sequence[str]) -> list[dict[str, Any]]:
    cells = [
        (count, true, predicted)
        for true, row in enumerate(evaluation.confusion)
        for predicted, count in enumerate(row)
        if count and true != predicted
    ]
    cells.sort(key=lambda cell: (-cell[0], cell[1], cell[2]))
    return [
        {"true": names[t], "predicted": names[p], "count": count, "support": sum(evaluation.confusion[t])}
        for count, t, p in cells[:_NUM_CONFUSIONS]
    ]


def _figure(name: str, png: bytes, kind: str) -> dict[str, str]:
    title, caption = _CAPTIONS[name]
    if name == "worst_mistakes":
        caption = f"{caption} {_SHOWN.get(kind, '')}".rstrip()
    return {"title": title, "caption": caption, "base64": base64.b64encode(png).decode("ascii")}


def _method(evaluation: Evaluation, context: ReportContext) -> list[str]:
    level = f"{100 * evaluation.confidence:.4g}%"
    return [
        f"The {evaluation.num_test:,} test examples were answered once, after training was over and its epoch "
        "chosen on val. No choice was made on them.",
        f"Intervals are {level} percentile intervals of {context.num_bootstrap:,} bootstrap resamples of the test "
        "examples, drawn plainly with a fixed seed. They hold the chance in the test examples, not that of training "
        "again with another seed. A calibration error only grows by resampling, so its interval lies high.",
        "Macro averages count each class alike; weighted ones by its test examples. Precision, recall and F1 average "
        "over the classes that occur as label or answer, ROC-AUC and average precision over those in test.",
        f"Expected calibration error: {context.num_bins} equal-width bins of the answer's probability (Guo et al., "
        "2017, equation 3). Brier score: squared distance of the probabilities from the truth, summed over classes "
        "(Brier, 1950).",
    ]


def _number(value: float) -> str:
    """Four decimals, cut where rounding would turn an imperfect score into a perfect one."""
    if 0.99995 <= value < 1.0:
        return "0.9999"
    return f"{value:.4f}"


def _ends(interval: Interval) -> str:
    return f"{_number(interval.low)} to {_number(interval.high)}"
