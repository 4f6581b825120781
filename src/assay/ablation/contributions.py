"""What each example contributes to a metric, so that a metric's uncertainty is that of a mean.

A metric T of a weighted sample is, to first order, a mean over its examples. The contribution of example i is the
metric plus its empirical influence, the derivative of T by the example's weight w_i at equal weights::

    c_i = T + N dT/dw_i

All metrics here are homogeneous of degree 0 in the weights (doubling all changes nothing), so by Euler's theorem the
influences add up to 0 and the mean of c is the metric itself, not an approximation.

Source:
    Efron, "The jackknife, the bootstrap and other resampling plans", 1982, chapter 6 (infinitesimal jackknife).
"""

import numpy as np

METRICS = ("accuracy", "f1_macro", "recall_macro", "log_loss")


def orientation(metric: str) -> float:
    """Return -1.0 where a lower value of the metric is better, otherwise 1.0."""
    return -1.0 if is_lower_better(metric) else 1.0


def is_lower_better(metric: str) -> bool:
    """Return whether a lower value of the metric is better."""
    return metric == "log_loss"


def contributions(
    metric: str, labels: np.ndarray, predictions: np.ndarray, log_losses: np.ndarray, num_classes: int
) -> np.ndarray:
    """Compute each example's contribution to a metric; their mean is the metric.

    Args:
        metric: One of `METRICS`. F1 and recall average over the classes that occur as a label or as a prediction; a
            ratio with nothing to divide by is 0.
        labels: True classes, integers ``[example]``.
        predictions: Predicted classes, integers ``[example]``.
        log_losses: ``-ln p_true``, floating point ``[example]``; only read for ``log_loss``.
        num_classes: Number of classes; labels and predictions are below it.

    Returns:
        Contributions, float64 ``[example]``.

    Raises:
        ValueError: The metric is none of `METRICS`.
    """
    if metric == "accuracy":
        return np.asarray(labels == predictions, dtype=np.float64)
    if metric == "log_loss":
        return np.asarray(log_losses, dtype=np.float64)
    if metric == "f1_macro":
        return _f1_macro(labels, predictions, num_classes)
    if metric == "recall_macro":
        return _recall_macro(labels, predictions, num_classes)
    raise ValueError(f"metric {metric!r}: must be one of {', '.join(METRICS)}")


def _f1_macro(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """Contributions to the mean F1.

    With TP_k, L_k and P_k the weight of class k among right answers, labels and predictions::

        F_k = 2 TP_k / (L_k + P_k)        dF_k/dw_i = (2 [y_i = k = p_i] - F_k ([y_i = k] + [p_i = k])) / (L_k + P_k)
    """
    as_label, as_prediction, as_both, num_occurring = _class_counts(labels, predictions, num_classes)
    sizes = as_label + as_prediction
    f1 = _ratio(2.0 * as_both, sizes)
    right = labels == predictions
    of_label = (2.0 * right - f1[labels]) / sizes[labels]
    of_prediction = -f1[predictions] / sizes[predictions]
    result: np.ndarray = f1.sum() / num_occurring + len(labels) / num_occurring * (of_label + of_prediction)
    return result


def _recall_macro(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """Contributions to the mean recall.

    In the terms of `_f1_macro`: ``R_k = TP_k / L_k`` and ``dR_k/dw_i = ([y_i = k = p_i] - R_k [y_i = k]) / L_k``.
    """
    as_label, _, as_both, num_occurring = _class_counts(labels, predictions, num_classes)
    recall = _ratio(as_both, as_label)
    influence = ((labels == predictions) - recall[labels]) / as_label[labels]
    result: np.ndarray = recall.sum() / num_occurring + len(labels) / num_occurring * influence
    return result


def _class_counts(
    labels: np.ndarray, predictions: np.ndarray, num_classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Count labels, predictions and right answers, float64 ``[class]`` each, and the classes that occur at all."""
    as_label = np.bincount(labels, minlength=num_classes).astype(np.float64)
    as_prediction = np.bincount(predictions, minlength=num_classes).astype(np.float64)
    as_both = np.bincount(labels[labels == predictions], minlength=num_classes).astype(np.float64)
    return as_label, as_prediction, as_both, int(np.count_nonzero(as_label + as_prediction))


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divide, with 0 where there is nothing to divide by."""
    ratio: np.ndarray = np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)
    return ratio
