"""Test metrics of a classifier, from its labels and probabilities alone.

Undefined values are left out rather than made up: ROC-AUC and average precision count the classes that have both
an example and a counter-example; precision, recall and F1 average over the classes that occur as a label or as a
prediction, as scikit-learn does.
"""

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    confusion_matrix,
    log_loss,
    precision_recall_fscore_support,
    roc_auc_score,
)

from assay.errors import NonFiniteError
from assay.records import ClassMetrics

METRIC_NAMES = (
    "accuracy",
    "precision_macro",
    "recall_macro",
    "f1_macro",
    "precision_weighted",
    "recall_weighted",
    "f1_weighted",
    "roc_auc_macro",
    "average_precision_macro",
    "log_loss",
    "brier",
    "expected_calibration_error",
)
LOWER_IS_BETTER = frozenset({"log_loss", "brier", "expected_calibration_error"})


def score(labels: np.ndarray, probabilities: np.ndarray, num_bins: int) -> dict[str, float]:
    """Compute every metric on all examples.

    Args:
        labels: True classes, int64 ``[example]``.
        probabilities: float64 ``[example, class]``; rows sum to 1. The prediction is the most probable class, the
            first one on a tie.
        num_bins: Bins of the expected calibration error.

    Returns:
        Metric name -> value, in the order of `METRIC_NAMES`. ``roc_auc_macro`` and ``average_precision_macro`` are
        missing where the labels are all of one class.

    Raises:
        NonFiniteError: A row of probabilities is not finite, below 0 or does not sum to 1, or a metric is not finite.
    """
    check_probabilities(probabilities)
    predictions, classes = probabilities.argmax(axis=1), np.arange(probabilities.shape[1])
    values = {"accuracy": float(np.mean(predictions == labels))}
    for average in ("macro", "weighted"):
        precision, recall, f1, _ = precision_recall_fscore_support(
            labels, predictions, average=average, zero_division=0.0
        )
        values |= {f"precision_{average}": precision, f"recall_{average}": recall, f"f1_{average}": f1}
    ranked = ranked_classes(labels, probabilities.shape[1])
    if ranked.size:
        is_class = labels[:, None] == ranked
        values["roc_auc_macro"] = roc_auc_score(is_class, probabilities[:, ranked], average="macro")
        values["average_precision_macro"] = average_precision_score(is_class, probabilities[:, ranked], average="macro")
    values["log_loss"] = log_loss(labels, probabilities, labels=classes)
    values["brier"] = brier_score(labels, probabilities)
    values["expected_calibration_error"] = expected_calibration_error(labels, probabilities, num_bins)
    return {name: _finite(name, values[name]) for name in METRIC_NAMES if name in values}


def score_classes(
    labels: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str]
) -> tuple[dict[str, ClassMetrics], np.ndarray]:
    """Compute precision, recall and F1 of each class against the rest, and the confusion matrix.

    A ratio with nothing to divide by (precision of a class that is never predicted, recall of a class without test
    examples) is 0.

    Args:
        labels: True classes, int64 ``[example]``.
        probabilities: float64 ``[example, class]``.
        class_names: Names of the classes.

    Returns:
        Metrics by class name, and counts int64 ``[true class, predicted class]``.
    """
    predictions, classes = probabilities.argmax(axis=1), np.arange(len(class_names))
    columns = precision_recall_fscore_support(labels, predictions, labels=classes, zero_division=0.0)
    metrics = {
        name: ClassMetrics(float(precision), float(recall), float(f1), int(support))
        for name, precision, recall, f1, support in zip(class_names, *columns, strict=True)
    }
    return metrics, confusion_matrix(labels, predictions, labels=classes)


def ranked_classes(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the classes, int64, that have an example and a counter-example: those that can be ranked."""
    counts = np.bincount(labels, minlength=num_classes)
    return np.flatnonzero((counts > 0) & (counts < len(labels)))


def brier_score(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Compute the multiclass Brier score, 0 (best) to 2.

    With ``p_ik`` the probability of class k for example i and ``y_ik`` 1 for its true class and 0 for the others::

        BS = 1/N sum_i sum_k (p_ik - y_ik)^2

    Args:
        labels: True classes, int64 ``[example]``.
        probabilities: float64 ``[example, class]``.

    Source:
        Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather Review 78(1), 1950,
        equation 2. For two classes it is twice the one-column form.
    """
    classes = np.arange(probabilities.shape[1])
    return float(brier_score_loss(labels, probabilities, labels=classes, scale_by_half=False))


def expected_calibration_error(labels: np.ndarray, probabilities: np.ndarray, num_bins: int) -> float:
    """Compute the expected calibration error of the predicted class, over bins of equal width.

    With ``B_m`` the examples whose highest probability lies in ``((m-1)/M, m/M]``, ``acc`` the share of right
    predictions in a bin and ``conf`` its mean highest probability::

        ECE = sum_{m=1..M} |B_m|/N |acc(B_m) - conf(B_m)|

    Args:
        labels: True classes, int64 ``[example]``.
        probabilities: float64 ``[example, class]``.
        num_bins: M.

    Source:
        Guo, Pleiss, Sun, Weinberger, "On calibration of modern neural networks", ICML 2017, equation 3.
    """
    confidence = probabilities.max(axis=1)
    surplus = (probabilities.argmax(axis=1) == labels) - confidence
    sums = np.bincount(confidence_bins(confidence, num_bins), weights=surplus, minlength=num_bins)
    return float(np.abs(sums).sum() / len(labels))


def confidence_bins(confidence: np.ndarray, num_bins: int) -> np.ndarray:
    """Return the bin, int64 0 to num_bins - 1, of each highest probability; bin m covers (m/M, (m+1)/M]."""
    bins: np.ndarray = np.clip(np.ceil(confidence * num_bins).astype(np.int64) - 1, 0, num_bins - 1)
    return bins


def check_probabilities(probabilities: np.ndarray) -> None:
    """Refuse what is not a probability.

    Raises:
        NonFiniteError: Names the first example with a negative or non-finite value, or whose row does not sum to 1.
    """
    good = np.isfinite(probabilities) & (probabilities >= 0.0)
    bad = np.flatnonzero(~(good.all(axis=1) & (np.abs(probabilities.sum(axis=1) - 1.0) < 1e-6)))
    if bad.size:
        row = probabilities[bad[0]]
        raise NonFiniteError(
            f"test example {bad[0]}: its class probabilities are {np.array2string(row, threshold=6)}, which no metric "
            f"can use ({bad.size} of {len(probabilities)} examples). Train the model again with a lower learning rate."
        )


def _finite(name: str, value: float) -> float:
    if not np.isfinite(value):
        raise NonFiniteError(f"test metric {name} is {value}: nothing was recorded. Look at the predictions.")
    return float(value)
