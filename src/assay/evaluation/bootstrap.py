"""Bootstrap intervals of every test metric, all resamples of a block at once.

A resample draws N test examples with replacement, plainly: not within classes, because examples to come will not
keep the test split's class counts either. So the intervals hold the uncertainty of the class shares too, and a class
may be missing from a resample; the metrics then treat it as `assay.evaluation.metrics` does.

A resample is the vector of how often it holds each example. Sums over a resample are products with a sparse matrix
made once, in sorted order where ranks matter, so nothing is drawn out or sorted again.

Source:
    Efron, Tibshirani, "An introduction to the bootstrap", 1993, chapter 13 (percentile interval).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from assay.evaluation.log_loss import true_class_loss
from assay.evaluation.metrics import confidence_bins, ranked_classes
from assay.records import Interval

_SEED = 0
_BLOCK_CELLS = 2_500_000


@dataclass(frozen=True)
class Resampled:
    """Metrics of many resamples.

    Attributes:
        metrics: Metric name -> float64 ``[resample]``; NaN where a resample leaves the metric undefined.
        per_class: ``precision``, ``recall`` and ``f1`` -> float64 ``[class, resample]``.
    """

    metrics: dict[str, np.ndarray]
    per_class: dict[str, np.ndarray]


def resample(labels: np.ndarray, probabilities: np.ndarray, num_resamples: int, num_bins: int) -> Resampled:
    """Compute every metric on resamples of the test examples; the same input gives the same numbers.

    Args:
        labels: True classes, int64 ``[example]``.
        probabilities: float64 ``[example, class]``.
        num_resamples: Number of resamples.
        num_bins: Bins of the expected calibration error.
    """
    blocks = [weigh(labels, probabilities, weights, num_bins) for weights in draw_weights(len(labels), num_resamples)]
    return Resampled(
        {name: np.concatenate([block.metrics[name] for block in blocks]) for name in blocks[0].metrics},
        {name: np.concatenate([block.per_class[name] for block in blocks], axis=1) for name in blocks[0].per_class},
    )


def interval(value: float, resampled: np.ndarray, confidence: float) -> Interval:
    """Put a percentile interval around an estimate.

    The ends are the (1 - c)/2 and (1 + c)/2 quantiles of the resampled values, those left undefined apart.

    Args:
        value: The estimate on all examples.
        resampled: float64 ``[resample]``.
        confidence: Level c.
    """
    defined = resampled[np.isfinite(resampled)]
    if not defined.size:
        return Interval(value, value, value)
    low, high = np.quantile(defined, [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0])
    return Interval(value, float(low), float(high))


def draw_weights(num_examples: int, num_resamples: int) -> Iterator[np.ndarray]:
    """Draw resamples in blocks that fit the processor's cache.

    Args:
        num_examples: Test examples.
        num_resamples: Resamples in all.

    Yields:
        How often each resample holds each example, float32 ``[example, resample]``; columns sum to `num_examples`.
    """
    rng = np.random.default_rng(_SEED)
    block = max(1, _BLOCK_CELLS // num_examples)
    for start in range(0, num_resamples, block):
        size = min(block, num_resamples - start)
        drawn = rng.integers(num_examples, size=(size, num_examples))
        drawn += np.arange(size)[:, None] * num_examples
        counts = np.bincount(drawn.ravel(), minlength=size * num_examples)
        yield np.ascontiguousarray(counts.reshape(size, num_examples).T, dtype=np.float32)


def weigh(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray, num_bins: int) -> Resampled:
    """Compute every metric with the examples weighted.

    Args:
        labels: True classes, int64 ``[example]``.
        probabilities: float64 ``[example, class]``.
        weights: Whole numbers, float32 ``[example, resample]``; columns sum to the number of examples.
        num_bins: Bins of the expected calibration error.
    """
    metrics, per_class = _confusion_metrics(labels, probabilities, weights)
    metrics |= _rank_metrics(labels, probabilities, weights)
    metrics |= _probability_metrics(labels, probabilities, weights, num_bins)
    return Resampled(metrics, per_class)


def _confusion_metrics(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Accuracy, and precision, recall and F1 from each class's weight as label, as prediction and as both."""
    num_examples, num_classes = probabilities.shape
    predictions = probabilities.argmax(axis=1)
    right = np.flatnonzero(predictions == labels)
    as_label = _sums(labels, np.arange(num_examples), num_classes, weights)
    as_prediction = _sums(predictions, np.arange(num_examples), num_classes, weights)
    as_both = _sums(labels[right], right, num_classes, weights)
    per_class = {
        "precision": _ratio(as_both, as_prediction),
        "recall": _ratio(as_both, as_label),
        "f1": _ratio(2.0 * as_both, as_label + as_prediction),
    }
    num_occurring = np.count_nonzero(as_label + as_prediction, axis=0)
    metrics = {"accuracy": as_both.sum(axis=0) / num_examples}
    for name, values in per_class.items():
        metrics[f"{name}_macro"] = values.sum(axis=0) / num_occurring
        metrics[f"{name}_weighted"] = (values * as_label).sum(axis=0) / num_examples
    return metrics, per_class


def _rank_metrics(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Macro ROC-AUC and average precision, each over the classes that a resample can rank."""
    roc_auc = np.zeros(weights.shape[1])
    average_precision, num_ranked = np.zeros_like(roc_auc), np.zeros_like(roc_auc)
    for label in ranked_classes(labels, probabilities.shape[1]):
        is_class = labels == label
        area, precision, ranked = _rank_one_class(is_class, probabilities[:, label], weights)
        roc_auc += np.where(ranked, area, 0.0)
        average_precision += np.where(ranked, precision, 0.0)
        num_ranked += ranked
    with np.errstate(invalid="ignore"):
        return {
            "roc_auc_macro": roc_auc / num_ranked,
            "average_precision_macro": average_precision / num_ranked,
        }


def _rank_one_class(
    is_class: np.ndarray, scores: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ROC-AUC, average precision and whether both are defined, of one class against the rest.

    The examples are sorted by falling score and cut into the levels g at which equal scores hold a positive. With
    ``p_g`` and ``t_g`` the weight of positives and negatives at a level, ``b_g`` that of the negatives between it and
    the level above, and ``TP_g``, ``FP_g`` the weights down to and including it::

        ROC-AUC = 1/(P N) sum_g p_g (N - FP_g + t_g / 2)        AP = 1/P sum_g p_g TP_g / (TP_g + FP_g)
    """
    order = np.argsort(-scores, kind="stable")
    positive, falling = is_class[order], scores[order]
    tie = np.concatenate([[0], np.cumsum(falling[1:] != falling[:-1])])
    has_positive = np.bincount(tie, weights=positive) > 0
    level_of_tie: np.ndarray = np.cumsum(has_positive) - has_positive
    num_levels = int(np.count_nonzero(has_positive))
    level: np.ndarray = level_of_tie[tie]
    part = np.where(positive, 0, np.where(has_positive[tie], 1, 2))
    sums = _sums(part * (num_levels + 1) + level, order, 3 * (num_levels + 1), weights)
    positives, ties, between = sums.reshape(3, num_levels + 1, -1)
    false_positives = np.cumsum(ties + between, axis=0)
    num_negatives = false_positives[-1]
    true_positives = np.cumsum(positives, axis=0)
    num_positives = true_positives[-1]
    ranked = (num_positives > 0) & (num_negatives > 0)
    area = np.einsum("gr,gr->r", positives, num_negatives - false_positives + 0.5 * ties)
    precision = np.einsum("gr,gr->r", positives, _ratio(true_positives, true_positives + false_positives))
    return _ratio(area, num_positives * num_negatives), _ratio(precision, num_positives), ranked


def _probability_metrics(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray, num_bins: int
) -> dict[str, np.ndarray]:
    """Log-loss, Brier score and expected calibration error: means over examples, and sums over bins."""
    num_examples = len(labels)
    squared = np.square(probabilities).sum(axis=1) - 2.0 * probabilities[np.arange(num_examples), labels] + 1.0
    confidence = probabilities.max(axis=1)
    surplus = (probabilities.argmax(axis=1) == labels) - confidence
    in_bin = confidence_bins(confidence, num_bins)[None, :] == np.arange(num_bins)[:, None]
    rows = np.concatenate([[true_class_loss(labels, probabilities), squared], in_bin * surplus])
    means = rows @ weights.astype(np.float64) / num_examples
    return {
        "log_loss": means[0],
        "brier": means[1],
        "expected_calibration_error": np.abs(means[2:]).sum(axis=0),
    }


def _sums(rows: np.ndarray, examples: np.ndarray, num_rows: int, weights: np.ndarray) -> np.ndarray:
    """Add up the weights of `examples` ``[entry]`` into `rows` ``[entry]``: float64 ``[num_rows, resample]``.

    Weights are whole numbers and their sums stay below 2**24, so float32 adds them exactly.
    """
    ones = np.ones(len(rows), dtype=np.float32)
    matrix = csr_array((ones, (rows, examples)), shape=(num_rows, len(weights)))
    sums: np.ndarray = (matrix @ weights).astype(np.float64)
    return sums


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divide, with 0 where there is nothing to divide by."""
    ratio: np.ndarray = np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)
    return ratio
